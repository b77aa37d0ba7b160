"""Scores of a model on a whole data set: one confusion matrix a region, whatever the batches and processes."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deeplab_edu.data.augment import normalize
from deeplab_edu.inference import segment
from deeplab_edu.metrics import ConfusionMatrix, trimap
from deeplab_edu.processes import Processes, processes
from deeplab_edu.profiles import bf16_is_fast

LARGE = 1024  # px; a longer picture is cut into tiles, so that memory stays bounded


def stack(data: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Items of a data set as one batch: images (N, 3, H, W) uint8, masks (N, H, W) int64."""
    return _batch(_fetch(data, indices))


def _fetch(data: Dataset, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    fetch = getattr(data, "__getitems__", None)
    return fetch(list(indices)) if fetch else [data[i] for i in indices]


def _batch(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, masks = zip(*items, strict=True)
    try:
        return torch.stack([i.as_subclass(Tensor) for i in images]), torch.stack(
            [m.as_subclass(Tensor) for m in masks]
        ).long()
    except RuntimeError as error:
        sizes = sorted({tuple(m.shape) for m in masks})
        raise ValueError(
            f"Pictures of one batch differ in size {sizes}; crop them with train_transforms(size)."
        ) from error


def autocast_dtype(precision: str, device: str) -> torch.dtype:
    """What "float32", "bfloat16" or "auto" means on a device."""
    fast = device == "cuda" or bf16_is_fast()
    wanted = precision == "bfloat16" or (precision == "auto" and fast)
    return torch.bfloat16 if wanted else torch.float32


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Dataset,
    *,
    batch_size: int = 16,
    detailed: bool = False,
    per_class: bool = False,
    precision: str = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> dict[str, float]:
    """Score a model on a whole data set with one confusion matrix (never a mean over batches).

    Pictures are scored as they are, in batches of one size. With several `scales`, or `flip`, or where one is larger
    than 1024 px, `inference.segment` answers, in float32. Several processes (`processes`) score a share each, and all
    of them must ask; the counts are summed.

    Returns:
        `miou` and `pixel_accuracy`; if `detailed` also `trimap1`, `trimap3` (mIoU within 1 and 3 px of a label
        boundary, over the classes that occur there), `inner` (the same more than 5 px from one), the mean IoU of
        each class group of `data.labels` (`thin`, ...), and that of the shapes of each size bin (`small`, `mid`,
        `big`: counted on the pixels of these shapes only); if `per_class` also `iou of NAME`. What does not occur in
        the data is left out.
    """
    labels, device, was_training = data.labels, next(model.parameters()).device, model.training  # type: ignore[attr-defined]
    dtype, team = autocast_dtype(precision, device.type), processes()
    matrices = _Matrices(labels.num_classes, detailed)
    size_map = getattr(data, "size_map", None) if detailed else None
    simple = tuple(scales) == (1.0,) and not flip
    model.eval()
    try:
        for indices, images, masks in _batches(data, batch_size, team):
            if simple and max(images.shape[-2:]) <= LARGE:
                inputs = normalize(images.to(device)).contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                    predictions = model(inputs).float().argmax(1)
            else:
                predictions = torch.stack([segment(model, i, scales, flip).argmax(0) for i in images])
            sizes = torch.stack([size_map(i) for i in indices]) if size_map else None
            matrices.update(predictions, masks.to(predictions.device), sizes)
    finally:
        model.train(was_training)
    matrices.sum_over(team)
    scores = matrices.scores(labels.groups)
    if per_class:
        ious = matrices.of["all"].iou_per_class.tolist()
        scores |= {f"iou of {n}": v for n, v in zip(labels.names, ious, strict=True) if not math.isnan(v)}
    return scores


def _batches(data: Any, batch_size: int, team: Processes) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """This process's share of a data set, each picture once, in batches of at most `batch_size` of one size."""
    mine = range(len(data))[team.index :: team.count]
    for begin in range(0, len(mine), batch_size):
        indices = mine[begin : begin + batch_size]
        numbered = zip(indices, _fetch(data, indices), strict=True)
        for _, group in groupby(numbered, key=lambda pair: pair[1][1].shape):
            numbers, items = zip(*group, strict=True)
            yield list(numbers), *_batch(items)


class _Matrices:
    """One confusion matrix for each region of the picture that is reported on."""

    def __init__(self, num_classes: int, detailed: bool):
        regions = ["all", "trimap1", "trimap3", "inner", "small", "mid", "big"] if detailed else ["all"]
        self.of = {region: ConfusionMatrix(num_classes) for region in regions}

    def update(self, predictions: Tensor, masks: Tensor, sizes: Tensor | None) -> None:
        self.of["all"].update(predictions, masks)
        if "inner" not in self.of:
            return
        where = {f"trimap{k}": trimap(masks, k) for k in (1, 3)} | {"inner": ~trimap(masks, 5)}
        if sizes is not None:
            where |= {name: sizes == number for number, name in enumerate(("small", "mid", "big"), 1)}
        for region, pixels in where.items():
            self.of[region].update(predictions, masks, where=pixels)

    def sum_over(self, team: Processes) -> None:
        for matrix in self.of.values():
            matrix.matrix = team.sum(matrix.matrix)

    def scores(self, groups) -> dict[str, float]:
        everything = self.of["all"]
        scores = {"miou": everything.miou, "pixel_accuracy": everything.pixel_accuracy}
        counted = {region for region, matrix in self.of.items() if matrix.matrix.sum() > 0}
        for region in ("trimap1", "trimap3", "inner"):
            if region in counted:  # a class that only occurs outside the region would count as a zero
                inside = self.of[region].matrix.sum(1).nonzero().flatten().tolist()
                scores[region] = self.of[region].mean_iou_of(inside)
        if "inner" in self.of:
            scores |= {group: everything.mean_iou_of(classes) for group, classes in groups.items()}
        scores |= {
            s: self.of[s].mean_iou_of(groups["shapes"]) for s in ("small", "mid", "big") if s in counted
        }
        return {name: float(value) for name, value in scores.items() if not math.isnan(value)}
