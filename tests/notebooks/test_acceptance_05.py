"""What notebook 05 asserts fails when the CRF does nothing, and when it looks at another picture."""

import pytest
import torch
from torch.nn import functional as F

from deeplab_edu.crf import DenseCRF
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.metrics import ConfusionMatrix, trimap
from deeplab_edu.profiles import PROFILES

ACCEPTED = PROFILES["ci"].accept["05_trimap1_gain"]
CRF = DenseCRF(4, 16, 15, 3, 3)


def blurred(target):
    """What a network of stride 8 without a fault would say: true labels (H, W) averaged, (12, H, W)."""
    votes = F.one_hot(target.long(), 12).movedim(-1, 0).float()[None]
    coarse = F.avg_pool2d(votes, 9, 8, 4, count_include_pad=False)
    votes = 0.9 * F.interpolate(coarse, target.shape, mode="bilinear") + 0.1 / 12
    return (votes / votes.sum(1, keepdim=True))[0]


@pytest.fixture(scope="module")
def scenes():
    data = SceneDataset("shapes", "test", size=128, length=8)
    return [(image, mask.as_subclass(torch.Tensor)) for image, mask in data]


def gain(scenes, crf, shift=0):
    """Points of mIoU within 1 px of a border that the CRF adds; it sees the picture `shift` scenes further on."""
    before, after = ConfusionMatrix(12), ConfusionMatrix(12)
    for i, (_, target) in enumerate(scenes):
        image, given, band = scenes[(i + shift) % len(scenes)][0], blurred(target), trimap(target, 1)
        before.update(given.argmax(0), target, where=band)
        after.update(crf.refine(image, given).argmax(0), target, where=band)
    return after.miou - before.miou


def test_with_the_right_picture_borders_gain(scenes):
    assert gain(scenes, CRF) >= ACCEPTED


def test_with_another_picture_they_do_not(scenes):
    assert gain(scenes, CRF, shift=3) < ACCEPTED


@pytest.mark.parametrize(
    "crf", [DenseCRF(0, 16, 15, 0, 3), DenseCRF(0, 16, 15, 3, 3)], ids=["no kernel", "no colour"]
)
def test_without_the_kernel_of_colour_they_do_not(scenes, crf):
    assert gain(scenes, crf) < ACCEPTED
