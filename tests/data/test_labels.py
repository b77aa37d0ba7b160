"""Class names and colours: against VOC's own palette PNGs, and every error sentence."""

import pickle
import re

import numpy as np
import pytest
import torch

from deeplab_edu.data.labels import CAMVID, IGNORE_COLOR, IGNORE_INDEX, SCENES, VOC, LabelSet, voc_palette

SETS = {"voc": VOC, "camvid": CAMVID, "scenes": SCENES}


@pytest.mark.parametrize(("name", "classes"), [("voc", 21), ("camvid", 11), ("scenes", 12)])
def test_number_of_classes(name: str, classes: int) -> None:
    assert SETS[name].num_classes == len(set(SETS[name].names)) == len(set(SETS[name].colors)) == classes


@pytest.mark.parametrize("labels", SETS.values(), ids=SETS)
def test_no_class_looks_like_void(labels: LabelSet) -> None:
    gap = np.abs(np.array(labels.colors) - IGNORE_COLOR).sum(axis=1)
    assert gap.min() >= 40


def test_voc_palette_is_the_one_in_the_development_kit() -> None:
    # the first ids and one of each bit pattern, as in VOCdevkit/VOCcode/VOClabelcolormap.m
    palette = voc_palette(256)
    assert palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert palette[8] == (64, 0, 0)
    assert palette[20] == (0, 64, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_scene_ids_are_the_documented_ones() -> None:
    assert [
        SCENES.names.index(n) for n in ("ground", "disc", "wire", "ring", "lake", "ice", "sun", "moon")
    ] == [*(0, 1, 5, 7, 8, 9, 10, 11)]
    assert {name: [SCENES.names[i] for i in ids] for name, ids in SCENES.groups.items()} == {
        "shapes": ["disc", "square", "triangle", "star"],
        "thin": ["wire", "fence", "ring"],
        "context": ["lake", "ice"],
    }


def _cielab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB (K, 3), white point D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize(
    "eye",
    [
        np.eye(3),
        np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
        np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    ],
    ids=["trichromat", "protanope", "deuteranope"],
)
def test_scene_colours_can_be_told_apart_by_colour_blind_readers(eye: np.ndarray) -> None:
    """Dichromacy after Viénot, Brettel and Mollon (1999), a projection of linear RGB."""
    linear = (np.array([*SCENES.colors, IGNORE_COLOR]) / 255) ** 2.2
    seen = _cielab(np.clip(linear @ eye.T, 0, 1))
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert distance[np.triu_indices(len(seen), 1)].min() > 18


def test_colorize_paints_classes_and_void() -> None:
    labels = LabelSet(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    painted = labels.colorize(torch.tensor([[0, 1], [1, IGNORE_INDEX]], dtype=torch.uint8))
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[1, 2, 3], [4, 5, 6]], [[4, 5, 6], list(IGNORE_COLOR)]]


def test_label_sets_can_be_pickled_and_hashed() -> None:
    assert pickle.loads(pickle.dumps(SCENES)) == SCENES
    assert hash(SCENES) != hash(VOC)


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (
            lambda: LabelSet(("a", "b"), ((0, 0, 0),)),
            ValueError,
            "2 class names but 1 colours: give one colour a class.",
        ),
        (
            lambda: LabelSet(("a",), ((0, 0, 0),), {"thin": (0, 1)}),
            ValueError,
            "Group 'thin' holds [1], but class ids are 0..0.",
        ),
        (
            lambda: CAMVID.colorize(np.array([[11, 3], [12, 255]])),
            ValueError,
            "The label map holds [11, 12]; class ids are 0..10 and 255 for void.",
        ),
        (
            lambda: CAMVID.colorize(np.zeros((2, 2))),
            TypeError,
            "A label map holds integer ids, got float64: pass logits.argmax(dim=0).",
        ),
    ],
)
def test_sentences(build, error, sentence) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        build()
