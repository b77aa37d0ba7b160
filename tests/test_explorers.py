"""Explorers: silent outside a notebook, alive inside one."""

import inspect
import re

import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from deeplab_edu import explorers
from deeplab_edu.crf import DenseCRF
from deeplab_edu.data.augment import normalize
from deeplab_edu.data.labels import LabelSet
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.explorers import (
    CRF_SLIDERS,
    branch_scores,
    explore_branches,
    explore_crf,
    explore_decoder,
    live_curve,
    most_probable,
    switched,
)
from deeplab_edu.models import build_model
from deeplab_edu.widgets import class_key

START = """
from pathlib import Path
import matplotlib.pyplot as plt
from deeplab_edu import explorers
from deeplab_edu.figures import draw_history, use_style
from deeplab_edu.training import History

def spy(ax, *rest):
    axes.append(ax)
    return draw_history(ax, *rest)

use_style()
explorers.draw_history = spy

def train(*losses):
    update = explorers.live_curve("FCN-8s")
    history = History(Path("run"))
    for loss in losses:
        history.steps.append(10 * len(history.steps) + 10)
        history.loss.append(loss)
        update(history)

axes = []
train(2.0, 1.5)
"""
LOOK = """
(line,) = axes[-1].lines
print(line.get_xydata().tolist(), axes[-1].get_title(loc="left"), plt.get_fignums())
"""


def test_there_is_no_live_curve_outside_a_notebook():
    assert live_curve("FCN-8s") is None


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list:
    """Executed cells: a curve of two updates, a look at it, a curve of one update, one of none, a quiet one."""
    sources = [START, LOOK, "train(2.0)", "train()", "print(explorers.live_curve('FCN-8s', quiet=True))"]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("kernel"))}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    return client.execute().cells


def test_one_picture_is_kept_and_it_is_the_last(cells):
    """`update` replaces the picture in place: one output, which is the finished curve and not an empty plot."""
    (output,) = cells[0].outputs
    assert output.output_type == "display_data"
    assert "image/png" in output.data
    (looked,) = cells[1].outputs
    assert looked.text == "[[10.0, 2.0], [20.0, 1.5]] FCN-8s: step 20, loss 1.50 []\n"


def test_the_picture_changes_with_each_update(cells):
    (two,), (one,) = cells[0].outputs, cells[2].outputs
    assert one.data["image/png"] != two.data["image/png"]


def test_a_run_that_is_loaded_shows_nothing(cells):
    assert cells[3].outputs == []


def test_a_quiet_profile_has_no_curve(cells):
    assert cells[4].outputs[0].text == "None\n"


def test_every_explorer_is_a_panel_and_so_leaves_a_picture_in_a_saved_notebook():
    found = [make for name, make in vars(explorers).items() if name.startswith("explore_")]
    assert len(found) > 6
    assert {inspect.signature(make).return_annotation for make in found} == {
        "Panel"
    }  # mypy sees to the truth


# --- the dense CRF -------------------------------------------------------------------------------------

SPLIT = LabelSet(("left", "right"), ((0, 0, 0), (255, 255, 255)))


@pytest.fixture
def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture, dark on the left of column 8, and probabilities whose border lies three columns too far right."""
    image = torch.full((3, 12, 16), 200, dtype=torch.uint8)
    image[..., :8] = 20
    left = torch.full((12, 16), 0.2)
    left[:, :11] = 0.6
    left[:, :8] = 0.9
    return image, torch.stack([left, 1 - left])


def controls(panel) -> dict:
    return {control.description: control for control in panel.children[0].children}


def words(panel) -> str:
    return panel.line.value.split("</b>")[0].removeprefix("<b>")


def test_every_control_of_the_crf_redraws(halves, monkeypatch):
    panel, asked = explore_crf(*halves, SPLIT, DenseCRF(4, 8, 20, 1, 1)), []
    assert list(controls(panel)) == [*CRF_SLIDERS, "K' is"]
    monkeypatch.setattr(explorers, "DenseCRF", lambda **given: asked.append(given) or DenseCRF(**given))
    for name, control in controls(panel).items():
        control.value = control.options[1] if hasattr(control, "options") else control.max
        assert asked[-1][name if name in CRF_SLIDERS else "normalization"] == control.value
    assert len(asked) == 7


@pytest.mark.parametrize("name", [*CRF_SLIDERS])
def test_the_ends_of_every_slider_are_settings(halves, name):
    panel = explore_crf(*halves, SPLIT, DenseCRF(4, 8, 20, 1, 1))
    for end in CRF_SLIDERS[name][:2]:
        controls(panel)[name].value = end
        assert words(panel).endswith("of the labels change"), "an error would be said here"


def test_the_explorer_of_the_crf_says_how_much_changes(halves):
    """Three of sixteen columns move to their side of the edge; without weights none does."""
    panel = explore_crf(*halves, SPLIT, DenseCRF(6, 8, 20, 0, 1))
    assert words(panel) == "18.8% of the labels change"
    before = [picture.png for picture in panel.pictures]
    controls(panel)["w1"].value = 0
    assert words(panel) == "0.0% of the labels change"
    changed = [picture.png != png for picture, png in zip(panel.pictures, before, strict=True)]
    assert changed == [False, False, True, True]
    assert panel.pictures[2].png.startswith(b"\x89PNG")


def test_a_start_outside_the_sliders_is_moved_to_their_ends(halves):
    panel = explore_crf(*halves, SPLIT, DenseCRF(4, 121.5, 5, 3, 3, normalization="symmetric"))
    assert controls(panel)["theta_alpha"].value == 60
    assert controls(panel)["K' is"].value == "symmetric"


def test_the_line_names_the_classes_that_are_shown():
    masks = torch.tensor([[0, 0, 255]]), torch.tensor([[1, 0, 0]])
    assert re.sub("<.*?>", "", class_key(SPLIT, *masks)).split() == ["left", "right"]
    assert re.sub("<.*?>", "", class_key(SPLIT, masks[0])).split() == ["left"]
    assert "background:rgb(255, 255, 255)" in class_key(SPLIT, *masks)


@pytest.fixture(scope="module")
def v3_and_v3plus():
    torch.manual_seed(0)
    made = [
        build_model(n, num_classes=12, backbone="tiny", width=4) for n in ("deeplab_v3", "deeplab_v3plus")
    ]
    return [model.eval() for model in made]


def test_a_switched_network_is_itself_again_afterwards(v3_and_v3plus):
    model, images = v3_and_v3plus[1], normalize(SceneDataset("thin", size=40, length=1)[0][0])[None]
    with torch.inference_mode():
        before = model(images)
        with switched(model, 8, 0):
            assert model.output_stride == 8 and model.backbone.strides[-1] == 8
            assert not torch.equal(model(images), before)
        assert model.output_stride == 16 and torch.equal(model(images), before)


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_switching_cuts_all_low_level_channels_but_the_first(v3_and_v3plus, channels):
    model, seen = v3_and_v3plus[1], []
    low = torch.rand(1, model.backbone.channels[0], 5, 5)
    with torch.inference_mode(), switched(model, 16, channels):
        seen = model.low_level(low)
    with torch.inference_mode():
        whole = model.low_level(low)
    assert torch.equal(seen[:, :channels], whole[:, :channels]) and not seen[:, channels:].any()


def test_an_error_inside_leaves_no_switch_behind(v3_and_v3plus):
    model = v3_and_v3plus[1]
    with pytest.raises(ValueError, match="output_stride is one of"), switched(model, 7, 0):
        pass
    assert model.output_stride == 16 and not model.low_level._forward_hooks


def test_decoder_channels_stride_and_scene_change_the_picture(v3_and_v3plus):
    scenes = SceneDataset("thin", size=32, length=3)
    panel = explore_decoder(*v3_and_v3plus, scenes)
    moved = controls(panel)
    assert (moved["low-level"].value, moved["low-level"].max, moved["scene"].max) == (4, 4, 2)
    said = [words(panel)]
    for name, value in (("low-level", 1), ("output stride", 8), ("scene", 2), ("decoder", False)):
        moved[name].value = value
        said.append(words(panel))
    titles = ["v3+ with 4 of 4", *["v3+ with 1 of 4"] * 3, "v3, no decoder"]
    assert all(line.startswith(title) for line, title in zip(said, titles, strict=True))
    assert moved["low-level"].disabled and panel.pictures[0].alt == "scene 2"
    with switched(v3_and_v3plus[0], 8):
        wrong = (most_probable(v3_and_v3plus[0], scenes[2][0]) != scenes[2][1]).float().mean()
    assert said[-1] == f"v3, no decoder, output stride 8: {wrong:.1%} of the pixels are wrong"


@pytest.fixture(scope="module")
def aspp():
    torch.manual_seed(0)
    return build_model("deeplab_v2", num_classes=12, backbone="tiny", width=4, rates=(1, 3)).eval()


def test_what_branches_say_adds_up_to_what_the_model_says(aspp):
    image, _ = SceneDataset("shapes", size=(40, 53), length=1)[0]
    scores = branch_scores(aspp, image)
    assert scores.shape == (2, 12, 40, 53)
    with torch.inference_mode():
        logits = aspp(normalize(image)[None])[0]
    torch.testing.assert_close(scores.sum(0), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


@pytest.fixture
def panel(aspp):
    return explore_branches(aspp, SceneDataset("shapes", size=32, length=3))


def test_switches_say_their_rates_and_count(panel, aspp):
    *switches, number = panel.children[0].children
    assert [switch.description for switch in switches] == ["rate 1", "rate 3"] and number.max == 2
    assert panel.line.value.startswith("<b>2 of 2 branches: ")
    switches[0].value = False
    assert panel.line.value.startswith("<b>1 of 2 branches: ")
    image, target = SceneDataset("shapes", size=32, length=3)[0]
    wrong = (branch_scores(aspp, image)[1].argmax(0) != target).float().mean()
    assert f"{wrong:.1%} of the pixels are wrong" in panel.line.value


def test_another_scene_is_another_picture(panel):
    before = [picture.png for picture in panel.pictures]
    panel.children[0].children[-1].value = 2
    assert all(picture.png != png for picture, png in zip(panel.pictures, before, strict=True))
    assert panel.pictures[0].alt == "scene 2"


def test_void_is_neither_right_nor_wrong(aspp):
    class Half(list):
        labels = SceneDataset("shapes").labels

    target = torch.zeros(32, 32, dtype=torch.uint8)
    target[:16], target[:, :4] = 255, 1
    panel = explore_branches(aspp, Half([(torch.zeros(3, 32, 32, dtype=torch.uint8), target)]))
    for switch in panel.children[0].children[:-1]:
        switch.value = False  # all is ground
    right = (target == 0).sum() / (target != 255).sum()
    assert words(panel) == f"0 of 2 branches: {1 - right:.1%} of the pixels are wrong"


def test_without_any_branch_all_is_ground(panel):
    for switch in panel.children[0].children[:-1]:
        switch.value = False
    _, target = SceneDataset("shapes", size=32, length=3)[0]
    assert f"0 of 2 branches: {(target != 0).float().mean():.1%}" in panel.line.value
