"""The one rule of atrous networks, and the three ways to compute an atrous convolution."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deeplab_edu.models.atrous import set_output_stride
from deeplab_edu.models.backbones import ATROUS_BACKBONES, VGG16, atrous_backbone
from released import randomise, relative_error


def units_of(name):
    """A network of torchvision's, which knows nothing of this package, as the list of its units."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.get_model(name, weights=None)
    if name.startswith("resnet"):
        layers = [*net.layer1, *net.layer2, *net.layer3, *net.layer4]
        return [net.conv1, net.bn1, net.relu, net.maxpool, *layers]
    return list(net.features)


def run(units, x):
    with torch.no_grad():
        for unit in units:
            x = unit(x)
    return x


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet101", "mobilenet_v2"])
@pytest.mark.parametrize("side", [65, 97])
def test_dense_subsampled_is_nominal_on_torchvisions_networks(name, output_stride, side):
    units = units_of(name)
    randomise(nn.Sequential(*units))
    x = torch.rand(1, 3, side, side + 32)
    if name == "vgg16":
        x = x[..., :-1, :-1]  # 2x2 pools halve even sides, and an odd one's last row is in no nominal unit
    nominal = run(units, x)
    strides = set_output_stride(units, output_stride)
    assert strides[-1] == output_stride
    dense = run(units, x)
    every = 32 // output_stride
    assert min(dense.shape[-2:]) > every * (nominal.shape[-1] - 3)
    assert relative_error(dense[..., ::every, ::every], nominal) < 1e-5


@pytest.mark.parametrize("name", ATROUS_BACKBONES)
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_every_map_of_our_backbones_keeps_its_values(name, stride_in):
    options = {"stride_in": stride_in} if name.startswith("resnet") else {"width": 8}
    backbone = randomise(atrous_backbone(name, 32, **options))
    x = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        nominal, nominal_strides = backbone(x), backbone.strides
        assert nominal_strides == (4, 8, 16, 32)
        for output_stride in (8, 16):
            backbone.set_output_stride(output_stride)
            assert backbone.strides == tuple(min(s, output_stride) for s in nominal_strides)
            for map_, expected, stride, was in zip(backbone(x), nominal, backbone.strides, nominal_strides):
                assert relative_error(map_[..., :: was // stride, :: was // stride], expected) < 1e-5
        backbone.set_output_stride(32)
        assert torch.equal(backbone(x)[-1], nominal[-1])  # and back


def test_diluting_the_strided_layer_too_breaks_it():
    """The mistake of several libraries: the unit whose stride was removed has its own 3x3 dilated as well."""
    units = units_of("resnet50")
    randomise(nn.Sequential(*units))
    x = torch.rand(1, 3, 65, 65)
    nominal = run(units, x)
    set_output_stride(units, 16)
    units[-3].conv2.dilation = units[-3].conv2.padding = (2, 2)  # first unit of layer4
    assert relative_error(run(units, x)[..., ::2, ::2], nominal) > 0.05


def test_which_layers_of_vgg_change():
    features = list(VGG16().features)
    set_output_stride(features, 8)
    rates = [layer.dilation[0] for layer in features if isinstance(layer, nn.Conv2d)]
    assert rates == [1] * 10 + [2] * 3
    pools = [(layer.stride, layer.dilation) for layer in features if isinstance(layer, nn.MaxPool2d)]
    assert pools == [(2, 1), (2, 1), (2, 1), (1, 1), (1, 2)]


def test_parameters_and_cost_of_a_position_stay(monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    def cost(output_stride):
        backbone = atrous_backbone("resnet50", output_stride).eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            maps = backbone(torch.zeros(1, 3, 65, 65))
        last = backbone.layers[3]
        with torch.no_grad(), FlopCounterMode(display=False) as of_last:
            last(maps[2])
        positions = maps[-1].shape[-1] * maps[-1].shape[-2]
        parameters = sum(p.numel() for p in backbone.parameters())
        return parameters, of_last.get_total_flops() / positions, counter.get_total_flops()

    with torch.device("meta"):
        (p32, each32, all32), (p8, each8, all8) = cost(32), cost(8)
    assert p32 == p8 == 23_508_032
    assert (
        each8 < each32 * 1.01
    )  # the strided unit's shortcut and 1x1 read less often, relative to the outputs
    assert all8 > 3 * all32


def test_a_padded_pool_that_would_need_holes_is_refused():
    """ResNet's stem at output stride 1: torch pads a pool by half its kernel at most, whatever its rate."""
    units = units_of("resnet50")[:4]
    assert set_output_stride(units, 2) == [2, 2, 2, 2]
    assert run(units, torch.rand(1, 3, 33, 33)).shape[-2:] == (17, 17)
    with pytest.raises(ValueError, match="a max pool of 3 x 3 with padding cannot read with holes"):
        set_output_stride(units, 1)


@pytest.mark.parametrize("output_stride", [0, -8, 8.0, "8", None])
def test_output_strides_that_are_none(output_stride):
    with pytest.raises(ValueError, match="output_stride is a whole number from 1 up, not"):
        set_output_stride(units_of("vgg16"), output_stride)


# ------------------------------------------------------------------------------------------------ the hole algorithm


@settings(max_examples=60, deadline=None)
@given(
    rate=st.integers(1, 4),
    taps=st.sampled_from([1, 3, 5]),
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_atrous_is_decimate_convolve_interleave(rate, taps, blocks, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, rate * blocks[0], rate * blocks[1], dtype=torch.float64)
    kernel = torch.randn(4, 3, taps, taps, dtype=torch.float64)
    atrous = F.conv2d(x, kernel, padding=rate * (taps // 2), dilation=rate)
    holes = torch.empty_like(atrous)
    for row in range(rate):
        for column in range(rate):
            part = x[..., row::rate, column::rate]
            holes[..., row::rate, column::rate] = F.conv2d(part, kernel, padding=taps // 2)
    torch.testing.assert_close(holes, atrous)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.integers(1, 4), blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 99)
)
def test_atrous_is_space_to_batch(rate, blocks, seed):
    """The same parts as one batch, the way TensorFlow computed it."""
    torch.manual_seed(seed)
    x = torch.randn(2, 3, rate * blocks[0], rate * blocks[1], dtype=torch.float64)
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    n, c, h, w = x.shape
    parts = x.view(n, c, h // rate, rate, w // rate, rate).permute(3, 5, 0, 1, 2, 4).reshape(-1, c, *blocks)
    answers = F.conv2d(parts, kernel, padding=1).view(rate, rate, n, 4, *blocks)
    back = answers.permute(2, 3, 4, 0, 5, 1).reshape(n, 4, h, w)
    torch.testing.assert_close(back, F.conv2d(x, kernel, padding=rate, dilation=rate))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "resnet18"}, "no backbone 'resnet18'; choose from resnet50"),
        ({"name": "tiny", "stride_in": "7x7"}, 'stride_in is "1x1" or "3x3", not \'7x7\''),
        ({"name": "tiny", "stride_in": "3x3"}, "stride_in belongs to the ResNets; leave it out for tiny"),
        ({"name": "tiny", "multi_grid": (1, 2)}, r"multi_grid is 3 whole numbers from 1 up, .* not \(1, 2\)"),
        ({"name": "tiny", "multi_grid": (1, 2, 0)}, r"multi_grid is 3 whole numbers from 1 up"),
        ({"name": "mobilenet_v2", "multi_grid": (1, 2, 4)}, "multi_grid belongs to the residual networks"),
    ],
)
def test_backbones_that_there_are_not(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        atrous_backbone(**options)
