"""One arm of receptive_field.py, in a process of its own: importing TorchLens wraps torch's functions.

    python benchmarks/torchlens_arm.py SIZE ROW COLUMN LAYER

Prints one JSON line: seconds to trace DeepLabv3-ResNet-50, seconds for one window after a first one, and that window.
Needs `pip install torchlens`.
"""

import json
import sys
import time

import torch
from torchvision.models.segmentation import deeplabv3_resnet50

from deeplab_edu.profiles import Profile


def main() -> None:
    import torchlens

    Profile.load()  # the number of threads
    size, row, column = map(int, sys.argv[1:4])
    model = deeplabv3_resnet50(weights=None, weights_backbone=None).eval()
    start = time.perf_counter()
    trace = torchlens.trace(model, torch.zeros(1, 3, size, size))
    traced = time.perf_counter() - start
    view = trace.modules[sys.argv[4]].receptive_field
    view.at((row // 2, column // 2))  # builds what later questions share
    start = time.perf_counter()
    box = view.at((row, column))
    print(json.dumps({"trace": traced, "click": time.perf_counter() - start, "box": str(box)[:400]}))


if __name__ == "__main__":
    main()
