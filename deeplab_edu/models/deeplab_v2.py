"""DeepLab v2: Chen, Papandreou, Kokkinos, Murphy & Yuille, *DeepLab: ... Atrous Convolution, and CRFs*, 2018.

v1 had to choose how far fc6 reaches: what suits a bus overlooks a bottle. Here several answers are given side by side
and summed: atrous spatial pyramid pooling, ASPP (§3.2, fig. 7). The trunk is v1's, or a ResNet-101 made dense:

                                                  -> rate  6 -+
    image -> VGG-16 or ResNet-101, stride 8 ----- -> rate 12 -+-> sum = scores -> up 8
                                                  -> rate 18 -+
                                                  -> rate 24 -+

The other way to see at several scales is to look at the image at several (§3.2, "multiscale processing"): below.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import VGG16, AtrousBackbone, TinyStride8, atrous_backbone
from .deeplab_v1 import atrous_vgg
from .layers import check_images, conv_bn_relu, crop, init_he, on_grid, to_size
from .weights import load_renamed, pretrained_weights

STRIDE = 8
BACKBONES = ("vgg16", "vgg16_bn", "resnet50", "resnet101", "tiny")


class DeepLabV2(nn.Module):
    """DeepLab v2 without its CRF: images (N, 3, H, W) float -> logits (N, num_classes, H, W); any H, W from 1 up.

    `rates` default to the paper's ASPP-L, (6, 12, 18, 24); (2, 4, 8, 12) is its ASPP-S, and one rate alone is
    LargeFOV. `backbone` is "vgg16" or "resnet101", as in the paper; "vgg16_bn" or "resnet50"; or "tiny" with `width`
    (default 16), whose rates default to (1, 2, 4, 6) for its small images. On VGG a branch is a whole classifier
    fc6-fc7-fc8 of 1024 channels; on a ResNet it is one 3x3 convolution to the scores. The paper froze ResNet's batch
    norm.

    `pretrained` is True for torchvision's ImageNet weights or the path of a file of them; where a ResNet strides then,
    and how to choose it by `stride_in`, see `backbones.atrous_backbone`.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        backbone: str = "resnet101",
        rates: Sequence[int] | None = None,
        width: int | None = None,
        stride_in: str | None = None,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        rates = check_options(backbone, rates, width)
        self.backbone, channels = trunk(backbone, width or 16, stride_in, pretrained)
        branch = {"vgg16": vgg_branch, "vgg16_bn": vgg_branch, "tiny": tiny_branch}.get(
            backbone, resnet_branch
        )
        self.aspp = nn.ModuleList(branch(channels, num_classes, rate) for rate in rates)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        padded = on_grid(images, STRIDE)
        features = self.backbone(padded)[-1]  # (N, channels, h, w), one unit every 8 pixels
        scores = self.aspp[0](features)
        for branch in self.aspp[1:]:
            scores = scores + branch(features)
        return crop(to_size(scores, padded), images)


def resnet_branch(channels: int, num_classes: int, rate: int) -> nn.Module:
    """A 3x3 convolution from features to scores (fig. 7 without fc6 and fc7; N(0, 0.01), with bias, as released)."""
    layer = nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate)
    return score_like(layer)


def vgg_branch(channels: int, num_classes: int, rate: int) -> nn.Module:
    """fc6, fc7, fc8: v1's LargeFOV at `rate` (fig. 7b)."""
    hidden = 1024
    branch = nn.Sequential(
        OrderedDict(
            fc6=nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=nn.Conv2d(hidden, hidden, 1),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
        )
    )
    init_he(branch)
    branch.add_module("fc8", score_like(nn.Conv2d(hidden, num_classes, 1)))
    return branch


def tiny_branch(channels: int, num_classes: int, rate: int) -> nn.Module:
    """The same with few channels and batch normalisation, which trains from scratch."""
    branch = nn.Sequential(
        OrderedDict(fc6=conv_bn_relu(channels, channels, rate=rate), fc7=conv_bn_relu(channels, channels, 1))
    )
    init_he(branch)
    branch.add_module("fc8", score_like(nn.Conv2d(channels, num_classes, 1)))
    return branch


def score_like(layer: nn.Conv2d) -> nn.Conv2d:
    """Weights from N(0, 0.01), bias zero, as the released nets start their last layer."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def trunk(
    name: str, width: int, stride_in: str | None, pretrained: bool | str | Path
) -> tuple[VGG16 | TinyStride8 | AtrousBackbone, int]:
    """The network up to its features at stride 8, and how many channels these have."""
    backbone: VGG16 | TinyStride8 | AtrousBackbone
    if name.startswith("resnet"):
        backbone = atrous_backbone(name, STRIDE, stride_in=stride_in, pretrained=pretrained)
    elif stride_in is not None:
        raise ValueError(f"stride_in belongs to the ResNets; leave it out for {name}")
    else:
        vgg = {"batch_norm": name == "vgg16_bn", "hole": True}
        backbone = TinyStride8(width) if name == "tiny" else atrous_vgg(**vgg)
        if pretrained:
            load_renamed(backbone, pretrained_weights(name, pretrained), {"": ""}, source=pretrained)
    return backbone, backbone.channels[-1]


def check_options(backbone: str, rates: Sequence[int] | None, width: int | None) -> tuple[int, ...]:
    """The rates to use; raises ValueError for an option that makes no sense."""
    if backbone not in BACKBONES:
        raise ValueError(f"DeepLab v2 has no backbone {backbone!r}; choose from {', '.join(BACKBONES)}")
    if width is not None and (backbone != "tiny" or not isinstance(width, int) or width < 1):
        raise ValueError(f"width is a whole number from 1 up, of the tiny backbone only, not {width!r}")
    if rates is None:
        rates = (1, 2, 4, 6) if backbone == "tiny" else (6, 12, 18, 24)
    rates = tuple(rates)
    if not rates or not all(isinstance(rate, int) and rate > 0 for rate in rates):
        raise ValueError(f"rates are whole numbers from 1 up, one a branch, not {rates!r}")
    return rates


class MultiScaleInputs(nn.Module):
    """The same network at several image scales, fused by the maximum (§3.2; the released nets' DeepLab-MSC).

    In evaluation mode images (N, 3, H, W) -> logits (N, num_classes, H, W), the largest score over the scales of each
    class at each pixel. In training mode it returns a list of such logits: these, and those of each scale alone,
    which the paper supervises too; `deeplab_edu.training` sums their losses.
    """

    def __init__(self, model: nn.Module, scales: Sequence[float] = (0.5, 0.75, 1.0)) -> None:
        super().__init__()
        if not scales or not all(isinstance(scale, int | float) and scale > 0 for scale in scales):
            raise ValueError(
                f"scales is a sequence of positive numbers, e.g. (0.5, 0.75, 1.0), not {scales!r}"
            )
        self.model, self.scales = model, tuple(scales)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        height, width = images.shape[-2:]
        each = []
        for scale in self.scales:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            scaled = (
                F.interpolate(images, size, mode="bilinear", align_corners=True) if scale != 1 else images
            )
            each.append(to_size(self.model(scaled), images))
        fused = torch.stack(each).amax(0)
        return [fused, *each] if self.training else fused
