"""Data sets: procedural scenes, VOC 2012, SBD, CamVid, Oxford-IIIT Pet and a folder of your own, behind one function.

Whatever the data set: ``len(ds)``; ``ds[i]`` is (image uint8 (3, H, W), mask uint8 (H, W)), both
tv_tensors, with ids 0..K-1 and 255 for void; ``ds.labels`` names the classes; ``ds.transforms`` is
applied to both at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from deeplab_edu.data import photos
from deeplab_edu.data.labels import IGNORE_INDEX, LabelSet

__all__ = ["DATASETS", "IGNORE_INDEX", "LabelSet", "open_dataset"]


def _scenes(split: str, *, root: Any, transforms: Callable | None, download: bool, **options: Any) -> Dataset:
    """Scenes are made, not found: ``root`` and ``download`` mean nothing to them."""
    from deeplab_edu.data.scenes import SceneDataset

    return SceneDataset(**{"preset": "full", **options}, split=split, transforms=transforms)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "scenes": _scenes,
    "voc2012": photos.voc2012,
    "sbd": photos.sbd,
    "camvid": photos.camvid,
    "pets": photos.pets,
    "folder": photos.folder,
}


def open_dataset(
    name: str,
    split: str,
    root: str | Path | None = None,
    transforms: Callable | None = None,
    download: bool = False,
    **options: Any,
) -> Dataset:
    """Open one split of a data set.

    Args:
        name: a key of `DATASETS`.
        split: "train", "val", ...; an unknown one is an error that lists the choices.
        root: where the files lie. Without it: the folder named by the environment variable
            DEEPLAB_EDU_DATA, then ./data.
        transforms: joint transforms of image and mask, e.g. `deeplab_edu.data.augment.train_transforms`.
        download: fetch the data if they are not there, into a folder of their name in the first of these folders
            (`deeplab_edu.data.download`, also for their licences). Archives put there by hand are unpacked unasked.
        options: what only this data set has: ``preset``, ``size``, ``length``, ``seed`` of scenes,
            ``classes`` of a folder.

    Raises:
        ValueError: an unknown data set or split, or an empty split.
        FileNotFoundError: the data are not there; the message names every place looked at and how to get them.
        ConnectionError, OSError: they could not be downloaded, or there is no room for them.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    return DATASETS[name](split, root=root, transforms=transforms, download=download, **options)
