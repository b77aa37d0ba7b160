"""DeepLab v3+: Chen, Zhu, Papandreou, Schroff & Adam, *Encoder-Decoder with Atrous Separable Convolution*, ECCV 2018.

v3 upsamples its scores 8 or 16 times in one step, and outlines are lost. Here v3 is the encoder, and a decoder brings
them back from a map of stride 4 (§3.1, fig. 2). Its convolutions, and ASPP's, become separable, which saves most of
their arithmetic (`layers.separable_conv_bn_relu`), and so may the backbone, Xception (§3.2, `xception`):

    image -> backbone -> v3's ASPP, 256 channels -> up 4 --+
                 +-> map of stride 4 -> 1x1, 48 channels --+-> 3x3 -> 3x3 -> scores -> up 4
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .deeplab_v3 import ASPP, allowed_strides, check_rates, encoder
from .layers import check_images, conv_bn_relu, crop, init_he, on_grid, separable_conv_bn_relu, to_size


class DeepLabV3Plus(nn.Module):
    """DeepLab v3+: images (N, 3, H, W) float -> logits (N, num_classes, H, W); any H, W from 1 up.

    `backbone` is "xception65" (or 41, 71), "resnet101", "resnet50", "mobilenet_v2" or "tiny". `separable=False` has
    plain 3x3 convolutions in ASPP and decoder. `low_level_channels` and `decoder_convs` are the paper's tables 1 and
    2; with `low_level_channels=0` the decoder gets nothing from the map of stride 4. The rest is as in `DeepLabV3`,
    whose `set_output_stride` this has too. For tiny, `low_level_channels` defaults to `width` and the decoder has
    4 `width` channels.

    The decoder takes the first of the backbone's maps, the last of stride 4, as the paper says ("Conv2, before
    striding", §3.1). The released code takes, on ResNets, what the last unit but one adds to it.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        backbone: str = "xception65",
        output_stride: int = 16,
        separable: bool = True,
        low_level_channels: int | None = None,
        decoder_convs: int = 2,
        multi_grid: Sequence[int] | None = None,
        rates: Sequence[int] | None = None,
        image_pooling: bool = True,
        width: int | None = None,
        stride_in: str | None = None,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        conv = separable_conv_bn_relu if separable else conv_bn_relu
        self.backbone = encoder(backbone, multi_grid, width, stride_in, pretrained)
        shallow, *_, deepest = self.backbone.channels
        tiny = width or 16 if backbone == "tiny" else None
        channels = 4 * tiny if tiny else 256
        low = check_decoder(low_level_channels, tiny or 48, decoder_convs)
        self.aspp = ASPP(deepest, channels, check_rates(rates, backbone), image_pooling, conv)
        self.low_level = conv_bn_relu(shallow, low, 1) if low else None
        inputs = [channels + low] + [channels] * decoder_convs
        self.decoder = nn.Sequential(*(conv(inputs[i], channels) for i in range(decoder_convs)))
        init_he(self.decoder)
        self.score = nn.Conv2d(inputs[decoder_convs], num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.get_parameter("bias"))
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        """Pixels between two units of the encoder's features, on the same weights; ASPP's rates follow."""
        if output_stride not in (choice := allowed_strides("aspp", 4)):
            raise ValueError(f"output_stride is one of {', '.join(map(str, choice))}, not {output_stride!r}")
        self.output_stride = output_stride
        self.backbone.set_output_stride(output_stride)
        self.aspp.set_output_stride(output_stride)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        padded = on_grid(images, self.output_stride)
        shallow, *_, deepest = self.backbone(padded)  # stride 4; output stride
        features = to_size(self.aspp(deepest), shallow)  # (N, 256, h, w) at stride 4
        if self.low_level is not None:
            features = torch.cat([features, self.low_level(shallow)], 1)  # (N, 304, h, w)
        scores = self.score(self.decoder(features))
        return crop(to_size(scores, padded), images)


def check_decoder(low_level_channels: int | None, default: int, convs: int) -> int:
    """The channels of the reduced low-level map; raises ValueError for a decoder that there is not."""
    if not isinstance(convs, int) or convs < 0:
        raise ValueError(f"decoder_convs is a whole number from 0 up, not {convs!r}")
    low = default if low_level_channels is None else low_level_channels
    if not isinstance(low, int) or low < 0:
        raise ValueError(f"low_level_channels is a whole number, or 0 for none, not {low_level_channels!r}")
    return low
