"""Backbones: classification networks without their classifier, giving a feature map at each stride.

`backbone(images)` returns a list of feature maps, deepest last; `backbone.channels` and `backbone.strides` say how
many channels each has and how many image pixels lie between two of its units. A side of n pixels becomes
ceil(n / stride) units: nothing is cut off, so images of any size go in.

Residual networks, and whatever else strides in its convolutions, are made denser by one rule: see `atrous`.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models import get_model, mobilenet_v2
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import cfgs, make_layers

from .atrous import set_output_stride
from .layers import conv_bn_relu, init_he
from .weights import load_renamed, pretrained_weights
from .xception import Xception, take_normalized, timm_names

BACKBONES = ("vgg16", "vgg16_bn", "tiny")  # of FCN and DeepLab v1
XCEPTIONS = ("xception41", "xception65", "xception71")
ATROUS_BACKBONES = ("resnet50", "resnet101", "mobilenet_v2", *XCEPTIONS, "tiny")  # of DeepLab v3 and v3+


class VGG16(nn.Module):
    """VGG-16's thirteen 3x3 convolutions and five max pools (Simonyan & Zisserman, 2015, table 1, column D).

    Returns the outputs of the five pools. The layers and their names are torchvision's, so that its weights fit. Two
    things are as in Caffe, in which FCN and DeepLab were written: pools round sizes up (`ceil_mode`), and
    `first_padding` may set the zeros around conv1_1, which FCN makes 100.
    """

    channels = (64, 128, 256, 512, 512)
    strides = (2, 4, 8, 16, 32)

    def __init__(self, batch_norm: bool = False, first_padding: int = 1) -> None:
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm)
        self.features[0].padding = (first_padding, first_padding)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        init_he(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions plus a 1x1 shortcut (He et al., *Deep Residual Learning*, 2016, fig. 2, §3.3 B)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_bn_relu(in_channels, out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class Tiny(nn.Module):
    """A trunk that trains on a CPU in minutes: ours, from no paper.

    A 3x3 convolution of stride 2, then four times a 2x2 max pool and a residual block. Returns the five maps, with
    1, 2, 3, 4 and 5 times `width` channels. It pools, as VGG does, rather than stride: a pooled unit lies in the
    middle of the pixels it stands for, where bilinear upsampling will put its scores.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.channels = tuple(n * width for n in (1, 2, 3, 4, 5))
        self.stem = conv_bn_relu(3, width, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), ResidualBlock(shallow, deep))
            for shallow, deep in zip(self.channels, self.channels[1:])
        )
        init_he(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class TinyStride8(nn.Module):
    """A short trunk that stays at stride 8, for DeepLab on a CPU: ours, shaped like VGG as DeepLab v1 changed it.

    A 3x3 convolution of stride 2, then three times a 3x3 max pool and two 3x3 convolutions. The last pool has stride
    1, and with `hole` the convolutions after it have rate 2. Returns the four maps, with 1, 2, 3 and 4 times `width`
    channels. Unit i of a map of stride s lies on pixel s i, and a map reaches to the image's last pixel or beyond.
    """

    strides = (2, 4, 8, 8)

    def __init__(self, width: int = 16, hole: bool = True) -> None:
        super().__init__()
        self.channels = tuple(n * width for n in (1, 2, 3, 4))
        one_more = nn.ZeroPad2d((0, 1, 0, 1))  # right and below: an even side's last pixel gets a unit, too
        self.stem = nn.Sequential(one_more, *conv_bn_relu(3, width, stride=2))
        rates = (1, 1, 2 if hole else 1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.MaxPool2d(3, stride, padding=1, ceil_mode=True),
                conv_bn_relu(shallow, deep, rate=rate),
                conv_bn_relu(deep, deep, rate=rate),
            )
            for shallow, deep, stride, rate in zip(self.channels, self.channels[1:], (2, 2, 1), rates)
        )
        init_he(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class Backbone(nn.Module):
    """A network that strides in its layers, made dense on demand: what DeepLab v3 and v3+ stand on.

    `stem` strides 2 or 4; the first of `layers` ends at stride 4, and each further one halves its map, as far as
    `set_output_stride` lets it. Returns the map after each of `layers`: images (N, 3, H, W) -> [(N, channels[i],
    ceil(H / strides[i]), ceil(W / strides[i])), ...]. Unit j of a map of stride s lies on pixel s j.

    `multi_grid` multiplies the rates of the units of the fourth layer, and of any further one (v3, §3.2.1).
    """

    def __init__(self, stem: nn.Sequential, layers: Sequence[nn.Sequential], channels: Sequence[int]) -> None:
        super().__init__()
        self.stem = stem
        self.layers: Any = nn.ModuleList(layers)  # Any: its type would not say that the parts are sequences
        self.channels = tuple(channels)
        self.strides = tuple(4 * 2**i for i in range(len(layers)))
        self.multi_grid: tuple[int, ...] | None = None
        self.stride_in: str | None = None  # a ResNet's

    def set_output_stride(self, output_stride: int) -> None:
        """Let the last map's units lie `output_stride` pixels apart, 4 or more, without changing a weight."""
        rates = [1] * len(self.stem)
        for number, layer in enumerate(self.layers):
            rates += self.multi_grid if self.multi_grid and number >= 3 else [1] * len(layer)
        units = [*self.stem, *(unit for layer in self.layers for unit in layer)]
        strides = iter(set_output_stride(units, output_stride, rates)[len(self.stem) :])
        self.strides = tuple([next(strides) for _ in layer][-1] for layer in self.layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], self.stem(images)
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


def resnet(depth: int, stride_in: str) -> tuple[Backbone, dict[str, str]]:
    """ResNet-50 or -101 (He et al., 2016, table 1), and torchvision's names for the parts.

    The first unit of a layer strides in its 1x1 convolution, `stride_in="1x1"`, as in the paper and in the nets that
    DeepLab used, or in its 3x3 convolution, as in the nets whose weights torchvision has.
    """
    net = get_model(f"resnet{depth}", weights=None)
    layers = [net.layer1, net.layer2, net.layer3, net.layer4]
    for first in (layer[0] for layer in layers[1:] if stride_in == "1x1"):
        first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    names = {"stem.0.": "conv1.", "stem.1.": "bn1."} | {f"layers.{i}.": f"layer{i + 1}." for i in range(4)}
    backbone = Backbone(stem, layers, (256, 512, 1024, 2048))
    backbone.stride_in = stride_in
    return backbone, names


def mobilenet() -> tuple[Backbone, dict[str, str]]:
    """MobileNetV2 (Sandler et al., 2018, table 2) up to its 320 channels, as DeepLab uses it; torchvision's names."""
    features = mobilenet_v2(weights=None).features
    ends = (1, 4, 7, 14, 18)  # where a layer starts that halves the map, but for the first
    layers = [nn.Sequential(*features[start:stop]) for start, stop in pairwise(ends)]
    names = {f"stem.{i}.": f"features.0.{i}." for i in range(3)}
    for number, start in enumerate(ends[:-1]):
        names |= {f"layers.{number}.{i}.": f"features.{start + i}." for i in range(len(layers[number]))}
    return Backbone(features[0], layers, (24, 32, 96, 320)), names


def tiny_resnet(width: int) -> Backbone:
    """A residual network that trains on a CPU in minutes: ours, from no paper.

    A 3x3 convolution of stride 2, then two, two, two and three of He et al.'s basic blocks (2016, fig. 2) with 2, 3,
    4 and 5 times `width` channels. The first of each group strides.
    """
    channels = [n * width for n in (1, 2, 3, 4, 5)]
    layers = []
    for shallow, deep, units in zip(channels, channels[1:], (2, 2, 2, 3)):
        shortcut = nn.Sequential(nn.Conv2d(shallow, deep, 1, 2, bias=False), nn.BatchNorm2d(deep))
        first = BasicBlock(shallow, deep, 2, shortcut)
        layers.append(nn.Sequential(first, *(BasicBlock(deep, deep) for _ in range(units - 1))))
    backbone = Backbone(conv_bn_relu(3, width, stride=2), layers, channels[1:])
    init_he(backbone)
    return backbone


AtrousBackbone: TypeAlias = Backbone | Xception


def atrous_backbone(
    name: str,
    output_stride: int = 16,
    *,
    multi_grid: Sequence[int] | None = None,
    width: int = 16,
    stride_in: str | None = None,
    pretrained: bool | str | Path = False,
) -> AtrousBackbone:
    """One of `ATROUS_BACKBONES` at `output_stride` 32, 16 or 8.

    `width` is tiny's. `stride_in` is the ResNets' ("1x1" or "3x3"); by default it is "3x3" with `pretrained`, which
    is True for torchvision's ImageNet weights or the path of a file with its names, and "1x1" without. Torchvision
    has no Xception: for these, a file has timm's names, and its first layer is adapted to `normalize`d images, since
    timm's Xceptions have learned from pixels of -1 to 1. Raises ValueError for a name or value that there is not.
    """
    if name not in ATROUS_BACKBONES:
        raise ValueError(f"no backbone {name!r}; choose from {', '.join(ATROUS_BACKBONES)}")
    if stride_in not in (None, "1x1", "3x3"):
        raise ValueError(f'stride_in is "1x1" or "3x3", not {stride_in!r}')
    if stride_in and not name.startswith("resnet"):
        raise ValueError(f"stride_in belongs to the ResNets; leave it out for {name}")
    backbone: AtrousBackbone
    names: dict[str, str] = {}
    if name.startswith("resnet"):
        depth = int(name.removeprefix("resnet"))
        backbone, names = resnet(depth, stride_in or ("3x3" if pretrained else "1x1"))
    elif name == "mobilenet_v2":
        backbone, names = mobilenet()
    elif name in XCEPTIONS:
        depth = int(name.removeprefix("xception"))
        backbone, names = Xception(depth), timm_names(depth)
    else:
        backbone = tiny_resnet(width)
    if pretrained:
        load_renamed(backbone, pretrained_weights(name, pretrained), names, source=pretrained)
        if isinstance(backbone, Xception):
            take_normalized(backbone)
    if multi_grid is not None:
        if isinstance(backbone, Xception) or name == "mobilenet_v2":
            raise ValueError(f"multi_grid belongs to the residual networks; leave it out for {name}")
        check_multi_grid(backbone, multi_grid)
        backbone.multi_grid = tuple(multi_grid)
    backbone.set_output_stride(output_stride)
    return backbone


def check_multi_grid(backbone: Backbone, multi_grid: Sequence[int]) -> None:
    units = len(backbone.layers[3])
    whole = all(isinstance(rate, int) and rate > 0 for rate in multi_grid)
    if not whole or len(multi_grid) != units:
        raise ValueError(f"multi_grid is {units} whole numbers from 1 up, one a unit, not {multi_grid!r}")
