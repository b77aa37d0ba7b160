"""DeepLab v1 against the released Caffe net, written out functionally; the atrous rule; any size; bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deeplab_edu.models import build_model
from deeplab_edu.models.backbones import TinyStride8

PARAMETERS = {"largefov": 20_505_429, "7x7": 134_346_581, "4x4": 65_140_565, "4x4-wide": 65_140_565}
FC6 = {  # kernel_size, pad, hole, num_output
    "largefov": (3, 12, 12, 1024),
    "7x7": (7, 12, 4, 4096),
    "4x4": (4, 6, 4, 4096),
    "4x4-wide": (4, 12, 8, 4096),
}


def on_meta(**options):
    with torch.device("meta"):
        return build_model("deeplab_v1", **options)


def tiny(seed=0, width=4, num_classes=5, **options):
    torch.manual_seed(seed)
    return build_model("deeplab_v1", num_classes, backbone="tiny", width=width, **options).eval()


# ------------------------------------------------------------------------------------------ the released definition


def released_fc8(data, weights, field_of_view):
    """Blob fc8 of the net released as DeepLab-LargeFOV, with fc6 as in `field_of_view`. Caffe's pools round up."""
    blob, index = data, 0
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        hole = 2 if block == 5 else 1
        for _ in range(convolutions):
            w, b = weights[f"backbone.features.{index}.weight"], weights[f"backbone.features.{index}.bias"]
            blob, index = F.relu(F.conv2d(blob, w, b, padding=hole, dilation=hole)), index + 2
        blob = F.max_pool2d(blob, 3, stride=2 if block < 4 else 1, padding=1, ceil_mode=True)
        index += 1
    blob = F.avg_pool2d(blob, 3, stride=1, padding=1)  # pool5a
    _, pad, hole, _ = FC6[field_of_view]
    w, b = weights["classifier.fc6.weight"], weights["classifier.fc6.bias"]
    blob = F.relu(F.conv2d(blob, w, b, padding=pad, dilation=hole))
    blob = F.relu(F.conv2d(blob, weights["classifier.fc7.weight"], weights["classifier.fc7.bias"]))
    return F.conv2d(blob, weights["score.weight"], weights["score.bias"])


def interp(scores, height, width):
    """Linear interpolation between scores that lie on pixels 0, 8, 16, ..., as two products with tents."""

    def tents(pixels, units):
        distance = (torch.arange(pixels)[:, None] / 8 - torch.arange(units)).abs()
        return (1 - distance).clamp(min=0)

    rows, columns = tents(height, scores.shape[2]), tents(width, scores.shape[3])
    return rows @ scores @ columns.T


def check_parity(field_of_view, size):
    torch.manual_seed(0)
    model = build_model("deeplab_v1", field_of_view=field_of_view).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(model.score.weight, std=0.05)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        ours, fc8 = model(images), released_fc8(images, model.state_dict(), field_of_view)
    expected = interp(fc8, *size)
    assert ours.shape == expected.shape == (1, 21, *size)
    assert expected.std() > 0.1
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_logits_are_those_of_the_released_net():
    check_parity("largefov", (65, 90))


@pytest.mark.slow
@pytest.mark.parametrize("field_of_view", FC6)
@pytest.mark.parametrize("size", [(1, 1), (58, 130), (321, 321)])
def test_logits_are_those_of_the_released_net_at_more_sizes(field_of_view, size):
    check_parity(field_of_view, size)


@pytest.mark.parametrize("field_of_view", FC6)
def test_what_is_built_is_what_was_released(field_of_view):
    model = on_meta(field_of_view=field_of_view)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[field_of_view]
    fc6 = model.classifier.fc6
    kernel, pad, hole, channels = FC6[field_of_view]
    assert (fc6.kernel_size, fc6.padding, fc6.dilation) == ((kernel,) * 2, (pad,) * 2, (hole,) * 2)
    assert fc6.out_channels == channels
    seen = model.backbone(torch.empty(1, 3, 321, 321, device="meta"))[-1]
    assert model.score(model.classifier(seen)).shape == (1, 21, 41, 41)
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


# ------------------------------------------------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file of weights named and shaped as torchvision's VGG-16, each drawn; and the weights."""
    shapes = on_meta(field_of_view="7x7").backbone.state_dict()
    torch.manual_seed(0)
    weights = {key: torch.randn(value.shape) for key, value in shapes.items()}
    weights |= {"classifier.0.weight": torch.randn(4096, 512 * 49), "classifier.0.bias": torch.randn(4096)}
    weights |= {"classifier.3.weight": torch.randn(4096, 4096), "classifier.3.bias": torch.randn(4096)}
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(weights, path)
    yield path, weights
    path.unlink()


def test_classifier_is_cut_from_vggs(vgg):
    path, weights = vgg
    torch.manual_seed(1)
    model = build_model("deeplab_v1", pretrained=path)
    assert all(torch.equal(value, weights[key]) for key, value in model.backbone.state_dict().items())
    own = model.classifier.state_dict()
    whole = weights["classifier.0.weight"].view(4096, 512, 7, 7)[:, :, ::3, ::3]
    rows6 = [weights["classifier.0.bias"].eq(bias).nonzero().item() for bias in own["fc6.bias"]]
    rows7 = [weights["classifier.3.bias"].eq(bias).nonzero().item() for bias in own["fc7.bias"]]
    assert len(set(rows6)) == len(set(rows7)) == 1024
    assert torch.equal(own["fc6.weight"], whole[rows6])
    assert torch.equal(own["fc7.weight"][:, :, 0, 0], weights["classifier.3.weight"][rows7][:, rows6])


def test_a_file_without_the_classifier_is_refused(vgg, tmp_path):
    trunk = {key: value for key, value in vgg[1].items() if key.startswith("features")}
    torch.save(trunk, tmp_path / "trunk.pth")
    with pytest.raises(ValueError, match=r"lack 'classifier\.0\.weight': is this another network's file\?"):
        build_model("deeplab_v1", pretrained=tmp_path / "trunk.pth")


# ---------------------------------------------------------------------------------------------- what holes are about


def dense_and_strided(hole):
    """Maps of a tiny trunk and of the same weights where the last pool strides, as it would in a classifier."""
    torch.manual_seed(0)
    dense, strided = TinyStride8(4, hole=hole).eval(), TinyStride8(4, hole=False).eval()
    strided.load_state_dict(dense.state_dict())
    strided.stages[-1][0].stride = 2
    images = torch.randn(1, 3, 129, 161)
    with torch.no_grad():
        return dense(images)[-1], strided(images)[-1]


def test_with_holes_every_second_response_is_that_of_the_strided_trunk():
    dense, strided = dense_and_strided(hole=True)
    assert dense.shape[-2:] == (17, 21) and strided.shape[-2:] == (9, 11)
    assert strided.std() > 0.1
    assert torch.allclose(dense[..., ::2, ::2], strided, atol=1e-5)


def test_without_holes_it_is_not():
    dense, strided = dense_and_strided(hole=False)
    assert (dense[..., ::2, ::2] - strided).abs().mean() > 0.1 * strided.abs().mean()


def reach(**options):
    """Height and width of what the score of one unit depends on, in pixels; with positive weights."""
    model = tiny(num_classes=2, **options).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    for stage in model.backbone.stages:  # a maximum passes its gradient to one of its pixels, a mean to all
        stage[0] = nn.AvgPool2d(3, stage[0].stride, padding=1)
    images = torch.ones(1, 3, 505, 505, dtype=torch.float64, requires_grad=True)
    model(images)[0, 0, 248, 248].backward()
    rows, columns = (images.grad[0, 0].sum(axis).nonzero() for axis in (1, 0))
    for seen in (rows, columns):
        assert seen.min() + seen.max() == 2 * 248
    return [int(seen.max() - seen.min()) + 1 for seen in (rows, columns)]


def test_fields_of_view_are_ordered_as_in_the_paper():
    """Table 2: 128 pixels for the narrow 4x4, 224 for the three others; here fc6 spans 6 or 12 units of 8 pixels."""
    narrow = reach(field_of_view="4x4")
    for field_of_view in ("largefov", "7x7", "4x4-wide"):
        assert reach(field_of_view=field_of_view) == [side + 6 * 8 for side in narrow]


def test_rate_and_hole_change_the_reach_by_what_they_should():
    wide = reach()
    assert reach(rate=4) == [side - 2 * 2 * 8 for side in wide]
    assert reach(hole=False) == [side - 2 * 2 * 8 for side in wide]  # two convolutions, one unit a side each


# ---------------------------------------------------------------------------------------------- any size, any mode


FULL = {backbone: on_meta(backbone=backbone).eval() for backbone in ("vgg16", "vgg16_bn")}


@settings(max_examples=40, deadline=None)
@given(backbone=st.sampled_from(sorted(FULL)), height=st.integers(1, 600), width=st.integers(1, 600))
def test_full_nets_return_the_size_they_get(backbone, height, width):
    logits = FULL[backbone](torch.empty(2, 3, height, width, device="meta"))
    assert logits.shape == (2, 21, height, width)


@settings(max_examples=40, deadline=None)
@given(field_of_view=st.sampled_from(sorted(FC6)), height=st.integers(1, 140), width=st.integers(1, 140))
def test_tiny_nets_return_the_size_they_get(field_of_view, height, width):
    logits = tiny(field_of_view=field_of_view)(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 5, height, width) and logits.isfinite().all()


def test_every_eighth_logit_is_a_score():
    model, images = tiny(), torch.randn(1, 3, 66, 130)
    with torch.no_grad():
        logits, scores = model(images), model.score(model.classifier(model.backbone(images)[-1]))
    assert logits.std() > 0.001
    assert torch.allclose(logits[..., ::8, ::8], scores[..., :9, :17], atol=1e-6)


def test_maps_have_the_channels_and_strides_that_are_announced():
    for backbone in (FULL["vgg16"].backbone, on_meta(backbone="tiny").backbone):
        maps = backbone(torch.empty(2, 3, 161, 81, device="meta"))
        assert len(maps) == len(backbone.channels) == len(backbone.strides)
        for features, channels, stride in zip(maps, backbone.channels, backbone.strides):
            assert features.shape == (2, channels, 160 // stride + 1, 80 // stride + 1)


def test_fx_traces_it():
    model, images = tiny(), torch.randn(1, 3, 45, 70)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images), model(images))
    assert traced(images[..., :33, :40]).shape == (1, 5, 33, 40)
    torch.fx.symbolic_trace(FULL["vgg16"])


@pytest.mark.parametrize("autocast", [False, True])
def test_learns_from_scratch_at_once(autocast):
    torch.manual_seed(0)
    model = build_model("deeplab_v1", 3, backbone="tiny", width=8)
    target = torch.zeros(4, 64, 64, dtype=torch.long)
    target[:2, :, 32:] = 1
    target[2:, 32:] = 2
    images = F.one_hot(target, 3).movedim(-1, 1) + 0.1 * torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"field_of_view": "5x5"}, ValueError, "'5x5'; choose from largefov, 7x7, 4x4, 4x4-wide"),
        ({"backbone": "resnet50"}, ValueError, "'resnet50'; choose from vgg16, vgg16_bn, tiny"),
        ({"width": 8}, ValueError, "`width` belongs to the tiny backbone; vgg16 has the paper's"),
        ({"backbone": "tiny", "width": 0}, ValueError, "width is a whole number from 1 up, not 0"),
        ({"rate": 0}, ValueError, "rate is a whole number from 1 up, not 0"),
        ({"rate": 2.5}, ValueError, "rate is a whole number from 1 up, not 2.5"),
        ({"field_of_view": "4x4", "rate": 3}, ValueError, "4x4 kernel .* at even rates only, not at 3"),
        ({"depth": 3}, TypeError, "deeplab_v1 has no option depth; its options are field_of_view, backbone"),
        ({"backbone": "tiny", "pretrained": True}, ValueError, "tiny backbone has no ImageNet weights"),
        ({"pretrained": "no/vgg.pth"}, FileNotFoundError, "no file of weights at no/vgg.pth"),
    ],
)
def test_models_that_cannot_be_built(options, error, sentence):
    with pytest.raises(error, match=sentence):
        on_meta(**options)


@pytest.mark.parametrize("backbone", ["vgg16", "tiny"])
def test_images_are_checked_at_the_door(backbone):
    with pytest.raises(TypeError, match="normalize"):
        on_meta(backbone=backbone)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
