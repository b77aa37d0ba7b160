"""DeepLab v3: Chen, Papandreou, Schroff & Adam, *Rethinking Atrous Convolution for Semantic Image Segmentation*, 2017.

Two ways to use atrous convolution on a residual network whose stride stops at `output_stride`:

    cascade:  blocks 1-4 -> blocks 5, 6, 7: copies of block 4, ever further dilated -> scores      (§3.2, fig. 3)

                              -> 1x1 --------------------+
    ASPP:     blocks 1-4 ---- -> 3x3, rates 6, 12, 18 ---+-> concatenate -> 1x1 -> scores      (§3.3, fig. 5)
                              -> mean over the image ----+

v2's ASPP gets batch norm, a 1x1 branch, and a projection in place of the sum; and, as the taps of large rates fall
beside a small map, the image's own mean in place of ever larger rates. The three units of block 4 (and 5, 6, 7) have
rates of their own, the multi-grid. Rates given for output stride 16 double at 8.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .atrous import nominal_stride
from .backbones import AtrousBackbone, Backbone, atrous_backbone
from .layers import check_images, conv_bn_relu, crop, init_he, on_grid, to_size


class DeepLabV3(nn.Module):
    """DeepLab v3: images (N, 3, H, W) float -> logits (N, num_classes, H, W); any H, W from 1 up.

    `head` is "aspp", or "cascade" with the last of `cascade_blocks` 4 to 7. `output_stride` is 8, 16 or 32, and for a
    cascade up to 32 times 2 for each block after the fourth, which is the cascade without atrous convolution;
    `set_output_stride` changes it later, on the same weights. `rates` are ASPP's at output stride 16, by default (6,
    12, 18); `multi_grid` defaults to (1, 2, 4) on ResNets. `backbone` is "resnet50", "resnet101", "mobilenet_v2" or
    "tiny" with `width` (default 16), whose rates default to (1, 2, 3), without multi-grid, for its small images.
    `stride_in` and `pretrained`: see `backbones.atrous_backbone`.

    As released, and where the paper is silent: ReLU after each batch norm, and dropout 0.1 after the projection. The
    paper's batch norm decay of 0.9997 is PyTorch's momentum 0.0003, of use in long training only; here it is 0.1.

    `compat="torchvision"` is torchvision's network: strides in 3x3 convolutions, output stride 8, no multi-grid, one
    3x3 convolution more, dropout 0.5, corners not aligned. `build_model(..., weights="coco")` fetches its weights.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        backbone: str = "resnet50",
        head: str = "aspp",
        output_stride: int = 16,
        multi_grid: Sequence[int] | None = None,
        rates: Sequence[int] | None = None,
        image_pooling: bool = True,
        cascade_blocks: int = 7,
        width: int | None = None,
        stride_in: str | None = None,
        pretrained: bool | str | Path = False,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        self.compat = check_compat(compat, backbone, head)
        if self.compat:
            output_stride, stride_in, multi_grid = 8, "3x3", (1, 1, 1)
        self.strides = allowed_strides(head, cascade_blocks)
        self.backbone = encoder(backbone, multi_grid, width, stride_in, pretrained)
        deepest = self.backbone.channels[-1]
        if head == "cascade":
            extend(self.backbone, cascade_blocks)
            self.head: nn.Module = nn.Identity()
            channels = deepest
        else:
            channels = 4 * (width or 16) if backbone == "tiny" else 256
            self.head = ASPP(deepest, channels, check_rates(rates, backbone), image_pooling)
            if self.compat:
                self.head.projection[-1].p = 0.5  # type: ignore[assignment]
                self.head = nn.Sequential(self.head, conv_bn_relu(channels, channels))
        self.score = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.get_parameter("bias"))
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        """Pixels between two units of the features, on the same weights; ASPP's rates follow (§3.3, §4.2)."""
        if output_stride not in self.strides:
            choice = ", ".join(map(str, self.strides))
            raise ValueError(f"output_stride is one of {choice} for this network, not {output_stride!r}")
        self.output_stride = output_stride
        self.backbone.set_output_stride(output_stride)
        for module in self.head.modules():
            if isinstance(module, ASPP):
                module.set_output_stride(output_stride)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        if self.compat:
            scores = self.score(self.head(self.backbone(images)[-1]))
            return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)
        padded = on_grid(images, min(self.output_stride, 32))
        scores = self.score(self.head(self.backbone(padded)[-1]))  # (N, num_classes, h, w)
        return crop(to_size(scores, padded), images)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with batch norm and the image's mean (§3.3): (N, in, h, w) -> (N, channels, h, w).

    `rates` are those at output stride 16. `conv` makes the 3x3 branches; v3+ has separable ones.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int],
        image_pooling: bool = True,
        conv: Callable[..., nn.Sequential] = conv_bn_relu,
    ) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.branches = nn.ModuleList(
            [conv_bn_relu(in_channels, channels, 1), *(conv(in_channels, channels, rate=r) for r in rates)]
        )
        self.image_pooling = ImagePooling(in_channels, channels) if image_pooling else None
        parts = len(self.branches) + image_pooling
        self.projection = nn.Sequential(*conv_bn_relu(parts * channels, channels, 1), nn.Dropout(0.1))
        init_he(self)

    def set_output_stride(self, output_stride: int) -> None:
        """Rates in units of the map, so that the pixels between taps stay the same (at least one unit)."""
        for branch, rate in zip(self.branches[1:], self.rates):
            rate = max(1, rate * 16 // output_stride)
            for layer in branch.modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (rate, rate)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.image_pooling is not None:
            parts.append(self.image_pooling(x))
        return self.projection(torch.cat(parts, 1))


class ImagePooling(nn.Module):
    """The mean over the whole map, 1x1 convolution, batch norm, ReLU, and the same value at every unit (§3.3)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.mean, self.conv = nn.AdaptiveAvgPool2d(1), conv_bn_relu(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv[1].training and not isinstance(x, fx.Proxy) and len(x) == 1:
            raise ValueError(
                "image pooling leaves one value a channel of each image, and batch norm cannot train on one image: "
                "use a batch of two or more, or freeze batch norm by model.eval()"
            )
        return F.interpolate(self.conv(self.mean(x)), x.shape[-2:], mode="bilinear", align_corners=True)


def extend(backbone: AtrousBackbone, blocks: int) -> None:
    """Append copies of block 4 up to number `blocks` (§3.2). Each strides where block 4 does, if it is let.

    A copy keeps its number of channels, so its shortcut needs no projection: where it strides, it skips units.
    """
    if not isinstance(backbone, Backbone) or not hasattr(backbone.layers[3][0], "expansion"):
        raise ValueError("a cascade copies residual blocks: its backbone is resnet50, resnet101 or tiny")
    block4, channels = backbone.layers[3], backbone.channels[-1]
    kind = type(block4[0])
    for _ in range(blocks - 4):
        copy = nn.Sequential(*(kind(channels, channels // kind.expansion) for _ in block4))
        copy[0].downsample = nn.MaxPool2d(1, 2)
        for name in ("conv1", "conv2"):
            stride = nominal_stride(getattr(block4[0], name))
            getattr(copy[0], name).stride = (stride, stride)
        init_he(copy)
        backbone.layers.append(copy)
        backbone.channels += (channels,)


def encoder(
    name: str,
    multi_grid: Sequence[int] | None,
    width: int | None,
    stride_in: str | None,
    pretrained: bool | str | Path,
) -> AtrousBackbone:
    """The backbone with the paper's multi-grid where it has one and nothing else was asked for."""
    if width is not None and (name != "tiny" or not isinstance(width, int) or width < 1):
        raise ValueError(f"width is a whole number from 1 up, of the tiny backbone only, not {width!r}")
    if multi_grid is None and name.startswith("resnet"):
        multi_grid = (1, 2, 4)
    return atrous_backbone(
        name, multi_grid=multi_grid, width=width or 16, stride_in=stride_in, pretrained=pretrained
    )


def allowed_strides(head: str, cascade_blocks: int) -> tuple[int, ...]:
    if head not in ("aspp", "cascade"):
        raise ValueError(f'head is "aspp" or "cascade", not {head!r}')
    if cascade_blocks not in (4, 5, 6, 7):
        raise ValueError(
            f"cascade_blocks, the number of the last block, is 4, 5, 6 or 7, not {cascade_blocks!r}"
        )
    extra = cascade_blocks - 4 if head == "cascade" else 0
    return tuple(8 * 2**i for i in range(3 + extra))


def check_rates(rates: Sequence[int] | None, backbone: str) -> tuple[int, ...]:
    """ASPP's rates at output stride 16, the paper's or those for tiny's small images unless others were asked for."""
    rates = tuple(rates) if rates is not None else (1, 2, 3) if backbone == "tiny" else (6, 12, 18)
    if not all(isinstance(rate, int) and rate > 0 for rate in rates):
        raise ValueError(f"rates are whole numbers from 1 up, one a 3x3 branch, not {rates!r}")
    return rates


def check_compat(compat: str | None, backbone: str, head: str) -> bool:
    if compat not in (None, "torchvision"):
        raise ValueError(f'compat is "torchvision" or None, not {compat!r}')
    if compat and (head != "aspp" or backbone not in ("resnet50", "resnet101")):
        raise ValueError(
            "torchvision's DeepLabv3 here has ASPP on resnet50 or resnet101; choose one of these"
        )
    return compat is not None


TORCHVISION_NAMES = {  # prefixes in this model with compat="torchvision", and in torchvision's
    "backbone.stem.0.": "backbone.conv1.",
    "backbone.stem.1.": "backbone.bn1.",
    **{f"backbone.layers.{i}.": f"backbone.layer{i + 1}." for i in range(4)},
    **{f"head.0.branches.{i}.": f"classifier.0.convs.{i}." for i in range(4)},
    **{f"head.0.image_pooling.conv.{i}.": f"classifier.0.convs.4.{i + 1}." for i in range(2)},
    "head.0.projection.": "classifier.0.project.",
    **{f"head.1.{i}.": f"classifier.{i + 1}." for i in range(2)},
    "score.": "classifier.4.",
}
