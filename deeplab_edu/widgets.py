"""The parts that explorers are made of: a picture to pick a pixel in, and a panel of controls over pictures."""

import base64
import html
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib as mpl
import traitlets
from ipywidgets import HTML, HBox, Layout, VBox, Widget
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from deeplab_edu.data.labels import IGNORE_INDEX, LabelSet
from deeplab_edu.figures import STYLE

HERE = Path(__file__).resolve().parent
DPI = 96  # CSS pixels an inch
STILL_DPI = 72  # of what a saved notebook keeps, which must stay small
# JupyterLab hands a widget's events to a second thread of the kernel, and two threads cannot both use matplotlib's
# settings, or set a model's output stride.
ONE_AT_A_TIME = threading.RLock()
WRAP = Layout(display="flex", flex_flow="row wrap", align_items="flex-start", width="100%")


class ClickImage(anywidget.AnyWidget):
    """A picture in which `pixel` (row, column) is picked: by clicking, dragging, arrow keys, or shift and arrow keys.

    The pickable part is `area` (left, top, width, height as fractions of the image) and holds `extent` (rows,
    columns) pixels; with an empty `area` it is only a picture. `alt` is what a screen reader says.
    """

    _esm = HERE / "click_image.js"
    _css = HERE / "click_image.css"
    png = traitlets.Bytes(b"").tag(sync=True)
    pixel = traitlets.List(traitlets.Int(), [0, 0], minlen=2, maxlen=2).tag(sync=True)
    extent = traitlets.List(traitlets.Int(), [1, 1], minlen=2, maxlen=2).tag(sync=True)
    area = traitlets.List(traitlets.Float(), []).tag(sync=True)
    step = traitlets.Int(10).tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)

    @traitlets.validate("pixel")
    def _inside(self, proposal: Any) -> list[int]:
        return [min(max(0, n), count - 1) for n, count in zip(proposal["value"], self.extent)]

    def show(self, alt: str, size: tuple[float, float], draw: Callable[[Axes], object], **place: Any) -> None:
        """Let `draw` draw into axes, and show them; `size` in inches, `place` as for `axes_for`.

        Where a pixel can be picked, the axes' first picture is where.
        """
        with mpl.rc_context(STYLE):
            figure, ax = axes_for(size, **place)
            draw(ax)
            png = png_of(figure)
        with self.hold_sync():
            if self.extent != [1, 1]:
                self.area = area_of(ax, *self.extent)
            self.png, self.alt = png, alt


def axes_for(
    size: tuple[float, float], *, left: float = 0.03, bottom: float = 0.03, top: float = 0.3
) -> tuple[Figure, Axes]:
    """A figure of `size` inches and its axes, with margins in inches: a layout engine would cost 50 ms a redraw."""
    figure = Figure(size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width, height = size
    place = (left / width, bottom / height, 1 - (left + 0.03) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(place)


def png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})  # small enough, and quick
    return buffer.getvalue()


def area_of(ax: Axes, rows: int, columns: int) -> list[float]:
    """Where in the drawn figure the pixels lie: left, top, width, height as fractions."""
    corners = ax.transData.transform([(-0.5, -0.5), (columns - 0.5, rows - 0.5)])
    (left, top), (right, bottom) = ax.figure.transFigure.inverted().transform(corners)
    return [float(n) for n in (left, 1 - top, right - left, top - bottom)]


class Panel(VBox):
    """Controls over pictures, and a line of text; where there is no kernel, a still picture stands in for it.

    `redraw` shows its pictures anew and returns the line (HTML); it is called now, and whenever a control changes
    its value or a pixel is picked, but not for what it changes itself. An error that is the reader's (ValueError) is
    said in the line.
    """

    def __init__(
        self, controls: Sequence[Widget], pictures: Sequence[ClickImage], redraw: Callable[[], str]
    ) -> None:
        self.pictures, self._redraw, self.line, self.drawing = list(pictures), redraw, HTML(), False
        self.line.add_class("deeplab-line")
        super().__init__([HBox(list(controls), layout=WRAP), HBox(list(pictures), layout=WRAP), self.line])
        self.add_class("deeplab-panel")
        for widget in controls:
            if widget.has_trait("value"):
                widget.observe(self.update, "value")
        for picture in pictures:
            picture.observe(self.update, "pixel")
        self.update()

    def redraw(self) -> str:
        with ONE_AT_A_TIME:
            return self._redraw()

    def update(self, _: object = None) -> None:
        with ONE_AT_A_TIME:
            if (
                self.drawing
            ):  # a change that the drawing itself makes; another thread's waits at the line above
                return
            self.drawing = True
            try:
                self.line.value = self.redraw()
            except ValueError as error:
                self.line.value = f"<b style='color:#a34700'>{html.escape(str(error))}</b>"
            finally:
                self.drawing = False

    def still(self) -> bytes:
        """A PNG of all pictures side by side, for notebooks that are saved."""
        shown = [Image.open(io.BytesIO(p.png)).convert("RGB") for p in self.pictures]
        whole = Image.new("RGB", (sum(i.width for i in shown), max(i.height for i in shown)), "white")
        left = 0
        for image in shown:
            whole.paste(image, (left, 0))
            left += image.width
        scale = STILL_DPI / DPI
        whole = whole.resize(
            (round(scale * whole.width), round(scale * whole.height)), Image.Resampling.LANCZOS
        )
        buffer = io.BytesIO()
        whole.save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["image/png"] = base64.b64encode(self.still()).decode()
        data["text/plain"] = "An explorer; run this cell to use it. " + "; ".join(
            p.alt for p in self.pictures
        )
        return bundle


def slider(name: str, value: float, low: float, high: float, step: float = 1, *, live: bool = True) -> Widget:
    """Of whole numbers, if `step` is one. If not `live` it tells its value when it is let go, for slow redraws."""
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return kind(
        value,
        min=low,
        max=high,
        step=step,
        description=name,
        continuous_update=live,
        readout_format="d" if isinstance(step, int) else ".1f",
        layout=Layout(width="238px"),
        style={"description_width": "96px"},
    )


def choice(name: str, options: Any, value: Any) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(
        options=options,
        value=value,
        description=name,
        layout=Layout(width="290px"),
        style={"description_width": "100px"},
    )


def tick(name: str, value: bool) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(
        value, description=name, indent=False, layout=Layout(width="auto", margin="2px 16px")
    )


def class_key(labels: LabelSet, *masks: Tensor) -> str:
    """HTML: colour and name of each class in the label maps (H, W)."""
    present = sorted({int(i) for mask in masks for i in mask.unique()} - {IGNORE_INDEX})
    square = "<i class='deeplab-color' style='background:rgb{}'></i>"
    return " ".join(f"<span>{square.format(labels.colors[i])} {labels.names[i]}</span>" for i in present)
