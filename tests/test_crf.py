"""Dense CRF: against pydensecrf, against K written out in full, against a case worked out by hand; and bad input."""

import sys
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from deeplab_edu.crf import (
    BACKENDS,
    PRESETS,
    DenseCRF,
    Lattice,
    attention,
    elevate,
    exact,
    features,
    normalized,
)

OURS = [backend for backend in BACKENDS if backend != "pydensecrf"]
CRF = DenseCRF(w1=4, theta_alpha=20, theta_beta=10, w2=3, theta_gamma=3, iterations=5)


def scene(height=40, width=52, classes=7, noise=12.0, seed=0):
    """A shaded chessboard with noise (uint8), and smooth random probabilities as a network of stride 8 gives them."""
    generator = torch.manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    board = (rows // 11 + columns // 13) % 2 * 120
    clean = torch.stack([columns * 4, rows * 5, board]).float()
    image = (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    logits = 2 * torch.randn(1, classes, height // 8 + 1, width // 8 + 1, generator=generator)
    return image, F.interpolate(logits, (height, width), mode="bilinear").softmax(1)[0]


def photograph(size):
    """The photograph that matplotlib ships, (size, size, 3) uint8."""
    cbook = pytest.importorskip("matplotlib.cbook")
    with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size)))


def need_pydensecrf():
    pytest.importorskip(
        "pydensecrf.densecrf", reason="pydensecrf is not installed; `make crf` tries to build it"
    )


# -------------------------------------------------------------------------------------------------- the reference


def check_against_pydensecrf(crf, image, probabilities):
    need_pydensecrf()
    ours = replace(crf, backend="lattice").refine(image, probabilities)
    theirs = replace(crf, backend="pydensecrf").refine(image, probabilities)
    changed = (theirs.argmax(0) != probabilities.argmax(0)).float().mean()
    assert changed > 0.01, "nothing happened that could be compared"
    assert (ours.argmax(0) == theirs.argmax(0)).double().mean() >= 0.9999
    assert (ours - theirs).abs().sum(0).mean() / 2 <= 1e-5


@pytest.mark.required_in_ci
@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize("noise", [0.0, 12.0, 80.0])
@pytest.mark.parametrize("preset", [*PRESETS, "readme"])
def test_lattice_is_pydensecrf(normalization, noise, preset):
    crf = {**PRESETS, "readme": DenseCRF(10, 80, 13, 3, 3, iterations=5)}[preset]
    check_against_pydensecrf(replace(crf, normalization=normalization), *scene(100, 130, noise=noise))


@pytest.mark.required_in_ci
@pytest.mark.parametrize("weights", [(4, 0), (0, 3)])
def test_each_kernel_alone_is_pydensecrfs(weights):
    check_against_pydensecrf(replace(CRF, w1=weights[0], w2=weights[1]), *scene(90, 70))


@pytest.mark.required_in_ci
@pytest.mark.parametrize("preset", PRESETS)
def test_lattice_is_pydensecrf_on_a_photograph(preset):
    _, probabilities = scene(150, 150, classes=21)
    check_against_pydensecrf(PRESETS[preset], photograph(150), probabilities)


@pytest.mark.slow
@pytest.mark.required_in_ci
@pytest.mark.parametrize("size", [321, 513])
@pytest.mark.parametrize("preset", PRESETS)
def test_lattice_is_pydensecrf_at_full_size(preset, size):
    _, probabilities = scene(size, size, classes=21)
    check_against_pydensecrf(PRESETS[preset], photograph(size), probabilities)


@pytest.mark.required_in_ci
def test_normalisations_are_told_apart():
    """Taking one for the other would fail the comparisons above."""
    need_pydensecrf()
    image, probabilities = scene(100, 130)
    a, b = (
        replace(PRESETS["v1"], backend="pydensecrf", normalization=n).refine(image, probabilities)
        for n in ("after", "symmetric")
    )
    assert (a - b).abs().sum(0).mean() / 2 > 1e-3


def test_pydensecrf_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match="not installed: try `make crf`, or take backend 'lattice'"):
        replace(CRF, backend="pydensecrf").refine(*scene())


# ------------------------------------------------------------------------------------------------ K written out


def written_out(image, theta_alpha, theta_beta=None):
    """K in float64, pixel by pixel."""
    _, height, width = image.shape
    pixels = [(x, y, *image[:, y, x].tolist()) for y in range(height) for x in range(width)]
    widths = [theta_alpha] * 2 + ([theta_beta] * 3 if theta_beta else [])
    f = np.array([[value / width for value, width in zip(pixel, widths)] for pixel in pixels])
    return np.exp(-0.5 * ((f[:, None] - f[None]) ** 2).sum(-1))


def refined_by_hand(crf, image, probabilities):
    """The loop of the module's text with K written out, in numpy."""
    kernels = [(crf.w1, written_out(image, crf.theta_alpha, crf.theta_beta))]
    kernels += [(crf.w2, written_out(image, crf.theta_gamma))]
    p = probabilities.numpy().reshape(len(probabilities), -1)
    q = p
    for _ in range(crf.iterations):
        energy = -np.log(p)
        for weight, k in kernels:
            d = k.sum(1)
            k = k / d[:, None] if crf.normalization == "after" else k / np.sqrt(d[:, None] * d)
            energy = energy - weight * q @ k.T
        q = np.exp(-energy) / np.exp(-energy).sum(0)
    return torch.from_numpy(q).reshape(probabilities.shape)


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize("backend", ["exact", "attention"])
def test_exact_backends_are_the_formula(backend, normalization):
    image, probabilities = scene(12, 17, classes=4, noise=40)
    probabilities = probabilities.double().log().softmax(0)  # sums to one in float64, too
    crf = replace(CRF, backend=backend, normalization=normalization)
    expected = refined_by_hand(crf, image, probabilities)
    assert (expected.argmax(0) != probabilities.argmax(0)).any()
    assert torch.allclose(crf.refine(image, probabilities), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(crf.refine(image, probabilities.float()), expected.float(), atol=1e-4)


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
def test_exact_filters_agree_to_rounding(normalization, monkeypatch):
    monkeypatch.setattr("deeplab_edu.crf.TILE", 10_000)  # the last tile is shorter than the others
    image, _ = scene(40, 52)
    f = features(image, torch.float64, 20, 10)
    values = torch.rand(len(f), 5, dtype=torch.float64)
    tiled, attended = (normalized(f, normalization, backend)(values) for backend in ("exact", "attention"))
    assert values.std() > 0.1 and tiled.std() > 0.01
    assert torch.allclose(tiled, attended, rtol=1e-11, atol=1e-13)


def test_attention_is_a_weighted_mean():
    f = features(scene(9, 8)[0], torch.float64, 5, 20)
    ones, values = torch.ones(len(f), 1, dtype=torch.float64), torch.rand(len(f), 3, dtype=torch.float64)
    assert torch.allclose(attention(f)(ones), ones, atol=1e-14)
    assert torch.allclose(attention(f)(values), exact(f)(values) / exact(f)(ones), atol=1e-13)


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
def test_lattice_is_near_the_exact_result(normalization):
    """Not equal, since it blurs on a grid; but near, beside what the CRF changes."""
    _, probabilities = scene(72, 72, classes=4)
    crf = replace(PRESETS["v1"], normalization=normalization)
    near, true = (
        replace(crf, backend=b).refine(photograph(72), probabilities) for b in ("lattice", "attention")
    )
    changed, off = (true - probabilities).abs().mean(), (true - near).abs().mean()
    assert off < 0.1 * changed


# --------------------------------------------------------------------------------------------------- worked out by hand


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_three_by_three_by_hand(backend, normalization):
    """Left column black, the rest white; colours differ infinitely and places not at all: everybody in a region is
    told the region's mean. Black: (.9 + .6 + .3) / 3 = .6; white: (5 x .2 + .8) / 6 = .3. With w1 = 2, the difference
    between the two scores grows by 2 (2 x .6 - 1) = .4 on black, and by 2 (2 x .3 - 1) = -.8 on white.
    """
    if backend == "pydensecrf":
        need_pydensecrf()
    image = torch.full((3, 3, 3), 255, dtype=torch.uint8)
    image[:, :, 0] = 0
    first = torch.tensor([[0.9, 0.2, 0.2], [0.6, 0.2, 0.8], [0.3, 0.2, 0.2]])
    crf = DenseCRF(2, 1e4, 1, 0, 1, iterations=1, normalization=normalization, backend=backend)
    refined = crf.refine(image, torch.stack([first, 1 - first]))
    black, white = exp(0.4), exp(-0.8)
    expected = [
        [9 * black / (9 * black + 1), 0.25 * white / (0.25 * white + 1), 0.25 * white / (0.25 * white + 1)],
        [1.5 * black / (1.5 * black + 1), 0.25 * white / (0.25 * white + 1), 4 * white / (4 * white + 1)],
        [
            3 / 7 * black / (3 / 7 * black + 1),
            0.25 * white / (0.25 * white + 1),
            0.25 * white / (0.25 * white + 1),
        ],
    ]
    assert torch.allclose(refined[0], torch.tensor(expected), atol=2e-4)
    assert torch.allclose(refined.sum(0), torch.ones(3, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{"w1": 0, "w2": 0}, {"iterations": 0}])
def test_without_messages_nothing_changes(backend, options):
    if backend == "pydensecrf":
        need_pydensecrf()
    image, probabilities = scene()
    refined = replace(CRF, backend=backend, **options).refine(image, probabilities)
    assert torch.allclose(refined, probabilities, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1)])
def test_images_of_a_pixel_or_a_row(backend, size):
    """On a single pixel K' = 1, so it is told its own beliefs."""
    if backend == "pydensecrf":
        need_pydensecrf()
    image, probabilities = torch.zeros(3, *size, dtype=torch.uint8), torch.tensor([0.7, 0.2, 0.1])
    given_everywhere = probabilities[:, None, None].expand(3, *size)
    refined = replace(CRF, iterations=1, backend=backend, normalization="after").refine(
        image, given_everywhere
    )
    expected = (probabilities.log() + (CRF.w1 + CRF.w2) * probabilities).softmax(0)
    assert torch.allclose(refined, expected[:, None, None].expand(3, *size), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("backend", OURS)
def test_gradients(backend):
    image, probabilities = scene(5, 6, classes=3)
    crf = replace(CRF, iterations=2, backend=backend)
    given = probabilities.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: crf.refine(image, p), (given,))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 5),
    st.floats(0.3, 200),
    st.floats(1, 300),
    st.data(),
)
def test_lattice_shares_and_constants(height, width, classes, theta_alpha, theta_beta, data):
    """Shares of a point's vertices are a convex combination of them; averaging a constant gives that constant."""
    image, _ = scene(height, width, noise=60, seed=data.draw(st.integers(0, 99)))
    f = features(image, torch.float64, theta_alpha, theta_beta)
    lattice = Lattice(f)
    assert lattice.shares.min() > -1e-9
    assert torch.allclose(lattice.shares.sum(1), torch.ones(len(f), dtype=torch.float64))
    constant = torch.arange(1.0, classes + 1, dtype=torch.float64).expand(len(f), classes)
    assert torch.allclose(normalized(f, "after", "lattice")(constant), constant)


def test_elevation_keeps_distances_up_to_a_factor():
    f = torch.randn(20, 5, dtype=torch.float64)
    lifted = elevate(f)
    assert lifted.shape == (20, 6)
    assert torch.allclose(lifted.sum(1), torch.zeros(20, dtype=torch.float64), atol=1e-12)
    ratio = torch.pdist(lifted) / torch.pdist(f)
    assert torch.allclose(ratio, torch.full_like(ratio, 6 * (2 / 3) ** 0.5))


def test_labels_may_be_renumbered():
    image, probabilities = scene()
    order = torch.randperm(len(probabilities), generator=torch.manual_seed(1))
    assert torch.allclose(
        CRF.refine(image, probabilities[order]), CRF.refine(image, probabilities)[order], atol=1e-5
    )


def test_an_edge_in_the_image_attracts_one_in_the_labels():
    """A soft passage from one class to the other, too far left by 4 pixels, moves onto the edge between two colours."""
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    image[:, :, 24:] = 200
    left = torch.sigmoid((20 - torch.arange(48.0)) / 4).expand(32, 48)
    probabilities = torch.stack([left, 1 - left])
    assert (probabilities[0] > 0.5).sum(1).eq(20).all()
    assert (PRESETS["v1"].refine(image, probabilities)[0] > 0.5).sum(1).eq(24).all()


def test_certainty_can_be_overruled():
    """A single pixel with probability one for a class that nobody around it believes in."""
    image, probabilities = torch.zeros(3, 15, 15, dtype=torch.uint8), torch.zeros(2, 15, 15)
    probabilities[0], probabilities[:, 7, 7] = 1, torch.tensor([0.0, 1.0])
    refined = replace(CRF, w1=20).refine(image, probabilities)
    assert refined.isfinite().all() and refined[0].min() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_and_autocast(dtype):
    image, probabilities = scene()
    with torch.autocast("cpu", torch.bfloat16):
        refined = replace(CRF, backend="exact").refine(image, probabilities.to(dtype))
    assert refined.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    plain = replace(CRF, backend="exact").refine(image, probabilities.to(dtype).to(refined.dtype))
    assert torch.equal(refined, plain)


def test_kinds_of_image():
    image, probabilities = scene()
    array = image.movedim(0, -1).numpy()
    expected = CRF.refine(image, probabilities)
    for same in (array, Image.fromarray(array)):
        assert torch.equal(CRF.refine(same, probabilities), expected)


def test_presets_are_as_published():
    values = {
        k: (c.w1, c.theta_alpha, c.theta_beta, c.w2, c.theta_gamma, c.iterations) for k, c in PRESETS.items()
    }
    assert values == {"v1": (4, 49, 5, 3, 3, 10), "v1-121": (4, 121, 5, 3, 3, 10), "v2": (4, 67, 3, 3, 1, 10)}


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"w1": -1}, "w1 is a weight, zero or above, not -1"),
        ({"w2": float("nan")}, "w2 is a weight, zero or above, not nan"),
        ({"theta_alpha": 0}, "theta_alpha is a width above zero, not 0"),
        ({"theta_beta": float("inf")}, "theta_beta is a width above zero, not inf"),
        ({"theta_gamma": -3}, "theta_gamma is a width above zero, not -3"),
        ({"iterations": -1}, "iterations is a whole number from 0 up, not -1"),
        ({"iterations": 2.5}, "iterations is a whole number from 0 up, not 2.5"),
        ({"normalization": "before"}, "no normalization 'before'; choose from after, symmetric"),
        ({"backend": "cuda"}, "no backend 'cuda'; choose from lattice, exact, attention, pydensecrf"),
    ],
)
def test_settings_that_make_no_sense(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(CRF, **options)


IMAGE, P = scene(8, 10, classes=3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "probabilities", "error", "sentence"),
    [
        (IMAGE / 255, P, TypeError, "uint8 from 0 to 255, not as float32"),
        (IMAGE.numpy().astype("float64"), P, TypeError, "uint8 from 0 to 255, not as float64"),
        (IMAGE[None], P, ValueError, r"one image has shape \(3, H, W\)"),
        (IMAGE[:1], P, ValueError, r"one image has shape \(3, H, W\)"),
        (IMAGE, P.argmax(0), TypeError, r"float tensor \(C, H, W\), not torch.int64"),
        (IMAGE, P.numpy(), TypeError, r"float tensor \(C, H, W\), not ndarray"),
        (IMAGE, P[None], ValueError, r"have shape \(C, H, W\), not \(1, 3, 8, 10\)"),
        (IMAGE, P[:, ::2, ::2], ValueError, r"image has \(8, 10\) pixels, .* \(4, 5\): upsample the logits"),
        (IMAGE, P.mT, ValueError, r"image has \(8, 10\) pixels, the probabilities \(10, 8\)"),
        (IMAGE, 2 * P, ValueError, r"sum to one over classes: take logits.softmax\(0\)"),
        (IMAGE, P.log(), ValueError, "are at least zero"),
        (IMAGE, torch.stack([P[0] + 1, P[1] - 1, P[2]]), ValueError, "are at least zero"),
        (IMAGE, torch.where(P > 0.5, torch.nan, P), ValueError, "hold NaN or infinity"),
        (IMAGE, torch.where(P > 0.5, torch.inf, P), ValueError, "hold NaN or infinity"),
    ],
)
def test_input_that_cannot_be_refined(backend, image, probabilities, error, sentence):
    with pytest.raises(error, match=sentence):
        replace(CRF, backend=backend).refine(image, probabilities)


def test_too_fine_a_lattice():
    image, probabilities = scene(64, 64)
    with pytest.raises(ValueError, match="more vertices than can be numbered: enlarge it"):
        replace(CRF, theta_beta=0.001).refine(image, probabilities)
