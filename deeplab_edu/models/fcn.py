"""Fully convolutional networks: Long, Shelhamer & Darrell, *FCN for Semantic Segmentation*, CVPR 2015."""

from collections import OrderedDict

from torch import Tensor, nn

from .backbones import VGG16, Tiny
from .layers import BilinearUpsampling, check_images, conv_bn_relu, init_he, zero_conv


class FCN(nn.Module):
    """FCN-32s, -16s and -8s: a classifier made convolutional, upsampled, with skips from finer maps added.

    `stride` (32, 16 or 8) is that of the finest scores, which one last bilinear upsampling brings to full resolution.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        stride: int,
        backbone: str = "vgg16",
        width: int = 16,
        learn_upsampling: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        if backbone == "tiny":
            self.backbone = Tiny(width)
            self.classifier = nn.Sequential(OrderedDict(fc6=conv_bn_relu(5 * width, 8 * width)))
            self.crops, padded = (0, 0, 0), True
        else:
            self.backbone = VGG16(batch_norm=backbone == "vgg16_bn", first_padding=100)
            self.classifier = convolutional_classifier()
            self.crops, padded = (5, 9, {32: 19, 16: 27, 8: 31}[stride]), False
        init_he(self.classifier)

        def upsampling(factor: int, learn: bool = False) -> BilinearUpsampling:
            return BilinearUpsampling(num_classes, factor, factor // 2 if padded else 0, learn, dense=not padded)

        *_, pool3, pool4, pool5 = self.backbone.channels
        self.score_fr = zero_conv(8 * width if padded else 4096, num_classes)
        if stride <= 16:
            self.upscore2 = upsampling(2, learn_upsampling)
            self.score_pool4 = zero_conv(pool4, num_classes)
        if stride <= 8:
            self.upscore_pool4 = upsampling(2, learn_upsampling)
            self.score_pool3 = zero_conv(pool3, num_classes)
        self.upscore = upsampling(stride)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        to_pool4, to_pool3, to_image = self.crops
        *_, pool3, pool4, pool5 = self.backbone(images)
        scores = self.score_fr(self.classifier(pool5))
        if self.stride <= 16:
            scores = add_cropped(self.upscore2(scores), self.score_pool4(pool4), to_pool4)
        if self.stride <= 8:
            scores = add_cropped(self.upscore_pool4(scores), self.score_pool3(pool3), to_pool3)
        height, width = images.shape[-2:]
        return self.upscore(scores)[..., to_image : to_image + height, to_image : to_image + width]


def add_cropped(scores: Tensor, skip: Tensor, offset: int) -> Tensor:
    """Sum of `scores` and the part of `skip` that starts `offset` rows and columns in, cut to their common size."""
    height, width = scores.shape[-2:]
    skip = skip[..., offset : offset + height, offset : offset + width]
    height, width = skip.shape[-2:]
    return scores[..., :height, :width] + skip


def convolutional_classifier() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            fc6=nn.Conv2d(512, 4096, 7),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=nn.Conv2d(4096, 4096, 1),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
        )
    )
