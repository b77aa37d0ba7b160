"""Metrics: by hand, against torchmetrics, scikit-learn and scipy, by invariants, and every error sentence."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision import tv_tensors

from deeplab_edu.metrics import ConfusionMatrix, size_binned_iou, trimap, trimap_iou

C, VOID = 5, 255

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@st.composite
def maps(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a target (N, H, W) with void; often with classes missing from one or both."""
    shape = draw(shapes)
    classes = st.sampled_from(sorted(draw(st.sets(st.integers(0, C - 1), min_size=1))))
    pred = draw(hnp.arrays(np.uint8, shape, elements=classes))
    target = draw(
        hnp.arrays(np.uint8, shape, elements=st.one_of(classes, st.just(VOID), st.integers(0, C - 1)))
    )
    assume((target != VOID).any())
    return torch.from_numpy(pred), torch.from_numpy(target)


# A 4 x 4 case by hand. Void: the last pixel. Class 3 occurs nowhere.
#
#   target        prediction     hits of 0: 4 (top left; 0 is predicted 5 times, true 5 times)
#   0 0 1 1       0 0 1 1        M = [[4, 1, 0, 0],     IoU(0) = 4 / (5 + 5 - 4) = 2/3
#   0 0 1 1       0 0 0 1             [1, 3, 0, 0],     IoU(1) = 3 / (4 + 5 - 3) = 1/2
#   0 2 2 2       1 2 2 2             [0, 1, 5, 0],     IoU(2) = 5 / (6 + 5 - 5) = 5/6
#   2 2 2 .       2 2 1 3             [0, 0, 0, 0]]     mIoU = (4/6 + 3/6 + 5/6) / 3 = 2/3,  accuracy 12/15
HAND_TARGET = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 2, VOID]])
HAND_PRED = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [1, 2, 2, 2], [2, 2, 1, 3]])


def test_four_by_four_by_hand() -> None:
    counts = ConfusionMatrix(4).update(HAND_PRED, HAND_TARGET)
    assert counts.matrix.tolist() == [[4, 1, 0, 0], [1, 3, 0, 0], [0, 1, 5, 0], [0, 0, 0, 0]]
    assert counts.iou_per_class[:3].tolist() == pytest.approx([2 / 3, 1 / 2, 5 / 6])
    assert math.isnan(counts.iou_per_class[3])
    assert counts.miou == pytest.approx(2 / 3)
    assert counts.pixel_accuracy == pytest.approx(12 / 15)
    assert counts.mean_iou_of((1, 2)) == pytest.approx(2 / 3)
    assert counts.mean_iou_of((1, 3)) == pytest.approx(1 / 2)  # 3 is absent, so it has no IoU to average
    assert math.isnan(counts.mean_iou_of([3]))


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    counts = ConfusionMatrix(4).update(torch.tensor([0, 0, 3]), torch.tensor([0, 0, 0]))
    assert counts.iou_per_class[3] == 0
    assert counts.miou == pytest.approx((2 / 3 + 0) / 2)


@settings(deadline=None)
@given(maps())
def test_matrix_equals_scikit_learn(both) -> None:
    pred, target = both
    known = target != VOID
    truth, called = target[known].numpy(), pred[known].numpy()
    counts = ConfusionMatrix(C).update(pred, target)
    assert np.array_equal(counts.matrix, confusion_matrix(truth, called, labels=range(C)))
    present = np.union1d(truth, called)
    expected = jaccard_score(truth, called, labels=present, average=None)
    assert counts.iou_per_class[present.tolist()].numpy() == pytest.approx(expected)
    assert counts.miou == pytest.approx(expected.mean())
    assert torch.isnan(counts.iou_per_class).sum() == C - len(present)


@settings(deadline=None)
@given(st.lists(maps(), min_size=1, max_size=3))
def test_miou_over_batches_equals_torchmetrics(batches) -> None:
    reference = MulticlassJaccardIndex(num_classes=C, ignore_index=VOID)
    counts = ConfusionMatrix(C)
    for pred, target in batches:
        reference.update(pred.long(), target.long())
        counts.update(pred, target)
    assert counts.miou == pytest.approx(reference.compute().item(), abs=1e-6)


@settings(deadline=None)
@given(maps(), st.randoms(use_true_random=False))
def test_splitting_into_batches_changes_nothing(both, random) -> None:
    pred, target = both
    whole = ConfusionMatrix(C).update(pred, target)
    order = random.sample(range(len(pred)), len(pred))
    parts = [ConfusionMatrix(C).update(pred[i], target[i]) for i in order]
    assert torch.equal(sum(parts, start=ConfusionMatrix(C)).matrix, whole.matrix)


@settings(deadline=None)
@given(maps(), st.permutations(range(C)))
def test_renaming_the_classes_permutes_their_ious(both, order) -> None:
    pred, target = both
    new_id = torch.arange(256)
    new_id[:C] = torch.tensor(order)
    before = ConfusionMatrix(C).update(pred, target)
    after = ConfusionMatrix(C).update(new_id[pred.long()], new_id[target.long()])
    torch.testing.assert_close(after.iou_per_class[order], before.iou_per_class, equal_nan=True)
    assert after.miou == pytest.approx(before.miou)


@settings(deadline=None)
@given(maps())
def test_perfect_prediction_scores_one(both) -> None:
    target = both[1]
    counts = ConfusionMatrix(C).update(target, target)  # what is predicted on void is never looked at
    assert counts.miou == counts.pixel_accuracy == 1


@settings(deadline=None)
@given(maps(), st.integers(0, C - 1))
def test_what_is_predicted_on_void_does_not_matter(both, other: int) -> None:
    pred, target = both
    changed = torch.where(target == VOID, other, pred)
    assert torch.equal(
        ConfusionMatrix(C).update(changed, target).matrix, ConfusionMatrix(C).update(pred, target).matrix
    )


@settings(deadline=None)
@given(maps(), st.integers(0, 2**31))
def test_where_counts_exactly_its_pixels(both, seed: int) -> None:
    pred, target = both
    where = torch.rand(pred.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    counted = ConfusionMatrix(C).update(pred, target, where=where)
    assert torch.equal(counted.matrix, ConfusionMatrix(C).update(pred[where], target[where]).matrix)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_counts_the_same(dtype: torch.dtype) -> None:
    counts = ConfusionMatrix(4).update(HAND_PRED.to(dtype), HAND_TARGET.short())
    assert counts.matrix.sum() == 15 and counts.miou == pytest.approx(2 / 3)


def test_numpy_masks_and_binary_predictions_are_welcome() -> None:
    assert ConfusionMatrix(4).update(HAND_PRED.numpy(), tv_tensors.Mask(HAND_TARGET)).miou == pytest.approx(
        2 / 3
    )
    assert ConfusionMatrix(2).update(np.array([True, False]), np.array([1, 1])).matrix.tolist() == [
        [0, 0],
        [1, 1],
    ]


def test_more_classes_than_a_byte_can_count() -> None:
    target = torch.arange(300)
    assert ConfusionMatrix(300, ignore_index=-1).update(target, target).miou == 1


def test_a_mean_over_images_would_be_another_number() -> None:
    """Why there is one matrix for the data set: image 1 is all right, image 2 is half wrong."""
    target = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])
    pred = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0]])
    per_image = [ConfusionMatrix(2).update(p, t).miou for p, t in zip(pred, target)]
    assert sum(per_image) / 2 == pytest.approx((1 + (1 / 2 + 0) / 2) / 2)
    assert ConfusionMatrix(2).update(pred, target).miou == pytest.approx((6 / 8 + 0) / 2)


def test_addition_leaves_its_terms_alone_and_merge_does_not() -> None:
    a, b = (ConfusionMatrix(4).update(HAND_PRED, HAND_TARGET) for _ in range(2))
    kept = copy.deepcopy(a)
    assert (a + b).matrix.sum() == 30 and torch.equal(a.matrix, kept.matrix)
    assert a.merge(b) is a and a.matrix.sum() == 30


def test_matrices_can_be_pickled_and_printed() -> None:
    counts = pickle.loads(pickle.dumps(ConfusionMatrix(4).update(HAND_PRED, HAND_TARGET)))
    assert repr(counts) == "ConfusionMatrix(num_classes=4, pixels=15, miou=0.6667, pixel_accuracy=0.8000)"
    assert repr(ConfusionMatrix(4)) == "ConfusionMatrix(num_classes=4, pixels=0)"


# ---- trimap


def distance_to_other_label(target: np.ndarray) -> np.ndarray:
    """Chessboard distance from each pixel to the nearest one of another label; void is no label."""
    distance = np.full(target.shape, np.inf)
    for label in np.unique(target[target != VOID]):
        others = (target != label) & (target != VOID)
        if others.any():
            away = ndimage.distance_transform_cdt(~others, metric="chessboard")
            distance = np.where(target == label, away, distance)
    return distance


@settings(deadline=None)
@given(maps(), st.integers(1, 6))
def test_trimap_equals_scipy_distances(both, width: int) -> None:
    target = both[1]
    expected = np.stack([distance_to_other_label(t) <= width for t in target.numpy()])
    assert np.array_equal(trimap(target, width), expected)


@settings(deadline=None)
@given(maps(), st.integers(1, 6))
def test_trimap_around_void_equals_scipy_dilation(both, width: int) -> None:
    target = both[1].numpy()
    square = np.ones((2 * width + 1, 2 * width + 1), bool)
    expected = [ndimage.binary_dilation(t == VOID, square) & (t != VOID) for t in target]
    assert np.array_equal(trimap(target, width, around="void"), np.stack(expected))


def test_trimap_by_hand() -> None:
    target = np.array([[0, 0, 0, 1, 1, 1, VOID, VOID, 1, 0]])
    assert trimap(target, 1).int().tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 1, 1]]
    assert trimap(target, 2).int().tolist() == [[0, 1, 1, 1, 1, 0, 0, 0, 1, 1]]
    assert trimap(target, 4).int().tolist() == [
        [1, 1, 1, 1, 1, 1, 0, 0, 1, 1]
    ]  # 1 and 0 meet across the void
    assert trimap(target, 1, around="void").int().tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 1, 0]]


def test_trimap_of_one_label_is_empty_and_does_not_see_the_picture_edge() -> None:
    target = torch.zeros(2, 6, 6, dtype=torch.uint8)
    target[:, :2] = VOID
    assert not trimap(target, 3).any()


def test_trimap_iou_is_the_miou_inside_the_band() -> None:
    # columns:     0  1  2  3 | 4  5  6  7         band of width 2: columns 2 to 5
    target = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]).repeat(3, 1)
    pred = torch.tensor([[1, 0, 0, 1, 1, 1, 1, 0]]).repeat(3, 1)
    # inside: 0 has 1 hit of 2 (union 2), 1 has 2 hits, predicted 3 times (union 3)
    assert trimap_iou(pred, target, 2, 2) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert trimap_iou(pred, target, 8, 2) == pytest.approx(ConfusionMatrix(2).update(pred, target).miou)


def test_trimap_iou_around_void_takes_the_pixels_beside_the_void_band() -> None:
    target = torch.tensor([[0, 0, VOID, 1, 1, 1]])
    pred = torch.tensor([[1, 0, 0, 1, 0, 1]])
    assert trimap_iou(pred, target, 1, 2, around="void") == 1
    assert trimap_iou(pred, target, 2, 2, around="void") == pytest.approx((1 / 3 + 1 / 3) / 2)


# ---- size bins


def test_size_binned_iou_by_hand() -> None:
    # bin 1: a small object of class 1, two of three pixels found; bin 2: a big one of class 2, all found
    sizes = torch.tensor([[0, 1, 1, 1, 0, 2, 2, 2, 2]])
    target = torch.tensor([[0, 1, 1, 1, 0, 2, 2, 2, 2]])
    pred = torch.tensor([[1, 1, 1, 0, 0, 2, 2, 2, 2]])  # the false alarm in the first pixel has no size
    assert size_binned_iou(pred, target, sizes, 3) == {1: pytest.approx(2 / 3), 2: 1.0}
    scores = size_binned_iou(pred, target, sizes, 3, classes=[2])
    assert math.isnan(scores[1]) and scores[2] == 1
    assert size_binned_iou(pred, target, torch.zeros_like(sizes), 3) == {}


@settings(deadline=None)
@given(maps(), st.integers(0, 2**31))
def test_size_bins_equal_scikit_learn_on_their_pixels(both, seed: int) -> None:
    pred, target = both
    sizes = torch.randint(0, 4, pred.shape, generator=torch.Generator().manual_seed(seed))
    scores = size_binned_iou(pred, target, sizes, C, classes=range(C))
    assert list(scores) == sorted(set(sizes.unique().tolist()) - {0})
    for size, score in scores.items():
        inside = (sizes == size) & (target != VOID)
        if inside.any():
            expected = jaccard_score(target[inside], pred[inside], average="macro")
            assert score == pytest.approx(expected)
        else:
            assert math.isnan(score)


# ---- sentences

ZEROS = torch.zeros(2, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: ConfusionMatrix(0),
            ValueError,
            "A confusion matrix needs at least one class, got num_classes=0.",
        ),
        (
            lambda: ConfusionMatrix(3).update(ZEROS[:1], ZEROS),
            ValueError,
            "`pred` has shape (1, 2) but `target` (2, 2).",
        ),
        (
            lambda: ConfusionMatrix(3).update(torch.zeros(1, 3, 2, 2), ZEROS[None]),
            TypeError,
            "`pred` holds torch.float32, not integers: pass logits.argmax(1).",
        ),
        (
            lambda: ConfusionMatrix(3).update(ZEROS, ZEROS.float()),
            TypeError,
            "`target` holds torch.float32, not integers.",
        ),
        (
            lambda: ConfusionMatrix(3).update(ZEROS, torch.tensor([[0, 3], [-1, VOID]])),
            ValueError,
            "`target` holds -1, 3; class ids are 0..2, or 255 for void.",
        ),
        (
            lambda: ConfusionMatrix(3).update(torch.arange(9), torch.zeros(9, dtype=torch.long)),
            ValueError,
            "`pred` holds 3, 4, 5, 6, 7, ...; class ids are 0..2.",
        ),
        (
            lambda: ConfusionMatrix(3).update(ZEROS, ZEROS, where=ZEROS),
            TypeError,
            "`where` says which pixels count, as a bool map; got torch.int64.",
        ),
        (
            lambda: ConfusionMatrix(3).update(ZEROS, ZEROS, where=ZEROS[0] == 0),
            ValueError,
            "`pred` has shape (2, 2) but `where` (2,).",
        ),
        (
            lambda: ConfusionMatrix(3).update(ZEROS, ZEROS + VOID).miou,
            ValueError,
            "No pixel has been counted: update() needs at least one that is not void.",
        ),
        (
            lambda: ConfusionMatrix(3).pixel_accuracy,
            ValueError,
            "No pixel has been counted: update() needs at least one that is not void.",
        ),
        (
            lambda: ConfusionMatrix(3).mean_iou_of([2, 3]),
            ValueError,
            "`classes` holds 3; class ids are 0..2.",
        ),
        (
            lambda: ConfusionMatrix(3) + ConfusionMatrix(4),
            ValueError,
            "Only matrices of the same classes can be added: 3 here, 4 there.",
        ),
        (
            lambda: trimap(ZEROS, 0),
            ValueError,
            "The width of a trimap is a whole number of pixels, 1 or more; got 0.",
        ),
        (
            lambda: trimap(ZEROS[0], 1),
            ValueError,
            "A label map has shape (..., H, W), got (2,).",
        ),
        (
            lambda: trimap(ZEROS, 1, around="edges"),
            ValueError,
            '`around` is "labels" or "void", got \'edges\'.',
        ),
        (
            lambda: trimap_iou(ZEROS, ZEROS, 3, 2),
            ValueError,
            "No pixel lies within 3 px of a boundary: there is no trimap to score.",
        ),
        (
            lambda: size_binned_iou(ZEROS, ZEROS, ZEROS[0] + 1, 2),
            ValueError,
            "`pred` has shape (2, 2) but `sizes` (2,).",
        ),
        (
            lambda: size_binned_iou(ZEROS, ZEROS, torch.ones(2, 2), 2),
            TypeError,
            "`sizes` holds torch.float32, not integers.",
        ),
    ],
)
def test_sentences(call, error, sentence) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()


def test_a_failed_update_counts_nothing() -> None:
    counts = ConfusionMatrix(3).update(ZEROS, ZEROS)
    with pytest.raises(ValueError, match="`pred` holds 7"):
        counts.update(ZEROS + 7, ZEROS)
    assert counts.matrix.sum() == 4
