"""The models of the course by name: `build_model("fcn8s", num_classes=21, backbone="tiny")`."""

import inspect
from functools import partial
from typing import Any

from torch import nn

from .deeplab_v1 import DeepLabV1
from .fcn import FCN

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
}
MODELS = {name: description for name, (_, description) in _TABLE.items()}


def build_model(name: str, num_classes: int = 21, **options: object) -> nn.Module:
    """Build the model `name` (a key of `MODELS`) with `num_classes` classes, background included.

    `options` are the keyword arguments of the model's class, e.g. `backbone="tiny"`. The model maps normalised
    images (N, 3, H, W) to logits (N, num_classes, H, W). Raises ValueError for an unknown name or a number of
    classes below 2, TypeError for an option the model does not have.
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
    return build(num_classes, **options)
