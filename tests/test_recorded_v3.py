"""The recorded runs of DeepLab v3 are those of the arms that the experiment defines, seed for seed."""

import sys
from pathlib import Path

import pytest

from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import load_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import deeplab_v3 as experiment

TOP = Path(__file__).resolve().parent.parent
RECORDED = load_result("deeplab_v3.cpu")


def test_every_arm_was_measured_with_every_seed():
    named = {name for arms in experiment.STUDIES.values() for name in arms}
    assert named <= RECORDED["measured"].keys()
    for metrics in RECORDED["measured"].values():
        assert {len(values) for values in metrics.values()} == {len(RECORDED["seeds"])}
    assert (TOP / RECORDED["command"].split()[1]).exists()


@pytest.mark.parametrize("study", experiment.STUDIES)
def test_recorded_fields_and_steps_are_those_of_the_arms(study):
    arms, profile = experiment.STUDIES[study], PROFILES["cpu"]
    assert RECORDED["studies"][study].keys() == arms.keys()
    for name, arm in arms.items():
        facts = experiment.fields(arm, profile)
        facts |= {"preset": arm.preset, "iterations": experiment.recipe(profile, arm).iterations}
        assert RECORDED["studies"][study][name] == facts


def test_momentum_changes_statistics_only():
    """The same weights: with statistics taken again, the arm that fell into the trap scores as the other does."""
    trained, trapped = (RECORDED["measured"][f"momentum {m}"]["miou"] for m in ("0.1", "0.0003"))
    again = RECORDED["measured"]["momentum 0.0003, statistics taken again"]["miou"]
    for good, bad, cured in zip(trained, trapped, again, strict=True):
        assert bad < good / 2 and abs(cured - good) < 0.1


def test_stored_statistics_replace_every_batch_norm():
    model = experiment.build(experiment.STUDIES["batch_norm"]["stored statistics"], PROFILES["ci"], 0)
    stored = {type(m).__name__ for m in model.modules() if "BatchNorm" in type(m).__name__}
    assert stored == {"StoredBatchNorm"}
