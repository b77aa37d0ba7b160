"""Backbones: classification networks without their classifier, giving a feature map at each stride.

`backbone(images)` returns a list of feature maps, deepest last; `backbone.channels` and `backbone.strides` say how
many channels each has and how many image pixels lie between two of its units. A side of n pixels becomes
ceil(n / stride) units: nothing is cut off, so images of any size go in.
"""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.vgg import cfgs, make_layers

from .layers import conv_bn_relu, init_he

BACKBONES = ("vgg16", "vgg16_bn", "tiny")


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


def pretrained_weights(backbone: str, source: bool | str | Path) -> dict[str, Tensor]:
    """State dict of torchvision's classifier `backbone`: its ImageNet weights, or those in the file `source`.

    `source=True` asks torchvision, which downloads them once into torch's cache; nothing else here goes online. A
    file is `.safetensors` or what `torch.save(model.state_dict(), path)` writes; only tensors are ever unpickled.
    Raises FileNotFoundError for a missing file and ValueError for one that holds something else.
    """
    if backbone == "tiny":
        raise ValueError("the tiny backbone has no ImageNet weights; leave out `pretrained`, or use vgg16")
    if source is True:
        return get_model_weights(backbone).DEFAULT.get_state_dict(progress=True, check_hash=True)
    path = Path(str(source))
    if not path.is_file():
        raise FileNotFoundError(f"no file of pretrained weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a state dict of tensors, or is damaged") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no plain state dict; write it by torch.save(model.state_dict(), path)"
        )
    return state


def load_renamed(module: nn.Module, state: dict[str, Tensor], names: dict[str, str], source: object) -> None:
    """Fill `module` from `state`, where its layers have other names: `names` maps a prefix of ours to one of theirs.

    Tensors are reshaped if only their shape differs (a linear layer into the convolution that computes the same).
    Parameters under no prefix keep their values; entries of `state` that nobody asks for are left unused. Raises
    ValueError naming the first entry that is missing or of another size.
    """
    own = module.state_dict()
    for name, value in own.items():
        prefix = next((ours for ours in names if name.startswith(ours)), None)
        if prefix is None:
            continue
        theirs = names[prefix] + name.removeprefix(prefix)
        given = state.get(theirs)
        if given is None:
            raise ValueError(f"the weights from {source} lack {theirs!r}: is this another network's file?")
        if given.numel() != value.numel():
            shapes = f"{tuple(given.shape)}, not {tuple(value.shape)}"
            raise ValueError(
                f"{theirs!r} in the weights from {source} has shape {shapes}: is it another network?"
            )
        own[name] = given.reshape(value.shape)
    module.load_state_dict(own)
