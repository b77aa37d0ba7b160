"""`segment`: against a softmax worked out by hand, whole images against tiles, and each bad input's sentence."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import tv_tensors

from deeplab_edu.data.augment import IMAGENET_MEAN, IMAGENET_STD, normalize
from deeplab_edu.inference import predict, segment, tiles
from deeplab_edu.models import build_model


def redness() -> nn.Conv2d:
    """1x1 convolution with the logits (normalised red, 0): its probabilities can be worked out by hand."""
    model = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
        model.weight[0, 0] = 1
    return model


def random_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def shaken(name: str, **options) -> nn.Module:
    """A model whose score layers, zero at first, say something."""
    torch.manual_seed(0)
    model = build_model(name, 3, backbone="tiny", width=4, **options)
    for key, parameter in model.named_parameters():
        if key.startswith("score"):
            nn.init.normal_(parameter, std=0.3)
    return model


def test_one_pixel_by_hand():
    image = torch.tensor([51, 9, 9], dtype=torch.uint8)[:, None, None]
    red = (51 / 255 - IMAGENET_MEAN[0]) / IMAGENET_STD[0]
    by_hand = np.exp(red) / (np.exp(red) + 1)
    result = segment(redness(), image)
    assert result.shape == (2, 1, 1) and result.dtype == torch.float32 and result.device.type == "cpu"
    assert result.flatten().tolist() == pytest.approx([by_hand, 1 - by_hand], abs=1e-6)


def test_every_kind_of_image_gives_the_same(tmp_path):
    tensor = random_image(7, 5)
    array = tensor.permute(1, 2, 0).numpy()
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    kinds = [
        tv_tensors.Image(tensor),
        array,
        array[:, ::-1][:, ::-1],
        Image.fromarray(array),
        path,
        str(path),
    ]
    expected = segment(redness(), tensor)
    for kind in kinds:
        result = segment(redness(), kind)
        assert type(result) is torch.Tensor and torch.equal(result, expected)


def test_grey_and_palette_photographs_are_read_as_rgb(tmp_path):
    grey = Image.fromarray(np.full((4, 6), 200, np.uint8))
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.png")
    expected = segment(redness(), np.full((4, 6, 3), 200, np.uint8))
    for name in ("grey.png", "palette.png"):
        assert torch.equal(segment(redness(), tmp_path / name), expected)


def test_photograph_on_its_side_is_turned_upright(tmp_path):
    upright = random_image(8, 16).permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: "rotate by 90 degrees clockwise to display"
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "side.png", exif=exif)
    assert torch.equal(segment(redness(), tmp_path / "side.png"), segment(redness(), upright))


def test_result_can_be_used_in_training():
    weight = torch.ones((), requires_grad=True)
    (segment(redness(), random_image(4, 4)) * weight).sum().backward()
    assert weight.grad == pytest.approx(16)


def test_flip_averages_probabilities_not_logits():
    """A model that finds class 0 in the left half only: mirrored views disagree, and their average is 1/2."""

    class Left(nn.Module):
        def forward(self, images):
            left = torch.linspace(9, -9, images.shape[-1]).expand(len(images), 1, images.shape[-2], -1)
            return torch.cat([left, torch.zeros_like(left)], 1)

    image = random_image(3, 8)
    one_way = segment(Left(), image)
    both = segment(Left(), image, flip=True)
    assert torch.allclose(both, (one_way + one_way.flip(-1)) / 2)
    logits = torch.linspace(9, -9, 8)
    assert both[0, 0].tolist() == pytest.approx(
        ((logits.sigmoid() + logits.flip(0).sigmoid()) / 2).tolist(), abs=1e-6
    )


def test_scales_average_probabilities():
    """A model that answers by its input's width: class 0 surely at full size, even odds at half size."""

    class Wide(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 2, *images.shape[-2:])
            logits[:, 0] = 50.0 if images.shape[-1] == 8 else 0.0
            return logits

    result = segment(Wide(), random_image(6, 8), scales=(1.0, 0.5))
    assert torch.allclose(result[0], torch.full((6, 8), (1 + 0.5) / 2))
    assert torch.allclose(result.sum(0), torch.ones(6, 8))


def test_scaled_views_lie_over_each_other():
    """A smooth image stays in place: at any scale the 1x1 model sees nearly the same red everywhere."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(3, 32, 64)
    single, several = segment(redness(), ramp), segment(redness(), ramp, scales=(0.5, 1.5, 2.0))
    assert (single - several).abs().max() < 0.02


def test_shrinking_averages_what_it_leaves_out():
    """Every fourth column red: at a quarter of the size the model sees an even, weak red."""
    stripes, even = torch.zeros(2, 3, 32, 64, dtype=torch.uint8)
    stripes[:, :, ::4] = 255
    even[:] = 64
    shrunk = segment(redness(), stripes, scales=(0.25,))[..., 8:-8]
    assert (shrunk - segment(redness(), even)[..., 8:-8]).abs().max() < 0.05


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 700), tile=st.integers(33, 300), data=st.data())
def test_tiles_cover_every_pixel_with_weights_that_sum_to_one(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 32))
    total, previous = torch.zeros(length), None
    for start, stop, weights in tiles(length, tile, overlap):
        assert start % 32 == 0 and 0 < stop - start <= tile and len(weights) == stop - start
        assert weights.min() >= 0
        if previous is not None:
            assert previous - start >= overlap
        total[start:stop] += weights
        previous = stop
    assert previous == length
    assert torch.allclose(total, torch.ones(length), atol=1e-5)


def test_outer_quarters_of_the_overlap_do_not_count():
    first, second, *_ = tiles(1000, 160, 64)  # the second starts at 96; they share pixels 96 to 160
    assert first[2][96 : 96 + 16].eq(1).all() and first[2][160 - 16 :].eq(0).all()
    assert second[2][:16].eq(0).all() and second[2][64 - 16 : 64].eq(1).all()
    t = (24 + 0.5 - 16) / 32  # how far along the passage of 32 pixels; it starts and ends level
    assert second[2][24].item() == pytest.approx(3 * t**2 - 2 * t**3)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), seed=st.integers(0, 9))
def test_tiles_equal_the_whole_image_where_the_overlap_covers_what_a_score_sees(height, width, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)
    )  # sees 2 px far
    image = random_image(height, width, seed)
    whole = segment(model, image, tile=512, flip=True)
    assert torch.allclose(segment(model, image, tile=64, overlap=8, flip=True), whole, atol=1e-6)


@pytest.mark.parametrize("name", ["fcn32s", "fcn8s"])
def test_tiles_of_an_fcn_equal_the_whole_photograph(name):
    """The tiny FCN sees less than 200 px far; tiles share 864, a quarter of which is 216."""
    model, image = shaken(name), random_image(40, 1500)
    whole = segment(model, image, tile=2048)
    assert whole.std(dim=(1, 2)).max() > 0.03  # otherwise equality would mean nothing
    assert torch.allclose(segment(model, image, tile=1024, overlap=864), whole, atol=1e-5)
    assert not torch.allclose(segment(model, image, tile=256, overlap=64), whole, atol=1e-3)


def test_blending_leaves_no_seam():
    """Tiles that disagree entirely (each answers with its own mean red) pass into each other smoothly."""

    class Mean(nn.Module):
        def forward(self, images):
            score = 30 * images[:, :1].mean((2, 3), keepdim=True).expand(-1, -1, *images.shape[-2:])
            return torch.cat([score, -score], 1)

    image = torch.zeros(3, 8, 160, dtype=torch.uint8)
    image[:, :, 80:] = 255
    row = segment(Mean(), image, tile=96, overlap=64)[0, 0]
    assert row[0] < 0.01 and row[-1] > 0.99
    assert row.diff().abs().max() < 0.06


def test_modes_are_restored_module_by_module_even_after_an_error():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9)).train()
    model[1].eval()  # frozen batch normalisation inside a model in training
    image = random_image(6, 6)
    assert torch.equal(segment(model, image), segment(model, image))  # dropout is off
    assert [m.training for m in model.modules()] == [True, True, False, True]
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        segment(model, image)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert not torch.is_inference_mode_enabled()


def test_half_precision_models_get_images_of_their_type():
    result = segment(redness().bfloat16(), random_image(4, 4))
    assert result.dtype == torch.float32
    assert torch.allclose(result, segment(redness(), random_image(4, 4)), atol=0.02)


def test_predict_is_the_models_own_softmax():
    model, image = shaken("fcn16s").eval(), random_image(45, 70)
    with torch.no_grad():
        expected = model(normalize(image)[None]).softmax(1)[0]
    assert torch.equal(predict(model, image, (1.0,), False), expected)


PEAKS = """
import resource, sys, numpy
from deeplab_edu.inference import segment
from deeplab_edu.models import build_model
model = build_model("fcn8s", 12, backbone="tiny", width=8)
photograph = numpy.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=numpy.uint8)
def peak():
    if sys.platform == "linux":  # ru_maxrss starts at the parent's, which is large after many tests; VmHWM does not
        return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
segment(model, photograph[:512, :512])
before = peak()
for tile in (512, 4096):
    size = 4 * segment(model, photograph, tile=tile, overlap=64).numel() / 2**20
    print(peak() - before, size)
"""


def test_a_photograph_of_6_megapixels_needs_little_more_memory_than_its_result():
    """Growth of a process's peak, in MiB: in tiles, then, so that the bound means something, as a whole."""
    pytest.importorskip("resource", reason="this system does not tell a process's peak memory")
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    (tiled, result), (whole, _) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert result == pytest.approx(274.7, abs=0.1)  # 12 classes x 2000 x 3000 x 4 bytes
    assert tiled < result + 150
    assert whole > 2 * tiled


@pytest.mark.parametrize(
    ("image", "error", "sentence"),
    [
        (torch.rand(3, 4, 4), TypeError, r"uint8, 0 to 255 .*not torch\.float32"),
        (np.zeros((4, 4, 3)), TypeError, r"uint8, 0 to 255 .*not float64"),
        ([[0, 0, 0]], TypeError, "a tensor, an array, a PIL image or a path, not list"),
        (random_image(4, 4)[:1], ValueError, r"shape \(3, H, W\).*not \(1, 4, 4\)"),
        (random_image(4, 4)[None], ValueError, r"one image has shape \(3, H, W\).*not \(1, 3, 4, 4\)"),
        (np.zeros((4, 4), np.uint8), ValueError, r"shape \(H, W, 3\).*not \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"shape \(H, W, 3\).*not \(4, 4, 4\)"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), ValueError, r"none of it zero, not \(3, 0, 4\)"),
        ("no/such/photo.jpg", FileNotFoundError, r"^There is no image file no/such/photo\.jpg\.$"),
    ],
)
def test_images_of_the_wrong_kind(image, error, sentence):
    with pytest.raises(error, match=sentence):
        segment(redness(), image)


def test_files_that_are_no_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not a photograph")
    with pytest.raises(ValueError, match=r"notes\.jpg is no image in a format that Pillow reads"):
        segment(redness(), path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_files_cut_short(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(random_image(64, 64).permute(1, 2, 0).numpy()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"photo\.{suffix} is no complete image file: it is damaged"):
        segment(redness(), path)


@pytest.mark.parametrize("scales", [(), 1.0, (1.0, 0.0), (-0.5,), (float("nan"),), (float("inf"),)])
def test_bad_scales(scales):
    with pytest.raises(ValueError, match="scales is a sequence of positive numbers"):
        segment(redness(), random_image(4, 4), scales=scales)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 64), (64, 33), (256, 256), (64, -1)])
def test_tiles_that_would_not_move_on(tile, overlap):
    with pytest.raises(ValueError, match=f"tile={tile} is too small for overlap={overlap}"):
        segment(redness(), random_image(4, 4), tile=tile, overlap=overlap)


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: {"out": x}, "not a dict"),
        (lambda x: x[..., ::2, ::2], r"as high and wide as its images, not shape \(1, 3, 2, 2\)"),
        (lambda x: x / 0, "NaN or infinite scores"),
    ],
)
def test_models_that_give_no_logits(answer, sentence):
    with pytest.raises(ValueError, match=sentence):
        segment(Wrong(answer), random_image(4, 4))
