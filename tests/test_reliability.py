"""The reliability suite: a short version always, all of it where slow tests run; and its record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab_edu.results import load_result

TOP = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and file limits of POSIX")


def check(measured: dict, kills: int) -> None:
    assert measured["kill -9 at a random moment"]["tried"] == kills
    for fault, told in measured.items():
        if told["tried"] == 0:  # made immutable, root's folder is read-only only where chattr works
            assert fault == "run folder read-only"
            continue
        assert told["recovered"] == told["tried"] and told["lost_epochs"] == 0, fault
        for count in (told["identical"], told["said"]):
            assert count in ("not compared", "nothing due", f"{told['tried']} of {told['tried']}"), fault
    assert [fault for fault, told in measured.items() if told["identical"] == "not compared"] == [
        "one of two processes killed"
    ]


def run_suite(folder: Path, *words: str) -> dict:
    command = [sys.executable, "experiments/reliability.py", "--into", str(folder), *words]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    return json.loads((folder / "reliability.json").read_text())["measured"]


def test_a_run_survives_what_is_done_to_it(tmp_path):
    check(run_suite(tmp_path, "--short"), kills=2)


@pytest.mark.slow
def test_a_run_survives_all_of_the_suite(tmp_path):
    check(run_suite(tmp_path), kills=20)


def test_the_record_says_that_nothing_was_lost():
    recorded = load_result("reliability")
    assert recorded["command"] == "python experiments/reliability.py" and recorded["steps"] == 60
    check(recorded["measured"], kills=20)
    assert all(told["tried"] for told in recorded["measured"].values())
