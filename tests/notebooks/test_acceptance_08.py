"""What notebook 08 asserts fails with shuffled labels, and when the decoder gets nothing from the map of stride 4."""

import pytest
import torch
from torch import nn

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit
from shuffled import Shuffled

CI = PROFILES["ci"]
OPTIONS = {"preset": "thin", "size": CI.image_size}


def build(name):
    torch.manual_seed(0)
    return build_model(name, num_classes=12, **CI.options("deeplab_v3plus"))


def trained(model, runs, iterations, shuffled):
    train = SceneDataset(split="train", length=CI.train_scenes, **OPTIONS)
    settings = Settings.from_profile(CI, iterations=iterations)
    fit(model, Shuffled(train) if shuffled else train, None, settings, runs=runs, quiet=True)
    return model


def scores(runs, name="deeplab_v3plus", shuffled=False, silent=False):
    """After the notebook's two trainings in profile ci; with `silent` the low-level map is zero, before and after."""
    encoder = trained(build("deeplab_v3"), runs, 2 * CI.iterations // 3, shuffled)
    model = build(name)
    model.backbone.load_state_dict(encoder.backbone.state_dict())
    if silent:
        for parameter in model.low_level[1].parameters():
            nn.init.zeros_(parameter).requires_grad_(False)
    trained(model, runs, CI.iterations // 2, shuffled)
    return evaluate(model, SceneDataset(split="val", length=CI.val_scenes, **OPTIONS), detailed=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder, so that the encoder is trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def v3(runs):
    return scores(runs, "deeplab_v3")


def test_shuffled_labels_teach_nothing(runs, v3):
    learned = scores(runs, shuffled=True)
    assert learned["miou"] < CI.accept["08_v3plus_miou"]
    assert learned["thin"] - v3["thin"] < CI.accept["08_thin_gain"]
    assert learned["trimap3"] - v3["trimap3"] < CI.accept["08_trimap3_gain"]


def test_a_decoder_without_the_low_level_map_gains_nothing(runs, v3):
    coarse = scores(runs, silent=True)
    assert coarse["thin"] - v3["thin"] < CI.accept["08_thin_gain"]
    assert coarse["trimap3"] - v3["trimap3"] < CI.accept["08_trimap3_gain"]
