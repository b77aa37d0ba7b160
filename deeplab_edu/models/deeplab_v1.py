"""DeepLab v1: Chen, Papandreou, Kokkinos, Murphy & Yuille, *Semantic Image Segmentation with DCNNs and CRFs*, 2015.

FCN's coarse scores come from stride 32. Here the last two pools of VGG-16 stop striding, so that scores stand 8 pixels
apart, and what follows them skips the units that striding would have dropped: its taps lie 2, then 4 units apart (the
"hole algorithm", §3.1). The same weights then compute the same responses, at 16 times as many places:

    image -> conv1..conv3, three pools (stride 8) -> conv4, pool4 -> conv5, rate 2, pool5 -> fc6, rate r -> fc7 -> fc8

How far fc6 reaches, the field of view, and what it costs, is a matter of its taps and their rate (§3.2, table 2).
Dense CRF (`deeplab_edu.crf`) sharpens the probabilities afterwards; the network knows nothing of it.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import BACKBONES, VGG16, TinyStride8
from .layers import check_images, conv_bn_relu, init_he
from .weights import load_renamed, pretrained_weights

STRIDE = 8

FIELDS_OF_VIEW = {  # taps of fc6 along an axis, their rate, channels of fc6 and fc7
    "largefov": (3, 12, 1024),  # the paper's DeepLab-CRF-LargeFOV
    "7x7": (7, 4, 4096),  # DeepLab-CRF-7x7: VGG's own fc6
    "4x4": (4, 4, 4096),  # DeepLab-CRF
    "4x4-wide": (4, 8, 4096),  # DeepLab-CRF-4x4
}


class DeepLabV1(nn.Module):
    """DeepLab v1 without its CRF: images (N, 3, H, W) float -> logits (N, num_classes, H, W); any H, W from 1 up.

    The trunk is that of the net released as DeepLab-LargeFOV, whichever the `field_of_view`: pools are 3x3, and fc6
    sees an average pool (pool5a). The paper, and its 4x4 net as released, have 2x2 pools and no pool5a.

    Unit i of the scores lies on pixel 8 i, so an image of 321 pixels has 41 of them, and `logits[..., ::8, ::8]` are
    the scores themselves. The paper trains these, on every eighth label; training on the upsampled ones is our choice.

    `backbone` is "vgg16", as in the paper; "vgg16_bn"; or "tiny" with `width` (default 16), whose fc6 has half the
    rate, since it works on smaller images. `rate` sets another one; `hole=False` leaves conv5 without holes, as if it
    had not been noticed that pool4 no longer strides. `pretrained` is True for torchvision's ImageNet weights or the
    path of a file of them; fc6 and fc7 take over what fits of VGG's (see `cut_classifier`).
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        field_of_view: str = "largefov",
        backbone: str = "vgg16",
        width: int | None = None,
        rate: int | None = None,
        hole: bool = True,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        check_options(field_of_view, backbone, width, rate)
        taps, vgg_rate, channels = FIELDS_OF_VIEW[field_of_view]
        if backbone == "tiny":
            width = width or 16
            channels = 4 * width
            self.backbone: VGG16 | TinyStride8 = TinyStride8(width, hole)
            self.classifier = tiny_classifier(channels, taps, rate or vgg_rate // 2)
        else:
            self.backbone = atrous_vgg(batch_norm=backbone == "vgg16_bn", hole=hole)
            self.classifier = vgg_classifier(channels, taps, rate or vgg_rate)
        self.score = nn.Conv2d(channels, num_classes, 1)  # fc8
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.constant_(self.score.get_parameter("bias"), 0)
        if pretrained:
            state = pretrained_weights(backbone, pretrained)
            load_renamed(self, state, {"backbone.": ""}, source=pretrained)
            self.classifier.load_state_dict(cut_classifier(state, taps, channels, source=pretrained))

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        scores = self.score(self.classifier(self.backbone(images)[-1]))  # (N, num_classes, ~H / 8, ~W / 8)
        height, width = scores.shape[-2:]
        size = (STRIDE * (height - 1) + 1, STRIDE * (width - 1) + 1)  # first unit's pixel to last unit's
        logits = F.interpolate(scores, size, mode="bilinear", align_corners=True)
        return logits[..., : images.shape[-2], : images.shape[-1]]


def atrous_vgg(batch_norm: bool, hole: bool) -> VGG16:
    """VGG-16 as the released net's trunk: 3x3 pools, the last two of stride 1, and conv5 with holes."""
    vgg, pools = VGG16(batch_norm), 0
    for layer in vgg.features:
        if isinstance(layer, nn.MaxPool2d):
            pools += 1
            layer.kernel_size, layer.padding, layer.stride = 3, 1, 2 if pools <= 3 else 1
        elif isinstance(layer, nn.Conv2d) and pools == 4 and hole:
            layer.dilation = layer.padding = (2, 2)
    vgg.strides = (2, 4, 8, 8, 8)
    return vgg


def vgg_classifier(channels: int, taps: int, rate: int) -> nn.Sequential:
    """pool5a, fc6 with `taps` x `taps` taps `rate` units apart, and fc7; the map keeps its size."""
    classifier = nn.Sequential(
        OrderedDict(
            pool5a=nn.AvgPool2d(3, stride=1, padding=1),
            fc6=nn.Conv2d(512, channels, taps, padding=rate * (taps - 1) // 2, dilation=rate),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=nn.Conv2d(channels, channels, 1),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
        )
    )
    init_he(classifier)
    return classifier


def tiny_classifier(channels: int, taps: int, rate: int) -> nn.Sequential:
    """The same with few channels and batch normalisation, which trains from scratch."""
    fc6, fc7 = conv_bn_relu(channels, channels, taps, rate=rate), conv_bn_relu(channels, channels, 1)
    classifier = nn.Sequential(OrderedDict(fc6=fc6, fc7=fc7))
    init_he(classifier)
    return classifier


def cut_classifier(state: dict[str, Tensor], taps: int, channels: int, source: object) -> dict[str, Tensor]:
    """fc6 and fc7 from VGG-16's own: `taps` of its 7 along each axis (§3.2), and a random choice of its channels.

    Raises ValueError where `state` lacks them or holds another network's.
    """
    fc6, fc7 = nn.Conv2d(512, 4096, 7), nn.Conv2d(4096, 4096, 1)
    whole = nn.ModuleDict({"fc6": fc6, "fc7": fc7})
    load_renamed(whole, state, {"fc6": "classifier.0", "fc7": "classifier.3"}, source)
    places = torch.linspace(0, 6, taps).round().long()  # 0 3 6, or 0 2 4 6, or all
    kept6, kept7 = (torch.randperm(4096)[:channels].sort().values for _ in range(2))
    with torch.no_grad():
        return {
            "fc6.weight": fc6.weight[kept6][:, :, places][..., places],
            "fc6.bias": fc6.get_parameter("bias")[kept6],
            "fc7.weight": fc7.weight[kept7][:, kept6],
            "fc7.bias": fc7.get_parameter("bias")[kept7],
        }


def check_options(field_of_view: str, backbone: str, width: int | None, rate: int | None) -> None:
    if field_of_view not in FIELDS_OF_VIEW:
        raise ValueError(f"no field of view {field_of_view!r}; choose from {', '.join(FIELDS_OF_VIEW)}")
    if backbone not in BACKBONES:
        raise ValueError(f"DeepLab v1 has no backbone {backbone!r}; choose from {', '.join(BACKBONES)}")
    if width is not None and backbone != "tiny":
        raise ValueError(f"`width` belongs to the tiny backbone; {backbone} has the paper's")
    for name, value in {"width": width, "rate": rate}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is a whole number from 1 up, not {value!r}")
    if rate is not None and rate % 2 and field_of_view.startswith("4x4"):
        raise ValueError(f"a 4x4 kernel keeps the map's size at even rates only, not at {rate}")
