"""Figures of what a unit sees and of what seeing costs: pure functions, as in `figures`.

In a figure over a picture, blue is read, orange matters, white is the chosen unit, and dashes are the theoretical
window. Blue and orange differ in lightness too, and each has a second sign: a tint, a glow, a line, a cross.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from torch import Tensor, nn

from deeplab_edu.cost import Cost
from deeplab_edu.figures import SERIES, _bare, _picture
from deeplab_edu.receptive_field import tap_map

BLUE, ORANGE = ((0, 114, 178), (213, 94, 0))  # of SERIES
PADDING = "#dcdad5"


class Box(NamedTuple):
    """A window of pixels; it may lie partly outside the picture."""

    top: int
    left: int
    rows: int
    columns: int


def stack_counts(layers: Sequence[tuple[int, int, int]]) -> Tensor:
    """(r, r) float64: on how many paths each pixel of its r x r window reaches a unit of a stack of convolutions.

    `layers` are (kernel, stride, rate), the first one next to the pixels.
    """
    jump, side = 1, 1
    for kernel, stride, rate in layers:
        side, jump = side + (kernel - 1) * rate * jump, jump * stride
    with torch.device("meta"):
        stack = nn.Sequential(*[nn.Conv2d(1, 1, k, s, dilation=r) for k, s, r in layers])
    return tap_map(stack, (side, side), (0, 0), counts=True)


def largest_gap(rates: Sequence[int]) -> int:
    """M2, the number that the criterion of hybrid dilation compares with the kernel size (Wang et al., 2018, eq. 2).

    From the last layer down: M_n = r_n, M_i = max(M_{i+1} - 2 r_i, 2 r_i - M_{i+1}, r_i).
    """
    gap = rates[-1]
    for rate in reversed(rates[1:-1]):
        gap = max(gap - 2 * rate, 2 * rate - gap, rate)
    return gap


def draw_tap_grid(ax: Axes, counts: ArrayLike, title: str = "") -> Axes:
    """The pixels (r, r) that a unit reads, brighter the more paths lead there; holes are white."""
    counts = np.asarray(counts, dtype=float)
    ax.imshow(np.where(counts > 0, counts, np.nan), cmap="cividis", vmin=0, vmax=max(1.0, counts.max()))
    side = len(counts)
    if side <= 45:  # beyond that, lines between cells would hide them
        edges = np.arange(side + 1) - 0.5
        ax.hlines(edges, -0.5, side - 0.5, color="#bbbbbb", lw=0.5)
        ax.vlines(edges, -0.5, side - 0.5, color="#bbbbbb", lw=0.5)
    else:
        ax.add_patch(Rectangle((-0.5, -0.5), side, side, fill=False, ec="#bbbbbb", lw=0.5))
    return _bare(ax, title)


def tinted(image: ArrayLike, taps: ArrayLike | None = None, field: ArrayLike | None = None) -> np.ndarray:
    """(H, W, 3) in 0..1: the picture in pale grey, blue where `taps`, orange the more the larger the root of `field`.

    The root, because an effective field falls off like a Gaussian: without it only its summit could be seen.
    """
    picture = _picture(image).astype(float)
    picture = picture / 255 if picture.max() > 1 else picture
    grey = 0.65 + 0.35 * (picture @ [0.3, 0.59, 0.11])
    shown = np.repeat(grey[..., None], 3, axis=2)
    if taps is not None:
        blue = np.asarray(taps, dtype=float)[..., None] * 0.38
        shown = (1 - blue) * shown + blue * np.array(BLUE) / 255
    if field is not None:
        field = np.asarray(field, dtype=float)
        strength = np.sqrt(field / (field.max() or 1))[..., None]
        shown = (1 - 0.9 * strength) * shown + 0.9 * strength * np.array(ORANGE) / 255
    return shown


def draw_field(
    ax: Axes,
    image: ArrayLike,
    taps: ArrayLike | None = None,
    *,
    field: ArrayLike | None = None,
    box: Box | None = None,
    unit: tuple[float, float] | None = None,
    margin: int = 0,
    scale: int = 1,
    title: str = "",
) -> Axes:
    """What one unit sees, over its picture.

    Args:
        taps: (H, W) bool, the pixels that reach the unit: blue.
        field: (H, W), how much each matters: orange.
        box: the theoretical window: dashes.
        unit: (row, column) of its centre, px: a cross.
        margin: how many pixels of padding to show around the picture.
        scale: how many pixels a value of `image`, `taps` and `field` stands for, along each axis.
    """
    shown = tinted(image, taps, field)
    rows, columns = (scale * n for n in shown.shape[:2])
    ax.set_facecolor(PADDING)
    ax.imshow(shown, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    if box is not None:
        place = (box.left - 0.5, box.top - 0.5), box.columns, box.rows
        ax.add_patch(Rectangle(*place, fill=False, ec="white", lw=2.5))
        ax.add_patch(Rectangle(*place, fill=False, ec="black", lw=1.5, ls="--"))
    if unit is not None:
        for color, width in (("black", 5), ("white", 2)):
            ax.plot(unit[1], unit[0], "+", color=color, markersize=10 + width, markeredgewidth=width)
    ax.set(xlim=(-0.5 - margin, columns - 0.5 + margin), ylim=(rows - 0.5 + margin, -0.5 - margin))
    return _bare(ax, title)


def weight_places(unit: tuple[float, float], step: float, kernel: int = 3) -> np.ndarray:
    """(kernel^2, 2) pixels (row, column) on which the weights of a convolution lie: `step` = rate x stride apart."""
    offsets = (np.arange(kernel) - kernel // 2) * step
    return np.stack(np.meshgrid(unit[0] + offsets, unit[1] + offsets, indexing="ij"), -1).reshape(-1, 2)


def draw_weights(
    ax: Axes, places: np.ndarray, picture_size: tuple[int, int], margin: int, ring: float = 7
) -> int:
    """Rings where the weights of a branch meet the map, crosses where they meet padding; how many meet the map.

    Weights further out than `margin` are drawn on its edge.
    """
    size = np.array(picture_size)
    valid = ((places > -0.5) & (places < size - 0.5)).all(1)
    inset = 0.035 * (size.max() + 2 * margin)
    places = places.clip(inset - margin, size + margin - inset)
    for kept, sign, color in ((valid, "o", "white"), (~valid, "x", "black")):
        style: Any = {"markeredgecolor": color, "markerfacecolor": SERIES[0], "markeredgewidth": 1.5}
        ax.plot(places[kept, 1], places[kept, 0], sign, markersize=ring, **style)
    return int(valid.sum())


def draw_units(ax: Axes, image: ArrayLike, stride: int, title: str = "") -> Axes:
    """A picture under the grid of a map whose units lie `stride` pixels apart: a dot a unit."""
    picture = _picture(image)
    rows, columns = picture.shape[:2]
    ax.imshow(picture)
    across, down = np.meshgrid(np.arange(0, columns, stride), np.arange(0, rows, stride))
    size = float(np.clip(stride * 70 / rows, 0.7, 6))
    ax.plot(across.ravel(), down.ravel(), ".", color="white", markersize=2.2 * size)
    ax.plot(across.ravel(), down.ravel(), ".", color=SERIES[1], markersize=1.5 * size)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    return _bare(ax, title)


def draw_costs(ax: Axes, costs: Mapping[str, Cost], chosen: str = "", title: str = "") -> Axes:
    """Two bars for each name, as multiples of the first one's: work, and memory in training. The `chosen` is dark."""
    first = next(iter(costs.values()))
    kinds = (
        (SERIES[0], [c.flops / first.flops for c in costs.values()], "{:,.0f} GFLOP", 1e9),
        (SERIES[1], [c.kept_bytes / first.kept_bytes for c in costs.values()], "{:,.0f} MiB", 2**20),
    )
    top = max(max(ratios) for _, ratios, *_ in kinds)
    for kind, (color, ratios, words, one) in enumerate(kinds):
        for row, (name, ratio) in enumerate(zip(costs, ratios)):
            bold = name == chosen
            at = row + 0.36 * kind - 0.18
            ax.barh(at, ratio, 0.34, color=color, alpha=1 if bold else 0.4)
            text = words.format(costs[name][kind] / one)
            ax.text(
                ratio + 0.02 * top, at, text, va="center", fontsize=9, weight="bold" if bold else "normal"
            )
    ax.set_yticks(range(len(costs)), list(costs))
    ax.set(xlim=(0, 1.5 * top), ylim=(len(costs) - 0.5, -0.5), xticks=[], title=title)
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.tick_params(left=False)
    return ax
