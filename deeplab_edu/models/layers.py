"""Small layers that more than one model uses, and the one check every model makes of its input."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, rate: int = 1
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; (N, in, H, W) -> (N, out, H / stride rounded up, ...).

    The unit that networks have been built from since Ioffe & Szegedy, *Batch Normalization*, 2015, §3.2. With `rate`
    r, the kernel's taps lie r units apart (atrous convolution); the map keeps its size if the kernel's is odd or the
    rate even. The convolution has no bias: the mean that batch normalisation subtracts would cancel it.
    """
    padding = rate * (kernel_size - 1) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, rate: int = 1
) -> nn.Sequential:
    """Atrous separable convolution: a kernel for each channel at `rate`, then 1x1 across channels; each BN and ReLU.

    The function of `conv_bn_relu` is approximated with k^2 + out instead of k^2 out multiply-adds an input channel
    and position (DeepLab v3+, §3.1 and fig. 3; batch norm and ReLU after either step as in the released code).
    """
    padding = rate * (kernel_size - 1) // 2
    return nn.Sequential(
        nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, rate, groups=in_channels, bias=False
        ),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *conv_bn_relu(in_channels, out_channels, 1),
    )


def on_grid(images: Tensor, stride: int) -> Tensor:
    """Zeros added right and below, (N, 3, H, W) -> (N, 3, a stride + 1, b stride + 1) for whole a, b.

    Layers with odd kernels then put unit i of a map of this stride, or of any that divides it, on pixel `stride` i,
    the last one on the last pixel. Images are normalised, so zero is the mean colour. The released DeepLabs pad to
    their crop size of 513 = 32 * 16 + 1 in the same way.
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, -(width - 1) % stride, 0, -(height - 1) % stride))


def to_size(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, C, h, w) interpolated bilinearly to the height and width of `like`, corner on corner.

    Between maps `on_grid`, each unit stays on its pixel.
    """
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=True)


def crop(maps: Tensor, like: Tensor) -> Tensor:
    """The part of `maps` over `like`, which shares its first row and column."""
    return maps[..., : like.shape[-2], : like.shape[-1]]


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) weights with which a transposed convolution of stride (size + 1) // 2 interpolates.

    A tent around the kernel's centre c, with factor f = (size + 1) // 2:

        k[i, j] = (1 - |i - c| / f) (1 - |j - c| / f),   c = f - 1 for odd sizes, f - 0.5 for even ones

    as in `upsample_filt` of the released FCN code (`surgery.py`; Long et al., *FCN*, 2015, §3.3).
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 == 1 else factor - 0.5
    tent = 1 - (torch.arange(size) - center).abs() / factor
    return tent[:, None] * tent[None, :]


class BilinearUpsampling(nn.Module):
    """Transposed convolution that starts as bilinear interpolation by an even `factor` (FCN, §3.3).

    (N, channels, h, w) -> (N, channels, factor (h + 1) - 2 padding, factor (w + 1) - 2 padding). The released nets'
    weight is `dense`, every class to every class, with the bilinear kernel on its diagonal (`surgery.py`); otherwise
    each class has its own kernel only, which is the same function in a fraction of the time. `learn=False` freezes
    it. Next to the border, where a neighbour is missing, scores fade towards zero.

    The convolution stays in float32 under CPU autocast: on processors with AMX, oneDNN (torch 2.14) computes a wrong
    bfloat16 gradient for some of these kernels (12 classes, kernel 16: off by more than its own size).
    """

    def __init__(
        self, channels: int, factor: int, padding: int = 0, learn: bool = False, dense: bool = True
    ) -> None:
        super().__init__()
        size, groups = 2 * factor, 1 if dense else channels
        self.conv = nn.ConvTranspose2d(channels, channels, size, factor, padding, groups=groups, bias=False)
        own = torch.eye(channels) if dense else torch.ones(channels, 1)
        self.conv.weight = nn.Parameter(own[:, :, None, None] * bilinear_kernel(size), requires_grad=learn)

    def forward(self, scores: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.conv(scores.to(self.conv.weight.dtype))


def init_he(module: nn.Module) -> None:
    """Draw the weights of every convolution inside `module` as He et al., 2015, eq. 10, do; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_conv(in_channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to class scores, (N, in, H, W) -> (N, num_classes, H, W), that starts at zero.

    Zero scores mean "all classes equally likely", and a skip that starts at zero leaves the coarser network
    it is added to as it was (FCN, §4.2 and §4.3).
    """
    layer = nn.Conv2d(in_channels, num_classes, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def check_images(images: Tensor) -> None:
    """Say in a sentence what is wrong with a batch that is not (N, 3, H, W) float.

    Raises TypeError for anything but floats, ValueError for another shape. While `torch.fx` traces a model there is
    nothing to look at yet, and no node of the graph should come from here.
    """
    if isinstance(images, torch.fx.Proxy):
        return
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"a model takes normalised float images, not {kind}; "
            "call deeplab_edu.data.augment.normalize(images) first"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"a model takes images of shape (N, 3, H, W), none of it zero, not {tuple(images.shape)}; "
            "one image becomes a batch by images[None]"
        )
