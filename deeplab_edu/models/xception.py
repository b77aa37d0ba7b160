"""Modified aligned Xception, the trunk of DeepLab v3+: Chen, Zhu, Papandreou, Schroff & Adam, ECCV 2018, §3.2, fig. 4.

Chollet's Xception (2017) is a tower of depthwise separable convolutions with shortcuts. For segmentation it grew more
layers (as Qi et al. did for the COCO challenge of 2017), and separable convolutions of stride 2 took the place of max
pooling, so that all of it can be made atrous:

    stem: two 3x3 convolutions -> entry flow, three blocks of stride 2 -> middle flow, 8 or 16 blocks
    -> exit flow: a block of stride 2, and three separable convolutions without a shortcut

By the paper's text, batch normalisation and ReLU follow each 3x3 depthwise convolution. In the released code and
weights, which are followed here, this ReLU is in the three last convolutions only. Everywhere else it is the input of
a separable convolution that is rectified, and between depthwise and pointwise there is batch normalisation alone.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from deeplab_edu.data.augment import IMAGENET_MEAN, IMAGENET_STD

from .atrous import set_output_stride
from .layers import conv_bn_relu, init_he, separable_conv_bn_relu

# The blocks between stem and the last three convolutions: channels of each convolution, stride of the third.
# The depth counts convolutions, a separable one once: 2 in the stem, 3 a block, 3 at the end.
ENTRY = [((128, 128, 128), 2), ((256, 256, 256), 2), ((728, 728, 728), 2)]
MIDDLE, EXIT = ((728, 728, 728), 1), ((728, 1024, 1024), 2)
LONGER_ENTRY = [ENTRY[0], ((256, 256, 256), 1), ENTRY[1], ((728, 728, 728), 1), ENTRY[2]]
TABLE = {
    41: [*ENTRY, *8 * [MIDDLE], EXIT],
    65: [*ENTRY, *16 * [MIDDLE], EXIT],
    71: [*LONGER_ENTRY, *16 * [MIDDLE], EXIT],
}


class Xception(nn.Module):
    """Xception-41, -65 or -71: images (N, 3, H, W) -> four maps of 256, 728, 1024 and 2048 channels, any H and W.

    A map leaves just before the stride is doubled, where the second convolution of a strided block ends, not yet
    rectified: the official code's end points. Of stride 4 it is `entry_flow/block2` (`block3` in Xception-71), the
    decoder's low-level feature; then come `entry_flow/block3` (`block5`) and `exit_flow/block1`; the last map is the
    network's output, rectified. `strides` are 4, 8, 16 and 32, or at most `output_stride` (32, 16 or 8).

    Batch normalisation adds 1e-3 to the variance, as in the official code; weights start as He et al.'s, as in our
    other trunks. The paper's Xception has no multi-grid. Raises ValueError for another depth or output stride.
    """

    channels = (256, 728, 1024, 2048)

    def __init__(self, depth: int = 65, output_stride: int = 32) -> None:
        super().__init__()
        if depth not in TABLE:
            raise ValueError(f"Xception comes in depth {', '.join(map(str, TABLE))}, not {depth!r}")
        self.stem = nn.Sequential(conv_bn_relu(3, 32, stride=2), conv_bn_relu(32, 64))
        self.blocks, shallow = nn.ModuleList(), 64
        for channels, stride in TABLE[depth]:
            self.blocks.append(Block(shallow, channels, stride))
            shallow = channels[-1]
        widths = (shallow, 1536, 1536, 2048)
        self.last = nn.Sequential(*(separable_conv_bn_relu(a, b) for a, b in pairwise(widths)))
        # of the blocks that stride, the first is left out: nobody needs its map of stride 2
        self.returned = [number for number, (_, stride) in enumerate(TABLE[depth]) if stride == 2][1:]
        init_he(self)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 1e-3
        self.set_output_stride(output_stride)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], self.stem(images)
        for number, block in enumerate(self.blocks):
            before_striding, x = block(x)
            if number in self.returned:
                maps.append(before_striding)
        return [*maps, self.last(x)]

    def set_output_stride(self, output_stride: int) -> None:
        """Let the last map's units lie `output_stride` pixels apart, 32, 16 or 8, without changing a weight."""
        if output_stride not in (8, 16, 32):
            raise ValueError(f"Xception's output stride is 8, 16 or 32, not {output_stride!r}")
        strides = set_output_stride([*self.stem, *self.blocks, self.last], output_stride)
        entering = strides[len(self.stem) - 1 :]  # each block, and in the end the last convolutions
        self.strides = (*(entering[number] for number in self.returned), entering[-1])


class Block(nn.Module):
    """Three separable convolutions, the last with the stride, plus the input or a 1x1 convolution of it (fig. 4).

    Returns what the second and what the whole block computes. The shortcut is a convolution where stride or channels
    change nominally, and stays one where the stride is taken away, so that no weight is left over. (timm drops it from
    block 4 of its xception71 at output stride 8, and computes something else there than at 16 or 32.)
    """

    def __init__(self, in_channels: int, channels: tuple[int, int, int], stride: int) -> None:
        super().__init__()
        self.conv1 = relu_separable_conv(in_channels, channels[0])
        self.conv2 = relu_separable_conv(channels[0], channels[1])
        self.conv3 = relu_separable_conv(channels[1], channels[2], stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels[2]:
            self.shortcut.append(nn.Conv2d(in_channels, channels[2], 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels[2]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before_striding = self.conv2(self.conv1(x))
        return before_striding, self.conv3(before_striding) + self.shortcut(x)


def relu_separable_conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """ReLU, 3x3 depthwise convolution, BN, pointwise convolution, BN; (N, in, H, W) -> (N, out, H / stride, ...).

    The ReLU does not work in place: its input is also the shortcut's, or one of the maps that are returned.
    """
    return nn.Sequential(
        OrderedDict(
            relu=nn.ReLU(),
            depthwise=nn.Conv2d(
                in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
            ),
            depthwise_bn=nn.BatchNorm2d(in_channels),
            pointwise=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            pointwise_bn=nn.BatchNorm2d(out_channels),
        )
    )


def timm_names(depth: int) -> dict[str, str]:
    """What timm calls the parts of its xception41, 65 and 71, for `weights.load_renamed`."""
    blocks, plain = range(len(TABLE[depth])), {"0": "conv", "1": "bn"}
    parts = {"depthwise": "conv_dw", "depthwise_bn": "bn_dw", "pointwise": "conv_pw", "pointwise_bn": "bn_pw"}
    last = dict(zip("0134", parts.values()))
    layers = [
        *((f"stem.{i}", f"stem.{i}", plain) for i in range(2)),
        *((f"blocks.{b}.shortcut", f"blocks.{b}.shortcut", plain) for b in blocks),
        *((f"blocks.{b}.conv{i}", f"blocks.{b}.stack.conv{i}", parts) for b in blocks for i in (1, 2, 3)),
        *((f"last.{i}", f"blocks.{len(blocks)}.stack.conv{i + 1}", last) for i in range(3)),
    ]
    return {f"{ours}.{a}.": f"{theirs}.{b}." for ours, theirs, names in layers for a, b in names.items()}


@torch.no_grad()
def take_normalized(backbone: Xception) -> None:
    """Let a network that has learned from pixels of -1 to 1, as timm's have, take `data.augment.normalize`d ones.

    With p from 0 to 1 and x = (p - mean) / std, its input was 2 p - 1 = 2 std x + (2 mean - 1): the factor goes into
    the weights of the first convolution, the constant's effect into the running mean behind it. Along the border zeros
    are padded that mean the mean colour from now on, and were grey before.
    """
    conv, bn = backbone.stem[0][:2]  # type: ignore[index]
    mean, std = (torch.tensor(v).to(conv.weight).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    bn.running_mean -= (conv.weight * (2 * mean - 1)).sum((1, 2, 3))
    conv.weight *= 2 * std
