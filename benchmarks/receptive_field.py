"""How long a click takes: the exact pixels behind one unit of torchvision's DeepLabv3-ResNet-50 at 513 px.

    python benchmarks/receptive_field.py [--repetitions 25] [--save]

Arms take turns: tracing on the meta device; that and the first click, which builds the tables; then, as in an
explorer, clicks on one traced graph: on the output (whose image pooling sees everything), on the ASPP branch of
rate 12, and on that branch for path counts.
"""

import torch
from timing import interleave, machine_line, parse, quartiles, save, spread, table
from torchvision.models.segmentation import deeplabv3_resnet50

from deeplab_edu.profiles import Profile
from deeplab_edu.receptive_field import SpatialGraph

SIZE, UNIT, BRANCH = 513, (20, 44), "classifier.0.convs.1"


def main() -> None:
    options, profile = parse(__doc__, repetitions=25), Profile.load()
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
    seconds = interleave(arms, options.repetitions)
    spans = {name: quartiles([1000 * s for s in values]) for name, values in seconds.items()}
    print(f"DeepLabv3-ResNet-50 at {SIZE} px, {options.repetitions} repetitions; {machine_line()}\n")
    rows = [(name, spread(*span, form=".1f")) for name, span in spans.items()]
    print(table(["what", "ms, median (quartiles)"], rows))
    if options.save:
        measured = {name: dict(zip(("low", "median", "high"), span)) for name, span in spans.items()}
        save("receptive_field", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
