"""Figures as pure functions: each draws into the axes it is given and keeps no state.

Maps of numbers use `cividis` and signed ones `PuOr`, both safe for colour-blind readers; class colours come from the
data set's `LabelSet`, or from `SERIES`, which keeps its order. A title states what the figure shows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from deeplab_edu.data.labels import IGNORE_INDEX, LabelSet
from deeplab_edu.training import History

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
STYLE = {
    "figure.dpi": 80,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Set matplotlib's defaults for the course: resolution, font size, colour map."""
    mpl.rcParams.update(STYLE)
    mpl.rcParams["axes.prop_cycle"] = cycler(color=SERIES)


def _picture(image: ArrayLike) -> np.ndarray:
    """(3, H, W) or (H, W, 3) uint8, or float in 0..1 -> (H, W, 3) that matplotlib shows."""
    image = np.asarray(image)
    return image.transpose(1, 2, 0) if image.ndim == 3 and image.shape[0] == 3 else image


def _bare(ax: Axes, title: str) -> Axes:
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    return ax


def draw_image(ax: Axes, image: ArrayLike, title: str = "") -> Axes:
    """A picture: (3, H, W) or (H, W, 3), uint8 or float in 0..1."""
    ax.imshow(_picture(image))
    return _bare(ax, title)


def draw_labels(ax: Axes, mask: ArrayLike, labels: LabelSet, title: str = "") -> Axes:
    """A label map (H, W) in the colours of its classes; void is light grey."""
    ax.imshow(labels.colorize(mask))
    return _bare(ax, title)


def draw_overlay(
    ax: Axes, image: ArrayLike, mask: ArrayLike, labels: LabelSet, title: str = "", strength: float = 0.55
) -> Axes:
    """A label map (H, W) laid over its picture."""
    picture = _picture(image).astype(float)
    picture = picture / 255 if picture.max() > 1 else picture
    ax.imshow((1 - strength) * picture + strength * labels.colorize(mask) / 255)
    return _bare(ax, title)


def draw_errors(ax: Axes, prediction: ArrayLike, target: ArrayLike, title: str = "") -> Axes:
    """Where a prediction (H, W) is wrong: orange; right: pale; void: grey."""
    prediction, target = np.asarray(prediction), np.asarray(target)
    kinds = np.select([target == IGNORE_INDEX, prediction != target], [2, 1], 0)
    colors = np.array([[240, 238, 232], [213, 94, 0], [200, 192, 180]], dtype=np.uint8)
    ax.imshow(colors[kinds])
    return _bare(ax, title)


def draw_map(
    ax: Axes,
    values: ArrayLike,
    title: str = "",
    *,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """A map of numbers (H, W) with its colour bar; `signed` puts zero in the middle."""
    values = np.asarray(values, dtype=float)
    top = np.abs(values).max() if values.size else 1.0
    low, high = limits or ((-top, top) if signed else (values.min(), values.max()))
    drawn = ax.imshow(values, cmap="PuOr" if signed else "cividis", vmin=low, vmax=high)
    assert ax.figure is not None
    ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.03)
    return _bare(ax, title)


def draw_numbers(
    ax: Axes, values: ArrayLike, title: str = "", *, form: str = "g", marked: Sequence[tuple[int, int]] = ()
) -> Axes:
    """A small matrix with its numbers written in the cells; `marked` cells (row, column) get a frame."""
    matrix = np.atleast_2d(np.asarray(values, dtype=float))
    top = np.abs(matrix).max() or 1.0
    bottom = 0 if matrix.min() >= 0 else -top
    ax.imshow(matrix, cmap="cividis", vmin=bottom, vmax=top)
    for (row, column), value in np.ndenumerate(matrix):
        shade = "black" if value > (bottom + top) / 2 else "white"
        ax.text(column, row, format(value, form), ha="center", va="center", color=shade, fontsize=8)
    for row, column in marked:
        ax.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=SERIES[1], linewidth=2.5)
        )
    return _bare(ax, title)


def draw_boxes(ax: Axes, boxes: Mapping[str, tuple[int, int, int, int]]) -> Axes:
    """Named boxes (left, top, right, bottom) px on a picture."""
    for name, (left, top, right, bottom) in boxes.items():
        ax.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec="black", lw=1.5)
        )
        box = {"facecolor": "white", "edgecolor": "black", "pad": 1.5, "linewidth": 0.5}
        ax.text(left, max(top, 5), name, fontsize=7, va="bottom", bbox=box)
    return ax


def draw_instances(ax: Axes, instances: ArrayLike, title: str = "") -> Axes:
    """A map (H, W) of object numbers, 0 for none: neighbours in number differ in colour, white between objects."""
    instances = np.asarray(instances)
    shades = np.array([int(c[i : i + 2], 16) for c in SERIES for i in (1, 3, 5)]).reshape(-1, 3)
    picture = np.where(instances[..., None] > 0, shades[instances % len(SERIES)], 240).astype(np.uint8)
    lower = np.zeros(instances.shape, dtype=bool)  # white goes to the object behind: thin ones in front stay
    for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        lower[here] |= (instances[here] > 0) & (instances[here] < instances[there])
        lower[there] |= (instances[there] > 0) & (instances[there] < instances[here])
    picture[lower] = 255
    ax.imshow(picture)
    return _bare(ax, title)


def draw_lines(
    ax: Axes,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    across: str,
    up: str,
    title: str = "",
) -> Axes:
    """Named curves (x, y) over one pair of axes, e.g. a score against a width; `across` and `up` name the axes."""
    styles = ("o-", "s--", "^-.", "D:", "v-", "P--")  # a second sign beside colour
    for (name, (x, y)), color, style in zip(lines.items(), SERIES, styles, strict=False):
        ax.plot(x, y, style, color=color, markersize=5, label=name)
    ax.set(xlabel=across, ylabel=up, title=title)
    if len(lines) > 1:
        ax.legend(frameon=False)
    return ax


def draw_taps(ax: Axes, layers: Sequence[tuple[int, int, int]], title: str = "") -> Axes:
    """What one unit sees, in one dimension: from the top layer down to the pixels, a line a tap.

    Args:
        layers: (kernel, stride, dilation) of each layer, the first one next to the pixels.
    """
    jumps = np.cumprod([1] + [stride for _, stride, _ in layers])  # pixels between two units of each map
    seen = {0.0}
    for level in range(len(layers), 0, -1):
        kernel, _, dilation = layers[level - 1]
        reach = (np.arange(kernel) - (kernel - 1) / 2) * dilation * jumps[level - 1]
        lines = [[(unit, level), (unit + tap, level - 1)] for unit in seen for tap in reach]
        ax.add_collection(LineCollection(lines, colors="#888", linewidths=0.7, zorder=1))
        ax.plot(sorted(seen), [level] * len(seen), "o", color=SERIES[0], markersize=5)
        seen = {float(unit + tap) for unit in seen for tap in reach}
    ax.plot(sorted(seen), [0] * len(seen), "s", color=SERIES[1], markersize=5)
    ax.set(
        yticks=range(len(layers) + 1), yticklabels=["pixels", *(f"layer {n + 1}" for n in range(len(layers)))]
    )
    ax.set(title=title, xlabel="px from the middle")
    ax.spines["left"].set_visible(False)
    return ax


def draw_kernels(
    ax: Axes,
    image: ArrayLike,
    center: tuple[int, int],
    rates: Sequence[int],
    stride: int = 8,
    margin: float = 0,
    title: str = "",
) -> Axes:
    """Where the nine taps of 3x3 kernels of several atrous rates lie, on the picture they read and beyond its border.

    `center` (row, column) px is where the middle tap lies; taps are `stride` times the rate apart. `margin` px around
    the picture are shown.
    """
    picture = _picture(image)
    ax.imshow(picture)
    for rate, color, sign in zip(rates, SERIES, "os^DvP", strict=False):
        steps = stride * rate * np.array([-1, 0, 1])
        rows, columns = np.meshgrid(center[0] + steps, center[1] + steps, indexing="ij")
        ax.plot(
            columns.ravel(), rows.ravel(), sign, color=color, mec="white", mew=1, ms=8, label=f"rate {rate}"
        )
    height, width = picture.shape[:2]
    ax.set(xlim=(-0.5 - margin, width - 0.5 + margin), ylim=(height - 0.5 + margin, -0.5 - margin))
    return _bare(ax, title)


def add_class_legend(figure: Figure, labels: LabelSet, masks: Sequence[ArrayLike], columns: int = 8) -> None:
    """One legend under all axes for the classes that occur in `masks`."""
    present = sorted({int(i) for mask in masks for i in np.unique(np.asarray(mask))} - {IGNORE_INDEX})
    patches = [
        Patch(facecolor=np.array(labels.colors[i]) / 255, ec="#888", label=labels.names[i]) for i in present
    ]
    figure.legend(handles=patches, ncols=columns, loc="outside lower center", frameon=False, fontsize=9)


def draw_history(ax: Axes, histories: Mapping[str, History], title: str = "") -> Axes:
    """Training loss against steps, one line a run; each line is named at its end."""
    for (name, history), color in zip(histories.items(), SERIES, strict=False):
        ax.plot(
            history.steps,
            history.loss,
            color=color,
            marker="." if len(history.steps) < 30 else "",
            label=name,
        )
    ax.set(xlabel="training step", ylabel="loss (mean cross-entropy)", title=title)
    ax.set_ylim(bottom=0)
    if len(histories) > 1 or next(iter(histories), ""):
        ax.legend(frameon=False)
    return ax


def draw_scores(
    ax: Axes, scores: Mapping[str, Mapping[str, Sequence[float]]], metrics: Mapping[str, str], title: str = ""
) -> Axes:
    """Compare arms on several metrics: a dot a seed, a bar at their mean.

    Args:
        scores: arm -> metric -> one value a seed, in 0..1.
        metrics: metric -> how it is called on the axis.
    """
    width = 0.8 / len(scores)
    for arm, (name, values) in enumerate(scores.items()):
        at = np.arange(len(metrics)) + (arm - (len(scores) - 1) / 2) * width
        seeds = [100 * np.asarray(values[m]) for m in metrics]
        ax.bar(
            at,
            [s.mean() for s in seeds],
            width * 0.92,
            color=SERIES[arm % len(SERIES)],
            alpha=0.55,
            label=name,
        )
        for x, s in zip(at, seeds, strict=True):
            ax.plot(
                [x] * len(s), s, ".", color=SERIES[arm % len(SERIES)], markersize=7, markeredgecolor="white"
            )
    ax.set_xticks(range(len(metrics)), list(metrics.values()))
    ax.set(ylabel="IoU, points", title=title)
    ax.legend(frameon=False, ncols=len(scores), loc="upper right", bbox_to_anchor=(1, 1.0))
    ax.margins(y=0.22)
    return ax


class Step(NamedTuple):
    """One box of `draw_steps`: what it is called, what it adds, and which failure of it leads to the next."""

    name: str
    adds: str
    leaves: str = ""
    there: bool = True  # False: announced, drawn pale


def draw_steps(ax: Axes, steps: Sequence[Step], title: str = "") -> Axes:
    """Boxes from top to bottom; beside each arrow stands what the upper one leaves to the lower one."""
    for row, step in enumerate(steps):
        ink, edge, fill = ("black", SERIES[0], "#eef4f8") if step.there else ("#777777", "#aaaaaa", "white")
        line = "-" if step.there else "--"
        ax.add_patch(
            Rectangle((0, row), 10, 0.62, facecolor=fill, edgecolor=edge, linewidth=1.5, linestyle=line)
        )
        ax.text(0.2, row + 0.31, step.name, va="center", weight="bold", color=ink)
        ax.text(3.1, row + 0.31, step.adds, va="center", color=ink)
        if row + 1 < len(steps):
            ax.annotate("", (0.8, row + 1), (0.8, row + 0.62), arrowprops={"arrowstyle": "->", "color": edge})
            ax.text(1.1, row + 0.81, step.leaves, va="center", color="#A34700", style="italic", fontsize=9)
    ax.set(xlim=(-0.05, 10.05), ylim=(len(steps) - 0.35, -0.05))
    return _bare(ax, title)


def draw_flow(
    ax: Axes, boxes: Mapping[str, tuple[float, float]], arrows: Sequence[tuple[str, str]], title: str = ""
) -> Axes:
    """What flows where: a box around each name, centred at its (x, y), and arrows from one name to another."""
    style = {"boxstyle": "round,pad=0.4", "facecolor": "#eef4f8", "edgecolor": SERIES[0]}
    drawn = {n: ax.text(*at, n, ha="center", va="center", fontsize=9, bbox=style) for n, at in boxes.items()}
    for start, end in arrows:
        ends = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        line = {"arrowstyle": "->", "color": SERIES[0], "shrinkA": 2, "shrinkB": 2, **ends}
        ax.annotate("", boxes[end], boxes[start], arrowprops=line)
    across, up = zip(*boxes.values(), strict=True)
    ax.set(xlim=(min(across) - 0.8, max(across) + 0.8), ylim=(min(up) - 0.5, max(up) + 0.5))
    return _bare(ax, title)
