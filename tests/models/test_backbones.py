"""Backbones against torchvision's, and what happens to files of weights that are not what they should be."""

import pickle
from math import ceil
from urllib.error import URLError

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock

from deeplab_edu.models.backbones import VGG16, ResidualBlock, Tiny
from deeplab_edu.models.weights import load_renamed, pretrained_weights


def on_meta(build, *args, **options):
    with torch.device("meta"):
        return build(*args, **options)


BACKBONES = {"vgg16": on_meta(VGG16), "vgg16_bn": on_meta(VGG16, batch_norm=True), "tiny": on_meta(Tiny, 8)}


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(BACKBONES)), height=st.integers(1, 300), width=st.integers(1, 300))
def test_maps_have_the_channels_and_strides_that_are_announced(name, height, width):
    backbone = BACKBONES[name].eval()
    maps = backbone(torch.empty(2, 3, height, width, device="meta"))
    assert len(maps) == len(backbone.channels) == len(backbone.strides)
    for features, channels, stride in zip(maps, backbone.channels, backbone.strides):
        assert features.shape == (2, channels, ceil(height / stride), ceil(width / stride))


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_is_torchvisions(name):
    theirs = on_meta(torchvision.models.get_model, name).features
    ours = BACKBONES[name].features
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert [type(layer) for layer in ours] == [type(layer) for layer in theirs]
    batch_norm = 2 * 4224 if name == "vgg16_bn" else 0  # a weight and a bias for each of 4224 maps
    assert sum(p.numel() for p in ours.parameters()) == 14_714_688 + batch_norm


def test_first_padding_widens_the_border_only():
    torch.manual_seed(0)
    plain, padded = VGG16(), VGG16(first_padding=33)
    padded.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        wide = padded(images)[0]  # 32 more pixels around the image: 16 more units of stride 2
        assert wide.shape[-2:] == (48, 64)
        assert torch.allclose(wide[..., 17:-17, 17:-17], plain(images)[0][..., 1:-1, 1:-1], atol=1e-5)


def test_residual_block_is_torchvisions_basic_block():
    torch.manual_seed(0)
    ours = ResidualBlock(4, 6).eval()
    shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6))
    theirs = BasicBlock(4, 6, downsample=shortcut).eval()
    for layer in ours.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    renamed = {"branch.0.0.": "conv1.", "branch.0.1.": "bn1.", "branch.1.": "conv2.", "branch.2.": "bn2."}
    state = {}
    for name, value in ours.state_dict().items():
        for old, new in {**renamed, "shortcut.": "downsample."}.items():
            name = name.replace(old, new)
        state[name] = value
    theirs.load_state_dict(state)
    x = torch.randn(2, 4, 9, 7)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_parameters_of_tiny_by_hand():
    stem = 27 * 8 + 16
    stages = [10 * a * b + 9 * b * b + 6 * b for a, b in ((8, 16), (16, 24), (24, 32), (32, 40))]
    assert sum(p.numel() for p in Tiny(8).parameters()) == stem + sum(stages) == 57_608


def test_true_asks_torchvision_for_its_imagenet_weights(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda url, **options: asked.append((url, options)) or {},
    )
    assert pretrained_weights("vgg16_bn", True) == {}
    ((url, options),) = asked
    assert url == torchvision.models.VGG16_BN_Weights.IMAGENET1K_V1.url and options["check_hash"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError(OSError(-2, "Name or service not known")), r"\[Errno -2\] Name or service not known"),
        (RuntimeError("invalid hash value"), "invalid hash value"),
    ],
)
def test_a_download_that_fails_names_address_and_place(monkeypatch, tmp_path, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.VGG16_BN_Weights.IMAGENET1K_V1.url
    place = tmp_path / "hub/checkpoints" / url.split("/")[-1]
    with pytest.raises(
        ConnectionError, match=rf"^{url} could not be downloaded \({reason}\).* put it at {place}$"
    ):
        pretrained_weights("vgg16_bn", True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    state, path = {"features.0.bias": torch.arange(4.0)}, tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    for source in (path, str(path)):
        loaded = pretrained_weights("vgg16", source)
        assert loaded.keys() == state.keys() and torch.equal(*loaded.values(), *state.values())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*vgg16\.pth"):
        pretrained_weights("vgg16", tmp_path / "vgg16.pth")


def test_tiny_has_no_imagenet_weights():
    with pytest.raises(ValueError, match="the tiny backbone has no ImageNet weights"):
        pretrained_weights("tiny", True)


class Unwanted:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a file's code was run",))


@pytest.mark.parametrize("content", ["text", "empty", "pickle", "code", "zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    if content == "code":
        torch.save({"weight": Unwanted()}, path)
    elif content == "zip":
        torch.save({"weight": torch.zeros(999)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_bytes(
            {"text": b"<html>404</html>", "empty": b"", "pickle": pickle.dumps(Unwanted(), 2)}[content]
        )
    with pytest.raises(ValueError, match=rf"weights{suffix} cannot be read as a state dict of tensors"):
        pretrained_weights("vgg16", path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"weight": torch.zeros(1)}}])
def test_checkpoints_that_are_no_plain_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "run.pth")
    with pytest.raises(ValueError, match=r"run\.pth holds no plain state dict; write it by torch\.save"):
        pretrained_weights("vgg16", tmp_path / "run.pth")


def test_renaming_reshapes_and_leaves_the_rest_alone():
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 2), "score": nn.Conv2d(3, 1, 1)})
    score = model["score"].weight.clone()
    linear = nn.Linear(8, 3)  # the classifier that sees all of a 2 x 2 map of 2 channels
    given = {f"head.0.{k}": v for k, v in linear.state_dict().items()} | {"unused": torch.zeros(7)}
    load_renamed(model, given, {"conv": "head.0"}, "a test")
    x = torch.randn(5, 2, 2, 2)
    assert torch.allclose(model["conv"](x).flatten(1), linear(x.flatten(1)), atol=1e-6)
    assert torch.equal(model["score"].weight, score)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"weights from there lack 'head\.weight': is this another network's file\?"),
        ({"head.weight": torch.zeros(3, 9)}, r"'head\.weight' .* shape \(3, 9\), not \(3, 2, 2, 2\)"),
    ],
)
def test_weights_of_another_network(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_renamed(nn.ModuleDict({"conv": nn.Conv2d(2, 3, 2)}), given, {"conv": "head"}, "there")
