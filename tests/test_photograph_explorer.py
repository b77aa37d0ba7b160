"""One's own photograph: any picture file, any network, and a sentence for whatever cannot be had."""

import io
import re
import urllib.error
from datetime import datetime

import pytest
import torch
from PIL import Image

from deeplab_edu import explorers
from deeplab_edu.crf import PRESETS, DenseCRF
from deeplab_edu.data.labels import SCENES, VOC, LabelSet
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.explorers import (
    LIKELIEST,
    OFFICIAL,
    Desk,
    Reading,
    explore_photograph,
    fitted_picture,
    official,
)
from deeplab_edu.inference import segment
from deeplab_edu.models import build_model


def tiny(name="fcn8s"):
    torch.manual_seed(0)
    return build_model(name, num_classes=12, backbone="tiny", width=4).eval()


@pytest.fixture(scope="module")
def scene():
    return SceneDataset("full", size=(32, 48), length=1)[0][0].as_subclass(torch.Tensor)


def file(size=(60, 30), kind="PNG", **options) -> bytes:
    """A picture, red on its left half and blue on its right one, in the format `kind`."""
    picture = Image.new("RGB", size, "blue")
    picture.paste("red", (0, 0, size[0] // 2, size[1]))
    picture.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


# --- a picture -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, expected", [((60, 30), (32, 64)), ((30, 60), (64, 32)), ((64, 64), (64, 64)), ((900, 4), (16, 64))]
)
def test_the_longer_side_is_as_asked_and_the_shape_stays(size, expected):
    assert fitted_picture(file(size), 64).shape == (3, *expected)


def test_left_stays_left_and_a_turned_photograph_is_turned_upright(tmp_path):
    image = fitted_picture(file(), 40)
    assert image.dtype == torch.uint8 and image[0, :, 5].min() > 200 and image[2, :, -5].min() > 200
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    path = tmp_path / "turned.jpg"
    path.write_bytes(file(kind="JPEG", exif=turned))
    assert fitted_picture(str(path), 40).shape == (3, 40, 20)


@pytest.mark.parametrize(
    "source, sentence",
    [("nowhere.png", "there is no file nowhere.png (paths begin at "), (b"text", "no picture that can be")],
)
def test_what_is_no_picture(source, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fitted_picture(source, 64)


# --- what is said of it --------------------------------------------------------------------------------


def test_a_reading_is_what_segment_says_and_the_crf_that_of_the_preset(scene):
    model = tiny()
    reading = Reading(model, SCENES, scene)
    torch.testing.assert_close(reading.probabilities(False), segment(model, scene))
    v1 = PRESETS["v1"]
    crf = DenseCRF(v1.w1, v1.theta_alpha * 48 / 500, v1.theta_beta, v1.w2, v1.theta_gamma * 48 / 500)
    torch.testing.assert_close(reading.probabilities(True), crf.refine(scene, segment(model, scene)))


def test_the_sentence_by_hand(scene):
    labels = LabelSet(("sky", "sea"), ((0, 0, 0), (1, 1, 1)))
    reading = Reading(tiny(), labels, scene)
    sea = torch.full((32, 48), 0.25)
    sea[8:] = 0.7
    reading.before = torch.stack([1 - sea, sea])
    reading.refined = torch.stack([sea, 1 - sea])
    assert reading.sentence((10, 3), False) == (
        "Pixel (row 10, column 3): <b>sea 70%, sky 30%</b>. The picture: sea 75%, sky 25%."
    )
    assert reading.sentence((0, 0), True).endswith(
        "<b>sea 75%, sky 25%</b>. The picture: sky 75%, sea 25%. The CRF changed 100.0% of the pixels."
    )


def test_each_pair_is_computed_once_and_a_new_picture_anew(scene):
    made = []
    desk = Desk({"a": (lambda: made.append(1) or tiny(), SCENES)}, {"s": scene})
    assert made == []
    first = desk.reading("a", "s")
    assert desk.reading("a", "s") is first
    desk.lay("s", scene.flip(-1))
    assert desk.reading("a", "s") is not first and made == [1]


# --- the panel -----------------------------------------------------------------------------------------


@pytest.fixture
def panel(scene):
    networks = {n: (tiny(n), SCENES) for n in ("fcn8s", "deeplab_v3plus")}
    return explore_photograph(networks | {OFFICIAL: (official, VOC)}, {"scene": scene}, longest=48)


def controls(panel):
    return dict(
        zip(
            ("network", "picture", "heat", "crf", "field", "upload", "path"),
            panel.children[0].children,
            strict=True,
        )
    )


def test_a_picked_pixel_is_picked_in_all_pictures(panel):
    before = [view.png for view in panel.pictures]
    panel.pictures[1].pixel = [3, 40]
    assert [view.pixel for view in panel.pictures] == [[3, 40]] * 3
    assert panel.line.value.startswith("Pixel (row 3, column 40): <b>")
    assert all(view.png != png for view, png in zip(panel.pictures, before, strict=True))


@pytest.mark.parametrize(
    "name, value, changed",
    [
        ("network", "deeplab_v3plus", (0, 1, 2)),
        ("heat", "moon", (1,)),
        ("crf", True, (0, 1)),
        ("field", False, (2,)),
    ],
)
def test_each_control_changes_its_pictures_and_no_other(panel, name, value, changed):
    before = [view.png for view in panel.pictures]
    controls(panel)[name].value = value
    assert tuple(i for i, view in enumerate(panel.pictures) if view.png != before[i]) == changed


def test_a_path_or_an_upload_is_laid_beside_the_others_and_chosen(panel, tmp_path):
    (tmp_path / "mine.png").write_bytes(file())
    have = controls(panel)
    have["path"].value = str(tmp_path / "mine.png")
    assert have["picture"].options == ("scene", "mine.png") and have["picture"].value == "mine.png"
    assert panel.pictures[0].extent == [24, 48] and panel.pictures[0].pixel == [12, 24]
    content = memoryview(file((20, 40)))
    have["upload"].value = (
        {"name": "b.png", "type": "", "size": 1, "content": content, "last_modified": datetime.now()},
    )
    assert have["picture"].value == "b.png" and panel.pictures[2].extent == [48, 24]
    have["picture"].value = "scene"
    assert panel.pictures[0].extent == [32, 48]


def test_a_wrong_path_is_a_sentence_and_the_next_click_works(panel):
    controls(panel)["path"].value = "nowhere.png"
    assert "there is no file nowhere.png" in panel.line.value and controls(panel)["picture"].value == "scene"
    panel.pictures[0].pixel = [5, 5]
    assert panel.line.value.startswith("Pixel (row 5, column 5)")


def test_official_weights_are_asked_for_when_chosen_and_a_missing_network_is_said(panel, monkeypatch):
    asked = []

    def no_network(name, **options):
        asked.append((name, options))
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(explorers, "build_model", no_network)
    panel.pictures[0].pixel = [1, 1]
    assert asked == [], "nothing is downloaded unasked"
    have = controls(panel)
    have["network"].value = OFFICIAL
    assert asked == [("deeplab_v3", {"compat": "torchvision", "weights": "coco"})]
    assert "weights could not be downloaded" in panel.line.value and "no route to host" in panel.line.value
    have["network"].value = "fcn8s"
    assert panel.line.value.startswith("Pixel (row 1, column 1)")


def test_classes_follow_the_network(panel, monkeypatch):
    monkeypatch.setattr(
        explorers, "build_model", lambda *_, **__: build_model("fcn8s", 21, backbone="tiny", width=4)
    )
    have = controls(panel)
    have["heat"].value = "moon"
    have["network"].value = OFFICIAL
    assert have["heat"].options == (LIKELIEST, *VOC.names) and have["heat"].value == LIKELIEST


def test_without_a_picture_it_shows_the_photograph():
    panel = explore_photograph({"a": (tiny(), SCENES)}, longest=40)
    assert controls(panel)["picture"].options == ("photograph",)
    assert max(panel.pictures[0].extent) == 40 and Image.open(io.BytesIO(panel.still())).width > 300
