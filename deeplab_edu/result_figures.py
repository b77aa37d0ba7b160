"""Figures of recorded and of published numbers. They take what `load_result` or `read_published` read, nothing else.

Pure functions, as in `figures`. Under each figure of ours stands the command that measured it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from deeplab_edu.figures import SERIES
from deeplab_edu.results import Record, provenance

LADDER_METRICS = {  # how the metrics of `evaluate` are called in a figure or a table
    "miou": "all classes",
    "trimap1": "within 1 px of a border",
    "trimap3": "within 3 px",
    "inner": "inside, 5 px from one",
    "thin": "wire, fence, ring",
    "small": "small shapes",
    "mid": "mid-size",
    "big": "big shapes",
    "context": "lake and ice",
}
MODEL_NAMES = {
    "fcn32s": "FCN-32s",
    "fcn16s": "FCN-16s",
    "fcn8s": "FCN-8s",
    "deeplab_v1": "v1",
    "deeplab_v1 + CRF": "v1 + CRF",
    "deeplab_v2": "v2",
    "deeplab_v3": "v3",
    "deeplab_v3plus": "v3+",
    "deeplab_v3plus after v3": "v3+ after v3",
}
APART = "deeplab_v3plus after v3"  # more steps than the others, on a trained encoder: not on equal terms

SEED: dict[str, Any] = {"marker": "o", "ls": "", "color": SERIES[0], "ms": 5}
BEST: dict[str, Any] = {"marker": "D", "color": SERIES[1]}
HOLLOW: dict[str, Any] = {"mfc": "white"}
MEAN: dict[str, Any] = {"marker": "|", "ls": "", "color": "black", "ms": 13, "mew": 1.5}
PRIVATE: dict[str, Any] = {"facecolor": SERIES[4], "alpha": 0.6, "hatch": "///", "ec": "white"}
BARS: dict[str, dict[str, Any]] = {  # of `draw_beside`: what they are -> how they look
    "published": {"facecolor": SERIES[0], "alpha": 0.85},
    "published, from ImageNet weights": {"facecolor": SERIES[0], "alpha": 0.35},
    "a published network, repeated by others": {"facecolor": "white", "ec": SERIES[0], "ls": "--"},
    "ours": {"facecolor": SERIES[1], "alpha": 0.85},
    "ours, from ImageNet weights": {"facecolor": SERIES[1], "alpha": 0.35},
}


def draw_ladder(axes: Sequence[Axes], ladder: Record, metrics: Sequence[str] = tuple(LADDER_METRICS)) -> None:
    """A panel a metric: a dot a seed and a tick at their mean, over the models in the order of their years.

    A line joins the means of what was trained on equal terms, and the best of these is orange. What was not (`APART`)
    stands hollow under a dashed line. One key is under all panels.

    Raises TypeError for anything but a loaded record, ValueError for one that does not say where it comes from, or
    for another number of axes than metrics.
    """
    source = provenance(ladder)
    if len(axes) != len(metrics):
        raise ValueError(f"{len(metrics)} metrics need as many axes, not {len(axes)}")
    arms = {name: ladder["measured"][name] for name in MODEL_NAMES if name in ladder["measured"]}
    equal = [row for row, name in enumerate(arms) if name != APART]
    for ax, metric in zip(axes, metrics):
        _draw_panel(ax, [100 * np.asarray(values[metric]) for values in arms.values()], equal)
        ax.set_yticks(range(len(arms)), [MODEL_NAMES[name] for name in arms])
        ax.set_title(LADDER_METRICS[metric])
    signs = {"a seed": SEED, "mean of the seeds": MEAN, "best mean on equal terms": SEED | BEST}
    if len(equal) < len(arms):
        signs["not on equal terms: more steps, on a trained encoder"] = SEED | HOLLOW
    key = [Line2D([], [], **style, label=name) for name, style in signs.items()]
    _say_sources(axes[0], [source], key, len(key))


def _draw_panel(ax: Axes, seeds: Sequence[np.ndarray], equal: Sequence[int]) -> None:
    means = np.array([values.mean() for values in seeds])
    ax.plot(means[equal], equal, color="#bbbbbb", lw=1, zorder=1)
    best = max(equal, key=means.__getitem__)
    for row, values in enumerate(seeds):
        style = SEED | (BEST if row == best else {} if row in equal else HOLLOW)
        ax.plot(values, [row] * len(values), **style)
    ax.plot(means, range(len(means)), **MEAN)
    if len(equal) < len(seeds):
        ax.axhline(len(equal) - 0.5, color="#999999", lw=0.8, ls="--")
    ax.set(ylim=(len(seeds) - 0.5, -0.5))
    ax.grid(axis="x", color="#e4e2dc", lw=0.7)
    ax.margins(x=0.12)
    ax.set_xlabel("IoU, points", fontsize=8, labelpad=1)


def draw_published(ax: Axes, rows: Sequence[Record], title: str = "") -> Axes:
    """Published results as bars from top to bottom, mIoU in points; hatched where the training data are private.

    Raises TypeError for rows that `read_published` did not read.
    """
    _refuse_typed(rows)
    for place, row in enumerate(rows):
        style = PRIVATE if row.get("jft", False) else {"facecolor": SERIES[0], "alpha": 0.6}
        ax.barh(place, row["miou"], 0.7, **style)
        ax.text(row["miou"] + 0.4, place, f"{row['miou']:.1f}", va="center", fontsize=9)
    names = [f"{row['model']}  {row['year']}" if "year" in row else row["model"] for row in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel="mIoU, points", title=title)
    ax.margins(x=0.08)
    if any(row.get("jft", False) for row in rows):
        key = Patch(**PRIVATE, label="pre-trained on JFT, too")
        ax.legend(handles=[key], loc="upper right", bbox_to_anchor=(1, -0.07), frameon=False, fontsize=9)
    return ax


def draw_beside(
    ax: Axes,
    rows: Sequence[Record],
    ours: Mapping[str, tuple[Record, Mapping[str, float]]],
    title: str = "",
    *,
    again: Sequence[Record] = (),
) -> Axes:
    """Published results with ours among them, by score; ours are orange, those from ImageNet weights pale.

    `ours` maps a name (with a star if ImageNet weights were the start) to a record, and those of its scores (0..1) in
    which `miou` stands. Hollow are networks of the published ones that others trained `again`. Raises TypeError for
    what was not read from a file.
    """
    sources = [provenance(record) for record, _ in ours.values()]
    _refuse_typed([*rows, *again])
    plain, pale, repeated, own, own_pale = BARS
    bars = [(row["miou"], row["model"], pale if row.get("pretrained") else plain) for row in rows]
    bars += [(row["miou"], row["model"], repeated) for row in again]
    bars += [
        (100 * scores["miou"], name.removesuffix(" *"), own_pale if name.endswith("*") else own)
        for name, (_, scores) in ours.items()
    ]
    bars.sort()
    for place, (score, _, kind) in enumerate(bars):
        ax.barh(place, score, 0.7, **BARS[kind])
        ax.text(score + 0.4, place, f"{score:.1f}", va="center", fontsize=9)
    names = [f"{name} *" if kind in (pale, own_pale) else name for _, name, kind in bars]
    ax.set_yticks(range(len(bars)), names)
    ax.set(xlabel="mIoU, points  (* from ImageNet weights)", ylim=(-0.6, len(bars) - 0.4), title=title)
    ax.margins(x=0.08)
    there = {kind for *_, kind in bars}
    key = [Patch(**style, label=kind) for kind, style in BARS.items() if kind in there]
    _say_sources(ax, sources, key, 3)
    return ax


def _refuse_typed(rows: Sequence[Record]) -> None:
    for row in rows:
        if not isinstance(row, Record):
            raise TypeError(f"rows are as read_published() reads them, each with its source, not {row!r}")


def _say_sources(ax: Axes, sources: Sequence[str], key: Sequence[Artist], columns: int) -> None:
    """Under the whole figure: where its numbers come from, and below that a key, for which lines are left free."""
    figure, rows = ax.figure, -(-len(key) // columns)
    letters = int(16.5 * figure.get_figwidth())  # type: ignore[union-attr]  # that fit beside each other
    said = "\n".join(textwrap.fill(source, letters) for source in dict.fromkeys(sources))
    figure.supxlabel(said + "\n" * 2 * rows, fontsize=7, color="#666666")
    figure.legend(handles=key, ncols=columns, loc="lower center", frameon=False, fontsize=8.5)
