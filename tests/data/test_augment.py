"""Joint transforms: image and mask stay on top of each other, masks never hold an invented id."""

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import models, tv_tensors

from deeplab_edu.data import augment
from deeplab_edu.data.augment import denormalize, eval_transforms, normalize, train_transforms
from deeplab_edu.data.labels import IGNORE_INDEX

COLORS = 255 * torch.eye(3, dtype=torch.uint8)  # label 0 is pure red, 1 green, 2 blue

blocky_pictures = st.tuples(
    st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(3, 14), st.integers(3, 14)
)


def picture(labels: list[int], rows: int, cols: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """3 x 4 blocks of rows x cols px; the colour of a pixel tells its label."""
    mask = torch.tensor(labels, dtype=torch.uint8).view(3, 4)
    mask = mask.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return tv_tensors.Image(COLORS[mask.long()].permute(2, 0, 1)), tv_tensors.Mask(mask)


def decoded(image: torch.Tensor) -> torch.Tensor:
    """The label a pure colour stands for; -1 for blends of several, IGNORE_INDEX for the padding colour."""
    label = torch.where((image == 255).any(0) & ((image == 0).sum(0) == 2), image.int().argmax(0), -1)
    padding = (image == image.new_tensor(augment.MEAN_COLOR).view(3, 1, 1)).all(0)
    return torch.where(padding, IGNORE_INDEX, label)


@settings(max_examples=60, deadline=None)
@given(blocky_pictures, st.integers(5, 70), st.integers(5, 70), st.integers(0, 2**31))
def test_training_mask_stays_on_its_image(blocks, height: int, width: int, seed: int) -> None:
    image, mask = picture(*blocks)
    torch.manual_seed(seed)
    new_image, new_mask = train_transforms((height, width))(image, mask)
    assert isinstance(new_image, tv_tensors.Image) and isinstance(new_mask, tv_tensors.Mask)
    assert new_image.shape == (3, height, width) and new_mask.shape == (height, width)
    assert new_image.dtype == new_mask.dtype == torch.uint8
    assert set(new_mask.unique().tolist()) <= {*mask.unique().tolist(), IGNORE_INDEX}
    pure = decoded(new_image)
    assert torch.equal(new_mask[pure >= 0].int(), pure[pure >= 0].int())
    assert ((new_mask == IGNORE_INDEX) == (pure == IGNORE_INDEX)).all()


@settings(max_examples=40, deadline=None)
@given(blocky_pictures, st.one_of(st.integers(4, 60), st.tuples(st.integers(4, 60), st.integers(4, 60))))
def test_evaluation_mask_stays_on_its_image(blocks, size) -> None:
    image, mask = picture(*blocks)
    new_image, new_mask = eval_transforms(size)(image, mask)
    assert new_image.shape[1:] == new_mask.shape
    assert tuple(new_mask.shape) == size if isinstance(size, tuple) else min(new_mask.shape) == size
    assert set(new_mask.unique().tolist()) <= set(mask.unique().tolist())
    pure = decoded(new_image)
    assert torch.equal(new_mask[pure >= 0].int(), pure[pure >= 0].int())


@pytest.mark.parametrize("size", [23, 37, 61, 97])
def test_resized_masks_are_not_shifted(size: int) -> None:
    """Over all places of an edge, mask and image agree where it lies after a resize."""
    shift = []
    for edge in range(10, 41):
        inside = torch.arange(50).expand(50, 50) < edge
        image = tv_tensors.Image((255 * inside).to(torch.uint8).expand(3, 50, 50))
        new_image, new_mask = eval_transforms((size, size))(image, tv_tensors.Mask(inside.to(torch.uint8)))
        shift.append((new_mask[0].sum() - new_image[0, 0].sum() / 255).item())
    assert abs(np.mean(shift)) < 0.1
    assert max(np.abs(shift)) <= 0.51


def test_training_without_scale_crop_or_flip_is_the_identity() -> None:
    image, mask = picture([0, 1, 2] * 4, 5, 7)
    new_image, new_mask = train_transforms((15, 28), scale=(1, 1), flip=False)(image, mask)
    assert torch.equal(new_image, image) and torch.equal(new_mask, mask)


def test_evaluation_without_a_size_is_the_identity() -> None:
    image, mask = picture([0, 1, 2] * 4, 5, 7)
    new_image, new_mask = eval_transforms()(image, mask)
    assert torch.equal(new_image, image) and torch.equal(new_mask, mask)


def test_scale_is_relative_to_the_image_and_covers_its_range() -> None:
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.zeros(3, 100, 60, dtype=torch.uint8))
    sizes = np.array([augment.RandomScale((0.5, 2.0))(image).shape[1:] for _ in range(200)])
    assert (sizes >= [50, 30]).all() and (sizes <= [200, 120]).all()
    assert sizes[:, 0].min() < 55 and sizes[:, 0].max() > 190
    assert np.abs(sizes[:, 1] - 0.6 * sizes[:, 0]).max() < 1  # the shape is kept


def test_flip_mirrors_about_every_other_image() -> None:
    image, mask = picture([0, 1, 2, 0] * 3, 4, 4)
    torch.manual_seed(0)
    flipped = [
        torch.equal(train_transforms((12, 16), scale=(1, 1))(image, mask)[1], mask.flip(1)) for _ in range(60)
    ]
    assert 20 <= sum(flipped) <= 40


def test_same_seed_same_crops() -> None:
    image, mask = picture([0, 1, 2] * 4, 9, 9)
    crops = []
    for _ in range(2):
        torch.manual_seed(7)
        crops.append(torch.stack([train_transforms(20)(image, mask)[1] for _ in range(5)]))
    assert torch.equal(*crops)


def test_normalize_is_what_torchvision_weights_expect() -> None:
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    expected = models.VGG16_Weights.IMAGENET1K_V1.transforms(resize_size=224)(image)
    torch.testing.assert_close(normalize(image), expected)


def test_normalize_leaves_its_input_alone_and_returns_a_plain_tensor() -> None:
    images = tv_tensors.Image(torch.full((2, 3, 4, 5), 200, dtype=torch.uint8))
    assert type(normalize(images)) is torch.Tensor
    assert (images == 200).all()


def test_denormalize_undoes_normalize() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(denormalize(normalize(images)), images)
    assert denormalize(torch.full((3, 1, 1), 9.0)).unique().item() == 255


def test_padding_is_about_zero_for_the_network() -> None:
    padding = torch.tensor(augment.MEAN_COLOR, dtype=torch.uint8).view(3, 1, 1)
    assert normalize(padding).abs().max() < 0.01


def test_transforms_can_be_pickled_and_say_what_they_do() -> None:
    transforms = pickle.loads(pickle.dumps(train_transforms((20, 30), scale=(0.7, 1.3))))
    assert "scale=(0.7, 1.3)" in repr(transforms) and "size=(20, 30)" in repr(transforms)
    assert "Flip" in repr(transforms) and "Flip" not in repr(train_transforms(20, flip=False))
    assert "size=[18]" in repr(eval_transforms(18))


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (
            lambda: normalize(torch.zeros(3, 2, 2)),
            TypeError,
            "normalize() takes uint8 images (0..255), got torch.float32: is it normalised already?",
        ),
        (
            lambda: normalize(torch.zeros(1, 2, 2, dtype=torch.uint8)),
            ValueError,
            "normalize() takes RGB images (..., 3, H, W), got (1, 2, 2).",
        ),
        (
            lambda: train_transforms(0),
            ValueError,
            "crop_size is a side or (height, width) of at least 1 px, got 0.",
        ),
        (
            lambda: train_transforms(64, scale=(2.0, 0.5)),
            ValueError,
            "scale is (smallest, largest) with 0 < smallest <= largest, got (2.0, 0.5).",
        ),
        (
            lambda: eval_transforms((64, 0)),
            ValueError,
            "size is a side or (height, width) of at least 1 px, got (64, 0).",
        ),
    ],
)
def test_sentences(build, error, sentence) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        build()
