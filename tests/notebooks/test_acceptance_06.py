"""What notebook 06 asserts fails when labels are shuffled, and when all branches but one are switched off."""

import pytest
import torch
from torch import nn

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit
from shuffled import Shuffled

CI = PROFILES["ci"]
OPTIONS = {"preset": "shapes", "size": CI.image_size}
RATES = tuple(max(1, round(rate * CI.image_size / 128)) for rate in (1, 2, 4, 6))


def miou(runs, rates=RATES, shuffled=False, silent=()):
    """After the notebook's training in profile ci; the branches `silent` say nothing, before and after."""
    train = SceneDataset(split="train", length=CI.train_scenes, **OPTIONS)
    torch.manual_seed(0)
    model = build_model("deeplab_v2", num_classes=12, rates=rates, **CI.model_options)
    for branch in (model.aspp[number] for number in silent):
        nn.init.zeros_(branch.fc8.weight)
        branch.requires_grad_(False)
    fit(
        model,
        Shuffled(train) if shuffled else train,
        None,
        Settings.from_profile(CI),
        runs=runs,
        quiet=True,
    )
    return evaluate(model, SceneDataset(split="val", length=CI.val_scenes, **OPTIONS))["miou"]


@pytest.fixture(scope="module")
def largefov(tmp_path_factory):
    return miou(tmp_path_factory.mktemp("runs"), RATES[-1:])


def test_shuffled_labels_teach_nothing(tmp_path, largefov):
    score = miou(tmp_path, shuffled=True)
    assert score < CI.accept["06_aspp_miou"]
    assert score - largefov < CI.accept["06_aspp_gain"]


def test_with_one_branch_left_aspp_gains_nothing(tmp_path, largefov):
    assert miou(tmp_path, silent=(0, 1, 2)) - largefov < CI.accept["06_aspp_gain"]


def test_the_control_is_aspp_in_everything_but_its_rates():
    made = []
    for rates in (RATES[-1:] * 4, RATES):
        torch.manual_seed(0)
        model = build_model("deeplab_v2", num_classes=12, rates=rates, **CI.model_options)
        made.append(model.state_dict())
    control, aspp = made
    assert control.keys() == aspp.keys()
    assert all(torch.equal(control[name], aspp[name]) for name in aspp)
