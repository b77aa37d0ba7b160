"""Exact taps against the gradient on random graphs: how many pixels are wrong?

    python experiments/receptive_field_graphs.py [--graphs 500]

A graph is a chain of random layers and of blocks of two random branches that are added, concatenated or multiplied.
It is built twice with the same settings: as it is, for `tap_map`; and as a twin for the gradient, in float64, all of
whose weights are one and whose max pools are average pools. In the twin nothing can cancel, so a pixel has a gradient
exactly if a path leads from it. Writes results/receptive_field_graphs.json.
"""

import argparse
import random
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeplab_edu.profiles import Profile
from deeplab_edu.receptive_field import SpatialGraph
from deeplab_edu.results import save_result

KINDS = ("conv", "conv", "transposed", "pool", "pool", "adaptive", "resize", "pad", "crop")


class Crop(nn.Module):
    def __init__(self, starts: tuple[int, int], steps: tuple[int, int]) -> None:
        super().__init__()
        self.starts, self.steps = starts, steps

    def forward(self, x: Tensor) -> Tensor:
        (top, left), (down, across) = self.starts, self.steps
        return x[:, :, top::down, left::across]


class Block(nn.Module):
    """Two branches of the same map, cut to the smaller of their sizes and joined."""

    def __init__(self, left: nn.Module, right: nn.Module, join: str) -> None:
        super().__init__()
        self.left, self.right, self.join, self.mix = left, right, join, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        if self.join == "resize":
            return left + F.interpolate(right, size=left.shape[2:], mode="bilinear", align_corners=True)
        if self.join == "gate":
            return (left + 1) * (right.mean((2, 3), keepdim=True) + 1)
        left = left[:, :, : right.shape[2], : right.shape[3]]
        right = right[:, :, : left.shape[2], : left.shape[3]]
        if self.join == "cat":
            return self.mix(torch.cat([left, right], 1))
        return left + right if self.join == "add" else (left + 1) * (right + 1)


def layer(dice: random.Random, twin: bool) -> nn.Module:
    """One random layer for maps of two channels."""
    kind = dice.choice(KINDS)
    kernel, stride, rate, padding = (
        (dice.randint(low, high), dice.randint(low, high)) for low, high in RANGES
    )
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    groups, whole, corners = dice.choice([1, 2]), dice.random() < 0.5, dice.choice([True, False])
    size, output = dice.randint(3, 14), dice.choice([1, (3, 5), (None, 4)])
    match kind:
        case "conv":
            return nn.Conv2d(2, 2, kernel, stride, padding, rate, groups)
        case "transposed":
            return nn.ConvTranspose2d(2, 2, kernel, stride, padding, groups=groups, dilation=rate)
        case "pool" if twin:
            return nn.AvgPool2d(kernel, stride, padding, ceil_mode=whole)
        case "pool":
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=whole)
        case "adaptive":
            return nn.AdaptiveAvgPool2d(output) if twin or whole else nn.AdaptiveMaxPool2d(output)
        case "resize" if whole:
            return nn.Upsample(size=(size, size + 3), mode="bilinear", align_corners=corners)
        case "resize":
            return nn.Upsample(scale_factor=(1.5, 2), mode="nearest")
        case "pad":
            return dice.choice([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d])((*padding, *padding))
    return Crop((padding[0], padding[1]), stride)


RANGES = ((1, 3), (1, 2), (1, 2), (0, 1))  # of kernel, stride, rate and padding


def chain(dice: random.Random, twin: bool, depth: int) -> nn.Sequential:
    """One to four parts: layers and, while `depth` lasts, blocks."""
    parts: list[nn.Module] = []
    for _ in range(dice.randint(1, 4)):
        if depth and dice.random() < 0.4:
            branches = chain(dice, twin, depth - 1), chain(dice, twin, depth - 1)
            parts.append(Block(*branches, dice.choice(["add", "cat", "mul", "gate", "resize"])))
        else:
            parts.append(layer(dice, twin))
    return nn.Sequential(*parts)


def network(seed: int, twin: bool) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), chain(random.Random(seed), twin, 2)).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return model


def compare(seed: int) -> Counter[str] | None:
    """Pixels compared and wrong for one graph and one of its units; None if its layers leave nothing of the image."""
    dice = random.Random(-1 - seed)
    size = dice.randint(7, 20), dice.randint(7, 20)
    images = torch.ones(1, 2, *size, dtype=torch.float64, requires_grad=True)
    twin, model = network(seed, True), network(seed, False)
    try:
        output, shape = twin(images), model(images).shape
    except (RuntimeError, ValueError):
        return None
    if 0 in shape:
        return None
    assert output.shape == shape
    unit = dice.randrange(shape[2]), dice.randrange(shape[3])
    (gradient,) = torch.autograd.grad(output[0, :, unit[0], unit[1]].sum(), images)
    reached = gradient[0].sum(0)
    truth = reached > 1e-11 * reached.max()
    found = SpatialGraph(model, size).tap_map(unit)
    layers = sum(not list(module.children()) for module in model.modules())
    return Counter(
        graphs=1,
        layers=layers,
        pixels=truth.numel(),
        read=int(truth.sum()),
        wrong=int((truth != found).sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=500)
    wanted, profile, total, seed = parser.parse_args().graphs, Profile.load(), Counter[str](), 0
    while total["graphs"] < wanted:
        total.update(compare(seed) or {"skipped": 1})
        seed += 1
    print(dict(total))
    command = f"python experiments/receptive_field_graphs.py --graphs {wanted}"
    save_result("receptive_field_graphs", command, profile, {"wrong": 0, **total}, seeds=[0, seed - 1])


if __name__ == "__main__":
    main()
