"""Notebook 03: what it asserts of its trained networks fails with shuffled labels and without the mechanism."""

import sys
from pathlib import Path

import pytest
import torch

from deeplab_edu.profiles import PROFILES
from deeplab_edu.receptive_field import tap_map
from deeplab_edu.results import load_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "experiments"))
import receptive_field_graphs
from dense_prediction import from_notebook

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "03_receptive_fields.ipynb"
ACCEPT = PROFILES["ci"].accept
NAMES = ("SIDE", "lamp_network", "lamps", "train_on_lamps", "middle_answers", "accuracy")


@pytest.fixture(scope="module")
def page():
    """What the notebook's cells define."""
    torch.set_num_threads(1)
    return from_notebook(*NAMES, path=NOTEBOOK)


def scores(page, rates, **how):
    """Share of right answers where the lamp is wired, and in the window of rates 1, 2, 5."""
    model, side = page["train_on_lamps"](rates, **how), page["SIDE"]
    answers = page["middle_answers"](model)
    taps = tap_map(model, (side, side), (side // 2, side // 2))
    window = torch.zeros(side, side, dtype=torch.bool)
    window[side // 2 - 8 : side // 2 + 9, side // 2 - 8 : side // 2 + 9] = True
    return page["accuracy"](answers, taps), page["accuracy"](answers, window)


def test_the_mechanism_makes_the_difference(page):
    hybrid, gridding, plain = (scores(page, rates) for rates in ((1, 2, 5), (2, 2, 2), (1, 1, 1)))
    assert min(hybrid[0], gridding[0]) >= ACCEPT["03_seen"]
    assert hybrid[1] - gridding[1] >= ACCEPT["03_hybrid_gain"]
    assert plain[1] - gridding[1] < ACCEPT["03_hybrid_gain"], "rates are the mechanism"


def test_shuffled_labels_fail_the_acceptance(page):
    def shuffled(count, generator):
        pictures, bright = page["lamps"](count, generator)
        return pictures, bright[torch.randperm(count, generator=generator)]

    assert scores(page, (1, 2, 5), make=shuffled)[0] < ACCEPT["03_seen"]


def test_the_recorded_graphs_have_no_wrong_pixel():
    measured = load_result("receptive_field_graphs")["measured"]
    assert measured["graphs"] == 500 and measured["wrong"] == 0 and measured["read"] > 10_000


def test_graphs_of_the_recorded_run_again():
    found = [receptive_field_graphs.compare(seed) for seed in range(12)]
    assert sum(f["wrong"] for f in found if f) == 0 and sum(f["graphs"] for f in found if f) > 3
