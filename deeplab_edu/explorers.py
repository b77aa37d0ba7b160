"""What moves: live displays in a notebook, wired around the pure functions of `figures` and `field_figures`.

An explorer is a panel of controls over pictures. It traces its models once and keeps the graphs, so that a redraw
takes a fraction of a second. The widgets are imported when the first explorer is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from deeplab_edu.cost import cost
from deeplab_edu.crf import PRESETS, DenseCRF
from deeplab_edu.data.augment import normalize
from deeplab_edu.data.labels import IGNORE_INDEX, LabelSet
from deeplab_edu.field_figures import (
    Box,
    draw_costs,
    draw_field,
    draw_tap_grid,
    draw_units,
    draw_weights,
    largest_gap,
    stack_counts,
    weight_places,
)
from deeplab_edu.figures import (
    draw_errors,
    draw_history,
    draw_image,
    draw_labels,
    draw_overlay,
    draw_taps,
)
from deeplab_edu.inference import segment
from deeplab_edu.models import build_model
from deeplab_edu.models.deeplab_v2 import STRIDE
from deeplab_edu.models.layers import crop, on_grid, to_size
from deeplab_edu.receptive_field import Field, SpatialGraph, effective_field, gaussian_fit, valid_weights
from deeplab_edu.training import History

if TYPE_CHECKING:
    from deeplab_edu.widgets import Panel


def live_curve(title: str, *, quiet: bool = False) -> Callable[[History], None] | None:
    """A loss curve that grows while `fit` trains: pass it as `watch`. None outside a notebook, or if `quiet`.

    When the run ends, the finished curve stays in the notebook as a picture.
    """
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    if quiet or get_ipython() is None:
        return None
    shown: list[
        Any
    ] = []  # figure, axes and display, made at the first call: a run that is loaded draws nothing

    def update(history: History) -> None:
        if not shown:
            figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
            plt.close(figure)  # else the notebook shows it a second time at the end of the cell
            shown.extend([figure, ax, display(figure, display_id=True)])
        figure, ax, handle = shown
        ax.clear()
        draw_history(ax, {"": history}, f"{title}: step {history.steps[-1]}, loss {history.loss[-1]:.2f}")
        handle.update(figure)

    return update


def photograph(size: int) -> Tensor:
    """(3, size, size) uint8: a photograph that matplotlib brings along, Grace Hopper in uniform."""
    with open(get_sample_data("grace_hopper.jpg", asfileobj=False), "rb") as file:
        return as_picture(file.read(), size)


def as_picture(content: bytes, size: int) -> Tensor:
    """(3, size, size) uint8 from a picture file: its middle square. Raises ValueError if it is no picture."""
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("this file is no picture that can be read; choose a JPEG or PNG") from error
    return pil_to_tensor(ImageOps.fit(picture, (size, size)))


# --- a stack of convolutions ---------------------------------------------------------------------------

STACKS = {
    "your own": None,
    "plain: 1 1 1": (1, 1, 1),
    "gridding: 2 2 2": (2, 2, 2),
    "growing: 1 2 4": (1, 2, 4),
    "hybrid: 1 2 5": (1, 2, 5),
    "too far: 1 2 9": (1, 2, 9),
    "exactly once: 1 3 9": (1, 3, 9),
}


def explore_taps(rates: Sequence[int] = (2, 2, 2), kernel: int = 3, stride: int = 1) -> Panel:
    """Which pixels a stack of up to four convolutions reads: layers, kernel, stride, and the rate of each layer."""
    from deeplab_edu.widgets import ClickImage, Panel, choice, slider

    preset = choice(
        "rates", list(STACKS), next((n for n, r in STACKS.items() if r == tuple(rates)), "your own")
    )
    layers = slider("layers", len(rates), 1, 4)
    size, step = slider("kernel", kernel, 2, 5), slider("stride", stride, 1, 2)
    own = [slider(f"rate, layer {i + 1}", r, 1, 12) for i, r in enumerate([*rates, *[1] * 4][:4])]
    tree, grid = ClickImage(), ClickImage()

    last = {"preset": preset.value}

    def redraw() -> str:
        chosen = STACKS[preset.value]
        if chosen and preset.value != last["preset"]:
            layers.value = len(chosen)
            for control, rate in zip(own, chosen):
                control.value = rate
        for i, control in enumerate(own):
            control.disabled = i >= layers.value
        used = [control.value for control in own if not control.disabled]
        if chosen and chosen != tuple(used):
            preset.value = "your own"
        last["preset"] = preset.value
        return _show_stack(tree, grid, [(size.value, step.value, rate) for rate in used])

    return Panel([preset, layers, size, step, *own], [tree, grid], redraw)


def _show_stack(tree: Any, grid: Any, stack: list[tuple[int, int, int]]) -> str:
    counts = stack_counts(stack)
    seen, pixels = int((counts > 0).sum()), counts.numel()
    side = len(counts)
    words = f"reads {seen:,} of the {pixels:,} pixels of its {side} x {side} window ({seen / pixels:.0%})"
    tree.show(
        f"Lines from a unit down to the pixels that it reads. It {words}.",
        (4.1, 3.75),
        lambda ax: draw_taps(ax, stack, "along one axis"),
        left=0.65,
        bottom=0.5,
    )
    grid.show(
        f"The window of the unit, brighter the more paths lead to a pixel. It {words}.",
        (3.5, 3.75),
        lambda ax: draw_tap_grid(ax, counts, f"{seen:,} of {pixels:,} pixels"),
    )
    kernel, stride, _ = stack[0]
    return f"A unit <b>{words}</b>.{criterion([rate for *_, rate in stack], kernel, stride, seen == pixels)}"


def criterion(rates: Sequence[int], kernel: int, stride: int, full: bool) -> str:
    """A sentence that holds the criterion of hybrid dilation against what is the case."""
    if stride > 1 or len(rates) < 2:
        return ""
    gap = largest_gap(rates)
    passes = gap <= kernel
    verdict = "which is right" if passes == full else "which is <b>wrong</b>"
    return (
        f" The criterion M2 &le; kernel ({gap} {'&le;' if passes else '&gt;'} {kernel}) says "
        f"{'no holes' if passes else 'holes'}, {verdict}."
    )


# --- a pixel of a picture ------------------------------------------------------------------------------


def follow(views: Sequence[Any], before: list[int]) -> list[int]:
    """Pick in all views the pixel that was picked in one of them; `before` is where they were."""
    moved = next((view.pixel for view in views if view.pixel != before), before)
    for view in views:
        view.pixel = moved
    return moved


class Lens:
    """What the units of one layer of a model see, at one size of image; the layer is the output unless named."""

    def __init__(self, model: nn.Module, size: tuple[int, int], layer: str | None = None) -> None:
        self.model, self.size, self.layer = model, size, layer
        self.graph = SpatialGraph(model, size)
        self.map_size = self.graph.map_size(layer)
        self.windows: list[Field | None] = [
            None,
            None,
        ]  # of unit 0 along rows and columns, where units do not differ
        try:
            found = zip(*self.graph.receptive_field(layer))
            self.windows = [Field(*axis) if None not in axis else None for axis in found]  # type: ignore[arg-type]
        except ValueError:  # behind a layer that resizes
            pass

    def unit_at(self, pixel: Sequence[int]) -> tuple[int, int]:
        """The unit whose window is centred nearest to the pixel."""
        return self._unit(0, pixel[0]), self._unit(1, pixel[1])

    def _unit(self, axis: int, pixel: int) -> int:
        units, pixels, window = self.map_size[axis], self.size[axis], self.windows[axis]
        place = pixel * (units - 1) / max(1, pixels - 1)
        if window:
            place = (pixel - window.center) / window.stride
        return min(max(0, round(place)), units - 1)

    def box(self, unit: tuple[int, int], taps: Tensor) -> Box:
        """The theoretical window, or, where units differ, the smallest box around what the unit reads."""
        down, across = self.windows
        if down and across:
            top, left = (i * window.stride - window.padding for i, window in zip(unit, (down, across)))
            return Box(top, left, down.size, across.size)
        rows, columns = (taps.any(1 - axis).nonzero()[:, 0] for axis in (0, 1))
        if not len(rows):
            return Box(0, 0, 0, 0)
        top, left = int(rows[0]), int(columns[0])
        return Box(top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1)

    def effective(self, image: Tensor, unit: tuple[int, int]) -> Tensor | None:
        """How much each pixel matters; None for a model without weights (on the meta device)."""
        if any(p.is_meta for p in self.model.parameters()):
            return None
        device = next(self.model.parameters()).device
        images = normalize(image)[None].to(device)
        return effective_field(self.model, images, unit, self.layer).float().cpu()


def explore_field(
    models: Mapping[str, nn.Module | tuple[nn.Module, str]],
    image: Tensor | None = None,
    size: int = 128,
    pixel: tuple[int, int] | None = None,
) -> Panel:
    """What the unit over a clicked pixel sees, in one model or in several side by side.

    `models` maps a name to a model, or to a model and the layer to look at. `image` (3, H, W) uint8 is at first a
    photograph of `size` pixels; the reader can open another. Models without weights show no effective field.
    """
    from ipywidgets import FileUpload, Layout

    from deeplab_edu.widgets import ClickImage, Panel, tick

    picture = {"now": photograph(size) if image is None else image}
    rows, columns = picture["now"].shape[1:]
    pairs = {name: m if isinstance(m, tuple) else (m, None) for name, m in models.items()}
    lenses = {name: Lens(model, (rows, columns), layer) for name, (model, layer) in pairs.items()}
    start = list(pixel or (rows // 2, columns // 2))
    views = [ClickImage(extent=[rows, columns], pixel=start) for _ in lenses]
    shown = {
        "taps": tick("pixels that are read", True),
        "field": tick("effective field", True),
        "box": tick("theoretical window", True),
    }
    upload = FileUpload(accept="image/*", description="your picture", layout=Layout(width="150px"))
    last = {"pixel": start}

    def redraw() -> str:
        if upload.value:
            content, upload.value = bytes(upload.value[0]["content"]), ()
            picture["now"] = (
                as_picture(content, rows)
                if rows == columns
                else as_picture(content, max(rows, columns))[:, :rows, :columns]
            )
        last["pixel"] = moved = follow(views, last["pixel"])
        lines = [
            _show_view(view, name, lens, picture["now"], shown)
            for view, (name, lens) in zip(views, lenses.items())
        ]
        return f"Pixel (row {moved[0]}, column {moved[1]}).<br>" + "<br>".join(lines)

    return Panel([*shown.values(), upload], views, redraw)


def smooth(field: Tensor) -> Tensor:
    """Averages over a few neighbours: on one picture max pooling lets single pixels through, like salt."""
    kernel = 2 * (max(field.shape) // 80) + 1
    return F.avg_pool2d(field[None, None], kernel, 1, kernel // 2, count_include_pad=False)[0, 0]


def _show_view(view: Any, name: str, lens: Lens, image: Tensor, shown: Mapping[str, Any]) -> str:
    unit = lens.unit_at(view.pixel)
    taps = lens.graph.tap_map(unit, lens.layer)
    box = lens.box(unit, taps)
    field = lens.effective(image, unit) if shown["field"].value else None
    words = f"window {box.rows} x {box.columns} px, reads {int(taps.sum()):,} of the picture's {taps.numel():,} pixels"
    if field is not None and field.sum() > 0:
        spread = gaussian_fit(field).sigma
        words += f"; standard deviation of what matters {spread[0]:.0f} x {spread[1]:.0f} px"
    elif shown["field"].value:
        words += (
            "; no effective field without weights" if field is None else "; nothing in the picture moves it"
        )
    view.show(
        f"{name}: what the unit over the pixel sees; {words}",
        (3.85, 4.1),
        lambda ax: draw_field(
            ax,
            image,
            taps if shown["taps"].value else None,
            field=None if field is None else smooth(field),
            box=box if shown["box"].value else None,
            unit=tuple(view.pixel),
            margin=max(taps.shape) // 6,
            title=f"{name}, unit {unit}",
        ),
    )
    return f"<b>{name}</b>: {words}."


# --- ASPP, and what its output stride costs ------------------------------------------------------------


@cache
def deeplab_v3(output_stride: int, rates: tuple[int, ...] = (6, 12, 18)) -> nn.Module:
    """DeepLab v3 with ResNet-50 on the meta device: it has no weights, only a structure. `rates` at stride 16."""
    with torch.device("meta"):
        return build_model("deeplab_v3", backbone="resnet50", output_stride=output_stride, rates=rates)


RATES = {"6 12 18 (paper)": (6, 12, 18), "3 6 9": (3, 6, 9), "12 24 36": (12, 24, 36), "1 2 3": (1, 2, 3)}
THIRD = 3  # pictures of ASPP are drawn at a third of their size


class Branches:
    """The branches of ASPP in a `deeplab_v3`, traced at one size of image: what a clicked pixel gets from each."""

    def __init__(self, output_stride: int, rates: tuple[int, ...], size: int) -> None:
        model = deeplab_v3(output_stride, rates)
        self.graph, self.stride, self.size = SpatialGraph(model, (size, size)), output_stride, size
        layers = [
            "head.branches.0",
            *(f"head.branches.{i + 1}" for i in range(len(rates))),
            "head.image_pooling",
        ]
        used = [0, *(max(1, rate * 16 // output_stride) for rate in rates), None]
        self.rates = dict(zip(layers, used))

    def unit_at(self, layer: str, pixel: Sequence[int]) -> tuple[int, int]:
        rows, columns = self.graph.map_size(layer)
        return min(round(pixel[0] / self.stride), rows - 1), min(round(pixel[1] / self.stride), columns - 1)

    def title(self, layer: str, pixel: Sequence[int]) -> str:
        """What the unit over `pixel` gets from the branch, in words."""
        rate = self.rates[layer]
        if not rate:
            return "image mean: every pixel" if rate is None else "1x1: one weight"
        valid = int(valid_weights(self.graph.map_size(layer), rate)[self.unit_at(layer, pixel)])
        return f"rate {rate}: {valid} of 9 weights"

    def draw(self, ax: Any, layer: str, image: Tensor, pixel: Sequence[int]) -> None:
        """The same as a picture: `image` at a third of its size, path counts, and the places of the weights."""
        unit, rate, margin = self.unit_at(layer, pixel), self.rates[layer], self.size // 4
        paths = self.graph.tap_map(unit, layer, counts=True)
        coarse = F.avg_pool2d(paths[None, None], THIRD)[0, 0] ** 2  # whose root is drawn
        center = (unit[0] * self.stride, unit[1] * self.stride)
        title = self.title(layer, pixel)
        draw_field(ax, image, field=coarse, unit=center, margin=margin, scale=THIRD, title=title)
        if rate:
            draw_weights(ax, weight_places(center, rate * self.stride), (self.size, self.size), margin)


def explore_aspp(image: Tensor | None = None, size: int = 513, pixel: tuple[int, int] | None = None) -> Panel:
    """What each branch of DeepLab v3's ASPP contributes at a clicked pixel: its weights on the picture and off it.

    `image` (3, size, size) uint8, by default a photograph. Orange is brighter the more paths lead to a pixel.
    """
    from deeplab_edu.widgets import ClickImage, Panel, choice

    picture = photograph(size) if image is None else image
    small = F.avg_pool2d(picture.float(), THIRD)
    size = picture.shape[1]
    stride = choice("output stride", [8, 16, 32], 16)
    rates = choice("rates", list(RATES), next(iter(RATES)))
    start = list(pixel or (size // 2, size // 2))
    views = [ClickImage(extent=[size, size], pixel=start, step=stride.value) for _ in range(5)]
    last = {"pixel": start}
    branches = cache(Branches)
    for output_stride in (8, 16, 32):  # traced now, so that a moved control is answered at once
        branches(output_stride, RATES[rates.value], size)

    def redraw() -> str:
        last["pixel"] = follow(views, last["pixel"])
        now = branches(stride.value, RATES[rates.value], size)
        said = [now.title(layer, last["pixel"]) for layer in now.rates]
        for i, (view, layer) in enumerate(zip(views, now.rates)):
            view.step = stride.value
            draw = partial(now.draw, layer=layer, image=small, pixel=view.pixel)
            view.show(f"ASPP branch {i + 1} of 5 at the chosen pixel: {said[i]}", (2.45, 2.72), draw)
        row, column = last["pixel"]
        units = now.graph.map_size("head")
        return (
            f"Pixel (row {row}, column {column}) on a map of {units[0]} x {units[1]} units. <b>{'; '.join(said)}</b>. "
            "Rings: weights that meet the map; crosses: weights that meet zeros."
        )

    return Panel([stride, rates], views, redraw)


def explore_output_stride(
    build: Callable[[int], nn.Module] = deeplab_v3,
    strides: Sequence[int] = (32, 16, 8),
    image: Tensor | None = None,
) -> Panel:
    """What a finer output stride costs in work and memory, and what it buys: units on the picture.

    `build` makes the model for an output stride; on the meta device it takes no time. `image` (3, H, W) uint8.
    """
    from deeplab_edu.widgets import ClickImage, Panel, choice

    stride = choice("output stride", list(strides), strides[len(strides) // 2])
    sides = [257, 321, 513, 769]
    size = choice("image side, px", sides, 513)
    units, bars = ClickImage(), ClickImage()
    costs = cache(lambda stride, size: cost(build(stride), (size, size)))
    for pair in product(strides, sides):  # a second now, so that a moved control is answered at once
        costs(*pair)

    @cache
    def picture(side: int) -> Any:
        return photograph(side) if image is None else ImageOps.fit(to_pil_image(image), (side, side))

    def redraw() -> str:
        side, chosen = size.value, f"stride {stride.value}"
        found = {f"stride {s}": costs(s, side) for s in strides}
        per_side = -(-side // stride.value)
        words = f"{per_side} x {per_side} units on {side} x {side} pixels"
        units.show(
            f"{chosen}: {words}", (3.6, 3.87), lambda ax: draw_units(ax, picture(side), stride.value, words)
        )
        flops, kept = found[chosen]
        first = found[f"stride {strides[0]}"]
        said = (
            f"{chosen}: a forward pass takes {flops / 1e9:,.0f} GFLOP ({flops / first.flops:.1f} times stride "
            f"{strides[0]}), training keeps {kept / 2**20:,.0f} MiB an image ({kept / first.kept_bytes:.1f} times)"
        )
        bars.show(
            said,
            (4.1, 3.87),
            lambda ax: draw_costs(ax, found, chosen, "work (blue), memory in training (orange)"),
            left=0.75,
        )
        return f"<b>{said}</b>."

    return Panel([stride, size], [units, bars], redraw)


# --- the dense CRF -------------------------------------------------------------------------------------

# Inches: four and three beside each other where JupyterLab's side bar leaves 770 px of a window's 1200.
THUMBNAIL, PICTURE = (1.9, 2.15), (2.55, 2.8)
CRF_SLIDERS = {  # lowest, highest, step
    "w1": (0, 12, 0.5),
    "theta_alpha": (1, 60, 1.0),
    "theta_beta": (1, 60, 1.0),
    "w2": (0, 12, 0.5),
    "theta_gamma": (0.5, 10, 0.5),
    "iterations": (0, 15, 1),
}


def explore_crf(image: Tensor, probabilities: Tensor, labels: LabelSet, start: DenseCRF) -> Panel:
    """Sliders for the parameters of a dense CRF, and what it makes of `probabilities` (C, H, W) on `image`.

    `image` is (3, H, W) uint8. Values of `start` beyond a slider are moved to its end.
    """
    from deeplab_edu.widgets import ClickImage, Panel, choice, class_key, slider

    controls: dict[str, Any] = {}
    for name, (low, high, step) in CRF_SLIDERS.items():
        value = min(max(getattr(start, name), low), high)
        controls[name] = slider(name, value, low, high, step, live=False)
    controls["normalization"] = choice("K' is", ["after", "symmetric"], start.normalization)
    views = [ClickImage() for _ in range(4)]
    before = probabilities.argmax(0)
    views[0].show("picture", THUMBNAIL, lambda ax: draw_image(ax, image, "picture"))
    views[1].show("labels of the network", THUMBNAIL, lambda ax: draw_labels(ax, before, labels, "network"))

    def redraw() -> str:
        crf = DenseCRF(**{name: control.value for name, control in controls.items()})
        after = crf.refine(image, probabilities).argmax(0)
        words = f"{(before != after).float().mean().item():.1%} of the labels change"
        views[2].show(
            f"labels after the CRF: {words}",
            THUMBNAIL,
            lambda ax: draw_labels(ax, after, labels, "after the CRF"),
        )
        views[3].show(f"where: {words}", THUMBNAIL, lambda ax: draw_errors(ax, after, before, "changed"))
        return f"<b>{words}</b>. {class_key(labels, before, after)}"

    return Panel([*controls.values()], views, redraw)


# --- the decoder of DeepLab v3+ ------------------------------------------------------------------------


def explore_decoder(v3: nn.Module, v3plus: nn.Module, scenes: Any, pictures: int = 12) -> Panel:
    """Two trained networks, v3 without and v3+ with a decoder: labels at three output strides, low-level channels cut.

    `scenes` is a data set of (image, mask) with `.labels`; its first `pictures` can be leafed through.
    """
    from deeplab_edu.widgets import ClickImage, Panel, choice, slider, tick

    all_channels = v3plus.low_level[0].out_channels  # type: ignore[index, union-attr]
    decoder = tick("decoder", True)
    stride = choice("output stride", [8, 16, 32], 16)
    channels = slider("low-level", all_channels, 0, all_channels, live=False)
    number = slider("scene", 0, 0, min(pictures, len(scenes)) - 1, live=False)
    views = [ClickImage() for _ in range(3)]

    def redraw() -> str:
        channels.disabled = not decoder.value
        model, cut = (v3plus, channels.value) if decoder.value else (v3, None)
        with switched(model, stride.value, cut):
            prediction = most_probable(model, scenes[number.value][0])
        name = f"v3+ with {cut} of {all_channels} low-level channels" if decoder.value else "v3, no decoder"
        return _show_labels(views, scenes, number.value, prediction, f"{name}, output stride {stride.value}")

    return Panel([decoder, stride, channels, number], views, redraw)


def _show_labels(views: Sequence[Any], scenes: Any, number: int, prediction: Tensor, by: str) -> str:
    """A scene, the labels (H, W) that `by` gives it, and where these are wrong; says how many are."""
    from deeplab_edu.widgets import class_key

    image, target = scenes[number]
    wrong = (prediction != target)[target != IGNORE_INDEX].float().mean().item()
    words = f"{by}: {wrong:.1%} of the pixels are wrong"
    views[0].show(f"scene {number}", PICTURE, lambda ax: draw_image(ax, image, f"scene {number}"))
    views[1].show(
        f"labels by {words}", PICTURE, lambda ax: draw_labels(ax, prediction, scenes.labels, "labels")
    )
    views[2].show(f"where: {words}", PICTURE, lambda ax: draw_errors(ax, prediction, target, "wrong"))
    return f"<b>{words}</b>. {class_key(scenes.labels, prediction, target)}"


@contextmanager
def switched(model: nn.Module, output_stride: int, channels: int | None = None) -> Iterator[None]:
    """Inside, v3 or v3+ has this output stride, and v3+'s decoder sees its first low-level `channels`, zeros after."""

    def cut(_: nn.Module, __: Any, low: Tensor) -> Tensor:
        return torch.cat([low[:, :channels], torch.zeros_like(low[:, channels:])], 1)

    before = model.output_stride
    hook = model.low_level.register_forward_hook(cut) if channels is not None else None  # type: ignore[union-attr]
    try:
        model.set_output_stride(output_stride)  # type: ignore[operator]
        yield
    finally:
        model.set_output_stride(before)  # type: ignore[operator]
        if hook:
            hook.remove()


@torch.inference_mode()
def most_probable(model: nn.Module, image: Tensor) -> Tensor:
    """The most probable class of each pixel (H, W), for an image (3, H, W) uint8."""
    device = next(model.parameters()).device
    return model.eval()(normalize(image)[None].to(device))[0].argmax(0).cpu()


# --- the branches of a trained DeepLab v2 --------------------------------------------------------------


def explore_branches(model: nn.Module, scenes: Any, pictures: int = 12) -> Panel:
    """Switch the branches of a trained DeepLab v2 off and on: what is left of its labels?

    `scenes` is a data set of (image, mask) with `.labels`; its first `pictures` can be leafed through.
    """
    from deeplab_edu.widgets import ClickImage, Panel, slider, tick

    convolutions = [next(m for m in b.modules() if isinstance(m, nn.Conv2d)) for b in model.aspp]  # type: ignore[union-attr]
    switches = [tick(f"rate {convolution.dilation[0]}", True) for convolution in convolutions]
    number = slider("scene", 0, 0, min(pictures, len(scenes)) - 1)
    views = [ClickImage() for _ in range(3)]
    scores = cache(lambda index: branch_scores(model, scenes[index][0]))

    def redraw() -> str:
        used = [switch.value for switch in switches]
        prediction = scores(number.value)[used].sum(0).argmax(0)
        return _show_labels(views, scenes, number.value, prediction, f"{sum(used)} of {len(used)} branches")

    return Panel([*switches, number], views, redraw)


@torch.inference_mode()
def branch_scores(model: nn.Module, image: Tensor) -> Tensor:
    """What each branch of a DeepLab v2 says: (branches, classes, H, W); their sum are the model's logits."""
    images = normalize(image)[None].to(next(model.parameters()).device)
    padded = on_grid(images, STRIDE)
    features = model.eval().backbone(padded)[-1]  # type: ignore[operator]
    maps = [crop(to_size(branch(features), padded), images)[0] for branch in model.aspp]  # type: ignore[union-attr]
    return torch.stack(maps).float().cpu()


# --- your own photograph -------------------------------------------------------------------------------

Network = tuple[nn.Module | Callable[[], nn.Module], LabelSet]
LONGEST = 256  # px of a photograph's longer side
LIKELIEST = "the pixel's class"
OFFICIAL = "torchvision's DeepLab v3 (downloads 161 MB)"


def official() -> nn.Module:
    """DeepLab v3 with ResNet-50 and torchvision's weights (COCO pictures, VOC's 21 classes), downloaded once.

    Raises ValueError in one sentence where they cannot be had.
    """
    try:
        return build_model("deeplab_v3", compat="torchvision", weights="coco").eval()
    except (OSError, RuntimeError) as error:  # no network; a checksum that is wrong
        raise ValueError(
            f"torchvision's weights could not be downloaded ({error}). Choose another network, which needs no "
            "download, or connect this machine and choose this one again."
        ) from error


def fitted_picture(source: bytes | str | Path, longest: int = LONGEST) -> Tensor:
    """(3, H, W) uint8: a picture file, given as its bytes or its path, resized so that its longer side is `longest`.

    Raises ValueError if there is no such file, or if it is no picture.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else Path(source).expanduser()
        picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {error.filename} (paths begin at {Path.cwd()})") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("this file is no picture that can be read; choose a JPEG or PNG") from error
    scale = longest / max(picture.size)
    width, height = (max(16, round(scale * side)) for side in picture.size)
    return pil_to_tensor(picture.resize((width, height), Image.Resampling.LANCZOS))


class Reading:
    """What one network says about one picture: probabilities (C, H, W), after a dense CRF too, and what units see."""

    def __init__(self, model: nn.Module, labels: LabelSet, image: Tensor) -> None:
        self.labels, self.image = labels, image
        self.lens = Lens(model, (image.shape[1], image.shape[2]))
        self.before = segment(model, image)
        self.refined: Tensor | None = None

    def probabilities(self, crf: bool) -> Tensor:
        """The network's own, or refined by DeepLab v1's CRF, whose widths in pixels follow the picture's size."""
        if not crf:
            return self.before
        if self.refined is None:
            preset, factor = PRESETS["v1"], max(self.image.shape) / 500  # the papers' pictures have 500 px
            widths = {name: getattr(preset, name) * factor for name in ("theta_alpha", "theta_gamma")}
            self.refined = replace(preset, **widths).refine(self.image, self.before)
        return self.refined

    def sentence(self, pixel: Sequence[int], crf: bool) -> str:
        """What is said of the pixel and of the whole picture, in words."""
        now, (row, column) = self.probabilities(crf), pixel
        order = now[:, row, column].argsort(descending=True)[:2].tolist()
        here = ", ".join(f"{self.labels.names[i]} {now[i, row, column]:.0%}" for i in order)
        shares = now.argmax(0).flatten().bincount(minlength=len(now)) / now[0].numel()
        largest = [i for i in shares.argsort(descending=True)[:4].tolist() if shares[i] > 0]
        areas = ", ".join(f"{self.labels.names[i]} {shares[i]:.0%}" for i in largest)
        changed = (now.argmax(0) != self.before.argmax(0)).float().mean()
        said = f" The CRF changed {changed:.1%} of the pixels." if crf else ""
        return f"Pixel (row {row}, column {column}): <b>{here}</b>. The picture: {areas}.{said}"

    def draw_labels(self, ax: Any, pixel: Sequence[int], crf: bool) -> None:
        draw_overlay(
            ax, self.image, self.probabilities(crf).argmax(0), self.labels, "labels over the picture"
        )
        for color, size in (("black", 5), ("white", 2)):
            ax.plot(pixel[1], pixel[0], "+", color=color, ms=10 + size, mew=size)

    def draw_heat(self, ax: Any, name: str, crf: bool) -> None:
        heat = self.probabilities(crf)[self.labels.names.index(name)].numpy()
        ax.imshow(heat, vmin=0, vmax=1, cmap="cividis")
        ax.set(xticks=[], yticks=[], title=f"{name}: 0 (dark) to 1 (yellow)")

    def draw_field(self, ax: Any, pixel: Sequence[int], effective: bool) -> None:
        unit = self.lens.unit_at(pixel)
        taps = self.lens.graph.tap_map(unit)
        field = self.lens.effective(self.image, unit) if effective else None
        center, margin = (float(pixel[0]), float(pixel[1])), max(taps.shape) // 8
        field = None if field is None else smooth(field)
        box = self.lens.box(unit, taps)
        title = f"reads {taps.float().mean():.0%} of the picture"
        draw_field(ax, self.image, taps, field=field, box=box, unit=center, margin=margin, title=title)


class Desk:
    """Networks and pictures by name; what a network says about a picture is computed when it is first asked."""

    def __init__(self, networks: Mapping[str, Network], pictures: Mapping[str, Tensor]) -> None:
        self.networks, self.pictures = dict(networks), dict(pictures)
        self.models: dict[str, nn.Module] = {}
        self.readings: dict[tuple[str, str], Reading] = {}

    def lay(self, name: str, image: Tensor) -> None:
        """Put a picture on it, in the place of one of the same name."""
        self.pictures[name] = image
        self.readings = {key: reading for key, reading in self.readings.items() if key[1] != name}

    def reading(self, network: str, picture: str) -> Reading:
        model, labels = self.networks[network]
        if network not in self.models:
            self.models[network] = model if isinstance(model, nn.Module) else model()
        key = (network, picture)
        if key not in self.readings:
            self.readings[key] = Reading(self.models[network], labels, self.pictures[picture])
        return self.readings[key]


def explore_photograph(
    networks: Mapping[str, Network], pictures: Mapping[str, Tensor] | None = None, longest: int = LONGEST
) -> Panel:
    """A network's labels, the probability of a class, and what the unit over a clicked pixel sees, on any picture.

    `networks` maps a name to a model and its classes; a function in a model's place is called when its name is
    chosen, as `official` is, which downloads. `pictures` maps a name to an image (3, H, W) uint8, by default a
    photograph; the reader can upload another, or name a file on the kernel's machine.
    """
    from ipywidgets import FileUpload, Layout, Text

    from deeplab_edu.widgets import ClickImage, Panel, choice, class_key, tick

    hopper = get_sample_data("grace_hopper.jpg", asfileobj=False)
    desk = Desk(networks, pictures or {"photograph": fitted_picture(hopper, longest)})
    network = choice("network", list(networks), next(iter(networks)))
    picture = choice("picture", list(desk.pictures), next(iter(desk.pictures)))
    heat = choice("heat map of", [LIKELIEST, *networks[network.value][1].names], LIKELIEST)
    crf, effective = tick("dense CRF", False), tick("effective field", True)
    upload = FileUpload(accept="image/*", description="your picture", layout=Layout(width="150px"))
    path = Text(placeholder="or its path, then Enter", continuous_update=False, layout=Layout(width="230px"))
    views = [ClickImage(), ClickImage(), ClickImage()]
    last: dict[str, Any] = {"pixel": [0, 0], "image": None}

    def redraw() -> str:
        if given := _handed_in(upload, path):
            name, source = given
            desk.lay(name, fitted_picture(source, longest))
            picture.options = list(desk.pictures)
            picture.value = name
        reading = desk.reading(network.value, picture.value)
        if last["image"] is not reading.image:
            rows, columns = reading.image.shape[1:]
            last.update(image=reading.image, pixel=[rows // 2, columns // 2])
            for view in views:
                view.extent, view.pixel = [rows, columns], last["pixel"]
        last["pixel"] = follow(views, last["pixel"])
        if heat.options != (names := (LIKELIEST, *reading.labels.names)):
            heat.options = names
        _show_reading(views, reading, last["pixel"], heat.value, crf.value, effective.value)
        said = reading.sentence(last["pixel"], crf.value)
        return f"{said} {class_key(reading.labels, reading.probabilities(crf.value).argmax(0))}"

    return Panel([network, picture, heat, crf, effective, upload, path], views, redraw)


def _handed_in(upload: Any, path: Any) -> tuple[str, bytes | str] | None:
    """Name and content of an uploaded file, or name and path of one that was named; both controls are empty then."""
    if upload.value:
        (file, *_), upload.value = upload.value, ()
        return file["name"], bytes(file["content"])
    if path.value:
        named, path.value = path.value, ""
        return Path(named).name, named
    return None


def _show_reading(
    views: Sequence[Any], reading: Reading, pixel: list[int], heat: str, crf: bool, effective: bool
) -> None:
    """Labels over the picture, the probability of a class, and what the unit over the pixel sees."""
    likeliest = reading.labels.names[int(reading.probabilities(crf)[:, pixel[0], pixel[1]].argmax())]
    name = likeliest if heat == LIKELIEST else heat
    rows, columns = reading.image.shape[1:]
    side = 2.5 / max(rows, columns)  # inches a pixel; three pictures stand beside each other in a notebook
    size = max(2.1, side * columns + 0.06), side * rows + 0.33
    views[0].show(
        f"Labels over the picture; the pixel is {likeliest}.",
        size,
        lambda ax: reading.draw_labels(ax, pixel, crf),
    )
    views[1].show(f"Probability of {name}.", size, lambda ax: reading.draw_heat(ax, name, crf))
    views[2].show(
        "What the unit over the pixel reads, and what matters to it.",
        size,
        lambda ax: reading.draw_field(ax, pixel, effective),
    )
