"""Receptive fields: published tables, the gradient of a linear twin, brute force, closed forms, error sentences."""

import copy
import math
import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import models
from torchvision.models import segmentation

from deeplab_edu.models import MODELS, build_model
from deeplab_edu.receptive_field import (
    SpatialGraph,
    effective_field,
    gaussian_fit,
    receptive_field,
    tap_map,
    valid_weights,
)

# Paths are counted as they are; F.interpolate, which the other models end in, weighs them, and so does its gradient.
FCNS = tuple(name for name in MODELS if name.startswith("fcn"))


def on_meta(build, **options):
    """A full-size network costs nothing if its weights have no values."""
    with torch.device("meta"):
        return build(**options)


def untrained(build, **options):
    return on_meta(build, weights=None, **options)


class Convolution(nn.Module):
    """A convolution of one channel, all ones, of the sum of whatever channels come in."""

    def __init__(self, layer):
        super().__init__()
        self.layer = copy.copy(layer)
        self.layer.in_channels = self.layer.out_channels = self.layer.groups = 1
        self.layer._parameters = {"bias": None}
        self.layer.weight = nn.Parameter(torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64))

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, x):
        return self.layer(x.sum(1, keepdim=True))


class SumPool(nn.MaxPool2d):
    """What a pooling window contains, added up: the taps of a convolution, the size of the pooling's own output."""

    def __init__(self, layer):
        super().__init__(1)
        self.layer = layer

    def forward(self, x):
        shape = self.layer(x).shape[2:]
        given = (
            self.layer.kernel_size,
            self.layer.stride,
            self.layer.padding,
            getattr(self.layer, "dilation", 1),
        )
        k, s, p, d = (v if isinstance(v, tuple) else (v, v) for v in given)
        room = [(shape[i] - 1) * s[i] + d[i] * (k[i] - 1) + 1 - x.shape[2 + i] - p[i] for i in (0, 1)]
        x = F.pad(x, (p[1], max(room[1], 0), p[0], max(room[0], 0)))
        ones = x.new_ones(x.shape[1], 1, *k)
        return F.conv2d(x, ones, stride=s, dilation=d, groups=x.shape[1])[..., : shape[0], : shape[1]]


class Gate(nn.Module):
    """A smooth sigmoid of positive numbers, however large."""

    def forward(self, x):
        return x / (1 + x)


SKIPPED = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Dropout, nn.BatchNorm2d, nn.Linear)


def twin(model):
    """`model` with one channel, ones for weights, nothing that is not linear: its gradient counts paths."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
                setattr(parent, name, Convolution(child))
            elif isinstance(child, nn.MaxPool2d | nn.AvgPool2d):
                setattr(parent, name, SumPool(child))
            elif isinstance(child, nn.AdaptiveMaxPool2d):
                setattr(parent, name, nn.AdaptiveAvgPool2d(child.output_size))
            elif isinstance(child, nn.Sigmoid | nn.Hardsigmoid):
                setattr(parent, name, Gate())
            elif isinstance(child, SKIPPED):
                setattr(parent, name, nn.Identity())
    return model.eval()


def gradient(model, size, unit, layer=None, channels=3):
    """Paths from each pixel to the unit, by backpropagation through the twin."""
    wanted, seen = twin(model), []
    module = wanted if layer is None else wanted.get_submodule(layer)
    module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.ones(1, channels, *size, dtype=torch.float64, requires_grad=True)
    wanted(images)
    output = seen[-1]["out"] if isinstance(seen[-1], dict) else seen[-1]
    (field,) = torch.autograd.grad(output[0, :, unit[0], unit[1]].sum(), images)
    return field[0, 0]


def check(model, size, unit, layer=None, counts=False, channels=3, rounding=0.0):
    """Same pixels; with `counts`, for networks that only convolve, pool and add, as many paths too."""
    paths = gradient(model, size, unit, layer, channels)
    graph = SpatialGraph(model, size)
    taps, counted = graph.tap_map(unit, layer), graph.tap_map(unit, layer, counts=True)
    assert taps.dtype == torch.bool and torch.equal(taps, paths > rounding * paths.max())
    assert torch.equal(counted > 0, taps)
    if counts:
        torch.testing.assert_close(counted, paths, rtol=1e-12, atol=0)


class Block(nn.Module):
    """Two branches and what joins them; the larger map is cut to the smaller."""

    def __init__(self, left, right, join):
        super().__init__()
        self.left, self.right, self.join = left, right, join
        self.mix = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        if self.join == "resize":
            return left + F.interpolate(right, size=left.shape[2:], mode="bilinear", align_corners=True)
        if self.join == "gate":
            return (left + 1) * (1 + right.mean((2, 3), keepdim=True))
        left = left[..., : right.shape[2], : right.shape[3]]
        right = right[:, :, right.shape[2] - left.shape[2] :, : left.shape[3]]
        if self.join == "cat":
            return self.mix(torch.cat([left, right], dim=1))
        return (
            left + right if self.join == "add" else torch.mul(left + 1, right + 1)
        )  # a zero would hide the other


class Call(nn.Module):
    """A function as a module that `torch.fx` looks into."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
small = st.tuples(st.integers(1, 2), st.integers(1, 2))


@st.composite
def layers(draw):
    kind = draw(
        st.sampled_from(["conv", "same", "mirror", "transposed", "pool", "adaptive", "resize", "pad", "crop"])
    )
    kernel, stride, rate = draw(pairs), draw(small), draw(small)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    if kind == "conv":
        groups = draw(st.sampled_from([1, 2]))
        return nn.Conv2d(2, 2, kernel, stride, draw(pairs), rate, groups)
    if kind == "same":
        return nn.Conv2d(
            2, 2, draw(st.tuples(*[st.integers(1, 4)] * 2)), padding=draw(st.sampled_from(["same", "valid"]))
        )
    if kind == "mirror":
        mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
        return nn.Conv2d(
            2, 2, kernel, stride, draw(st.tuples(*[st.integers(0, 1)] * 2)), rate, padding_mode=mode
        )
    if kind == "transposed":
        extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
        return nn.ConvTranspose2d(2, 2, kernel, stride, padding, extra, dilation=rate)
    if kind == "pool":
        whole = draw(st.booleans())
        if draw(st.booleans()):
            return nn.MaxPool2d(kernel, stride, padding, rate, ceil_mode=whole)
        return nn.AvgPool2d(kernel, stride, padding, ceil_mode=whole)
    if kind == "adaptive":
        return draw(st.sampled_from([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]))(
            draw(st.sampled_from([1, (3, 5), (None, 4)]))
        )
    if kind == "resize":
        return draw(resizes())
    if kind == "pad":
        around = draw(st.tuples(*[st.integers(0, 2)] * 4))
        return draw(
            st.sampled_from([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d])
        )(around)
    start, step = draw(small), draw(small)
    return Call(lambda x: F.pad(x[..., start[0] :: step[0], start[1] :: step[1]], (1, -1, 0, 1)))


@st.composite
def resizes(draw):
    mode = draw(st.sampled_from(["nearest", "bilinear"]))
    corners = draw(st.booleans()) if mode == "bilinear" else None
    if draw(st.booleans()):
        return nn.Upsample(size=draw(st.tuples(*[st.integers(2, 14)] * 2)), mode=mode, align_corners=corners)
    factor = draw(st.sampled_from([0.6, 1.5, 2, 2.3]))
    return nn.Upsample(scale_factor=(factor, 2.0), mode=mode, align_corners=corners)


chains = st.lists(layers(), min_size=1, max_size=3).map(lambda chosen: nn.Sequential(*chosen))
blocks = st.builds(Block, chains, chains, st.sampled_from(["add", "cat", "mul", "gate", "resize"]))
networks = st.lists(layers() | blocks, min_size=1, max_size=3).map(
    lambda parts: nn.Sequential(nn.Conv2d(2, 2, 1), *parts)
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks, st.tuples(st.integers(7, 14), st.integers(7, 14)), st.data())
def test_taps_are_the_pixels_with_a_gradient_in_random_graphs(network, size, data):
    try:
        shape = network(torch.ones(1, 2, *size)).shape[2:]
    except (RuntimeError, ValueError):  # layers that leave nothing of so small a map
        reject()
    unit = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    check(network, size, unit, channels=2, rounding=1e-11)


class Twice(nn.Module):
    """A shared layer, a sum with itself, a difference, activations as methods and as functions."""

    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.Hardtanh(-9, 9)

    def forward(self, x):
        x = self.layer(F.relu(self.layer(x)).sigmoid_())
        x += x
        return F.max_pool2d(F.avg_pool2d(self.act(x).clamp(min=0), 2), 3, stride=1, padding=1)


def test_a_map_that_is_used_twice_has_twice_the_paths():
    layers = (
        nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 1, 1),
    )
    once = tap_map(nn.Sequential(*layers), (12, 12), (2, 3), counts=True)
    assert torch.equal(tap_map(Twice(), (12, 12), (2, 3), counts=True), 2 * once)
    assert receptive_field(Twice(), (12, 12)) == receptive_field(nn.Sequential(*layers), (12, 12))
    second = tap_map(Twice(), (12, 12), (6, 6), "layer")  # of its last call
    assert torch.equal(second, box((12, 12), (4, 9), (4, 9)))


def box(size, rows, columns):
    taps = torch.zeros(size, dtype=torch.bool)
    taps[slice(*rows), slice(*columns)] = True
    return taps


class Constants(nn.Module):
    """Tensors that are no parameters, new ones, and functions with weights: what students write."""

    def __init__(self):
        super().__init__()
        self.mean, self.weight = (
            torch.tensor([0.5, 0.4, 0.3])[:, None, None],
            nn.Parameter(torch.ones(3, 1, 3, 2)),
        )
        self.alias = self.last = nn.Identity()

    def forward(self, x):
        x = F.conv2d((x - self.mean) / 0.2, self.weight, None, 2, (1, 0), groups=3)
        x = F.pad(x, (2, 0)) + torch.zeros(1, x.shape[1], 1, 1)
        return self.last(F.softmax(F.batch_norm(x, torch.zeros(3), torch.ones(3)), dim=1))


def test_functions_and_constants():
    found = receptive_field(Constants(), (12, 12), "alias")
    assert found == ((3, 2), (2, 2), (1, 4))
    assert torch.equal(tap_map(Constants(), (12, 12), (1, 4)), box((12, 12), (1, 4), (4, 6)))
    assert not tap_map(Constants(), (12, 12), (1, 1)).any()  # a unit made of padding


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("size", "unit"), [((97, 70), (50, 3)), ((64, 96), (0, 95)), ((33, 40), (31, 20))])
def test_taps_of_our_tiny_models_are_the_pixels_with_a_gradient(name, size, unit):
    check(on_meta(build_model, name=name, backbone="tiny"), size, unit, counts=name in FCNS)


VGG_MODELS = [name for name in MODELS if name not in ("deeplab_v3", "deeplab_v3plus")]
FULL = [(name, {"backbone": backbone}) for name in VGG_MODELS for backbone in ("vgg16", "vgg16_bn")]
FULL += [("deeplab_v1", {"field_of_view": fc6}) for fc6 in ("7x7", "4x4", "4x4-wide")]
FULL += [(name, {"backbone": "resnet50"}) for name in ("deeplab_v2", "deeplab_v3", "deeplab_v3plus")]
FULL += [("deeplab_v3", {"head": "cascade", "cascade_blocks": 5}), ("deeplab_v3", {"compat": "torchvision"})]
FULL += [(name, {"backbone": "mobilenet_v2"}) for name in ("deeplab_v3", "deeplab_v3plus")]
FULL += [("deeplab_v3plus", {"backbone": "xception41"}), ("deeplab_v3", {"output_stride": 8})]


@pytest.mark.parametrize(("name", "options"), FULL, ids=str)
def test_taps_of_our_full_models_are_the_pixels_with_a_gradient(name, options):
    check(on_meta(build_model, name=name, **options), (65, 90), (64, 20), counts=name in FCNS)


TORCHVISION = {
    "fcn_resnet50": (segmentation.fcn_resnet50, None, (11, 30)),
    "deeplabv3_resnet50": (segmentation.deeplabv3_resnet50, None, (11, 30)),
    "deeplabv3_resnet50, a branch": (segmentation.deeplabv3_resnet50, "classifier.0.convs.2", (3, 8)),
    "deeplabv3_mobilenet": (segmentation.deeplabv3_mobilenet_v3_large, None, (11, 30)),
    "lraspp_mobilenet": (segmentation.lraspp_mobilenet_v3_large, None, (11, 30)),
    "resnet18": (models.resnet18, "layer3", (2, 4)),
    "resnet101": (models.resnet101, "layer2", (5, 8)),
    "vgg16": (models.vgg16, "features", (1, 1)),
    "vgg16, uneven pooling": (models.vgg16, "avgpool", (5, 0)),
    "mobilenet_v2": (models.mobilenet_v2, "features", (1, 2)),
    "mobilenet_v3": (models.mobilenet_v3_large, "features.3", (9, 15)),
}


@pytest.mark.parametrize("case", TORCHVISION)
def test_taps_of_torchvision_models_are_the_pixels_with_a_gradient(case):
    build, layer, unit = TORCHVISION[case]
    backbone = {"weights_backbone": None} if build.__module__.startswith(segmentation.__name__) else {}
    check(untrained(build, **backbone), (65, 90), unit, layer)


def field(model, size=(224, 224), layer=None):
    """(size, stride, padding) of a network that treats rows and columns alike."""
    found = receptive_field(model, size, layer)
    assert all(rows == columns for rows, columns in found)
    return tuple(rows for rows, _ in found)


VGG16 = {  # Araujo et al., RECEPTIVE_FIELD_TABLE.md: torchvision's place, size, stride, padding
    "conv1_1": ("features.0", 3, 1, 1),
    "pool1": ("features.4", 6, 2, 2),
    "pool2": ("features.9", 16, 4, 6),
    "pool3": ("features.16", 44, 8, 18),
    "pool4": ("features.23", 100, 16, 42),
    "conv5_2": ("features.26", 164, 16, 74),
    "pool5": ("features", 212, 32, 90),
}


def test_published_table_of_vgg16():
    graph = SpatialGraph(untrained(models.vgg16), (224, 224))
    for layer, *expected in VGG16.values():
        found = graph.receptive_field(layer)
        assert [n for pair in found for n in pair] == [n for n in expected for _ in (0, 1)]


def convs(*layers):
    """A chain of (size, stride, padding, dilation)."""
    return nn.Sequential(*[nn.Conv2d(1, 1, k, s, p, d) for k, s, p, d in layers])


ALEXNET = [(11, 4, 0, 1), (3, 2, 0, 1), (5, 1, 2, 1), (3, 2, 0, 1), *[(3, 1, 1, 1)] * 3, (3, 2, 0, 1)]


def test_alexnet_and_the_fields_that_fcn_prints():
    assert field(convs(*ALEXNET)) == (195, 32, 64)  # Araujo et al.
    assert field(convs(*ALEXNET, (6, 1, 0, 1)), (448, 448)) == (355, 32, 64)  # FCN, table 1
    for name in FCNS:  # FCN, table 1: 404; 100 pixels of padding instead of 1
        assert field(on_meta(build_model, name=name), layer="score_fr") == (404, 32, 189)


def slim_resnet(units):
    """The main path of TF-slim's ResNet v1, whose stages stride in their last unit."""
    layers = [(7, 2, 3, 1), (3, 2, 1, 1)]
    for stage, n in enumerate(units):
        for unit in range(n):
            layers += [(1, 1, 0, 1), (3, 2 if unit == n - 1 and stage < 3 else 1, 1, 1), (1, 1, 0, 1)]
    return convs(*layers)


@pytest.mark.parametrize(
    ("depth", "units", "slim", "ours"),
    [
        (50, (3, 4, 6, 3), 483, 427),
        (101, (3, 4, 23, 3), 1027, 971),
        (152, (3, 8, 36, 3), 1507, 1451),
        (200, (3, 24, 36, 3), 1763, 1707),
    ],
)
def test_published_and_torchvision_resnets(depth, units, slim, ours):
    assert field(slim_resnet(units))[:2] == (slim, 32)  # Araujo et al.
    if depth < 200:
        assert field(untrained(getattr(models, f"resnet{depth}")), layer="layer4")[:2] == (ours, 32)


def large_field_of_view(pool, pad, fc6, rate):
    layers = []
    for stage, n in enumerate((2, 2, 3, 3, 3)):
        dilation = 2 if stage == 4 else 1
        layers += [(3, 1, dilation, dilation)] * n
        layers += [(pool, 2 if stage < 3 else 1, pad, dilation if pool == 2 else 1)]
    return convs(*layers, (fc6, 1, 0, rate))


@pytest.mark.parametrize(
    ("fc6", "rate", "two", "three"), [(4, 4, 308, 323), (7, 4, 404, 419), (4, 8, 404, 419), (3, 12, 404, 419)]
)
def test_deeplab_v1_sees_more_than_its_printed_field_of_view(fc6, rate, two, three):
    assert field(large_field_of_view(2, 0, fc6, rate), (512, 512))[:2] == (two, 8)
    assert field(large_field_of_view(3, 1, fc6, rate), (512, 512))[:2] == (three, 8)  # as released


@pytest.mark.parametrize(("depth", "backbone", "grid"), [(50, 427, 715), (101, 971, 1259)])
def test_deeplab_v3_branches(depth, backbone, grid):
    model = untrained(getattr(segmentation, f"deeplabv3_resnet{depth}"), weights_backbone=None)
    graph, aspp = SpatialGraph(model, (513, 513)), "classifier.0.convs"
    sizes = [
        graph.receptive_field(layer).size[0] for layer in ("backbone", *(f"{aspp}.{i}" for i in range(5)))
    ]
    assert sizes == [backbone, backbone, backbone + 192, backbone + 384, backbone + 576, None]
    assert graph.receptive_field("classifier") == ((None, None),) * 3  # image pooling is one of its branches
    trunk = untrained(getattr(models, f"resnet{depth}"), replace_stride_with_dilation=[False, False, True])
    for block, rate in zip(trunk.layer4, (2, 4, 8)):  # multi-grid (1, 2, 4) at output stride 16
        block.conv2.dilation = block.conv2.padding = (rate, rate)
    assert field(trunk, (513, 513), "layer4")[:2] == (grid, 16)


def test_at_513_pixels_the_rate_36_branch_has_one_tap_at_the_centre():
    model = untrained(segmentation.deeplabv3_resnet50, weights_backbone=None)
    graph = SpatialGraph(model, (513, 513))
    for branch, valid in ((1, 9), (2, 9), (3, 1)):
        assert valid_weights((65, 65), (0, 12, 24, 36)[branch])[32, 32] == valid
    seen = graph.tap_map((32, 32), "classifier.0.convs.3")
    assert torch.equal(seen, box((513, 513), (256 - 213, 256 + 214), (256 - 213, 256 + 214)))  # 427, not 1003


class Sum(nn.Module):
    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = nn.Sequential(*left), nn.Sequential(*right)

    def forward(self, x):
        right = self.right(x)
        return self.left(x)[..., : right.shape[2], : right.shape[3]] + right


def test_alignment_of_branches_by_araujo():
    one = nn.Conv2d(1, 1, 1, 4)
    padded = nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, 1, 2)
    assert field(Sum([one], padded)) == (3, 4, 1)
    with pytest.raises(ValueError, match="give them the same stride and padding") as error:
        field(Sum([nn.Conv2d(1, 1, 1, 4)], padded[1:]))
    assert "'left.0' -> 'getitem_2' (stride 4, first unit centred on pixel 0)" in str(error.value)
    assert "'right.0' -> 'right.1' (stride 4, first unit centred on pixel 1)" in str(error.value)
    with pytest.raises(
        ValueError, match=r"pixel -1\) and the shortcut \(stride 1, first unit centred on pixel 0\)"
    ):
        field(Sum([nn.Conv2d(1, 1, 3, padding=2)], []))
    with pytest.raises(ValueError, match="different columns"):
        field(Sum([nn.Conv2d(1, 1, 3, padding=(1, 2))], [nn.Conv2d(1, 1, 3, padding=1)]))


def test_rows_and_columns_apart():
    found = receptive_field(nn.Sequential(nn.Conv2d(1, 1, (3, 5), 2), nn.Conv2d(1, 1, (3, 1), 2)), (64, 64))
    assert found == ((7, 5), (4, 4), (0, 0))  # Araujo et al.
    pooled = receptive_field(Call(lambda x: x.mean(3, keepdim=True)), (8, 8))
    assert pooled == ((1, None), (1, None), (0, None))


def test_the_worked_example_of_the_article():
    assert field(convs((3, 3, 1, 1), (2, 1, 0, 1))) == (6, 3, 1)  # unit 0 sees -1..4


def test_dilation_moves_the_start():
    """A well-known tool leaves the rate out: it says 13..17 and 18..66."""
    once = tap_map(convs((3, 1, 2, 2)), (32, 1), (16, 0), counts=True)[:, 0]
    assert once.nonzero()[:, 0].tolist() == [14, 16, 18]
    twice = tap_map(convs((3, 1, 12, 12), (3, 1, 12, 12)), (128, 128), (64, 64), counts=True)[:, 64]
    assert {i: int(n) for i, n in enumerate(twice) if n} == {40: 3, 52: 6, 64: 9, 76: 6, 88: 3}


@pytest.mark.parametrize(
    ("rates", "taps", "side"),
    [
        ((2, 2, 2), 49, 13),
        ((1, 2, 3), 169, 13),
        ((1, 2, 5), 289, 17),
        ((1, 2, 9), 441, 25),
        ((1, 3, 9), 729, 27),
        ((2, 4, 8), 225, 29),
        ((6, 12, 18), 169, 73),
        ((2, 4, 8, 16), 961, 61),
    ],
)
def test_holes_of_dilated_stacks(rates, taps, side):
    model = convs(*[(3, 1, r, r) for r in rates])
    assert tap_map(model, (99, 99), (49, 49)).sum() == taps
    assert field(model, (99, 99)) == (side, 1, side // 2)


def brute_force(model, size, unit):
    """A pixel reaches the unit if a one there, and nowhere else, changes it."""
    impulses = torch.eye(size[0] * size[1], dtype=torch.float64).view(-1, 1, *size)
    return model(impulses)[:, 0, unit[0], unit[1]].view(size) > 1e-9


def positive(*layers):
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return model.requires_grad_(False)


RESIZES = {
    "transposed": [nn.ConvTranspose2d(1, 1, 4, 2, 1)],
    "transposed, holes": [nn.ConvTranspose2d(1, 1, (2, 3), 3, (0, 1), output_padding=(1, 2))],
    "transposed, dilated": [nn.Conv2d(1, 1, 3, 2), nn.ConvTranspose2d(1, 1, 3, 2, 1, dilation=(1, 2))],
    "bilinear": [nn.Upsample(scale_factor=2, mode="bilinear")],
    "bilinear, corners": [nn.Upsample(size=(21, 9), mode="bilinear", align_corners=True)],
    "bilinear, smaller": [nn.Upsample(size=(4, 5), mode="bilinear")],
    "bilinear, antialias": [Call(lambda x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True))],
    "nearest": [nn.UpsamplingNearest2d(size=(16, 13))],
    "nearest-exact": [nn.Upsample(size=(7, 13), mode="nearest-exact")],
    "with a hole": [
        nn.Conv2d(1, 1, 3, 4),
        nn.ConvTranspose2d(1, 1, 4, 2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ],
    "global": [nn.AdaptiveAvgPool2d(1), nn.UpsamplingBilinear2d(size=(5, 6))],
}


@pytest.mark.parametrize("case", RESIZES)
def test_resizing_by_brute_force(case):
    size = (37, 11) if case == "with a hole" else (11, 9)
    model = positive(*RESIZES[case])
    shape, graph = model(torch.ones(1, 1, *size, dtype=torch.float64)).shape[2:], SpatialGraph(model, size)
    for row in range(0, shape[0], 3):
        for column in range(0, shape[1], 2):
            assert torch.equal(graph.tap_map((row, column)), brute_force(model, size, (row, column)))


def test_a_weight_that_is_rounding_is_no_tap():
    """Unit (2, 12) lies on the first pixel's centre, 2.5 * 2 / 10 - 0.5 = 12.5 * 2 / 50 - 0.5 = 0, to rounding."""
    taps = tap_map(nn.Upsample(size=(10, 50), mode="bilinear"), (2, 2), (2, 12))
    assert taps.tolist() == [[True, False], [False, False]]


def test_a_hole_in_the_rows_behind_a_transposed_convolution():
    rows = [
        tap_map(positive(*RESIZES["with a hole"]), (37, 11), (row, 4)).any(1).nonzero()[:, 0].tolist()
        for row in range(8, 18)
    ]
    assert any(max(seen) - min(seen) + 1 > len(seen) for seen in rows)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4),
    ],
)
def test_normalisation_by_the_statistics_of_the_image_sees_all_of_it(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer).double()
    seen = effective_field(model, torch.randn(1, 3, 8, 9, dtype=torch.float64), (3, 4), channel=0) > 0
    assert torch.equal(tap_map(model, (8, 9), (3, 4)), seen)
    stored = isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats
    assert receptive_field(model, (8, 9)).size == ((3, 3) if stored else (None, None))


def test_sigma_of_path_counts_in_closed_form():
    counts = tap_map(untrained(models.vgg16), (512, 512), (8, 8), "features", counts=True)
    fit = gaussian_fit(counts)
    assert fit.sigma == pytest.approx([27.639042433967692] * 2, rel=1e-12)
    assert fit.center == pytest.approx([8 * 32 + 15.5] * 2)
    for n in (1, 5, 20):
        counts = tap_map(convs(*[(3, 1, 1, 1)] * n), (64, 64), (30, 33), counts=True)
        assert gaussian_fit(counts).sigma == pytest.approx([math.sqrt(2 * n / 3)] * 2, rel=1e-12)
    counts = tap_map(convs((3, 2, 0, 1), (5, 1, 0, 3)), (64, 64), (3, 3), counts=True)
    assert gaussian_fit(counts).sigma[1] == pytest.approx(math.sqrt(8 / 12 + 6**2 * 24 / 12), rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "shares"),
    [
        (6, {9: 0.6649, 6: 0.3011, 4: 0.0341}),
        (12, {9: 0.3979, 6: 0.4658, 4: 0.1363}),
        (18, {9: 0.1991, 6: 0.4942, 4: 0.3067}),
        (24, {9: 0.0684, 6: 0.3863, 4: 0.5453}),
        (32, {9: 0.0002, 6: 0.0303, 4: 0.9695}),
        (36, {4: 0.7962, 2: 0.1922, 1: 0.0116}),
        (65, {1: 1.0}),
    ],
)
def test_figure_4_of_deeplab_v3(rate, shares):
    found = Counter(valid_weights((65, 65), rate).flatten().tolist())
    assert {n: round(times / 65**2, 4) for n, times in found.items()} == shares


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 6), st.sampled_from([1, 3, 5]))
def test_valid_weights_are_a_convolution_of_ones(size, rate, kernel):
    ones = F.conv2d(
        torch.ones(1, 1, *size), torch.ones(1, 1, kernel, kernel), padding=rate * (kernel // 2), dilation=rate
    )
    assert torch.equal(valid_weights(size, rate, kernel), ones[0, 0].long())


def test_effective_field_of_one_convolution_is_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(0.9))
    images = torch.randn(4, 3, 7, 8)
    expected = torch.zeros(7, 8)
    expected[1:4, 4:7] = model[0].weight[1].abs().sum(0)
    torch.testing.assert_close(effective_field(model, images, (2, 5), "0", channel=1), expected)
    expected[1:4, 4:7] = model[0].weight.sum(0).abs().sum(0)
    torch.testing.assert_close(effective_field(model, images, (2, 5), "0"), expected)


def test_effective_field_leaves_the_model_as_it_was():
    model = build_model("fcn8s", 3, backbone="tiny", width=2).train()
    model.score_pool3.eval()
    field = effective_field(model, torch.randn(1, 3, 64, 64), (30, 30))
    assert field.shape == (64, 64) and not field[~tap_map(model, (64, 64), (30, 30))].any()
    assert model.training and not model.score_pool3.training and not model._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_traced_model_is_left_as_it_was():
    model = build_model("fcn32s", 3, backbone="tiny", width=2).train()
    before = copy.deepcopy(model.state_dict())
    SpatialGraph(model, (32, 32)).tap_map((3, 3))
    assert model.training and all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )


class Meanwhile(nn.Module):
    """Starts a thread when it is called, and waits for it that long."""

    def __init__(self, target, seconds):
        super().__init__()
        self.seconds = seconds
        self.layer, self.thread = nn.Conv2d(3, 3, 3, padding=1), threading.Thread(target=target, daemon=True)

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.thread.start()
        self.thread.join(self.seconds)
        return self.layer(x)


def test_a_network_that_runs_while_another_is_traced_is_not_disturbed():
    """A cell trains while the reader moves an explorer: torch.fx hooks into the call of every module there is."""
    other, images, answers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.rand(1, 3, 8, 8), []
    graph = SpatialGraph(Meanwhile(lambda: answers.append(other(images)), 30).to("meta"), (8, 8))
    assert torch.equal(answers[0], other(images))
    assert graph.tap_map((3, 3)).sum() == 9


def test_two_threads_may_trace():
    outer_is_done, found, call = threading.Event(), [], nn.Module.__call__

    def wait(x):  # were both traced at a time, the outer trace would now take away the hooks of the inner one
        outer_is_done.wait(20)
        return x

    inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Call(wait), nn.Conv2d(3, 3, 3, padding=1))
    outer = Meanwhile(lambda: found.append(tap_map(inner, (9, 9), (4, 4))), 0.3).to("meta")
    assert tap_map(outer, (8, 8), (3, 3)).sum() == 9
    outer_is_done.set()
    outer.thread.join(60)
    assert found[0].sum() == 25
    assert nn.Module.__call__ is call


TINY = convs((3, 1, 1, 1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tap_map(TINY, (8, 8), (8, 0)),
            r"unit \(8, 0\) lies outside the layer's map, which is 8 x 8",
        ),
        (
            lambda: tap_map(TINY, (8, 8), (-1, 0)),
            "unit is .row, column. in the layer's map, two whole numbers",
        ),
        (lambda: tap_map(TINY, (8, 8), 3), "two whole numbers from 0 up, not 3"),
        (
            lambda: tap_map(TINY, 8, (0, 0)),
            "input_size is .rows, columns. of the image, two whole numbers from 1 up",
        ),
        (lambda: tap_map(TINY, (0, 8), (0, 0)), "from 1 up, not .0, 8."),
        (
            lambda: receptive_field(TINY, (8, 8), "O"),
            "the model runs no layer 'O'; among those it runs are 0",
        ),
        (
            lambda: receptive_field(convs((9, 1, 0, 1)), (4, 4)),
            "takes no image of 4 x 4 with 1 channels: .*Kernel size",
        ),
        (
            lambda: receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), (8, 8)),
            "the model's output is no map",
        ),
        (lambda: receptive_field(nn.Upsample(scale_factor=2), (8, 8)), "resizes the map.*tap_map of a unit"),
        (lambda: receptive_field(nn.AdaptiveAvgPool2d(3), (8, 8)), "resizes the map"),
        (
            lambda: tap_map(Call(lambda x: x if x.sum() > 0 else -x), (8, 8), (0, 0)),
            "torch.fx cannot trace this model",
        ),
        (
            lambda: valid_weights((9, 9), 0),
            "rate is a whole number from 1 up, kernel_size an odd one, not 0, 3",
        ),
        (lambda: valid_weights((9, 9), 1, 4), "kernel_size an odd one"),
        (lambda: valid_weights(9, 1), "map_size is"),
        (lambda: gaussian_fit(torch.zeros(3, 3)), "not negative nor all zero"),
        (lambda: gaussian_fit(-torch.eye(3)), "not negative nor all zero"),
        (lambda: effective_field(TINY, torch.zeros(1, 1, 8, 8), (0, 0), "5"), "the model has no layer '5'"),
        (lambda: effective_field(TINY, torch.zeros(1, 1, 8, 8), (0, 9)), r"unit \(0, 9\) lies outside"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_images_that_are_none():
    with pytest.raises(TypeError, match=r"images are a float tensor \(N, C, H, W\)"):
        effective_field(TINY, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), (0, 0))


def test_unknown_layers_are_suggested():
    with pytest.raises(ValueError, match=r"no layer 'backbone.layer9'; .*backbone.layer4"):
        receptive_field(
            untrained(segmentation.fcn_resnet50, weights_backbone=None), (64, 64), "backbone.layer9"
        )


@pytest.mark.parametrize(
    "layer",
    [
        nn.PixelShuffle(2),
        nn.Softmax(dim=-1),
        nn.ChannelShuffle(2),
        Call(lambda x: x.flip(3)),
        Call(lambda x: x.transpose(2, 3)),
        Call(lambda x: torch.cat([x, x], dim=2)),
        Call(lambda x: x.chunk(2, dim=1)[0]),
        Call(lambda x: x[:, 0][:, None]),
        Call(lambda x: x.flatten(2).softmax(2).view(1, 4, 8, 8)),
        Call(lambda x: F.conv2d(x, x.mean((2, 3), keepdim=True))),
    ],
)
def test_an_operation_without_rule_is_named(layer):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(
        NotImplementedError, match=r"no rule says which pixels .*'1(.1)?' reads .*effective_field"
    ):
        tap_map(model, (8, 8), (0, 0))
    assert tap_map(model, (8, 8), (3, 4), layer="0").sum() == 1


def test_the_size_of_a_layers_map():
    graph = SpatialGraph(convs((3, 2, 1, 1), (3, 2, 0, 1)), (17, 12))
    assert (graph.map_size("0"), graph.map_size()) == ((9, 6), (4, 2))
