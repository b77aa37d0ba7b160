"""What notebook 04 asserts fails when labels are shuffled, and when neither conv5 nor fc6 has holes."""

import pytest
import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit
from shuffled import Shuffled

CI = PROFILES["ci"]
OPTIONS = {"preset": "shapes", "size": 128}


def scores(tmp_path, shuffled=False, seed=0, **holes):
    train = SceneDataset(split="train", length=CI.train_scenes, **OPTIONS)
    torch.manual_seed(seed)
    model = build_model("deeplab_v1", num_classes=12, **{**CI.model_options, "backbone": "tiny"}, **holes)
    data = Shuffled(train) if shuffled else train
    settings = Settings.from_profile(CI, iterations=480, precision="auto", seed=seed)
    fit(model, data, None, settings, runs=tmp_path, quiet=True)
    return evaluate(model, SceneDataset(split="val", length=CI.val_scenes, **OPTIONS), detailed=True)


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(tmp_path):
    assert scores(tmp_path, shuffled=True, rate=6)["miou"] < CI.accept["04_largefov_miou"]


@pytest.mark.slow
def test_without_holes_big_objects_gain_nothing(tmp_path):
    """Two networks without holes differ by their seeds only, and by less than what is asked for."""
    plain, again = (scores(tmp_path, seed=seed, hole=False, rate=1) for seed in (0, 1))
    assert abs(again["big"] - plain["big"]) < CI.accept["04_big_gain"]
