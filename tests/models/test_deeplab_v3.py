"""DeepLab v3 against torchvision, segmentation-models-pytorch and the paper written out functionally; bad input."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deeplab_edu.checkpoints import load_weights, save_weights
from deeplab_edu.models import build_model
from deeplab_edu.models.deeplab_v3 import ASPP, TORCHVISION_NAMES
from released import aspp, conv, randomise, relative_error, resize, resnet


def on_meta(**options):
    with torch.device("meta"):
        return build_model("deeplab_v3", **options)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"backbone": "resnet50"}, 39_048_533),
        ({"backbone": "resnet101"}, 58_040_661),
        ({"head": "cascade", "cascade_blocks": 4}, 23_551_061),
        ({"head": "cascade", "cascade_blocks": 5}, 36_938_837),
        ({"head": "cascade", "cascade_blocks": 7}, 63_714_389),
        ({"backbone": "resnet101", "head": "cascade"}, 82_706_517),
        ({"compat": "torchvision"}, 39_638_869),
        ({"compat": "torchvision", "backbone": "resnet101"}, 58_630_997),
    ],
)
def test_parameters(options, parameters):
    assert count(on_meta(**options)) == parameters


# ------------------------------------------------------------------------------------------------ the paper's networks


@pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_aspp_is_the_papers(output_stride, rates):
    model = randomise(build_model("deeplab_v3", 5))
    model.set_output_stride(output_stride)
    w, images = model.state_dict(), torch.randn(1, 3, 33, 305)  # wider than every rate
    dense = [(2, (1,) * 6), (1, (2, 4, 8))] if output_stride == 16 else [(1, (2,) * 6), (1, (4, 8, 16))]
    with torch.no_grad():
        features = resnet(images, w, [(1, (1,) * 3), (2, (1,) * 4), *dense])[-1]
        scores = conv(aspp(features, w, rates, "head"), w, "score")
        assert scores.shape[-2:] == (32 // output_stride + 1, 304 // output_stride + 1)
        assert relative_error(model(images), resize(scores, (33, 305))) < 1e-4


@pytest.mark.parametrize(
    ("options", "deep"),
    [
        ({"output_stride": 16, "cascade_blocks": 6, "multi_grid": (1, 2, 1)}, [(1, 2), (1, 4), (1, 8)]),
        ({"output_stride": 8, "cascade_blocks": 5, "multi_grid": (1, 2, 4)}, [(1, 4), (1, 8)]),
        ({"output_stride": 64, "cascade_blocks": 5, "multi_grid": (1, 1, 1)}, [(2, 1), (2, 1)]),
    ],
)
def test_cascade_is_the_papers(options, deep):
    """`deep`: the stride of blocks 4, 5, ... and their rate, by which the multi-grid is multiplied."""
    model = randomise(build_model("deeplab_v3", 5, head="cascade", **options))
    w, images = model.state_dict(), torch.randn(1, 3, 129, 65)
    third = (1, (2,) * 6) if options["output_stride"] == 8 else (2, (1,) * 6)
    blocks = [(1, (1,) * 3), (2, (1,) * 4), third]
    blocks += [(stride, tuple(rate * g for g in options["multi_grid"])) for stride, rate in deep]
    with torch.no_grad():
        scores = conv(resnet(images, w, blocks)[-1], w, "score")
        assert relative_error(model(images), resize(scores, (129, 65))) < 1e-4


def test_multi_grid_of_ones_is_plain():
    with_it, without = (randomise(build_model("deeplab_v3", 3, multi_grid=(1, 1, 1))) for _ in range(2))
    without.backbone.multi_grid = None
    without.set_output_stride(16)
    images = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(with_it(images), without(images))


def test_aspps_taps_lie_where_its_rates_say():
    """Impulse response: one centre, eight taps at each rate."""
    module = ASPP(1, 1, (2, 5), image_pooling=False).eval()
    for branch, rate in zip(module.branches[1:], (2, 5)):
        nn.init.ones_(branch[0].weight)
        impulse = torch.zeros(1, 1, 15, 15)
        impulse[..., 7, 7] = 1
        with torch.no_grad():
            hit = branch[0](impulse)[0, 0].nonzero()
        assert {tuple(p) for p in (hit - 7).tolist()} == {
            (a, b) for a in (-rate, 0, rate) for b in (-rate, 0, rate)
        }


# ------------------------------------------------------------------------------------------------------ other libraries


def theirs(depth, num_classes=21):
    build = torchvision.models.get_model_builder(f"deeplabv3_resnet{depth}")
    return randomise(build(weights=None, weights_backbone=None, num_classes=num_classes), seed=1)


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_compat_is_torchvisions_and_loads_its_file(depth, tmp_path):
    net = theirs(depth)
    torch.save(net.state_dict(), tmp_path / "deeplabv3.pth")
    options = {"backbone": f"resnet{depth}", "compat": "torchvision"}
    model = build_model("deeplab_v3", weights=tmp_path / "deeplabv3.pth", **options).eval()
    images = torch.randn(1, 3, 65, 100)
    with torch.no_grad():
        assert relative_error(model(images), net(images)["out"]) < 1e-5


def test_compat_does_without_torchvisions_own_network(monkeypatch):
    def refuse(self, *arguments, **options):
        raise AssertionError(f"{type(self).__name__} of torchvision was asked")

    for name in ("DeepLabV3", "DeepLabHead", "ASPP", "ASPPConv", "ASPPPooling"):
        monkeypatch.setattr(f"torchvision.models.segmentation.deeplabv3.{name}.__init__", refuse)
    with pytest.raises(AssertionError, match="of torchvision was asked"):
        theirs(50)
    assert count(on_meta(compat="torchvision")) == 39_638_869


def test_coco_asks_torchvision_and_drops_the_auxiliary_head(monkeypatch):
    build = torchvision.models.get_model_builder("deeplabv3_resnet50")
    net = randomise(build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True), seed=1)
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda url, **options: asked.append((url, options["check_hash"])) or net.state_dict(),
    )
    model = build_model("deeplab_v3", compat="torchvision", weights="coco").eval()
    weights = torchvision.models.get_weight("DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1")
    assert asked == [(weights.url, True)]
    images = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert relative_error(model(images), net.eval()(images)["out"]) < 1e-5


def test_segmentation_models_pytorch_after_its_two_deviations_are_undone():
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install segmentation-models-pytorch")
    net = smp.DeepLabV3("resnet50", encoder_weights=None, classes=7, encoder_output_stride=8)
    net = randomise(net, seed=2)
    model = build_model("deeplab_v3", 7, compat="torchvision")
    torchvisions = {}
    for name in model.state_dict():
        ours, theirs = next((o, t) for o, t in TORCHVISION_NAMES.items() if name.startswith(o))
        torchvisions[theirs + name.removeprefix(ours)] = name
    parts = {"backbone": "encoder", "classifier.0": "decoder.aspp", "classifier.1": "decoder.conv"}
    parts |= {"classifier.2": "decoder.bn", "classifier.4": "segmentation_head.0"}
    state = {}
    for name, own in torchvisions.items():
        part = next(part for part in parts if name.startswith(part + "."))
        state[own] = net.state_dict()[parts[part] + name.removeprefix(part)]
    model.load_state_dict(state)
    model.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(net(images), model(images)) > 1e-2  # as shipped
        for layer, rate in ((net.encoder.layer3, 1), (net.encoder.layer4, 2)):
            layer[0].conv2.dilation = layer[0].conv2.padding = (rate, rate)
        net.segmentation_head[1] = nn.Upsample(scale_factor=8, mode="bilinear", align_corners=False)
        assert relative_error(net(images), model(images)) < 1e-4


# ------------------------------------------------------------------------------------------------------- use and misuse


def tiny(**options):
    torch.manual_seed(0)
    return build_model("deeplab_v3", 4, backbone="tiny", width=4, **options)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    head=st.sampled_from(["aspp", "cascade"]),
    output_stride=st.sampled_from([8, 16, 32]),
)
def test_any_size(height, width, head, output_stride):
    model = tiny(head=head, output_stride=output_stride).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, height, width)).shape == (1, 4, height, width)


def test_a_constant_image_far_from_its_border_gets_one_answer():
    """Scores upsampled corner on corner have no seams where nothing changes."""
    model = randomise(tiny(image_pooling=False))
    with torch.no_grad():
        logits = model(torch.ones(1, 3, 513, 513))[..., 240:272, 240:272]
    assert logits.flatten(2).std(-1).max() < 1e-4 * logits.abs().max()


def test_image_pooling_says_why_one_image_cannot_train_it():
    model, one = tiny().train(), torch.randn(1, 3, 33, 33)
    with pytest.raises(ValueError, match=r"batch norm cannot train on one image: use a batch of two or more"):
        model(one)
    model(one.expand(2, -1, -1, -1))
    model.eval()(one)
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model(one)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "vgg16"}, "no backbone 'vgg16'; choose from"),
        ({"head": "aspp2"}, 'head is "aspp" or "cascade", not \'aspp2\''),
        ({"output_stride": 4}, "output_stride is one of 8, 16, 32 for this network, not 4"),
        ({"output_stride": 64}, "output_stride is one of 8, 16, 32 for this network, not 64"),
        ({"head": "cascade", "cascade_blocks": 8}, r"cascade_blocks, .*, is 4, 5, 6 or 7, not 8"),
        ({"rates": (6, 0)}, "rates are whole numbers from 1 up, one a 3x3 branch"),
        ({"width": 3}, "width is a whole number from 1 up, of the tiny backbone only"),
        ({"compat": "smp"}, "compat is \"torchvision\" or None, not 'smp'"),
        ({"compat": "torchvision", "head": "cascade"}, "torchvision's DeepLabv3 here has ASPP on resnet50"),
        ({"weights": "coco"}, 'weights="coco" are of torchvision\'s network: build it with compat'),
    ],
)
def test_models_that_cannot_be_built(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        on_meta(**options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: {"epoch": 3}, r"run\.pth holds no plain state dict"),
        (
            lambda s: {k: v for k, v in s.items() if k != "score.bias"},
            r"they lack 'score\.bias' \(1 entries\)",
        ),
        (lambda s: s | {"more": torch.zeros(1)}, r"they have 'more' that it has not \(1 entries\)"),
        (lambda s: s | {"score.weight": torch.zeros(9, 16, 1, 1)}, "for 9 classes and the model has 4"),
        (lambda s: s | {"stem": 0} and {**s, "backbone.stem.0.weight": torch.zeros(1)}, "another width"),
    ],
)
def test_whole_weights_that_do_not_fit(tmp_path, change, sentence):
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(change(before), tmp_path / "run.pth")
    with pytest.raises(ValueError, match=sentence):
        build_model("deeplab_v3", 4, backbone="tiny", width=4, weights=tmp_path / "run.pth")


@pytest.mark.parametrize(
    "name", ["fcn32s", "fcn8s", "deeplab_v1", "deeplab_v2", "deeplab_v3", "deeplab_v3plus"]
)
def test_weights_for_another_number_of_classes_are_named_as_such(name, tmp_path):
    torch.save(build_model(name, 9, backbone="tiny", width=4).state_dict(), tmp_path / "run.pth")
    with pytest.raises(
        ValueError, match=r"are for 9 classes and the model has 4; build it with num_classes=9"
    ):
        build_model(name, 4, backbone="tiny", width=4, weights=tmp_path / "run.pth")
    with pytest.raises(ValueError, match="is it a network of another width or backbone"):
        build_model(name, 9, backbone="tiny", width=6, weights=tmp_path / "run.pth")


def test_whole_weights_come_back(tmp_path):
    model = randomise(tiny())
    torch.save(model.state_dict(), tmp_path / "run.pth")
    again = build_model("deeplab_v3", 4, backbone="tiny", width=4, weights=tmp_path / "run.pth").eval()
    images = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    with pytest.raises(FileNotFoundError, match="no file of weights at"):
        build_model("deeplab_v3", weights=tmp_path / "none.pth", backbone="tiny")


def test_weights_of_a_resnet_that_strides_elsewhere_are_refused(tmp_path):
    """All entries would load, and the network would compute something else."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "backbone": "resnet50", "rates": (1,)}
    elsewhere = randomise(build_model("deeplab_v2", stride_in="3x3", **options))
    path = tmp_path / "run.safetensors"
    save_weights(path, elsewhere, step=7)
    images, sentence = (
        torch.randn(1, 3, 33, 33),
        r'strides in its 3x3 .* build the model with stride_in="3x3"',
    )
    with pytest.raises(ValueError, match=sentence):
        build_model("deeplab_v2", weights=path, **options)
    with pytest.raises(ValueError, match=sentence):
        load_weights(path, wrong := build_model("deeplab_v2", **options))
    again = build_model("deeplab_v2", stride_in="3x3", weights=path, **options).eval()
    wrong.load_state_dict(elsewhere.state_dict())  # what the sentence saves from
    with torch.no_grad():
        assert torch.equal(again(images), elsewhere(images))
        assert relative_error(wrong.eval()(images), elsewhere(images)) > 0.01
    assert load_weights(path, again) == {"stride_in": "3x3", "step": 7}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"name": "deeplab_v2", "backbone": "vgg16"},
        {"name": "deeplab_v2", "backbone": "resnet101"},
        {"name": "deeplab_v3", "backbone": "resnet101"},
        {"name": "deeplab_v3", "head": "cascade"},
    ],
    ids=str,
)
def test_full_size_forward_and_training_step(options):
    torch.manual_seed(0)
    model = build_model(**options).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, masks = torch.randn(2, 3, 321, 321), torch.randint(0, 21, (2, 321, 321))
    loss = nn.functional.cross_entropy(model(images), masks)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    optimizer.step()
    with torch.no_grad():
        assert model.eval()(images[:1]).shape == (1, 21, 321, 321)
