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


def trained(runs, name, shuffled=False, encoder=None, **changes):
    """As in the notebook, in profile ci, whose learning rate is that of the ladder."""
    train = SceneDataset(split="train", length=CI.train_scenes, **OPTIONS)
    torch.manual_seed(0)
    model = build_model(name, num_classes=12, **CI.options(name), **changes)
    if encoder is not None:
        model.backbone.load_state_dict(encoder.state_dict())
    fit(model, Shuffled(train) if shuffled else train, None, Settings.from_profile(CI), runs=runs, quiet=True)
    return model


def scores(model):
    return evaluate(model, SceneDataset(split="test", length=CI.val_scenes, **OPTIONS), detailed=True)


def test_shuffled_labels_teach_nothing(tmp_path):
    assert scores(trained(tmp_path, "fcn8s", shuffled=True))["miou"] < CI.accept["09_miou"]


@pytest.mark.slow
def test_without_the_low_level_map_thin_structures_gain_nothing(tmp_path):
    v1, v3 = (trained(tmp_path, name) for name in ("deeplab_v1", "deeplab_v3"))
    blind = trained(tmp_path, "deeplab_v3plus", encoder=v3.backbone, low_level_channels=0)
    assert scores(blind)["thin"] - scores(v1)["thin"] < CI.accept["09_thin_gain"]
