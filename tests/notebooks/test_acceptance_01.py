"""What notebook 01 asserts about its training fails with shuffled labels, and where nothing lets the arms see far.

The arms are those in the notebook's own cells; the thresholds are the profile's.
"""

import sys
from pathlib import Path

import pytest
import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "experiments"))
from dense_prediction import from_notebook

from shuffled import Shuffled

CI = PROFILES["ci"]
FAR = ("pooling", "dilation")


@pytest.fixture(scope="module")
def notebook():
    return from_notebook("Arm", "ARMS", "ARM_SIZE", "ARM_STEPS", profile=CI)


@pytest.fixture(scope="module")
def big(notebook, tmp_path_factory):
    """big(options, shuffled) -> IoU of big shapes after the recipe of the notebook in profile ci."""
    runs, size = tmp_path_factory.mktemp("runs"), notebook["ARM_SIZE"]

    def train(options: dict, shuffled: bool = False) -> float:
        data = SceneDataset("shapes", "train", size=size, length=CI.train_scenes)
        val = SceneDataset("shapes", "val", size=size, length=CI.val_scenes)
        torch.manual_seed(0)
        arm = notebook["Arm"](**options)
        settings = Settings.from_profile(CI, iterations=notebook["ARM_STEPS"])
        fit(arm, Shuffled(data) if shuffled else data, None, settings, runs=runs, quiet=True)
        return evaluate(arm, val, detailed=True)["big"]

    return train


@pytest.fixture(scope="module")
def plain(notebook, big):
    return big(notebook["ARMS"]["plain"])


def test_it_holds_as_the_notebook_trains(notebook, big, plain):
    assert big(notebook["ARMS"]["dilation"]) - plain >= CI.accept["01_far_gain"]


def test_seeing_far_gains_nothing_when_labels_are_shuffled(notebook, big, plain):
    assert big(notebook["ARMS"]["pooling"], shuffled=True) - plain < CI.accept["01_far_gain"]


def test_without_dilation_the_dilated_arm_gains_nothing(notebook, big, plain):
    options = {**notebook["ARMS"]["dilation"], "dilations": (1, 1, 1, 1, 1, 1, 1, 1)}
    assert big(options) - plain < CI.accept["01_far_gain"]


def test_the_fcn_does_not_pass_with_shuffled_labels(tmp_path):
    options = {"preset": "full", "size": CI.image_size}
    data = Shuffled(SceneDataset(split="train", length=CI.train_scenes, **options))
    torch.manual_seed(0)
    model = build_model("fcn8s", num_classes=12, **CI.model_options)
    fit(model, data, None, Settings.from_profile(CI), runs=tmp_path, quiet=True)
    val = SceneDataset(split="val", length=CI.val_scenes, **options)
    assert evaluate(model, val)["miou"] < CI.accept["01_fcn_miou"]


def test_arms_start_equal_and_are_equally_large(notebook):
    weights = []
    for options in notebook["ARMS"].values():
        torch.manual_seed(0)
        weights.append([p for p in notebook["Arm"](**options).parameters() if p.requires_grad])
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))
