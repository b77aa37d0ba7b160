"""FCN against the released Caffe nets, written out functionally; against torchvision's VGG; and at any size."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deeplab_edu.models import MODELS, build_model
from deeplab_edu.models.fcn import CROPS, PADDING

NAMES = ("fcn32s", "fcn16s", "fcn8s")
PARAMETERS = {"fcn32s": 136_152_917, "fcn16s": 134_815_994, "fcn8s": 134_489_759}


def on_meta(name, **options):
    with torch.device("meta"):
        return build_model(name, **options)


def tiny(name, seed=0, width=4, num_classes=5):
    """A tiny FCN in evaluation mode with scores other than zero from every level."""
    torch.manual_seed(seed)
    model = build_model(name, num_classes, backbone="tiny", width=width)
    for key, parameter in model.named_parameters():
        if key.startswith("score"):
            nn.init.normal_(parameter)
    return model.eval()


# ------------------------------------------------------------------------------------------ the released definition


def bilinear(classes, size):
    """Dense (classes, classes, size, size) weight; the kernel is interpolation's answer to a single one."""
    factor = size // 2
    impulse = torch.zeros(1, 1, 3, 3)
    impulse[..., 1, 1] = 1
    kernel = F.interpolate(impulse, scale_factor=factor, mode="bilinear")[0, 0]
    weight = torch.zeros(classes, classes, size, size)
    for c in range(classes):
        weight[c, c] = kernel[factor // 2 : factor // 2 + size, factor // 2 : factor // 2 + size]
    return weight


def released_vgg(data, weights):
    """Blobs pool3, pool4, pool5 and relu7 of the released nets: conv1_1 padded by 100, Caffe's pools, fc6, fc7."""
    pools, blob, index, pad = [], data, 0, 100
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            w, b = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            blob, index, pad = F.relu(F.conv2d(blob, w, b, padding=pad)), index + 2, 1
        blob, index = F.max_pool2d(blob, 2, 2, ceil_mode=True), index + 1
        pools.append(blob)
    w6, w7 = (
        weights["classifier.0.weight"].view(4096, 512, 7, 7),
        weights["classifier.3.weight"].view(4096, 4096, 1, 1),
    )
    blob = F.relu(F.conv2d(blob, w6, weights["classifier.0.bias"]))
    return *pools[2:], F.relu(F.conv2d(blob, w7, weights["classifier.3.bias"]))


def crop(blob, reference, offset):
    height, width = reference.shape[2:]
    assert blob.shape[2] >= offset + height and blob.shape[3] >= offset + width
    return blob[:, :, offset : offset + height, offset : offset + width]


def released_scores(name, data, blobs, scores):
    """voc-fcn32s, voc-fcn16s, voc-fcn8s from relu7 on; `scores` holds (weight, bias) of the three score layers."""
    pool3, pool4, _, relu7 = blobs
    score_fr = F.conv2d(relu7, *scores["score_fr"])
    classes = score_fr.shape[1]
    if name == "fcn32s":
        return crop(F.conv_transpose2d(score_fr, bilinear(classes, 64), stride=32), data, 19)
    upscore2 = F.conv_transpose2d(score_fr, bilinear(classes, 4), stride=2)
    fuse_pool4 = upscore2 + crop(F.conv2d(pool4, *scores["score_pool4"]), upscore2, 5)
    if name == "fcn16s":
        return crop(F.conv_transpose2d(fuse_pool4, bilinear(classes, 32), stride=16), data, 27)
    upscore_pool4 = F.conv_transpose2d(fuse_pool4, bilinear(classes, 4), stride=2)
    fuse_pool3 = upscore_pool4 + crop(F.conv2d(pool3, *scores["score_pool3"]), upscore_pool4, 9)
    return crop(F.conv_transpose2d(fuse_pool3, bilinear(classes, 16), stride=8), data, 31)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The three nets from a file of random torchvision weights, those weights, and torchvision's own answer."""
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16().eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        answer = theirs(images)
    weights = theirs.state_dict()
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(weights, path)
    models = {"fcn8s": build_model("fcn8s", pretrained=path).eval()}
    path.unlink()
    for key, parameter in models["fcn8s"].named_parameters():
        if key.startswith("score"):
            assert parameter.eq(0).all()  # FCN §4.2, §4.3
            nn.init.normal_(parameter, std=0.05)
    for name in ("fcn32s", "fcn16s"):
        models[name] = on_meta(name).eval()
        state = {k: v for k, v in models["fcn8s"].state_dict().items() if k in models[name].state_dict()}
        state["upscore.conv.weight"] = bilinear(21, 2 * models[name].stride)
        models[name].load_state_dict(state, assign=True)
    return models, weights, images, answer


def check_parity(full, size):
    models, weights, _, _ = full
    images = torch.randn(1, 3, *size, generator=torch.manual_seed(1))
    layers = {name: getattr(models["fcn8s"], name) for name in ("score_fr", "score_pool4", "score_pool3")}
    scores = {name: (layer.weight, layer.bias) for name, layer in layers.items()}
    with torch.no_grad():
        blobs = released_vgg(images, weights)
        for name in NAMES:
            ours, expected = models[name](images), released_scores(name, images, blobs, scores)
            assert ours.shape == (1, 21, *size)
            assert expected.std() > 0.1
            assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("size", [(1, 1), (45, 70)])
def test_scores_are_those_of_the_released_nets(full, size):
    check_parity(full, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (129, 33), (224, 224), (500, 375)])
def test_scores_are_those_of_the_released_nets_at_more_sizes(full, size):
    check_parity(full, size)


def test_a_classifier_made_convolutional_gives_the_classifiers_scores(full):
    """FCN §4.1: on 224 px, and with VGG's own padding of 1, fc6 fits exactly once; fc8 makes torchvision's answer."""
    models, weights, images, answer = full
    model = models["fcn8s"]
    model.backbone.features[0].padding = (1, 1)
    try:
        with torch.no_grad():
            fc7 = model.classifier(model.backbone(images)[-1])
    finally:
        model.backbone.features[0].padding = (PADDING, PADDING)
    assert fc7.shape == (1, 4096, 1, 1)
    fc8 = F.conv2d(fc7, weights["classifier.6.weight"][:, :, None, None], weights["classifier.6.bias"])
    assert answer.std() > 0.1
    assert torch.allclose(fc8.flatten(1), answer, atol=1e-4 * answer.abs().max())


# ---------------------------------------------------------------------------------------------------- what is built


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_released_nets(name):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [key for key, _ in model.named_parameters() if "upscore" in key]


def test_learned_upsampling_is_all_but_the_last():
    model = on_meta("fcn8s", learn_upsampling=True)
    learned = {key for key, p in model.named_parameters() if p.requires_grad and "upscore" in key}
    assert learned == {"upscore2.conv.weight", "upscore_pool4.conv.weight"}


def test_dropout_drops_single_values():
    drops = [
        layer for layer in on_meta("fcn8s").modules() if isinstance(layer, nn.modules.dropout._DropoutNd)
    ]
    assert [(type(layer), layer.p) for layer in drops] == [(nn.Dropout, 0.5)] * 2


def test_crops_lay_scores_over_the_pixels_they_saw():
    """Follow the centre of the first unit of each map, in pixels of the image, through the network."""
    shift = PADDING - 1  # a 3x3 convolution padded by 1 moves nothing
    pool = {stride: (stride - 1) / 2 - shift for stride in (8, 16, 32)}
    score = pool[32] + 3 * 32  # fc6: 7x7 without padding

    def upsampled(first, stride, factor):
        return first - stride * (2 * factor - 1) / 2 / factor

    assert CROPS[32] == -upsampled(score, 32, 32)
    score16 = upsampled(score, 32, 2)
    assert score16 == pool[16] + 16 * CROPS["pool4"]
    assert CROPS[16] == -upsampled(score16, 16, 16)
    score8 = upsampled(score16, 16, 2)
    assert score8 == pool[8] + 8 * CROPS["pool3"]
    assert CROPS[8] == -upsampled(score8, 8, 8)


# ---------------------------------------------------------------------------------------------- any size, any mode


FULL = {
    (name, backbone): on_meta(name, backbone=backbone).eval()
    for name in NAMES
    for backbone in ("vgg16", "vgg16_bn")
}


@settings(max_examples=40, deadline=None)
@given(which=st.sampled_from(sorted(FULL)), height=st.integers(1, 600), width=st.integers(1, 600))
def test_full_nets_return_the_size_they_get(which, height, width):
    assert FULL[which](torch.empty(2, 3, height, width, device="meta")).shape == (2, 21, height, width)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(NAMES), height=st.integers(1, 140), width=st.integers(1, 140))
def test_tiny_nets_return_the_size_they_get(name, height, width):
    logits = tiny(name)(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 5, height, width) and logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_tiny_scores_lie_over_the_pixels_they_saw(name):
    """With positive weights and mean pools, what a centred window sees is centred, up to the stem's half pixel."""
    model = tiny(name, num_classes=2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.constant_(parameter, 0.1)
    for stage in model.backbone.stages:
        stage[0] = nn.AvgPool2d(stage[0].kernel_size, stage[0].stride, stage[0].padding)
    images = torch.ones(1, 3, 512, 512, requires_grad=True)
    model(images)[..., 192:320, 192:320].sum().backward()
    seen = images.grad.sum((0, 1))
    pixels = torch.arange(512.0)
    for axis in (0, 1):
        centre = (seen.sum(1 - axis) * pixels).sum() / seen.sum()
        assert centre == pytest.approx(255.5, abs=0.51)


@pytest.mark.parametrize("name", NAMES)
def test_fx_traces_it(name):
    model, images = tiny(name), torch.randn(1, 3, 45, 70)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images), model(images))
    assert traced(images[..., :33, :40]).shape == (1, 5, 33, 40)
    torch.fx.symbolic_trace(FULL[name, "vgg16"])


@pytest.mark.parametrize("name", NAMES)
def test_zero_skips_leave_the_coarser_net_as_it_was(name):
    """FCN §4.2: going from one net to the finer one, the new skip starts at zero and changes (nearly) nothing."""
    coarse = tiny("fcn32s")
    fine = build_model(name, 5, backbone="tiny", width=4).eval()
    carried = {k: v for k, v in coarse.state_dict().items() if "upscore" not in k}
    fine.load_state_dict(carried, strict=False)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        before, after = coarse(images), fine(images)
    assert (after - before).abs().mean() < 0.1 * before.abs().mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("autocast", [False, True])
def test_learns_from_scratch_at_once(name, autocast):
    torch.manual_seed(0)
    model = build_model(name, 3, backbone="tiny", width=8)
    target = torch.zeros(4, 64, 64, dtype=torch.long)
    target[:2, :, 32:] = 1
    target[2:, 32:] = 2
    images = F.one_hot(target, 3).movedim(-1, 1) + 0.1 * torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 4e-3)
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


def test_models_are_listed_with_a_line_each():
    assert list(MODELS)[:3] == list(NAMES)
    assert all(text and "\n" not in text for text in MODELS.values())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        (("fcn64s",), {}, ValueError, "no model is called 'fcn64s'; choose from fcn32s, fcn16s, fcn8s"),
        (
            ("fcn8s", 1),
            {},
            ValueError,
            r"num_classes is a whole number from 2 up \(background counts\), not 1",
        ),
        (("fcn8s", 2.5), {}, ValueError, "whole number from 2 up .*, not 2.5"),
        (("fcn8s", True), {}, ValueError, "whole number from 2 up .*, not True"),
        (("fcn8s",), {"depth": 3}, TypeError, "fcn8s has no option depth; .* backbone, width, pretrained"),
        (("fcn8s",), {"stride": 4}, TypeError, "fcn8s has no option stride"),
        (("fcn8s",), {"backbone": "vgg19"}, ValueError, "'vgg19'; choose from vgg16, vgg16_bn, tiny"),
        (("fcn8s",), {"width": 8}, ValueError, "`width` belongs to the tiny backbone; vgg16 has"),
        (
            ("fcn8s",),
            {"backbone": "tiny", "width": 0},
            ValueError,
            "width is a whole number from 1 up, not 0",
        ),
        (("fcn8s",), {"backbone": "tiny", "pretrained": True}, ValueError, "tiny backbone has no ImageNet"),
        (
            ("fcn8s",),
            {"pretrained": "no/vgg.pth"},
            FileNotFoundError,
            "no file of weights at no/vgg.pth",
        ),
    ],
)
def test_models_that_cannot_be_built(arguments, options, error, sentence):
    with torch.device("meta"), pytest.raises(error, match=sentence):
        build_model(*arguments, **options)


@pytest.mark.parametrize("backbone", ["vgg16", "tiny"])
def test_images_are_checked_at_the_door(backbone):
    with pytest.raises(TypeError, match="normalize"):
        on_meta("fcn8s", backbone=backbone)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
