"""The residual DeepLabs as plain functions of a state dict, written from the papers and the released definitions.

Rates and strides stand here as the papers print them; nothing is computed by the package's rule.
"""

import torch
from torch import nn
from torch.nn import functional as F


def randomise(model, seed=0):
    """Random weights, and random statistics and affine parameters in every batch norm; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, low, high):
        return tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                draw(module.running_mean, -0.3, 0.3)
                draw(module.running_var, 0.5, 2)
                draw(module.weight, 0.5, 1.2)
                draw(module.bias, -0.3, 0.3)
            elif isinstance(module, nn.Conv2d):
                bound = (3 / (module.weight[0].numel())) ** 0.5
                draw(module.weight, -bound, bound)
                if module.bias is not None:
                    draw(module.bias, -0.3, 0.3)
    return model.eval()


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def unit(x, w, name, stride=1, rate=1, groups=1):
    """Convolution `name`.0 and batch norm `name`.1."""
    return norm(conv(x, w, f"{name}.0", stride, rate, groups), w, f"{name}.1")


def conv(x, w, name, stride=1, rate=1, groups=1):
    weight = w[f"{name}.weight"]
    padding = rate * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, padding, rate, groups)


def norm(x, w, name):
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)


def bottleneck(x, w, name, stride, rate):
    """He et al., 2016, fig. 5 right: 1x1 (which strides), 3x3 (with holes), 1x1, added to a shortcut."""
    y = F.relu(norm(conv(x, w, f"{name}.conv1", stride), w, f"{name}.bn1"))
    y = F.relu(norm(conv(y, w, f"{name}.conv2", 1, rate), w, f"{name}.bn2"))
    y = norm(conv(y, w, f"{name}.conv3"), w, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in w:
        x = unit(x, w, f"{name}.downsample", stride)
    elif stride > 1:
        x = x[..., ::stride, ::stride]
    return F.relu(x + y)


def resnet(x, w, blocks, prefix="backbone."):
    """`blocks`: a list of (stride of the first unit, rates of the units). The maps after each."""
    x = F.relu(norm(conv(x, w, f"{prefix}stem.0", 2), w, f"{prefix}stem.1"))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for number, (stride, rates) in enumerate(blocks):
        for index, rate in enumerate(rates):
            x = bottleneck(x, w, f"{prefix}layers.{number}.{index}", stride if index == 0 else 1, rate)
        maps.append(x)
    return maps


def aspp(x, w, rates, name, separable=False):
    """DeepLab v3, figure 5: 1x1, three 3x3, image pooling; concatenated and projected."""
    parts = [F.relu(unit(x, w, f"{name}.branches.0"))]
    for index, rate in enumerate(rates, start=1):
        parts.append(conv_of_head(x, w, f"{name}.branches.{index}", rate, separable))
    pooled = F.relu(unit(x.mean((2, 3), keepdim=True), w, f"{name}.image_pooling.conv"))
    parts.append(pooled.expand(-1, -1, *x.shape[-2:]))
    return F.relu(unit(torch.cat(parts, 1), w, f"{name}.projection"))


def conv_of_head(x, w, name, rate, separable):
    if not separable:
        return F.relu(unit(x, w, name, rate=rate))
    x = F.relu(unit(x, w, name, rate=rate, groups=x.shape[1]))
    return F.relu(norm(conv(x, w, f"{name}.3"), w, f"{name}.4"))


def resize(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
