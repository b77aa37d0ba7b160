"""How long a click takes: the exact pixels behind one unit of torchvision's DeepLabv3-ResNet-50.

    python benchmarks/receptive_field.py [--repetitions 25] [--save]

At 513 px, arms in turns: tracing on the meta device; that and the first click, which builds the tables; then, as in an
explorer, clicks on one traced graph: on the output (whose image pooling sees everything), on the ASPP branch of
rate 12, and on that branch for path counts. At 257 px the same question on that branch beside two other ways to ask it,
a quarter as often: the gradient (one forward and backward pass) and TorchLens (the box around the pixels, in a
process of its own; left out where it is not installed).
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from timing import interleave, machine_line, parse, quartiles, save, spread, table
from torchvision.models.segmentation import deeplabv3_resnet50

from deeplab_edu.profiles import Profile
from deeplab_edu.receptive_field import SpatialGraph, effective_field

SIZE, UNIT, BRANCH = 513, (20, 44), "classifier.0.convs.1"
RIVALS_SIZE, RIVALS_UNIT = 257, (10, 22)


def clicks(repetitions: int) -> dict[str, list[float]]:
    with torch.device("meta"):  # neither a trace nor a click looks at a weight
        model = deeplabv3_resnet50(weights=None, weights_backbone=None)
    graph = SpatialGraph(model, (SIZE, SIZE))
    arms = {
        "trace": lambda: SpatialGraph(model, (SIZE, SIZE)),
        "trace and first click": lambda: SpatialGraph(model, (SIZE, SIZE)).tap_map(UNIT),
        "click on the output": lambda: graph.tap_map((SIZE // 2, SIZE // 2)),
        "click on a branch": lambda: graph.tap_map(UNIT, BRANCH),
        "click on a branch, counts": lambda: graph.tap_map(UNIT, BRANCH, counts=True),
    }
    return interleave(arms, repetitions)


def rivals(repetitions: int) -> dict[str, list[float]]:
    """Ours, the gradient and TorchLens on one branch at 257 px."""
    model = deeplabv3_resnet50(weights=None, weights_backbone=None).eval()
    graph, images = (
        SpatialGraph(model, (RIVALS_SIZE, RIVALS_SIZE)),
        torch.rand(1, 3, RIVALS_SIZE, RIVALS_SIZE),
    )
    seconds = interleave(
        {
            "257 px: trace": lambda: SpatialGraph(model, (RIVALS_SIZE, RIVALS_SIZE)),
            "257 px: click": lambda: graph.tap_map(RIVALS_UNIT, BRANCH),
            "257 px: gradient": lambda: effective_field(model, images, RIVALS_UNIT, BRANCH),
        },
        repetitions,
    )
    if importlib.util.find_spec("torchlens"):
        answers = [ask_torchlens() for _ in range(repetitions)]
        seconds["257 px: TorchLens, trace"] = [answer["trace"] for answer in answers]
        seconds["257 px: TorchLens, click"] = [answer["click"] for answer in answers]
    return seconds


def ask_torchlens() -> dict[str, Any]:
    script = Path(__file__).with_name("torchlens_arm.py")
    command = [sys.executable, str(script), *map(str, (RIVALS_SIZE, *RIVALS_UNIT, BRANCH))]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    options, profile = parse(__doc__, repetitions=25), Profile.load()
    seconds = clicks(options.repetitions) | rivals(-(-options.repetitions // 4))
    spans = {name: quartiles([1000 * s for s in values]) for name, values in seconds.items()}
    print(f"DeepLabv3-ResNet-50 at {SIZE} px, {options.repetitions} repetitions; {machine_line()}\n")
    rows = [(name, spread(*span, form=".1f")) for name, span in spans.items()]
    print(table(["what", "ms, median (quartiles)"], rows))
    if options.save:
        measured = {name: dict(zip(("low", "median", "high"), span)) for name, span in spans.items()}
        save("receptive_field", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
