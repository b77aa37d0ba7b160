"""What notebook 09 asserts fails when labels are shuffled, and when the decoder gets no low-level map."""

import pytest
import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit
from shuffled import Shuffled

CI = PROFILES["ci"]
OPTIONS = {"preset": "full", "size": CI.image_size}


def scores(runs, name, shuffled=False, **changes):
    """After the notebook's training in profile ci, whose learning rate is that of the ladder."""
    train = SceneDataset(split="train", length=CI.train_scenes, **OPTIONS)
    torch.manual_seed(0)
    model = build_model(name, num_classes=12, **CI.options(name), **changes)
    fit(model, Shuffled(train) if shuffled else train, None, Settings.from_profile(CI), runs=runs, quiet=True)
    return evaluate(model, SceneDataset(split="test", length=CI.val_scenes, **OPTIONS), detailed=True)


def test_shuffled_labels_teach_nothing(tmp_path):
    assert scores(tmp_path, "fcn8s", shuffled=True)["miou"] < CI.accept["09_miou"]


@pytest.mark.slow
def test_without_the_low_level_map_thin_structures_gain_nothing(tmp_path):
    thin = [
        scores(tmp_path, name, **changes)["thin"]
        for name, changes in (("deeplab_v1", {}), ("deeplab_v3plus", {"low_level_channels": 0}))
    ]
    assert thin[1] - thin[0] < CI.accept["09_thin_gain"]
