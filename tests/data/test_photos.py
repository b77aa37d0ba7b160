"""Photographs: built folders, VOC against torchvision, CamVid against known counts, every error sentence."""

import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors
from torchvision.datasets import VOCSegmentation

from deeplab_edu.data import open_dataset
from deeplab_edu.data.augment import eval_transforms
from deeplab_edu.data.download import how_to_get
from deeplab_edu.data.labels import CAMVID, IGNORE_INDEX, VOC
from deeplab_edu.data.photos import read_image, read_mask

REAL = Path(os.environ.get("DEEPLAB_EDU_DATA", "data")).resolve()  # tests/conftest.py looks for it


def real(name: str) -> Path:
    """A folder of real data; the test is skipped where it is absent."""
    if not (REAL / name).is_dir():
        pytest.skip(f"needs the data set {name}: set DEEPLAB_EDU_DATA to the folder that holds it")
    return REAL / name


def save(path: Path, pixels, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def photo(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ids(seed: int, classes: int, height: int = 6, width: int = 8) -> np.ndarray:
    """A label map that holds every class and void."""
    flat = np.arange(height * width) % (classes + 1)
    flat[flat == classes] = IGNORE_INDEX
    return np.random.default_rng(seed).permutation(flat).reshape(height, width).astype(np.uint8)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path) -> Path:
    """No data folder is set, and the working directory is an empty one."""
    monkeypatch.delenv("DEEPLAB_EDU_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(tmp_path) -> Path:
    """Three photographs in images/ and masks/, classes in classes.txt."""
    base = tmp_path / "own"
    for i, name in enumerate(("a", "b", "c.1")):
        save(base / "images" / f"{name}.png", photo(i))
        save(base / "masks" / f"{name}.png", ids(i, 3))
    (base / "classes.txt").write_text("ground\ncat\ndog\n")
    return base


@pytest.fixture
def voc(tmp_path) -> Path:
    """VOCdevkit/VOC2012 with one photograph in train and two in val, palette masks; its parent folder."""
    base = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    for i, stem in enumerate(("2007_000001", "2007_000002", "2007_000003")):
        save(base / "JPEGImages" / f"{stem}.jpg", photo(i))
        mask = Image.fromarray(ids(i, 21)).convert("P")
        mask.putdata(ids(i, 21).ravel().tolist())
        mask.putpalette([channel for color in VOC.colors for channel in color])
        (base / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(base / "SegmentationClass" / f"{stem}.png")
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_000001\n")
    (base / "ImageSets/Segmentation/val.txt").write_text("2007_000002\n2007_000003\n\n")
    return tmp_path / "voc"


def build_camvid(base: Path, ending: str = "png") -> Path:
    for split, names in (("train", ("x1", "x2")), ("test", ("y1",))):
        for i, name in enumerate(names):
            mask = ids(i, 11)
            save(base / split / f"{name}.{ending}", photo(i))
            save(base / f"{split}annot" / f"{name}.png", np.where(mask == IGNORE_INDEX, 11, mask))
    return base


# ---- a folder of one's own


def test_folder_gives_the_pixels_that_were_saved(own: Path) -> None:
    ds = open_dataset("folder", "all", root=own)
    assert len(ds) == 3 and ds.names == ["a", "b", "c.1"] and ds.labels.names == ("ground", "cat", "dog")
    for i in range(3):
        image, mask = ds[i]
        assert type(image) is tv_tensors.Image and image.dtype == torch.uint8
        assert type(mask) is tv_tensors.Mask and mask.dtype == torch.uint8
        assert np.array_equal(image.permute(1, 2, 0), photo(i)) and np.array_equal(mask, ids(i, 3))


def test_folder_split_by_list_and_by_folder(own: Path) -> None:
    (own / "val.txt").write_text("c.1\na\n")
    assert open_dataset("folder", "val", root=own).names == ["c.1", "a"]
    save(own / "test" / "images" / "t.JPG", photo(9), format="JPEG")
    save(own / "test" / "masks" / "t.png", ids(9, 3))
    assert open_dataset("folder", "test", root=str(own)).names == ["t"]


def test_folder_takes_class_names_from_the_call_first(own: Path) -> None:
    assert open_dataset("folder", "all", root=own, classes=["x", "y", "z"]).labels.names == ("x", "y", "z")


def test_folder_passes_over_what_is_no_image(own: Path) -> None:
    (own / "images" / "._a.png").write_bytes(b"left by macOS")
    (own / "images" / "notes.md").write_text("notes")
    assert open_dataset("folder", "all", root=own).names == ["a", "b", "c.1"]


def test_transforms_get_both(own: Path) -> None:
    ds = open_dataset("folder", "all", root=own, transforms=lambda image, mask: (image.shape, mask.shape))
    assert ds[0] == ((3, 6, 8), (6, 8))
    assert ds.transforms is not None


def test_dataset_can_be_pickled(own: Path) -> None:
    ds = open_dataset("folder", "all", root=own)
    again = pickle.loads(pickle.dumps(ds))
    assert repr(again) == repr(ds) and torch.equal(again[1][1], ds[1][1])


def test_repr_knows_the_state_of_the_data_but_not_the_machine(own: Path) -> None:
    before = repr(open_dataset("folder", "all", root=own))
    assert re.fullmatch(
        r"PhotoDataset\('folder', split='all', images=3, classes=3, digest=[0-9a-f]{8}, transforms=None\)",
        before,
    )
    moved = own.rename(own.with_name("moved"))
    assert repr(open_dataset("folder", "all", root=moved)) == before
    save(moved / "masks" / "a.png", np.zeros((6, 8)))
    assert repr(open_dataset("folder", "all", root=moved)) != before


def test_scenes_open_through_the_same_door_and_look_the_same(own: Path) -> None:
    resize = eval_transforms((20, 30))
    scenes = open_dataset("scenes", "val", transforms=resize, preset="thin", size=32, length=2)
    for ds in (scenes, open_dataset("folder", "all", own, resize)):
        image, mask = ds[0]
        assert (type(image), type(mask)) == (tv_tensors.Image, tv_tensors.Mask)
        assert (image.shape, mask.shape) == ((3, 20, 30), (20, 30))
        assert image.dtype == mask.dtype == torch.uint8
        assert ds.transforms is resize and ds.labels.num_classes > mask[mask != IGNORE_INDEX].max()
    assert len(scenes) == 2


# ---- what an image file may be


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "RGB"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "x.tif", photo(0), mode)
    with Image.open(path) as file:
        assert file.mode == mode
    expected = np.asarray(Image.fromarray(photo(0)).convert(mode).convert("RGB"))
    assert np.array_equal(read_image(path).permute(1, 2, 0), expected)


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    grey = np.arange(0, 65536, 1366, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as file:
        assert file.mode == "I;16"
    assert np.array_equal(read_image(tmp_path / "x.png"), np.stack([grey // 256] * 3))


def test_of_several_frames_the_first_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(i)) for i in range(3)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "x.png") as file:
        assert file.n_frames == 3
    assert np.array_equal(read_image(tmp_path / "x.png").permute(1, 2, 0), photo(0))


def test_damaged_exif_data_do_not_spoil_a_sound_picture(tmp_path: Path) -> None:
    """Bytes of a JPEG's EXIF block, overwritten at random: about one file in 200 makes Pillow's turning raise."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Maker", 72.0
    exif[0x8769] = {0x9000: b"0230", 0x829A: (1, 100)}
    whole = save(tmp_path / "x.jpg", photo(0), exif=exif).read_bytes()
    start = whole.index(b"Exif\0\0") + 6
    stop = start - 6 + int.from_bytes(whole[start - 8 : start - 6], "big") - 2
    rng, failed = np.random.default_rng(0), 0
    for _ in range(500):
        damaged = bytearray(whole)
        for place in rng.integers(start, stop, 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "x.jpg").write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert sorted(read_image(tmp_path / "x.jpg").shape) == [3, 6, 8]
            with Image.open(tmp_path / "x.jpg") as file:
                try:
                    ImageOps.exif_transpose(file)
                except Exception:
                    failed += 1
    assert failed > 0


def test_alpha_does_not_change_colours(tmp_path: Path) -> None:
    alpha = np.full((6, 8, 1), 40, np.uint8)
    path = save(tmp_path / "x.png", np.concatenate([photo(0), alpha], axis=2))
    assert np.array_equal(read_image(path).permute(1, 2, 0), photo(0))


def test_palette_image_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", photo(0)[:1, :2], "P", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (3, 1, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", photo(0), exif=exif)
    upright = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation](photo(0))
    assert np.array_equal(read_image(path).permute(1, 2, 0), upright)


def test_exif_rotated_photograph_fits_the_mask_drawn_on_it_upright(own: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(own / "images" / "a.png", photo(0, 8, 6), exif=exif)
    image, mask = open_dataset("folder", "all", root=own)[0]
    assert image.shape[1:] == mask.shape == (6, 8)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_mask_may_be_grey_or_have_a_palette(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (8, 6))
    picture.putdata(ids(0, 5).ravel().tolist())
    if mode == "P":
        picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", 5), ids(0, 5))


def test_one_bit_mask_holds_ids_zero_and_one(tmp_path: Path) -> None:
    black_white = 255 * (ids(0, 2) == 1)
    mask = read_mask(save(tmp_path / "m.png", black_white, "1"), 2)
    assert np.array_equal(mask, black_white // 255)


# ---- VOC


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_root_may_be_any_of_three_folders(voc: Path, below: str) -> None:
    assert open_dataset("voc2012", "val", root=voc / below).names == ["2007_000002", "2007_000003"]


@pytest.mark.parametrize("place", ["", "voc2012", "voc_mini", "TrainVal"])
def test_voc_is_found_in_the_data_folder(voc: Path, place: str, monkeypatch, nowhere) -> None:
    data = nowhere / "elsewhere"
    (data / place).parent.mkdir(parents=True, exist_ok=True)
    voc.rename(data / place)
    monkeypatch.setenv("DEEPLAB_EDU_DATA", str(data))
    assert len(open_dataset("voc2012", "train")) == 1


def test_voc_is_found_in_data_under_the_working_directory(voc: Path, monkeypatch) -> None:
    voc.rename("data")
    assert len(open_dataset("voc2012", "train")) == 1
    monkeypatch.setenv("DEEPLAB_EDU_DATA", "/nowhere/at/all")
    assert len(open_dataset("voc2012", "train")) == 1


def test_given_root_is_the_only_place_looked_at(voc: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DEEPLAB_EDU_DATA", str(voc))
    with pytest.raises(FileNotFoundError, match=r"^No voc2012 here"):
        open_dataset("voc2012", "train", root=tmp_path / "empty")


def test_voc_palette_masks_give_ids(voc: Path) -> None:
    ds = open_dataset("voc2012", "val", root=voc)
    assert ds.labels is VOC
    assert np.array_equal(ds[1][1], ids(2, 21))


@pytest.mark.parametrize(("split", "images"), [("train", 3), ("val", 19)])
def test_real_voc_equals_torchvision_pixel_by_pixel(split: str, images: int) -> None:
    root = real("voc_mini")
    ours, theirs = open_dataset("voc2012", split, root=root), VOCSegmentation(root, "2012", split)
    assert len(ours) == len(theirs) == images
    for i, (image, mask) in enumerate(theirs):
        assert np.array_equal(ours[i][0].permute(1, 2, 0), np.asarray(image))
        assert np.array_equal(ours[i][1], np.asarray(mask))
    assert {IGNORE_INDEX, 0} < set(np.unique(np.asarray(mask)))


def test_real_trainaug_masks_of_sbd_have_no_void() -> None:
    ds = open_dataset("sbd", "trainaug", root=real("voc_mini"))
    official = set(open_dataset("voc2012", "train", root=REAL / "voc_mini").names)
    assert len(ds) == 10 and official < set(ds.names)
    for name, (_, mask) in zip(ds.names, ds):
        assert mask.eq(IGNORE_INDEX).any() == (name in official)


# ---- CamVid


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("prefix", ["", "/SegNet/CamVid/", None], ids=["relative", "absolute", "no list"])
def test_camvid_lists(tmp_path: Path, prefix: str | None, ending: str) -> None:
    base = build_camvid(tmp_path / "camvid", ending)
    if prefix is not None:
        (base / "train.txt").write_text(
            "".join(f"{prefix}train/{x}.{ending} {prefix}trainannot/{x}.png\n" for x in ("x2", "x1"))
        )
    ds = open_dataset("camvid", "train", root=tmp_path)
    assert ds.names == (["x1", "x2"] if prefix is None else ["x2", "x1"])
    assert ds.labels is CAMVID
    assert np.array_equal(ds[ds.names.index("x2")][1], ids(1, 11))  # void 11 has become 255


def test_camvid_is_found_in_the_data_folder(tmp_path: Path, monkeypatch) -> None:
    build_camvid(tmp_path / "d" / "CamVid")
    monkeypatch.setenv("DEEPLAB_EDU_DATA", str(tmp_path / "d"))
    assert open_dataset("camvid", "test").names == ["y1"]


def test_real_camvid_tiny_opens() -> None:
    ds = open_dataset("camvid", "train", root=real("camvid_tiny"))
    assert (len(ds), len(open_dataset("camvid", "val", root=REAL / "camvid_tiny"))) == (8, 4)
    for image, mask in ds:
        assert image.shape == (3, 360, 480) and mask.shape == (360, 480)
        sky, road = (image[:, mask == CAMVID.names.index(name)].float().mean() for name in ("sky", "road"))
        assert sky > road + 30 and mask[-40:].eq(3).float().mean() > 0.3  # bright above, road below


SHARES = {  # % of all pixels, ids 0..10 and void; counted once, independently, from the label files
    "train": [16.845, 23.259, 0.983, 31.658, 4.486, 9.724, 1.173, 1.127, 5.866, 0.639, 0.292, 3.948],
    "val": [9.177, 25.962, 0.564, 28.953, 8.719, 16.336, 0.892, 3.078, 1.746, 0.651, 2.217, 1.703],
    "test": [17.066, 24.605, 1.177, 25.807, 9.269, 11.253, 1.010, 1.184, 3.972, 0.634, 0.189, 3.833],
}


@pytest.mark.parametrize(("split", "images"), [("train", 367), ("val", 101), ("test", 233)])
def test_real_camvid_class_shares(split: str, images: int) -> None:
    ds = open_dataset("camvid", split, root=real("camvid"))
    assert len(ds) == images
    counts = sum(
        np.bincount(read_mask(mask, 11, void=11).numpy().ravel(), minlength=256) for _, mask in ds.pairs
    )
    shares = 100 * counts[[*range(11), IGNORE_INDEX]] / counts.sum()
    assert shares == pytest.approx(SHARES[split], abs=6e-4)
    assert shares.sum() == pytest.approx(100)


# ---- sentences


def fails(error: type[Exception], sentence: str, *arguments, **options) -> None:
    """Opening and reading the data set fails with exactly this sentence."""
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        list(open_dataset(*arguments, **options))


def test_sentence_unknown_data_set() -> None:
    fails(
        ValueError,
        "Unknown data set 'voc'; choose one of scenes, voc2012, sbd, camvid, pets, folder.",
        *("voc", "train"),
    )


def test_sentence_missing_data_names_every_place(monkeypatch) -> None:
    monkeypatch.setenv("DEEPLAB_EDU_DATA", "/d")
    places = ["", "/camvid", "/CamVid", "/camvid/CamVid"]
    fails(
        FileNotFoundError,
        f"No camvid here: none of {', '.join(f'{base}{place}' for base in ('/d', 'data') for place in places)} "
        "holds trainannot. Pass root=... or set DEEPLAB_EDU_DATA if you have it. "
        + how_to_get("camvid", Path("/d")),
        *("camvid", "train"),
    )
    fails(
        FileNotFoundError,
        "No voc2012 here: none of x, x/VOC2012, x/VOCdevkit/VOC2012, x/TrainVal/VOCdevkit/VOC2012, "
        "x/voc2012/VOCdevkit/VOC2012, x/voc_mini/VOCdevkit/VOC2012 holds ImageSets/Segmentation. "
        "Pass root=... or set DEEPLAB_EDU_DATA if you have it. " + how_to_get("voc2012", Path("x")),
        *("voc2012", "train", "x"),
    )


def test_sentence_unknown_split(voc: Path, own: Path, tmp_path: Path) -> None:
    fails(ValueError, "Unknown split 'test' of voc2012; choose one of train, val.", "voc2012", "test", voc)
    build_camvid(tmp_path / "camvid")
    fails(ValueError, "Unknown split 'val' of camvid; choose one of train, test.", "camvid", "val", tmp_path)
    (own / "val.txt").write_text("a\n")
    for split in ("train", "classes"):
        fails(
            ValueError,
            f"Unknown split '{split}' of {own}; choose one of all, val, or write the names of its images, one a "
            f"line and without ending, into {own / split}.txt.",
            *("folder", split, own),
        )
    save(tmp_path / "b" / "train" / "images" / "t.png", photo(9))
    fails(
        ValueError,
        f"Unknown split 'val' of {tmp_path / 'b'}; choose one of train.",
        *("folder", "val", tmp_path / "b"),
        classes=["ground", "cat"],
    )


def test_sentence_empty_split(voc: Path, own: Path) -> None:
    (voc / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_text("\n")
    fails(ValueError, "Split 'train' of voc2012 is empty: it names no image.", "voc2012", "train", voc)
    (own / "train.txt").write_text("")
    fails(
        ValueError,
        f"Split 'train' of {own} is empty: {own / 'train.txt'} names no image.",
        *("folder", "train", own),
    )
    for path in (own / "images").iterdir():
        path.unlink()
    fails(ValueError, "Split 'all' of folder is empty: it names no image.", "folder", "all", own)


def test_sentence_missing_folder(tmp_path: Path, own: Path) -> None:
    fails(FileNotFoundError, f"There is no folder {tmp_path / 'no'}.", "folder", "all", tmp_path / "no")
    (tmp_path / "empty").mkdir()
    fails(
        FileNotFoundError,
        f"{tmp_path / 'empty'} holds neither images and masks nor train/images and train/masks.",
        *("folder", "train", tmp_path / "empty"),
        classes=["a", "b"],
    )
    fails(
        ValueError,
        "A folder of your own cannot be found or downloaded by its name: pass root=FOLDER.",
        *("folder", "all"),
    )
    build_camvid(tmp_path / "camvid")
    for path in sorted((tmp_path / "camvid" / "train").glob("*")):
        path.unlink()
    (tmp_path / "camvid" / "train").rmdir()
    fails(
        FileNotFoundError, f"There is no folder {tmp_path / 'camvid' / 'train'}.", "camvid", "train", tmp_path
    )


def test_sentence_missing_image(voc: Path, own: Path) -> None:
    image = voc / "VOCdevkit/VOC2012/JPEGImages/2007_000003.jpg"
    image.unlink()
    fails(
        FileNotFoundError,
        f"1 of 2 images are missing, the first is {image}: copy or unpack the data again.",
        *("voc2012", "val", voc),
    )
    (own / "train.txt").write_text("a\nz\n")
    fails(
        FileNotFoundError,
        f"{own / 'train.txt'} names 'z', but {own / 'images'} has no such image.",
        *("folder", "train", own),
    )


def test_sentence_image_without_mask(own: Path) -> None:
    (own / "masks" / "b.png").unlink()
    fails(
        FileNotFoundError,
        f"1 of 3 images have no mask, the first is {own / 'images' / 'b.png'}: there is no {own / 'masks' / 'b.png'}.",
        *("folder", "all", own),
    )


def test_sentence_two_images_of_one_name(own: Path) -> None:
    save(own / "images" / "a.jpg", photo(0))
    fails(
        ValueError,
        f"{own / 'images' / 'a.jpg'} and {own / 'images' / 'a.png'} would share one mask: rename one of them.",
        *("folder", "all", own),
    )


def test_sentence_size_mismatch(own: Path) -> None:
    save(own / "masks" / "a.png", ids(0, 3, 6, 7))
    fails(
        ValueError,
        f"{own / 'masks' / 'a.png'} is 7 x 6 px, but its image {own / 'images' / 'a.png'} is 8 x 6 px: "
        "save the mask in exactly the size of its image.",
        *("folder", "all", own),
    )


def test_sentence_mask_of_a_photograph_that_exif_turns(own: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(own / "images" / "a.png", photo(0), exif=exif)
    fails(
        ValueError,
        f"{own / 'masks' / 'a.png'} is 8 x 6 px, but its image {own / 'images' / 'a.png'} is 6 x 8 px once turned "
        "upright, as its EXIF data ask: turn the mask likewise.",
        *("folder", "all", own),
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_sentence_colour_mask(own: Path, mode: str) -> None:
    path = save(own / "masks" / "a.png", photo(0), mode)
    fails(
        ValueError,
        f"{path} is a colour picture (mode {mode}), but a mask holds one class id a pixel: replace each colour by "
        "its id and save with one channel.",
        *("folder", "all", own),
    )


def test_sentence_sixteen_bits(own: Path) -> None:
    path = own / "masks" / "a.png"
    Image.fromarray(ids(0, 3).astype(np.uint16)).save(path)
    fails(
        ValueError,
        f"{path} has more than 8 bits a pixel (mode I;16): save the class ids as an 8-bit PNG.",
        *("folder", "all", own),
    )
    (own / "images" / "a.png").unlink()
    for mode, kind in (("I", np.int32), ("F", np.float32)):
        path = own / "images" / "a.tif"
        Image.fromarray(ids(0, 3).astype(kind)).save(path)
        fails(
            ValueError,
            f"{path} has 32 bits a channel (mode {mode}), whose black and white are unknown: save it with 8.",
            *("folder", "all", own),
        )


def test_sentence_ids_out_of_range(own: Path, tmp_path: Path) -> None:
    path = save(own / "masks" / "a.png", np.arange(48).reshape(6, 8) % 5)
    fails(
        ValueError,
        f"{path} holds 3, 4, but class ids are 0..2: renumber them, or use 255 (void) for pixels of no class.",
        *("folder", "all", own),
    )
    save(path, np.arange(48).reshape(6, 8))
    fails(
        ValueError,
        f"{path} holds 3, 4, 5, 6, 7, ..., but class ids are 0..2: renumber them, or use 255 (void) for pixels "
        "of no class.",
        *("folder", "all", own),
    )
    path = save(build_camvid(tmp_path / "camvid") / "trainannot" / "x1.png", np.full((6, 8), 12))
    fails(
        ValueError,
        f"{path} holds 12, but class ids are 0..10: renumber them, or use 11 (void) for pixels of no class.",
        *("camvid", "train", tmp_path),
    )


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize("keep", [0, 5, 0.6], ids=["empty", "header", "most of it"])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_sentence_truncated_file(own: Path, part: str, keep: float, ending: str) -> None:
    (own / "images" / "a.png").unlink()
    save(own / "images" / f"a.{ending}", photo(0, 60, 80))
    save(own / "masks" / "a.png", ids(0, 3, 60, 80))
    path = own / part / (f"a.{ending}" if part == "images" else "a.png")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    sentence = {
        0: "is empty: its download or copying broke off; get it again.",
        5: "is no image in a format that Pillow reads: save it as JPEG or PNG, or get it again.",
        0.6: "is no complete image file: it is damaged, or its download or copying broke off; get it again.",
    }[keep]
    fails(ValueError, f"{path} {sentence}", *("folder", "all", own))


def test_sentence_more_pixels_than_memory(own: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    path = own / "images" / "a.png"
    for side in (1100, 1500):  # Pillow warns above the limit and raises above twice the limit
        Image.new("1", (side, side)).save(path)
        fails(
            ValueError,
            f"{path} has more than 1 megapixels, as files made to fill the memory have: scale it down.",
            *("folder", "all", own),
        )


def test_sentence_black_and_white_mask_of_two_classes(own: Path) -> None:
    for name in ("a", "b", "c.1"):
        save(own / "masks" / f"{name}.png", 255 * (ids(0, 2) == 1))
    fails(
        ValueError,
        f"The masks in {own / 'masks'} hold only 0 and 255, and 255 means void, which is never counted: save class "
        "1, 'cat', as 1.",
        *("folder", "all", own),
        classes=["ground", "cat"],
    )


def test_two_classes_with_void_in_some_masks_are_fine(own: Path) -> None:
    save(own / "masks" / "a.png", 255 * (ids(0, 2) == 1))
    for name in ("b", "c.1"):
        save(own / "masks" / f"{name}.png", ids(0, 2))
    assert len(open_dataset("folder", "all", own, classes=["ground", "cat"])) == 3


def test_sentence_classes(own: Path) -> None:
    (own / "classes.txt").unlink()
    fails(
        ValueError,
        "What are the classes? Pass classes=[...], or --classes in a shell, in the order of their ids, or write "
        f"them, one a line, into {own / 'classes.txt'}.",
        *("folder", "all", own),
    )
    fails(
        TypeError,
        "classes is a list of names in the order of their ids, got the text 'cat'.",
        *("folder", "all", own),
        classes="cat",
    )
    fails(ValueError, "A data set has 1 to 255 classes, got 0.", "folder", "all", own, classes=[])


def test_sentence_camvid_list(tmp_path: Path) -> None:
    base = build_camvid(tmp_path / "camvid")
    (base / "train.txt").write_text("train/x1.png trainannot/x1.png\n\ntrain/x2.png\n")
    fails(
        ValueError,
        f"{base / 'train.txt'}, line 3: expected \"image mask\", got 'train/x2.png'.",
        *("camvid", "train", tmp_path),
    )
