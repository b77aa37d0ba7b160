"""Recorded results can be measured again: CI runs one recorded command and compares the numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import FOLDER, load_result, machine
from deeplab_edu.training import Settings

TOP = Path(__file__).resolve().parent.parent
NEEDED = {"command", "profile", "date", "code", "seeds", "recipe", "machine", "measured"}


STUDIES = ("fcn_ladder", "deeplab_v1", "deeplab_v2", "deeplab_v3")
RECORDED = [path for name in STUDIES for path in sorted(FOLDER.glob(f"{name}.*.json"))]


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_a_result_says_how_it_was_measured(path):
    result = json.loads(path.read_text())
    assert result.keys() >= NEEDED
    assert result["machine"].keys() >= {"device", "cpu", "bf16", "threads", "versions"}
    script = result["command"].split()[1]
    assert (TOP / script).exists()
    for arm in result["measured"].values():
        assert {len(values) for values in arm.values()} == {len(result["seeds"])}


def test_the_recorded_ci_run_gives_the_same_numbers_again(tmp_path):
    recorded = load_result("fcn_ladder.ci")
    command = [sys.executable, *recorded["command"].split()[1:], "--into", str(tmp_path)]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    again = load_result("fcn_ladder.ci", folder=tmp_path)
    assert (
        again["recipe"].items() >= recorded["recipe"].items()
    )  # a setting may have come since, at its default
    ours, theirs = machine(), recorded["machine"]
    same_machine = all(theirs.get(k) == ours[k] for k in ("processor", "cpu", "versions", "python"))
    # another processor or torch rounds otherwise, and training amplifies that: by up to 0.015 between two of ours
    agree(recorded["measured"], again["measured"], 1e-6 if same_machine else 0.03)


def agree(recorded, again, tolerance):
    """The same scores, and FCN-32s, 16s, 8s in the same order where the record has a clear one."""
    for arm, metrics in recorded.items():
        for metric in metrics.keys() - {"seconds"}:
            assert again[arm][metric] == pytest.approx(metrics[metric], abs=tolerance), (arm, metric)
    for metric in ("miou", "thin", "trimap1", "trimap3"):
        for scores in (recorded, again):
            steps = [scores[arm][metric][0] for arm in ("fcn32s", "fcn16s", "fcn8s")]
            assert steps == sorted(set(steps)), (metric, steps)


@pytest.mark.parametrize("broken", ["untrained", "skips swapped", "FCN-16s in the place of FCN-8s"])
def test_a_training_that_went_wrong_does_not_agree_with_the_record(broken):
    recorded = load_result("fcn_ladder.ci")["measured"]
    again = dict(recorded)
    if broken == "untrained":
        again["fcn32s"] = {metric: [0.0] for metric in recorded["fcn32s"]}
    elif broken == "skips swapped":
        again |= {"fcn32s": recorded["fcn16s"], "fcn16s": recorded["fcn32s"]}
    else:
        again["fcn8s"] = recorded["fcn16s"]
    agree(recorded, recorded, 1e-6)
    with pytest.raises(AssertionError):
        agree(recorded, again, 0.03)


def test_the_recipe_of_the_short_runs_is_the_one_that_the_search_found():
    search = load_result("recipe_search")
    scores: dict[str, list[float]] = {}
    for row in search["measured"]:
        scores.setdefault(json.dumps(row["change"]), []).append(row["scores"]["miou"])
    assert {len(v) for v in scores.values()} == {2}, "each arm is searched for FCN-32s and FCN-8s"
    best = search["start"] | json.loads(max(scores, key=lambda change: sum(scores[change])))
    chosen = Settings.from_profile(PROFILES["cpu"])
    searched = (
        "batch_size",
        "learning_rate",
        "optimizer",
        "bn_momentum",
        "loss_stride",
        "weight_decay",
        "warmup",
    )
    assert {n: best[n] for n in searched} == {n: getattr(chosen, n) for n in searched}
