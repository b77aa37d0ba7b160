"""FCN-32s, FCN-16s, FCN-8s: Long, Shelhamer & Darrell, *Fully Convolutional Networks*, CVPR 2015.

A classifier answers once for its whole input. Seen as a convolution it answers once for every place (§3.1, §4.1); its
coarse scores are upsampled to the pixels (§3.3), helped by scores from finer maps (§4.2, fig. 3):

    image -> pool3 (stride 8) -> pool4 (16) -> pool5 (32) -> fc6 -> fc7 -> score_fr
                                                  FCN-32s:               up 32  = scores
                                                  FCN-16s: score_pool4 + up 2, then up 16
                                FCN-8s: score_pool3 + up 2 of that sum,        then up 8
"""

from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn

from .backbones import BACKBONES, VGG16, Tiny
from .layers import BilinearUpsampling, check_images, conv_bn_relu, init_he, zero_conv
from .weights import load_renamed, pretrained_weights

PADDING = 100
"""Zeros around the image. fc6 is 7x7 without padding, so it shortens a map by 6 units of 32 pixels: an image of 192
would have no score at all, and a larger one none near its border. 100 pixels on each side make up for that, at any
size. The price is work on zeros, and scores that no longer start at the image's corner."""

CROPS = {"pool4": 5, "pool3": 9, 32: 19, 16: 27, 8: 31}
"""Rows and columns to drop (as released), so that what is added, or returned, is centred on the same pixels. The
padding moves the image by 99 pixels more than the usual 1, and fc6 without padding moves it back by 3 units of 32.
So the first score is centred (32 - 1) / 2 - 99 + 96 = 12.5 pixels into the image; the deconvolution, 64 wide, puts it
at 31.5: crop 19. The others follow in the same way."""


class FCN(nn.Module):
    """FCN with the finest scores at `stride` 32, 16 or 8, from where they are upsampled to the pixels in one step.

    images (N, 3, H, W) float -> logits (N, num_classes, H, W); any H, W from 1 up.

    `backbone` is "vgg16", as in the paper; "vgg16_bn"; or "tiny" with `width` (default 16), which is padded like any
    newer network, so that nothing needs cropping away. `pretrained` is True for torchvision's ImageNet weights or the
    path of a file of them. Deconvolutions are fixed, as released; with `learn_upsampling` all but the last are
    trained, as in the paper; the authors saw no significant difference. Score layers start at zero (§4.2, §4.3).

    A finer net can go on from a coarser one's weights, as in the paper:
    `finer.load_state_dict({k: v for k, v in coarser.state_dict().items() if "upscore" not in k}, strict=False)`.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        stride: int = 32,
        backbone: str = "vgg16",
        width: int | None = None,
        pretrained: bool | str | Path = False,
        learn_upsampling: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padded = backbone != "tiny"
        self.backbone, self.classifier, channels = trunk(backbone, width)
        *_, pool3, pool4, _ = self.backbone.channels

        def upsampling(factor: int, learn: bool) -> BilinearUpsampling:
            padding = 0 if self.padded else factor // 2
            return BilinearUpsampling(num_classes, factor, padding, learn, dense=self.padded)

        self.score_fr = zero_conv(channels, num_classes)
        if backbone == "tiny":  # trained from scratch: zeros would keep the gradient from the trunk at first
            self.score_fr.reset_parameters()
        if stride <= 16:
            self.upscore2 = upsampling(2, learn_upsampling)
            self.score_pool4 = zero_conv(pool4, num_classes)
        if stride <= 8:
            self.upscore_pool4 = upsampling(2, learn_upsampling)
            self.score_pool3 = zero_conv(pool3, num_classes)
        self.upscore = upsampling(stride, learn=False)
        if pretrained:
            names = {"backbone.": "", "classifier.fc6": "classifier.0", "classifier.fc7": "classifier.3"}
            load_renamed(self, pretrained_weights(backbone, pretrained), names, source=pretrained)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        *_, pool3, pool4, pool5 = self.backbone(images)  # strides 8, 16, 32
        scores = self.score_fr(self.classifier(pool5))
        if self.stride <= 16:
            scores = self.add(self.upscore2(scores), self.score_pool4(pool4), "pool4")
        if self.stride <= 8:
            scores = self.add(self.upscore_pool4(scores), self.score_pool3(pool3), "pool3")
        return self.crop(self.upscore(scores), images, self.stride)

    def crop(self, x: Tensor, like: Tensor, what: str | int) -> Tensor:
        """The part of `x` that lies over `like`."""
        offset = CROPS[what] if self.padded else 0
        height, width = like.shape[-2:]
        return x[..., offset : offset + height, offset : offset + width]

    def add(self, scores: Tensor, skip: Tensor, what: str) -> Tensor:
        """Sum of upsampled scores and those from a skip; the larger map is cut to the smaller."""
        skip = self.crop(skip, scores, what)
        height, width = skip.shape[-2:]
        return scores[..., :height, :width] + skip


def trunk(backbone: str, width: int | None) -> tuple[VGG16 | Tiny, nn.Module, int]:
    """The backbone, the classifier's hidden layers as convolutions (§4.1), and the channels these end in."""
    if backbone not in BACKBONES:
        raise ValueError(f"FCN has no backbone {backbone!r}; choose from {', '.join(BACKBONES)}")
    if backbone == "tiny":
        width = 16 if width is None else width
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width is a whole number from 1 up, not {width!r}")
        classifier = nn.Sequential(OrderedDict(fc6=conv_bn_relu(5 * width, 8 * width)))
        init_he(classifier)
        return Tiny(width), classifier, 8 * width
    if width is not None:
        raise ValueError(f"`width` belongs to the tiny backbone; {backbone} has the paper's")
    classifier = nn.Sequential(
        OrderedDict(
            fc6=nn.Conv2d(512, 4096, 7),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=nn.Conv2d(4096, 4096, 1),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
        )
    )
    init_he(classifier)
    return VGG16(batch_norm=backbone == "vgg16_bn", first_padding=PADDING), classifier, 4096
