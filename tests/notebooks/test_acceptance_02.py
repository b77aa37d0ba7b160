"""What notebook 02 asserts fails when labels are shuffled, and when the skips are switched off."""

import pytest
import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit
from shuffled import Shuffled

CI = PROFILES["ci"]
OPTIONS = {"preset": "thin", "size": CI.image_size}


def scores(tmp_path, name="fcn8s", shuffled=False, skips=True):
    train = SceneDataset(split="train", length=CI.train_scenes, **OPTIONS)
    torch.manual_seed(0)
    model = build_model(name, num_classes=12, **CI.model_options)
    if not skips:
        for layer in (model.score_pool4, model.score_pool3):
            layer.requires_grad_(False)  # they start at zero and stay there
    fit(
        model,
        Shuffled(train) if shuffled else train,
        None,
        Settings.from_profile(CI),
        runs=tmp_path,
        quiet=True,
    )
    return evaluate(model, SceneDataset(split="val", length=CI.val_scenes, **OPTIONS), detailed=True)


@pytest.fixture(scope="module")
def fcn32s(tmp_path_factory):
    return scores(tmp_path_factory.mktemp("runs"), "fcn32s")


def test_shuffled_labels_teach_nothing(tmp_path):
    assert scores(tmp_path, shuffled=True)["miou"] < CI.accept["02_fcn8s_miou"]


def test_without_its_skips_fcn8s_gains_nothing(tmp_path, fcn32s):
    disabled = scores(tmp_path, skips=False)
    assert disabled["thin"] - fcn32s["thin"] < CI.accept["02_thin_gain"]
    assert disabled["trimap3"] - fcn32s["trimap3"] < CI.accept["02_trimap3_gain"]
