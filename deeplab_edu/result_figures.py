"""Figures of recorded and of published numbers. They take what `load_result` or `read_published` read, nothing else.

Pure functions, as in `figures`. Under each figure of ours stands the command that measured it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

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


def draw_ladder(axes: Sequence[Axes], ladder: Record, metrics: Sequence[str] = tuple(LADDER_METRICS)) -> None:
    """A panel a metric: a dot a seed over the models in the order of their years, the best mean in orange.

    Raises TypeError for anything but a loaded record, ValueError for one that does not say where it comes from, or
    for another number of axes than metrics.
    """
    source = provenance(ladder)
    if len(axes) != len(metrics):
        raise ValueError(f"{len(metrics)} metrics need as many axes, not {len(axes)}")
    arms = {name: ladder["measured"][name] for name in MODEL_NAMES if name in ladder["measured"]}
    for ax, metric in zip(axes, metrics):
        seeds = [100 * np.asarray(values[metric]) for values in arms.values()]
        means = [values.mean() for values in seeds]
        ax.plot(means, range(len(arms)), color="#bbbbbb", lw=1, zorder=1)
        for row, values in enumerate(seeds):
            best = row == int(np.argmax(means))
            ax.plot(values, [row] * len(values), "D" if best else "o", color=SERIES[1 if best else 0], ms=5)
        ax.set_yticks(range(len(arms)), [MODEL_NAMES[name] for name in arms])
        ax.set(ylim=(len(arms) - 0.5, -0.5), title=LADDER_METRICS[metric])
        ax.grid(axis="x", color="#e4e2dc", lw=0.7)
        ax.margins(x=0.12)
        ax.set_xlabel("IoU, points", fontsize=8, labelpad=1)
    _say_source(axes[0], source)


def draw_published(ax: Axes, rows: Sequence[Record], title: str = "") -> Axes:
    """Published results as bars from top to bottom, mIoU in points; hatched where the training data are private.

    Raises TypeError for rows that `read_published` did not read.
    """
    for row in rows:
        if not isinstance(row, Record):
            raise TypeError(f"rows are as read_published() reads them, each with its source, not {row!r}")
    for place, row in enumerate(rows):
        private = row.get("jft", False)
        ax.barh(
            place,
            row["miou"],
            0.7,
            color=SERIES[4 if private else 0],
            alpha=0.6,
            hatch="///" if private else "",
            ec="white" if private else "none",
        )
        ax.text(row["miou"] + 0.4, place, f"{row['miou']:.1f}", va="center", fontsize=9)
    names = [f"{row['model']}  {row['year']}" if "year" in row else row["model"] for row in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel="mIoU, points", title=title)
    ax.margins(x=0.08)
    return ax


def draw_beside(
    ax: Axes, rows: Sequence[Record], ours: Mapping[str, tuple[Record, Mapping[str, float]]], title: str = ""
) -> Axes:
    """Published results with ours among them, by score; ours are orange, those from ImageNet weights pale.

    `ours` maps a name (with a star if ImageNet weights were the start) to a record, and those of its scores (0..1) in
    which `miou` stands. Raises TypeError for what was not read from a file.
    """
    sources = [provenance(record) for record, _ in ours.values()]
    marked = [
        (row["miou"], row["model"], 0, row.get("pretrained", False))
        for row in rows
        if isinstance(row, Record)
    ]
    if len(marked) != len(rows):
        raise TypeError("rows are as read_published() reads them, each with its source")
    marked += [
        (100 * scores["miou"], n.removesuffix(" *"), 1, n.endswith("*")) for n, (_, scores) in ours.items()
    ]
    for place, (score, _, color, pretrained) in enumerate(sorted(marked)):
        ax.barh(place, score, 0.7, color=SERIES[color], alpha=0.35 if pretrained else 0.85)
        ax.text(score + 0.4, place, f"{score:.1f}", va="center", fontsize=9)
    names = [f"{name} *" if pretrained else name for _, name, _, pretrained in sorted(marked)]
    ax.set_yticks(range(len(marked)), names)
    ax.set(xlabel="mIoU, points  (* from ImageNet weights)", title=title)
    ax.margins(x=0.08)
    _say_source(ax, "\n".join(dict.fromkeys(sources)))
    return ax


def _say_source(ax: Axes, source: str) -> None:
    figure = ax.figure
    figure.supxlabel(source, fontsize=7, color="#666666")
