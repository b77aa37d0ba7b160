"""The models of the course by name: `build_model("fcn8s", num_classes=21, backbone="tiny")`."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .deeplab_v1 import DeepLabV1
from .deeplab_v2 import DeepLabV2
from .deeplab_v3 import TORCHVISION_NAMES, DeepLabV3
from .deeplab_v3plus import DeepLabV3Plus
from .fcn import FCN
from .weights import load_model

_TABLE: dict[str, tuple[partial[Any], str]] = {
    "fcn32s": (
        partial(FCN, stride=32),
        "FCN-32s: a classifier made convolutional, upsampled 32 times in one step",
    ),
    "fcn16s": (partial(FCN, stride=16), "FCN-16s: a skip from stride 16 added before upsampling"),
    "fcn8s": (partial(FCN, stride=8), "FCN-8s: skips from strides 16 and 8 added before upsampling"),
    "deeplab_v1": (
        partial(DeepLabV1),
        "DeepLab v1: stride 8 by atrous convolution, and a field of view to choose",
    ),
    "deeplab_v2": (
        partial(DeepLabV2),
        "DeepLab v2: several fields of view side by side, ASPP, on VGG-16 or ResNet-101",
    ),
    "deeplab_v3": (
        partial(DeepLabV3),
        "DeepLab v3: ASPP with batch norm and image pooling, or a cascade of blocks; multi-grid",
    ),
    "deeplab_v3plus": (
        partial(DeepLabV3Plus),
        "DeepLab v3+: v3 as the encoder of a decoder that sharpens outlines; separable convolutions",
    ),
}
MODELS = {name: description for name, (_, description) in _TABLE.items()}


def build_model(
    name: str, num_classes: int = 21, *, weights: str | Path | None = None, **options: object
) -> nn.Module:
    """Build the model `name` (a key of `MODELS`) with `num_classes` classes, background included.

    `options` are the keyword arguments of the model's class, e.g. `backbone="tiny"`. The model maps normalised
    images (N, 3, H, W) to logits (N, num_classes, H, W).

    `weights` is a file of the whole model's weights (a plain state dict, `.pth` or `.safetensors`), or "coco" for
    torchvision's with `compat="torchvision"`. Weights do not tell where a ResNet strides: what was trained from
    `pretrained` ones needs `stride_in="3x3"` again. Runs of this course keep a note of it, and a wrong one is refused;
    a plain `.pth` has none.

    Raises ValueError for an unknown name, a number of classes below 2 or weights of another network, TypeError for an
    option the model does not have, FileNotFoundError for a missing file.
    """
    if name not in _TABLE:
        raise ValueError(f"no model is called {name!r}; choose from {', '.join(MODELS)}")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes is a whole number from 2 up (background counts), not {num_classes!r}")
    build, _ = _TABLE[name]
    known = [
        option
        for option in inspect.signature(build).parameters
        if option not in {"num_classes", *build.keywords}
    ]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(known)}")
    model = build(num_classes, **options)
    if weights is not None:
        load_model(model, weights, TORCHVISION_NAMES if getattr(model, "compat", False) else None)
    return model
