"""Xception against timm's with the same weights, and against itself at other output strides."""

from math import ceil

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from deeplab_edu.data.augment import normalize
from deeplab_edu.models import build_model
from deeplab_edu.models.backbones import atrous_backbone
from deeplab_edu.models.weights import load_renamed
from deeplab_edu.models.xception import Xception, timm_names
from deeplab_edu.receptive_field import receptive_field

DEPTHS = (41, 65, 71)
STRIDED = {41: (1, 2, 11), 65: (1, 2, 19), 71: (2, 4, 21)}  # blocks that double the stride from 4 on


def on_meta(build, *args, **options):
    with torch.device("meta"):
        return build(*args, **options)


@pytest.fixture(scope="module")
def networks():
    """For each depth, timm's network and ours with the same weights, float64, in evaluation mode."""
    pairs = {}
    for depth in DEPTHS:
        theirs, ours = trained(timm.create_model(f"xception{depth}", num_classes=0)), Xception(depth)
        load_renamed(ours, theirs.state_dict(), timm_names(depth), "timm")
        pairs[depth] = theirs, ours.double().eval()
    return pairs


def trained(model):
    """With statistics in batch normalisation that nothing starts from."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.3, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    return model.double().eval()


def images(height=65, width=97):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1)).double()


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def at_output_stride(theirs, depth, output_stride):
    """timm's network built anew with the same weights, and the names of those it has no place for."""
    dense = on_meta(timm.create_model, f"xception{depth}", output_stride=output_stride, num_classes=0)
    unexpected = dense.load_state_dict(theirs.state_dict(), strict=False, assign=True).unexpected_keys
    return dense.eval(), unexpected


@torch.no_grad()
def maps_of_timms(theirs, depth, x):
    """What goes into the strided convolutions, and the end. Copies: timm rectifies them in place afterwards."""
    maps = []
    for block in STRIDED[depth]:
        theirs.blocks[block].stack.conv2.register_forward_hook(lambda *call: maps.append(call[2].clone()))
    end = theirs.forward_features(x)
    return [*maps, end]


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(41, 24_920_560), (65, 37_867_312), (71, 40_289_736)],
)
def test_parameters_and_the_depth_it_is_named_after(depth, parameters):
    model = on_meta(Xception, depth)
    assert sum(p.numel() for p in model.parameters()) == parameters
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    depthwise = [name for name in convolutions if model.get_submodule(name).groups > 1]
    shortcuts = [name for name in convolutions if "shortcut" in name]
    assert len(convolutions) - len(depthwise) - len(shortcuts) == depth


# timm's xception71 at output stride 8: see the next test
@pytest.mark.parametrize(
    ("depth", "output_stride"), [(41, 32), (41, 16), (41, 8), (65, 32), (65, 16), (65, 8), (71, 32), (71, 16)]
)
def test_maps_are_timms(networks, depth, output_stride):
    (nominal, ours), x = networks[depth], images()
    ours.set_output_stride(output_stride)
    theirs, dropped = at_output_stride(nominal, depth, output_stride)
    assert not dropped
    with torch.no_grad():
        maps = ours(x)
    for mine, reference in zip(maps, maps_of_timms(theirs, depth, x), strict=True):
        assert reference.std() > 0.01
        assert relative_error(mine, reference) < 1e-10
    assert (maps[0] < 0).any() and (maps[-1] >= 0).all()


def test_timms_xception71_drops_a_shortcut_at_output_stride_8_and_ours_does_not(networks):
    """There blocks.4 neither strides nor changes channels, so timm 1.0.31 builds it without its 1x1 convolution."""
    (nominal, ours), x = networks[71], images()
    ours.set_output_stride(8)
    theirs, dropped = at_output_stride(nominal, 71, 8)
    assert {name.rsplit(".", 2)[0] for name in dropped} == {"blocks.4.shortcut"}
    with torch.no_grad():
        reference = nominal.forward_features(x)
        assert relative_error(theirs.forward_features(x)[..., ::4, ::4], reference) > 1e-3
        assert relative_error(ours(x)[-1][..., ::4, ::4], reference) < 1e-10


@pytest.mark.parametrize(
    ("depth", "size"), [(41, (65, 97)), (65, (65, 97)), (71, (65, 97)), (41, (50, 76)), (41, (7, 130))]
)
@torch.no_grad()
def test_dense_maps_subsampled_are_the_nominal_ones(networks, depth, size):
    (_, model), x = networks[depth], images(*size)
    model.set_output_stride(32)
    nominal, strides = model(x), model.strides
    assert strides == (4, 8, 16, 32)
    for output_stride in (16, 8):
        model.set_output_stride(output_stride)
        assert model.strides == tuple(min(stride, output_stride) for stride in strides)
        for few, many, stride, smaller in zip(nominal, model(x), strides, model.strides, strict=True):
            step = stride // smaller
            assert many.shape[-1] == ceil(size[1] / smaller)
            assert relative_error(many[..., ::step, ::step], few) < 1e-10


def test_built_at_an_output_stride_or_set_to_it_is_the_same(networks):
    switched, built = networks[41][1], Xception(41, output_stride=16).double().eval()
    built.load_state_dict(switched.state_dict())
    for output_stride in (8, 32, 16):
        switched.set_output_stride(output_stride)
    assert switched.strides == built.strides == (4, 8, 16, 16)
    with torch.no_grad():
        for one, other in zip(switched(images()), built(images())):
            assert torch.equal(one, other)


SHAPES_ONLY = on_meta(Xception, 41)


@settings(max_examples=8, deadline=None)
@given(output_stride=st.sampled_from([32, 16, 8]), height=st.integers(1, 200), width=st.integers(1, 200))
@example(output_stride=8, height=1, width=1)
def test_images_of_any_size(output_stride, height, width):
    model = SHAPES_ONLY
    model.set_output_stride(output_stride)
    maps = model(torch.empty(2, 3, height, width, device="meta"))
    assert len(maps) == len(model.channels) == len(model.strides)
    for features, channels, stride in zip(maps, model.channels, model.strides):
        assert features.shape == (2, channels, ceil(height / stride), ceil(width / stride))


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize(
    ("depth", "size"),
    # 3x3 convolutions see 2 units more, a unit being as many pixels as its stride: two in the stem, then three a block
    [
        (41, 1 + 2 + 4 + 6 * (2 + 4 + 8 + 8 * 16 + 16 + 32)),
        (65, 1 + 2 + 4 + 6 * (2 + 4 + 8 + 16 * 16 + 16 + 32)),
        (71, 1 + 2 + 4 + 6 * (2 + 4 + 4 + 8 + 8 + 16 * 16 + 16 + 32)),
    ],
)
def test_field_is_the_same_at_every_output_stride(depth, size, output_stride):
    field = receptive_field(on_meta(Xception, depth, output_stride=output_stride), (97, 97))
    assert field.size == (size, size) and field.padding == (size // 2, size // 2)
    assert field.stride == (output_stride, output_stride)


def test_every_weight_learns():
    torch.manual_seed(0)
    model = Xception(41, output_stride=16)
    sum(features.square().mean() for features in model(torch.randn(2, 3, 65, 65))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("depth", [50, "65", None])
def test_another_depth(depth):
    with pytest.raises(ValueError, match=rf"Xception comes in depth 41, 65, 71, not {depth!r}"):
        Xception(depth)


@pytest.mark.parametrize("output_stride", [4, 64, 0, "16", None])
def test_another_output_stride(output_stride):
    with pytest.raises(ValueError, match=rf"output stride is 8, 16 or 32, not {output_stride!r}"):
        on_meta(Xception, 41, output_stride=output_stride)


def test_a_file_with_timms_names(networks, tmp_path):
    theirs, ours = networks[41]
    torch.save({name: value.float() for name, value in theirs.state_dict().items()}, tmp_path / "timm.pth")
    loaded = atrous_backbone("xception41", pretrained=tmp_path / "timm.pth")
    assert loaded.strides == (4, 8, 16, 16)
    for (name, value), expected in zip(loaded.state_dict().items(), ours.state_dict().values(), strict=True):
        adapted = name in ("stem.0.0.weight", "stem.0.1.running_mean")
        assert torch.equal(value, expected.to(value.dtype)) is not adapted, name
    photo = torch.randint(256, (1, 3, 65, 97), dtype=torch.uint8)
    mean, std = timm.create_model("xception41").default_cfg["mean"], 0.5
    assert mean == (0.5, 0.5, 0.5)
    first = theirs.stem[0]((photo.double() / 255 - mean[0]) / std)
    answer = loaded.eval().stem[0](normalize(photo))
    torch.testing.assert_close(answer[..., 1:-1, 1:-1].double(), first[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_deeplab_v3plus_with_xception_65():
    model = on_meta(build_model, "deeplab_v3plus", backbone="xception65")
    assert sum(p.numel() for p in model.parameters()) == 41_055_413
    assert model.backbone.strides == (4, 8, 16, 16)
    model.set_output_stride(8)
    assert model.backbone.strides == (4, 8, 8, 8)
    assert model(torch.empty(2, 3, 70, 41, device="meta")).shape == (2, 21, 70, 41)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "deeplab_v3plus",
            {"multi_grid": (1, 2, 4)},
            "multi_grid belongs to the residual networks; .* for xception",
        ),
        (
            "deeplab_v3",
            {"head": "cascade"},
            "a cascade copies residual blocks: its backbone is resnet50, resnet101",
        ),
        (
            "deeplab_v3plus",
            {"pretrained": True},
            "torchvision has no weights of xception41; give `pretrained` the",
        ),
    ],
)
def test_what_xception_does_not_have(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        on_meta(build_model, name, backbone="xception41", **options)
