"""Scores of a segmentation: one confusion matrix over the whole data set, and where its pixels lie.

    IoU(c) = M[c, c] / (sum_j M[c, j] + sum_i M[i, c] - M[c, c])        mIoU = mean of IoU(c) over c

M[i, j] counts the pixels of class i that were called j. The sums run over all pixels of all images
(PASCAL VOC; FCN §5): a mean of the IoUs of single images or batches is another, usually higher or
lower, number. Void pixels are not counted at all, wherever they lie.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from deeplab_edu.data.labels import IGNORE_INDEX

__all__ = ["ConfusionMatrix", "size_binned_iou", "trimap", "trimap_iou"]


class ConfusionMatrix:
    """Counts of (true class, predicted class) over as many images as are added with `update`.

    Args:
        num_classes: C; ids are 0..C-1.
        ignore_index: the id in the target that means void.

    ``matrix`` is int64 (C, C), rows are the true classes; it lies on the CPU.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        if num_classes < 1:
            raise ValueError(f"A confusion matrix needs at least one class, got num_classes={num_classes}.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(
        self,
        pred: Tensor | ArrayLike,
        target: Tensor | ArrayLike,
        where: Tensor | ArrayLike | None = None,
    ) -> "ConfusionMatrix":
        """Add the pixels of a label map, or of a batch of them. Returns self.

        Args:
            pred, target: integer maps of one shape, e.g. (N, H, W); counted on the device of ``pred``.
            where: bool map of that shape; only its pixels are counted.

        Raises:
            TypeError: scores instead of ids, or ``where`` is not bool.
            ValueError: the shapes differ, or a counted pixel holds an id that does not exist.
        """
        pred = _ids(pred, "pred")
        target = _ids(target, "target").to(pred.device)
        _check_shape(target, "target", pred)
        skipped = target == self.ignore_index
        if where is not None:
            where = torch.as_tensor(where, device=pred.device)
            _check_shape(where, "where", pred)
            if where.dtype != torch.bool:
                raise TypeError(f"`where` says which pixels count, as a bool map; got {where.dtype}.")
            skipped = skipped | ~where
        # Skipped pixels go into one more bin, C*C; taking them out by index would cost several times as much.
        pred, target = pred.masked_fill(skipped, 0), target.masked_fill(skipped, 0)
        _check_range(pred, "pred", self.num_classes, "")
        _check_range(target, "target", self.num_classes, f", or {self.ignore_index} for void")
        pairs = (target.long() * self.num_classes + pred).masked_fill_(skipped, self.num_classes**2)
        counts = torch.bincount(pairs.flatten(), minlength=self.num_classes**2 + 1)
        self.matrix += counts[:-1].view_as(self.matrix).cpu()
        return self

    @property
    def iou_per_class(self) -> Tensor:
        """Float64 (C,): intersection over union; NaN for a class in neither target nor prediction."""
        hits = self.matrix.diagonal().double()
        return hits / (self.matrix.sum(0) + self.matrix.sum(1) - hits)

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that occur in the target or in the prediction.

        Raises:
            ValueError: no pixel has been counted.
        """
        self._check_counted()
        return self.mean_iou_of(range(self.num_classes))

    def mean_iou_of(self, classes: Iterable[int]) -> float:
        """Mean IoU of those of ``classes`` that occur in the target or in the prediction; NaN if none does.

        Raises:
            ValueError: a class that does not exist.
        """
        chosen = torch.tensor([*classes], dtype=torch.int64)
        _check_range(chosen, "classes", self.num_classes, "")
        return self.iou_per_class[chosen].nanmean().item()

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right; flattering where one class covers most of them.

        Raises:
            ValueError: no pixel has been counted.
        """
        self._check_counted()
        return (self.matrix.diagonal().sum() / self.matrix.sum()).item()

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add the counts of another matrix, e.g. of another process. Returns self.

        Raises:
            ValueError: the other one has another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"Only matrices of the same classes can be added: {self.num_classes} here, "
                f"{other.num_classes} there."
            )
        self.matrix += other.matrix
        return self

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.num_classes, self.ignore_index).merge(self).merge(other)

    def __repr__(self) -> str:
        pixels = int(self.matrix.sum())
        score = f", miou={self.miou:.4f}, pixel_accuracy={self.pixel_accuracy:.4f}" if pixels else ""
        return f"ConfusionMatrix(num_classes={self.num_classes}, pixels={pixels}{score})"

    def _check_counted(self) -> None:
        if not self.matrix.any():
            raise ValueError("No pixel has been counted: update() needs at least one that is not void.")


def trimap(
    target: Tensor | ArrayLike,
    width: int,
    ignore_index: int = IGNORE_INDEX,
    around: Literal["labels", "void"] = "labels",
) -> Tensor:
    """The band along the boundaries in which a segmentation is hardest: bool, shape of ``target``.

    A pixel belongs to it if another label lies at most ``width`` px away, counted like a king's moves
    on a chessboard (Chebyshev distance: the papers dilate the boundary, here by a square). Width 1 is
    the pixels on both sides of the edge. Void is no label: a border to void is no boundary, but two
    labels may meet across a thin strip of void.

    In PASCAL VOC every object is fenced off by such a strip, and the papers (Krähenbühl and Koltun
    2011; DeepLab v1 §5, v2, v3+) take the pixels at most ``width`` px away from *void*:
    ``around="void"``. Void itself is never part of the band.

    Args:
        target: integer label maps (..., H, W), on any device.
        width: px, 1 or more.

    Raises:
        TypeError: no integers.
        ValueError: the width is below 1, the map has fewer than two axes, or ``around`` is neither word.
    """
    target = _ids(target, "target")
    if width < 1 or width != int(width):
        raise ValueError(f"The width of a trimap is a whole number of pixels, 1 or more; got {width}.")
    if target.ndim < 2:
        raise ValueError(f"A label map has shape (..., H, W), got {tuple(target.shape)}.")
    if around not in ("labels", "void"):
        raise ValueError(f'`around` is "labels" or "void", got {around!r}.')
    void = target == ignore_index
    if around == "void":
        return (_window_max(void.float(), int(width)) > 0) & ~void
    # Of all labels in the window the largest and the smallest are equal only if there is but one.
    # Void is -inf in both searches, so it never wins.
    labels = target.float()
    largest = _window_max(labels.masked_fill(void, -torch.inf), int(width))
    smallest = -_window_max((-labels).masked_fill(void, -torch.inf), int(width))
    return (largest != smallest) & ~void


def trimap_iou(
    pred: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    width: int,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
    around: Literal["labels", "void"] = "labels",
) -> float:
    """Mean IoU of the pixels in the `trimap` of the given width, for one batch of maps (..., H, W).

    Over several batches keep one `ConfusionMatrix` and update it with ``where=trimap(target, width)``.

    Raises:
        ValueError: the maps have no boundary; and as in `ConfusionMatrix.update` and `trimap`.
    """
    band = trimap(target, width, ignore_index, around)
    if not band.any():
        raise ValueError(f"No pixel lies within {width} px of a boundary: there is no trimap to score.")
    return ConfusionMatrix(num_classes, ignore_index).update(pred, target, where=band).miou


def size_binned_iou(
    pred: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    sizes: Tensor | ArrayLike,
    num_classes: int,
    classes: Iterable[int] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> dict[int, float]:
    """Mean IoU on the pixels of small, middle, big ... objects.

    Only the pixels of the objects themselves are counted: what is wrongly called an object elsewhere
    belongs to no size.

    Args:
        pred, target: integer maps of one shape.
        sizes: integer map of that shape: the size bin of the object a pixel belongs to, 0 for none.
        classes: whose IoUs are averaged; by default the classes that the objects of the bin have.

    Returns:
        Size bin -> mean IoU, for the bins that occur, in ascending order. NaN where none of ``classes`` does.

    Raises:
        ValueError: the shapes differ; and as in `ConfusionMatrix.update`.
    """
    pred, sizes = _ids(pred, "pred"), _ids(sizes, "sizes")
    _check_shape(sizes, "sizes", pred)
    chosen = None if classes is None else [*classes]
    scores = {}
    for size in sizes[sizes > 0].unique().tolist():
        counts = ConfusionMatrix(num_classes, ignore_index).update(pred, target, where=sizes == size)
        present = counts.matrix.sum(1).nonzero().flatten().tolist()
        scores[size] = counts.mean_iou_of(present if chosen is None else chosen)
    return scores


def _window_max(maps: Tensor, radius: int) -> Tensor:
    """Largest value in the square window of (2 radius + 1)^2 px around each pixel; rows, then columns."""
    flat = maps.reshape(-1, *maps.shape[-2:])
    flat = F.max_pool2d(flat, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    flat = F.max_pool2d(flat, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    return flat.reshape(maps.shape)


def _ids(values: Tensor | ArrayLike, name: str) -> Tensor:
    values = torch.as_tensor(values).as_subclass(Tensor)  # a tv_tensors.Mask would slow every operation down
    if values.is_floating_point() or values.is_complex():
        advice = ": pass logits.argmax(1)" if name == "pred" else ""
        raise TypeError(f"`{name}` holds {values.dtype}, not integers{advice}.")
    return values.byte() if values.dtype == torch.bool else values


def _check_shape(values: Tensor, name: str, pred: Tensor) -> None:
    if values.shape != pred.shape:
        raise ValueError(f"`pred` has shape {tuple(pred.shape)} but `{name}` {tuple(values.shape)}.")


def _check_range(ids: Tensor, name: str, num_classes: int, also: str) -> None:
    if ids.numel() and (ids.min() < 0 or ids.max() >= num_classes):
        wrong = ids[(ids < 0) | (ids >= num_classes)].unique().tolist()
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(f"`{name}` holds {shown}; class ids are 0..{num_classes - 1}{also}.")
