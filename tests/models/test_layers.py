"""Layers: the bilinear kernel by hand and against F.interpolate, and what `check_images` says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deeplab_edu.models.layers import (
    BilinearUpsampling,
    bilinear_kernel,
    check_images,
    conv_bn_relu,
    init_he,
    zero_conv,
)


def test_bilinear_kernels_by_hand():
    def outer(tent):
        return torch.outer(torch.tensor(tent), torch.tensor(tent))

    assert torch.equal(bilinear_kernel(1), outer([1.0]))
    assert torch.equal(bilinear_kernel(3), outer([0.5, 1.0, 0.5]))
    assert torch.equal(bilinear_kernel(4), outer([0.25, 0.75, 0.75, 0.25]))
    assert torch.allclose(bilinear_kernel(5), outer([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]))


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
@pytest.mark.parametrize("dense", [True, False])
def test_a_constant_stays_constant_inside(factor, dense):
    layer = BilinearUpsampling(3, factor, dense=dense)
    constant = torch.tensor([1.0, -2.0, 5.0])[:, None, None]
    up = layer(constant.expand(1, 3, 4, 5))
    assert up.shape == (1, 3, factor * 5, factor * 6)
    inside = up[0, :, factor:-factor, factor:-factor]
    assert torch.allclose(inside, constant.expand_as(inside), atol=1e-5)
    assert up[0, 0, 0, 0] < 0.1  # at the border neighbours are missing


@settings(max_examples=25, deadline=None)
@given(
    factor=st.sampled_from([2, 4, 8, 16, 32]),
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    dense=st.booleans(),
    seed=st.integers(0, 99),
)
def test_inside_it_is_bilinear_interpolation(factor, height, width, dense, seed):
    scores = torch.randn(2, 3, height, width, generator=torch.manual_seed(seed))
    up = BilinearUpsampling(3, factor, padding=factor // 2, dense=dense)(scores)
    expected = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    assert up.shape == expected.shape
    edge = factor // 2
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    assert torch.allclose(up[inside], expected[inside], atol=1e-5)


def test_upsampling_is_frozen_unless_it_is_to_be_learned():
    assert [p.requires_grad for p in BilinearUpsampling(2, 4).parameters()] == [False]
    assert [p.requires_grad for p in BilinearUpsampling(2, 4, learn=True).parameters()] == [True]
    assert (
        BilinearUpsampling(21, 32).conv.weight.numel() == 1_806_336
    )  # the released, dense 21 x 21 x 64 x 64
    assert BilinearUpsampling(21, 32, dense=False).conv.weight.numel() == 21 * 64 * 64


@pytest.mark.parametrize("classes", [12, 21])
@pytest.mark.parametrize("factor", [2, 8, 16])
def test_gradient_under_autocast_is_that_of_float32(classes, factor):
    """oneDNN's own bfloat16 gradient is wrong here on processors with AMX: 12 classes, kernels 16 and 32."""
    layer = BilinearUpsampling(classes, factor, factor // 2)
    scores = torch.randn(2, classes, 4, 4, generator=torch.manual_seed(0))
    target = torch.randn(2, classes, 4 * factor, 4 * factor, generator=torch.manual_seed(1))
    gradients = []
    for enabled in (False, True):
        leaf = scores.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (layer(leaf) * target).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, rtol=0.05, atol=0.05 * gradients[0].abs().max())


def test_conv_bn_relu_by_hand():
    unit = conv_bn_relu(1, 1, kernel_size=3, stride=2).eval()
    nn.init.ones_(unit[0].weight)
    unit[1].running_mean.fill_(4.0)
    unit[1].running_var.fill_(4.0)
    # sums of the 3x3 neighbourhoods of 5x5 ones at every other pixel: 4 in corners, 6 on edges, 9 in the middle
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.5, 1.0], [0.0, 1.0, 0.0]])
    assert torch.allclose(unit(torch.ones(1, 1, 5, 5))[0, 0], expected, atol=1e-4)
    assert unit(-torch.ones(1, 1, 5, 5)).max() == 0


def test_he_initialisation_keeps_the_size_of_activations():
    torch.manual_seed(0)
    deep = nn.Sequential(*[m for _ in range(10) for m in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())])
    init_he(deep)
    images = torch.randn(1, 64, 32, 32)
    assert all(layer.bias.eq(0).all() for layer in deep[::2])
    with torch.no_grad():
        ratio = deep(images).pow(2).mean() / images.pow(2).mean()
    assert 0.1 < ratio < 2  # torch's own default leaves 1e-7


def test_zero_conv_gives_zero_scores_and_yet_learns():
    layer = zero_conv(4, 3)
    scores = layer(torch.ones(1, 4, 2, 2))
    assert scores.shape == (1, 3, 2, 2) and scores.eq(0).all()
    F.cross_entropy(scores, torch.zeros(1, 2, 2, dtype=torch.long)).backward()
    assert layer.weight.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, r"not torch\.uint8; call .*normalize"),
        ([[0.0]], TypeError, "normalised float images, not list"),
        (torch.zeros(3, 4, 4), ValueError, r"\(N, 3, H, W\).*not \(3, 4, 4\); .*images\[None\]"),
        (torch.zeros(1, 4, 4, 4), ValueError, r"\(N, 3, H, W\).*not \(1, 4, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), ValueError, r"none of it zero, not \(1, 3, 0, 4\)"),
    ],
)
def test_images_a_model_does_not_take(images, error, sentence):
    with pytest.raises(error, match=sentence):
        check_images(images)
