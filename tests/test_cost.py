"""Costs: a convolution by hand, real tensors against meta ones, a law of output strides, error sentences."""

import pytest
import torch
from torch import nn

from deeplab_edu.cost import cost
from deeplab_edu.models import build_model


def test_of_a_convolution_by_hand():
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    found = cost(nn.Sequential(layer, nn.ReLU()), (10, 12))
    assert found.flops == 2 * 10 * 12 * 8 * 3 * 9
    assert found.kept_bytes == 4 * 10 * 12 * 8  # ReLU keeps what it returns; the image is no activation


def test_a_map_that_two_layers_need_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            x = self.first(x)
            return self.left(x) + self.right(x)

    assert cost(Twice(), (5, 5)).kept_bytes == 4 * 3 * 25


@pytest.mark.parametrize("name", ["fcn8s", "deeplab_v1"])
def test_bytes_are_those_of_real_tensors(name):
    model, size = build_model(name, 4, backbone="tiny", width=4).train(), (40, 56)
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = torch.zeros(2, 3, *size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    for tensor in [*model.parameters(), *model.buffers(), images]:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    real = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    assert cost(model, size).kept_bytes == real // 2


def test_the_model_is_left_as_it_was():
    model = build_model("fcn32s", 4, backbone="tiny", width=4).eval()
    before = [p.clone() for p in model.parameters()]
    cost(model, (32, 32))
    assert not model.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_twice_the_side_is_four_times_the_work():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    small, large = cost(model, (32, 32)), cost(model, (64, 64))
    assert large == tuple(4 * n for n in small)


def test_bad_input():
    with pytest.raises(ValueError, match=r"input_size is \(rows, columns\) of the image, two whole numbers"):
        cost(nn.Conv2d(3, 3, 3), 32)
    with pytest.raises(ValueError, match=r"takes no images of 2 x 2 with 3 channels: .*Kernel size"):
        cost(nn.Conv2d(3, 3, 3), (2, 2))
