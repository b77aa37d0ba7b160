"""DeepLab v2 against the released nets, written out functionally; multi-scale inputs; any size; bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deeplab_edu.models import build_model
from deeplab_edu.models.deeplab_v2 import MultiScaleInputs
from released import conv, randomise, relative_error, resize, resnet


def on_meta(**options):
    with torch.device("meta"):
        return build_model("deeplab_v2", **options)


@pytest.mark.parametrize(
    ("backbone", "count"), [("vgg16", 37_877_652), ("vgg16_bn", 37_886_100), ("resnet101", 44_048_532)]
)
def test_parameters_are_the_papers(backbone, count):
    assert sum(p.numel() for p in on_meta(backbone=backbone).parameters()) == count


@pytest.mark.parametrize("rates", [(6, 12, 18, 24), (2, 4, 8, 12), (12,)])
def test_resnet_is_the_released_net(rates):
    model = randomise(build_model("deeplab_v2", 5, backbone="resnet50", rates=rates))
    w, images = model.state_dict(), torch.randn(2, 3, 33, 209)  # wider than every rate
    blocks = [(1, (1,) * 3), (2, (1,) * 4), (1, (2,) * 6), (1, (4,) * 3)]
    with torch.no_grad():
        features = resnet(images, w, blocks)[-1]
        scores = sum(conv(features, w, f"aspp.{i}", rate=rate) for i, rate in enumerate(rates))
        assert scores.shape[-2:] == (5, 27)
        assert relative_error(model(images), resize(scores, (33, 209))) < 1e-4


def test_vgg_is_the_released_net():
    model = randomise(build_model("deeplab_v2", 5, backbone="vgg16"))
    w, blob, index = model.state_dict(), torch.randn(1, 3, 33, 209), 0
    images = blob
    with torch.no_grad():
        for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for _ in range(convolutions):
                blob = F.relu(conv(blob, w, f"backbone.features.{index}", rate=2 if block == 5 else 1))
                index += 2
            blob = F.max_pool2d(blob, 3, stride=2 if block < 4 else 1, padding=1, ceil_mode=True)
            index += 1
        scores = 0
        for i, rate in enumerate((6, 12, 18, 24)):
            fc6 = F.relu(conv(blob, w, f"aspp.{i}.fc6", rate=rate))
            fc7 = F.relu(conv(fc6, w, f"aspp.{i}.fc7"))
            scores = scores + conv(fc7, w, f"aspp.{i}.fc8")
        assert relative_error(model(images), resize(scores, (33, 209))) < 1e-4


def tiny(**options):
    torch.manual_seed(0)
    return randomise(build_model("deeplab_v2", 4, backbone="tiny", width=4, **options))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_size(height, width):
    with torch.no_grad():
        assert tiny()(torch.randn(1, 3, height, width)).shape == (1, 4, height, width)


def test_four_equal_branches_are_one_with_their_summed_weights():
    """ASPP adds scores, so branches of one rate do what one of them could: a control of equal size."""
    model = tiny(rates=(3, 3, 3, 3))
    assert {b[0][0].dilation for b in model.aspp} == {(3, 3)}
    sizes = [sum(p.numel() for p in tiny(rates=r).parameters()) for r in ((3, 3, 3, 3), (1, 2, 4, 6))]
    assert sizes[0] == sizes[1]


# ------------------------------------------------------------------------------------------------- multi-scale inputs


def test_multi_scale_inputs_fuse_by_the_maximum():
    model, images = tiny(), torch.randn(2, 3, 40, 56)
    fused = MultiScaleInputs(model).eval()
    with torch.no_grad():
        half = resize(model(resize(images, (20, 28))), (40, 56))
        most = resize(model(resize(images, (30, 42))), (40, 56))
        expected = torch.maximum(torch.maximum(half, most), model(images))
        assert torch.allclose(fused(images), expected, atol=1e-6)
        outputs = fused.train()(images)
    assert len(outputs) == 4 and all(o.shape == (2, 4, 40, 56) for o in outputs)
    assert torch.equal(outputs[0], torch.stack(outputs[1:]).amax(0))


def test_training_supervises_the_fused_scores_and_each_scale():
    from deeplab_edu.data.augment import normalize
    from deeplab_edu.training import Settings, train_step

    torch.manual_seed(0)
    model = MultiScaleInputs(build_model("deeplab_v2", 4, backbone="tiny", width=4), (0.5, 1)).train()
    images, masks = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8), torch.randint(0, 4, (2, 33, 33))
    masks[:, :5] = 255
    with torch.no_grad():
        expected = sum(F.cross_entropy(o, masks, ignore_index=255) for o in model(normalize(images)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = train_step(model, optimizer, images, masks, Settings(precision="float32"))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"backbone": "resnet18"},
            "DeepLab v2 has no backbone 'resnet18'; choose from vgg16, vgg16_bn, resnet50",
        ),
        ({"backbone": "tiny", "rates": ()}, r"rates are whole numbers from 1 up, one a branch, not \(\)"),
        ({"backbone": "tiny", "rates": (6, 0)}, r"rates are whole numbers from 1 up"),
        ({"backbone": "vgg16", "width": 8}, "width is a whole number from 1 up, of the tiny backbone only"),
        ({"backbone": "tiny", "stride_in": "3x3"}, "stride_in belongs to the ResNets; leave it out for tiny"),
        ({"backbone": "resnet50", "stride_in": "2x2"}, 'stride_in is "1x1" or "3x3", not'),
        ({"backbone": "tiny", "width": 0}, "width is a whole number from 1 up"),
        ({"backbone": "tiny", "pretrained": True}, "the tiny backbone has no ImageNet weights"),
    ],
)
def test_models_that_cannot_be_built(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        on_meta(**options)


@pytest.mark.parametrize("scales", [(), (0.5, 0), (1, -1)])
def test_scales_that_make_no_sense(scales):
    with pytest.raises(ValueError, match="scales is a sequence of positive numbers"):
        MultiScaleInputs(tiny(), scales)
