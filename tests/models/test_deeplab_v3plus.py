"""DeepLab v3+ against the paper written out functionally; MobileNetV2 from TensorFlow; any size; bad input."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from deeplab_edu.data.augment import normalize
from deeplab_edu.models import build_model
from deeplab_edu.models.backbones import atrous_backbone, mobilenet
from deeplab_edu.models.weights import load_renamed
from released import aspp, conv, conv_of_head, randomise, relative_error, resize, resnet, unit


def on_meta(**options):
    with torch.device("meta"):
        return build_model("deeplab_v3plus", **options)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"backbone": "resnet101", "separable": False}, 59_344_309),
        ({"backbone": "resnet101"}, 45_688_261),
        ({"backbone": "resnet50", "separable": False}, 40_352_181),
        ({"backbone": "resnet50"}, 26_696_133),
    ],
)
def test_parameters(options, parameters):
    assert sum(p.numel() for p in on_meta(**options).parameters()) == parameters


@pytest.mark.parametrize(
    ("backbone", "separable"),
    [("resnet50", True), ("resnet50", False), pytest.param("resnet101", False, marks=pytest.mark.slow)],
)
def test_encoder_and_decoder_are_the_papers(backbone, separable):
    model = randomise(build_model("deeplab_v3plus", 5, backbone=backbone, separable=separable))
    w, images = model.state_dict(), torch.randn(1, 3, 33, 305)  # wider than every rate
    third = 6 if backbone == "resnet50" else 23
    blocks = [(1, (1,) * 3), (2, (1,) * 4), (2, (1,) * third), (1, (2, 4, 8))]
    with torch.no_grad():
        conv2, *_, conv5 = resnet(images, w, blocks)
        assert conv2.shape[-2:] == (9, 77) and conv5.shape[-2:] == (3, 20)
        encoded = resize(aspp(conv5, w, (6, 12, 18), "aspp", separable), (9, 77))
        low = F.relu(unit(conv2, w, "low_level"))
        assert low.shape[1] == 48
        decoded = torch.cat([encoded, low], 1)
        for index in range(2):
            decoded = conv_of_head(decoded, w, f"decoder.{index}", 1, separable)
        assert relative_error(model(images), resize(conv(decoded, w, "score"), (33, 305))) < 1e-4


def test_output_stride_moves_the_rates_and_nothing_else():
    model = randomise(build_model("deeplab_v3plus", 3, backbone="tiny", width=4, rates=(2, 4, 6)))
    images, before = torch.randn(1, 3, 65, 65), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        at16 = model(images)
        model.set_output_stride(8)
        assert [b[0].dilation[0] for b in model.aspp.branches[1:]] == [4, 8, 12]
        at8 = model(images)
        model.set_output_stride(16)
        assert torch.equal(model(images), at16) and not torch.equal(at8, at16)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def tiny(**options):
    torch.manual_seed(0)
    return build_model("deeplab_v3plus", 4, backbone="tiny", width=4, **options)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    low=st.sampled_from([0, 3]),
    convs=st.integers(0, 3),
    output_stride=st.sampled_from([8, 16, 32]),
)
def test_any_size(height, width, low, convs, output_stride):
    model = tiny(low_level_channels=low, decoder_convs=convs, output_stride=output_stride).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, height, width)).shape == (1, 4, height, width)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"output_stride": 4}, "output_stride is one of 8, 16, 32, not 4"),
        ({"low_level_channels": -1}, "low_level_channels is a whole number, or 0 for none, not -1"),
        ({"decoder_convs": -1}, "decoder_convs is a whole number from 0 up, not -1"),
        ({"rates": (0,)}, "rates are whole numbers from 1 up"),
        ({"backbone": "resnet34"}, "no backbone 'resnet34'; choose from"),
        (
            {"backbone": "mobilenet_v2", "multi_grid": (1, 2, 4)},
            "multi_grid belongs to the residual networks",
        ),
    ],
)
def test_models_that_cannot_be_built(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        on_meta(**{"backbone": "tiny", **options})


def test_training_needs_two_images():
    with pytest.raises(ValueError, match="batch norm cannot train on one image"):
        tiny().train()(torch.randn(1, 3, 33, 33))


# --------------------------------------------------------------------------------------- MobileNetV2 from TensorFlow


PHOTOGRAPHS = {  # the answers that came with the weights
    "bird": "chickadee",
    "bird_segmentation": "kite",
    "cat_720p": "Egyptian cat",
    "dog_samoyed_36": "Samoyed",
    "dragonfly": "dragonfly",
    "hot_dog": "hotdog",
    "pets": "Italian greyhound",
    "sunflower": "daisy",
    "grace_hopper": "mortarboard",
}


@pytest.fixture
def imagenet():
    path = Path(os.environ.get("DEEPLAB_EDU_DATA", "")) / "weights" / "mobilenet_v2_imagenet_tf.pth"
    if not path.is_file():
        pytest.skip("DEEPLAB_EDU_DATA names no folder with weights/mobilenet_v2_imagenet_tf.pth")
    return path


def test_mobilenet_backbone_is_torchvisions():
    net = randomise(torchvision.models.mobilenet_v2(weights=None))
    backbone, names = mobilenet()
    load_renamed(backbone, net.state_dict(), names, "torchvision")
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images)[-1], net.features[:18](images))
        assert backbone(images)[0].shape == (1, 24, 17, 25)


def test_mobilenet_from_tensorflow_classifies_photographs(imagenet):
    """The backbone with the classifier it came with, which this test puts behind it."""
    backbone = atrous_backbone("mobilenet_v2", 32, pretrained=imagenet).eval()
    net = torchvision.models.mobilenet_v2(weights=None).eval()
    net.load_state_dict(torch.load(imagenet, weights_only=True))
    names = torchvision.models.MobileNet_V2_Weights.DEFAULT.meta["categories"]
    for stem, expected in PHOTOGRAPHS.items():
        photograph = Image.open(imagenet.parent.parent / "photos" / f"{stem}.jpg").convert("RGB")
        pixels = torchvision.transforms.v2.functional.pil_to_tensor(photograph)
        pixels = torchvision.transforms.v2.functional.resize(pixels, [256])
        pixels = torchvision.transforms.v2.functional.center_crop(pixels, [225])
        with torch.no_grad():
            features = net.features[18](backbone(normalize(pixels)[None])[-1])
            scores = net.classifier(features.mean((2, 3)))
        assert names[scores.argmax().item()] == expected, stem


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet101", "xception65", "mobilenet_v2"])
def test_full_size_forward_and_training_step(backbone):
    torch.manual_seed(0)
    model = build_model("deeplab_v3plus", backbone=backbone).train()
    images, masks = torch.randn(2, 3, 257, 257), torch.randint(0, 21, (2, 257, 257))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(model(images), masks).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    with torch.no_grad():
        assert model.eval()(images[:1]).shape == (1, 21, 257, 257)
