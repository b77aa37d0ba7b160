"""Backbones: classification networks without their classifier, giving a feature map at each stride.

`backbone(images)` returns a list of feature maps, deepest last; `backbone.channels` and `backbone.strides` say how many
channels each has and how many image pixels lie between two of its neighbours. A side of length n becomes
ceil(n / stride): no pixel is dropped, so any size goes in.
"""

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from .layers import conv_bn_relu, init_he

BACKBONES = ("vgg16", "vgg16_bn", "tiny")


class VGG16(nn.Module):
    """VGG-16's thirteen 3x3 convolutions and five 2x2 max pools (Simonyan & Zisserman, 2015, table 1, column D).

    Returns the five pools' outputs. The layers and their names are torchvision's, so its weights fit; two things are
    Caffe's, which FCN and DeepLab were written in: pools round sizes up (`ceil_mode`), and `first_padding` sets the
    zeros around conv1_1, which FCN makes 100 and everyone else 1.
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
    """Two 3x3 convolutions beside a shortcut, added (He et al., *Deep Residual Learning*, 2016, fig. 2 and §3.3 B)."""

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
    """A trunk that trains on a laptop's CPU in minutes: ours, from no paper.

    A 3x3 convolution of stride 2, then per stage a 2x2 max pool and one residual block. Returns five maps, with
    `width` times 1, 2, 3, 4, 5 channels. Pools rather than strided convolutions, as in VGG: a pooled unit lies in the
    middle of the pixels it stands for, so that bilinear upsampling puts its scores back where they came from.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.channels = tuple(width * n for n in (1, 2, 3, 4, 5))
        self.stem = conv_bn_relu(3, width, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), ResidualBlock(shallow, deep))
            for shallow, deep in zip(self.channels, self.channels[1:], strict=False)
        )
        init_he(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps
