"""Photographs with label maps: PASCAL VOC 2012, SBD, CamVid, Oxford-IIIT Pet, and a folder of your own.

What differs between them is only where the files lie and which id means void. Each opener below finds
the (image, mask) pairs of a split; `PhotoDataset` reads them, checks them and hands out tensors.
"""

import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from deeplab_edu.data import download as web
from deeplab_edu.data.labels import CAMVID, IGNORE_INDEX, PETS, VOC, LabelSet, voc_palette

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DATA_FOLDER = "DEEPLAB_EDU_DATA"
VOC_TRAIN = 1_464  # images with official masks in VOC 2012
TRAINAUG = 10_582  # these and those of SBD, without VOC's val: what the papers train on

Pair = tuple[Path, Path]


class PhotoDataset(Dataset):
    """Pairs of image and mask files: item i is (image uint8 (3, H, W), mask uint8 (H, W)), both tv_tensors.

    Mask ids are 0..K-1 and 255 for void, whatever the files use for void.

    Args:
        name, split: what it is called, for messages.
        pairs: the files; all are looked up now, and read when asked for.
        labels: the classes.
        void: the id that means void in the files (255 always does, too).
        renumber: file id -> id, for files that number classes in their own way; then no other id may occur.
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
        renumber: Mapping[int, int] | None = None,
        transforms: Callable | None = None,
    ) -> None:
        if not pairs:
            raise ValueError(f"Split {split!r} of {name} is empty: it names no image.")
        self.name, self.split, self.pairs = name, split, list(pairs)
        self.labels, self.void, self.renumber, self.transforms = labels, void, renumber, transforms
        self.names = [image.stem for image, _ in pairs]
        self._digest = _digest(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        mask = read_mask(mask_path, self.labels.num_classes, self.void, self.renumber)
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
    """PASCAL VOC 2012 segmentation: 20 classes and background; "train" (1,464), "val" (1,449) or "trainval".

    ``root`` may be VOC2012, VOCdevkit, or the folder above. Objects are framed by some 5 px of void. "10,582
    training images" in a paper means `sbd`, "trainaug".
    """
    folder = _voc_folder(root, download)
    lists = folder / "ImageSets/Segmentation"
    _check_split(
        "voc2012", split, [s for s in ("train", "val", "trainval") if (lists / f"{s}.txt").is_file()]
    )
    pairs = [_voc_pair(folder, stem) for stem in _names(lists / f"{split}.txt")]
    return PhotoDataset("voc2012", split, pairs, VOC, transforms=transforms)


def sbd(
    split: str, *, root: str | Path | None = None, transforms: Callable | None = None, download: bool = False
) -> PhotoDataset:
    """VOC 2012 with the masks of SBD (Hariharan et al. 2011) added: "trainaug", 10,582 images; "val" is VOC's own.

    Trainaug are all images with a mask in VOC's train or in SBD, without those of VOC's val, on which one reports.
    SBD's own "train" is another set, 8,498 images, and holds some of VOC's val. Official masks come first; those of
    SBD have no void border. They are read from VOC2012/SegmentationClassAug, where many people keep them, or from
    the folder that the download makes; VOC 2012 itself is needed, too.
    """
    _check_split("sbd", split, ("trainaug", "val"))
    voc = _voc_folder(root, download)
    if split == "val":
        pairs = [_voc_pair(voc, name) for name in _names(voc / "ImageSets/Segmentation/val.txt")]
        return PhotoDataset("sbd", split, pairs, VOC, transforms=transforms)
    masks = voc / "SegmentationClassAug"
    if not masks.is_dir():
        masks = _folder("sbd", root, ("sbd/benchmark", "benchmark"), "masks", download, _sbd_masks) / "masks"
    lists = voc / "ImageSets/Segmentation"
    official, val = set(_names(lists / "train.txt")), set(_names(lists / "val.txt"))
    listing = lists / "trainaug.txt"
    names = _names(listing) if listing.is_file() else sorted({*_images(masks), *official} - val)
    if len(official) == VOC_TRAIN and (len(names) != TRAINAUG or val & {*names}):
        raise ValueError(
            f"trainaug has {TRAINAUG:,} images, none of VOC's val; from {listing if listing.is_file() else masks} come "
            f"{len(names):,}, with {len(val & {*names}):,} of val: some are missing, or it is SBD's own train (8,498)."
        )
    pairs = [
        _voc_pair(voc, name) if name in official else (_voc_pair(voc, name)[0], masks / f"{name}.png")
        for name in names
    ]
    return PhotoDataset("sbd", split, pairs, VOC, transforms=transforms)


def pets(
    split: str, *, root: str | Path | None = None, transforms: Callable | None = None, download: bool = False
) -> PhotoDataset:
    """Oxford-IIIT Pet, cats and dogs: background and pet; "trainval" (3,680), "test" (3,669), "train" or "val".

    The official split is trainval and test. "val" is every fifth name of trainval, and "train" is the rest, so that
    nothing needs to be chosen on test. The trimaps' third value, a border some 10 px wide, is void.
    """
    _check_split("pets", split, ("train", "val", "trainval", "test"))
    base = _folder(
        "pets", root, ("", "oxford-iiit-pet", "pets/oxford-iiit-pet"), "annotations/trimaps", download
    )
    names = [
        line.split()[0]
        for line in _names(base / f"annotations/{'test' if split == 'test' else 'trainval'}.txt")
    ]
    if split in ("train", "val"):
        names = [name for number, name in enumerate(names) if (number % 5 == 4) == (split == "val")]
    pairs = [(base / f"images/{name}.jpg", base / f"annotations/trimaps/{name}.png") for name in names]
    ids = {1: 1, 2: 0, 3: IGNORE_INDEX}
    return PhotoDataset("pets", split, pairs, PETS, renumber=ids, transforms=transforms)


def camvid(
    split: str, *, root: str | Path | None = None, transforms: Callable | None = None, download: bool = False
) -> PhotoDataset:
    """CamVid street scenes in SegNet's version, 480 x 360 px, 11 classes; "train", "val" or "test".

    Folders train/ and trainannot/, ...; the lists train.txt, ... ("image mask" a line) may be absent.
    Report on "test", and do not choose by it; nor trust "val", one clip of 15 Hz from the middle of a training
    drive, every frame of which has near neighbours in "train": hold a drive of "train" out instead.
    """
    folder = _folder("camvid", root, ("", "camvid", "CamVid", "camvid/CamVid"), "trainannot", download)
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
    """Read a photograph as uint8 RGB (3, H, W), upright (EXIF orientation applied), whatever kind `to_rgb` takes.

    Raises:
        ValueError: no image, damaged, of too many pixels, or with 32 bits a channel.
        FileNotFoundError: there is no file.
    """
    return tv_tensors.Image(pil_to_tensor(to_rgb(_decode(path), str(path))))


def to_rgb(picture: Image.Image, name: str = "the picture") -> Image.Image:
    """Any kind of picture in 8-bit RGB: grey, palette, CMYK; of 16 bits the upper 8; alpha and later frames dropped.

    Raises ValueError, with the `name`, for 32 bits a channel, whose range nobody knows.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"{name} has 32 bits a channel (mode {picture.mode}), whose black and white are unknown: save it with 8."
        )
    return (picture.convert("RGBA") if "transparency" in picture.info else picture).convert("RGB")


def read_mask(
    path: Path, num_classes: int, void: int = IGNORE_INDEX, renumber: Mapping[int, int] | None = None
) -> tv_tensors.Mask:
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
    meaning = renumber or {
        **{i: i for i in range(num_classes)},
        IGNORE_INDEX: IGNORE_INDEX,
        void: IGNORE_INDEX,
    }
    table = np.full(256, -1, np.int16)
    table[[*meaning]] = [*meaning.values()]
    new = table[ids]
    if (new < 0).any():
        wrong = np.unique(ids[new < 0]).tolist()
        allowed = ", ".join(map(str, meaning)) if renumber else f"0..{num_classes - 1}"
        raise ValueError(
            f"{path} holds {', '.join(map(str, wrong[:5]))}{', ...' if len(wrong) > 5 else ''}, but class ids "
            f"are {allowed}: renumber them, or use {void} (void) for pixels of no class."
        )
    return tv_tensors.Mask(torch.from_numpy(new.astype(np.uint8)))


def _decode(path: Path) -> Image.Image:
    """The picture, upright, in its own mode; of several frames the first."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: its download or copying broke off; get it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(path)
        with file:
            return _upright(file)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is no image in a format that Pillow reads: save it as JPEG or PNG, or get it again."
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ValueError(
            f"{path} has more than {most:.0f} megapixels, as files made to fill the memory have: scale it down."
        ) from error
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what PIL's decoders raise
        raise ValueError(
            f"{path} is no complete image file: it is damaged, or its download or copying broke off; get it again."
        ) from error


def _upright(file: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; damaged EXIF data of a sound picture count as none."""
    file.load()
    try:
        return ImageOps.exif_transpose(file)
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError, struct.error):
        return file.copy()


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


def _folder(
    name: str,
    root: str | Path | None,
    places: Sequence[str],
    marker: str,
    download: bool,
    finish: Callable[[Path], object] | None = None,
) -> Path:
    """The first of the places in the data folders that holds the marker; downloaded there if it may be.

    An archive of the data set that lies in a data folder is unpacked without being asked for.
    """
    bases = _bases(root)
    looked = [base / place for base in bases for place in places]
    for _ in range(2):
        for place in looked:
            if (place / marker).is_dir():
                return place
        if not web.provide(name, bases, download=download, finish=finish):
            break
    raise FileNotFoundError(
        f"No {name} here: none of {', '.join(map(str, looked))} holds {marker}. Pass root=... or set {DATA_FOLDER} if "
        f"you have it. {web.how_to_get(name, bases[0])}"
    )


def _voc_folder(root: str | Path | None, download: bool) -> Path:
    devkit = "VOCdevkit/VOC2012"
    places = ("", "VOC2012", devkit, f"TrainVal/{devkit}", f"voc2012/{devkit}", f"voc_mini/{devkit}")
    return _folder("voc2012", root, places, "ImageSets/Segmentation", download)


def _voc_pair(folder: Path, stem: str) -> Pair:
    return folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png"


def _sbd_masks(folder: Path) -> None:
    """SBD's MATLAB files cls/x.mat become masks/x.png, with VOC's palette."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            "The masks of SBD are MATLAB files, which scipy reads: python -m pip install scipy, then try again."
        ) from error
    (folder / "masks").mkdir()
    for path in sorted((folder / "cls").glob("*.mat")):
        picture = Image.fromarray(loadmat(path)["GTcls"][0]["Segmentation"][0].astype(np.uint8))
        picture.putpalette([channel for color in VOC.colors for channel in color])
        picture.save(folder / "masks" / f"{path.stem}.png")
    shutil.rmtree(folder / "cls")


def _check_split(name: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise ValueError(f"Unknown split {split!r} of {name}; choose one of {', '.join(splits)}.")


def _names(path: Path) -> list[str]:
    return [line for _, line in _lines(path)]


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
            "What are the classes? Pass classes=[...], or --classes in a shell, in the order of their ids, or write "
            f"them, one a line, into {listing}."
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
