"""The CamVid protocol kept its promises: chosen on the held-out drive, scored once; README says what is recorded."""

import math
from pathlib import Path

import pytest

from deeplab_edu.results import load_result

README = " ".join((Path(__file__).resolve().parent.parent / "README.md").read_text().split())
STARTS = {"imagenet": "ImageNet weights", "scratch": "random weights"}
SCORED = ("held_out_full_length", "test", "test, scales and flip")


@pytest.fixture(scope="module")
def measured():
    return load_result("camvid_protocol")["measured"]


@pytest.mark.parametrize("start", STARTS)
def test_the_learning_rate_is_the_best_on_the_held_out_drive(measured, start):
    tried = measured[start]["held_out"]
    assert len(tried) == 3 and measured[start]["chosen"] == float(max(tried, key=tried.get))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("where", SCORED)
def test_miou_is_the_mean_over_the_eleven_classes(measured, start, where):
    scores = measured[start][where]
    values = list(scores["iou"].values())
    assert len(values) == 11 and not any(map(math.isnan, values))
    assert scores["miou"] == pytest.approx(sum(values) / 11)
    assert 0.5 < scores["pixel_accuracy"] < 1


@pytest.mark.parametrize("start, name", STARTS.items())
def test_the_table_in_the_readme_is_the_recorded_one(measured, start, name):
    cells = [f"{measured[start][where]['miou']:.3f}" for where in SCORED]
    cells.append(f"{measured[start]['test']['pixel_accuracy']:.3f}")
    assert f"| {name} | {' | '.join(cells)} |" in README


def test_what_other_recipes_give_on_the_held_out_drive(measured):
    recipes = load_result("camvid_recipes")["measured"]
    usual, full = (recipes[name]["miou"] for name in ("as in the protocol", "full resolution"))
    same_on_a_cpu = measured["imagenet"]["held_out_full_length"]["miou"]
    assert abs(usual - same_on_a_cpu) < 0.02, "a GPU and a CPU train the same recipe"
    others = [recipes[name]["miou"] for name in recipes.keys() - {"full resolution"}]
    assert max(others) < 0.45 < full
    assert f"{min(others):.3f} to {max(others):.3f}" in README and f"reaches {full:.3f} there" in README
