"""Recorded results can be measured again: CI runs one recorded command and compares the numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab_edu.results import FOLDER, load_result, machine

TOP = Path(__file__).resolve().parent.parent
NEEDED = {"command", "profile", "date", "code", "seeds", "recipe", "machine", "measured"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("fcn_ladder.*.json")), ids=lambda p: p.stem)
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
    assert again["recipe"] == recorded["recipe"]
    same_machine = all(recorded["machine"][k] == machine()[k] for k in ("cpu", "versions", "python"))
    # another processor or torch rounds otherwise, and training amplifies that: seeds differ by about as much
    tolerance = 1e-6 if same_machine else 0.05
    for arm, metrics in recorded["measured"].items():
        for metric in metrics.keys() - {"seconds"}:
            assert again["measured"][arm][metric] == pytest.approx(metrics[metric], abs=tolerance), (
                arm,
                metric,
            )
