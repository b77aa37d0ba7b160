"""The recorded runs of DeepLab v3+ are those of the arms that the experiment defines, seed for seed."""

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import load_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import deeplab_v3plus as experiment

CPU = PROFILES["cpu"]
RECORDED = load_result("deeplab_v3plus.cpu")


@pytest.mark.parametrize("study", experiment.STUDIES)
def test_every_arm_was_measured_with_every_seed(study):
    arms, measured = experiment.STUDIES[study], RECORDED["measured"][study]
    seeds = [RECORDED["scratch_seed"]] if study == "scratch" else RECORDED["seeds"]
    assert measured.keys() == arms.keys()
    for name, arm in arms.items():
        assert {len(values) for values in measured[name].values()} == {len(seeds)}
        model = experiment.build(arm.model, CPU, 0, arm.options)
        assert set(measured[name]["parameters"]) == {sum(p.numel() for p in model.parameters())}
    for part, settings in zip(("encoder", "arms"), experiment.recipes(CPU), strict=True):
        recorded = RECORDED["recipe"][part]
        assert asdict(settings).items() >= recorded.items()  # a setting may have come since, at its default


def test_the_control_has_nearly_the_parameters_of_what_it_controls():
    measured = RECORDED["measured"]["decoder"]
    control, whole = (measured[arm]["parameters"][0] for arm in ("v3+ plain, no low-level map", "v3+ plain"))
    assert 0.98 < control / whole < 1


def test_from_random_weights_the_profile_s_recipe_for_v3plus_is_the_best_that_was_tried():
    tried = {name: arm for name, arm in experiment.STUDIES["scratch"].items() if arm.recipe is not None}
    best = max(tried, key=lambda name: RECORDED["measured"]["scratch"][name]["miou"])
    assert CPU.recipe_of["deeplab_v3plus"] == tried[best].recipe


def test_arms_differ_in_their_heads_only():
    """Whatever the arm, it starts from the backbone of one and the same encoder, and from the seed's own head."""
    arms = experiment.STUDIES["decoder"].values()
    built = [experiment.build(arm.model, CPU, 0, arm.options) for arm in arms]
    again = [experiment.build(arm.model, CPU, 0, arm.options) for arm in arms]
    names = built[0].backbone.state_dict().keys()
    assert all(model.backbone.state_dict().keys() == names for model in built)
    for one, other in zip(built, again, strict=True):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
