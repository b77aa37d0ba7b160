"""How long an explorer takes from a moved control to new pictures, in the kernel; the browser is not counted.

    python benchmarks/explorers.py [--repetitions 20] [--save]

Each explorer is made as in its notebook, with networks that have not been trained, and one of its controls goes to and
fro between values. "first" is the redraw that shows a value for the first time, before anything of it is kept: a
network is traced or run, or its cost is counted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timing import machine_line, parse, quartiles, save, spread, table, timed

from deeplab_edu.crf import DenseCRF
from deeplab_edu.data import open_dataset
from deeplab_edu.explorers import (
    explore_aspp,
    explore_branches,
    explore_crf,
    explore_decoder,
    explore_field,
    explore_output_stride,
    explore_taps,
)
from deeplab_edu.models import build_model
from deeplab_edu.profiles import Profile

Move = tuple[Any, str, Sequence[Any]]  # an explorer, a control (or "pixel"), and where it goes


def tiny(name: str) -> torch.nn.Module:
    return build_model(name, 12, backbone="tiny")


def moves() -> dict[str, Callable[[], Move]]:
    scenes = open_dataset("scenes", "val", preset="shapes", size=128, length=12)
    image, target = scenes[1]
    votes = F.one_hot(target.long(), 12).movedim(-1, 0).float()[None]
    coarse = F.avg_pool2d(votes, 9, 8, 4, count_include_pad=False)
    soft = (F.interpolate(coarse, target.shape, mode="bilinear", align_corners=True)[0] + 0.01) / 1.12
    seen = {"FCN-32s": (tiny("fcn32s"), "score_fr"), "DeepLab v1": (tiny("deeplab_v1"), "score")}
    places = [[20 + 7 * i, 250 - 9 * i] for i in range(25)]
    return {
        "taps, a rate": lambda: (explore_taps(), "rate, layer 3", range(3, 13)),
        "field, a pixel, two models at 257 px": lambda: (explore_field(seen, size=257), "pixel", places),
        "ASPP, a pixel at 513 px": lambda: (explore_aspp(), "pixel", [[2 * r, c] for r, c in places]),
        "ASPP, output stride": lambda: (explore_aspp(), "output stride", (8, 16, 32)),
        "output stride": lambda: (explore_output_stride(), "image side, px", (257, 321, 513, 769)),
        "CRF, theta_beta at 128 px": lambda: (
            explore_crf(image, soft, scenes.labels, DenseCRF(4, 16, 15, 3, 3)),
            "theta_beta",
            range(10, 30),
        ),
        "branches, a scene": lambda: (explore_branches(tiny("deeplab_v2"), scenes), "scene", range(1, 12)),
        "branches, a branch": lambda: (
            explore_branches(tiny("deeplab_v2"), scenes),
            "rate 4",
            (False, True),
        ),
        "decoder, low-level channels": lambda: (
            explore_decoder(tiny("deeplab_v3"), tiny("deeplab_v3plus"), scenes),
            "low-level",
            range(16),
        ),
    }


def measure(panel: Any, name: str, values: Sequence[Any], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each redraw: of values that are new, and of values that have been shown before."""
    controls = {control.description: control for control in panel.children[0].children}
    widget, trait = (panel.pictures[0], "pixel") if name == "pixel" else (controls[name], "value")
    seconds: dict[str, list[float]] = {"first": [], "again": []}
    for i in range(max(repetitions, 2) + len(values)):
        value = values[i % len(values)]
        if getattr(widget, trait) != value:  # else nothing is drawn
            spent = timed(lambda value=value: setattr(widget, trait, value))  # type: ignore[misc]
            seconds["first" if i < len(values) else "again"].append(spent)
    return seconds


def main() -> None:
    options, profile = parse(__doc__, repetitions=20), Profile.load()
    torch.manual_seed(0)
    measured = {name: measure(*make(), options.repetitions) for name, make in moves().items()}
    print(f"Redraws of the explorers, {options.repetitions} repetitions; {machine_line()}\n")
    rows = [
        (name, *(spread(*quartiles([1000 * s for s in times]), form=".0f") for times in kinds.values()))
        for name, kinds in measured.items()
    ]
    print(table(["explorer, what is moved", "first, ms", "again, ms"], rows))
    if options.save:
        save("explorers", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
