"""Benchmarks run to their end (with one repetition; how fast is never asserted) and measure as they say."""

import dataclasses
import json
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch

from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import load_result, save_result
from deeplab_edu.training import Settings

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def timing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import timing

    return timing


@pytest.fixture
def run(monkeypatch, tmp_path, timing):
    monkeypatch.setenv("DEEPLAB_EDU_PROFILE", "cpu")
    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)

    def run(name: str, *arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return json.loads((tmp_path / f"benchmark_{name}.json").read_text())

    return run


def test_scenes(run, capsys):
    saved = run("scenes", "--repetitions", "1", "--save")
    printed = capsys.readouterr().out
    assert set(saved["measured"]) == {"shapes", "thin", "context", "noisy", "full"}
    assert saved["command"] == "python benchmarks/scenes.py --repetitions 1 --save"
    assert saved["repetitions"] == 1
    assert "| noisy | " in printed and f"torch {torch.__version__.split('+')[0]}" in printed


def test_training_step(run, capsys):
    saved = run("training_step", "--repetitions", "1", "--save")
    arms = {"torchvision's loop", "ours", "ours, bfloat16"}
    assert [set(case["seconds"]) for case in saved["measured"].values()] == [arms, arms]
    assert "| torchvision's loop | " in capsys.readouterr().out


def test_crf(timing, monkeypatch, capsys):
    import crf

    assert {(preset, size) for preset, size, _ in crf.CASES} >= {("v1", 128), ("v1", 321), ("v1", 513)}
    monkeypatch.setattr(crf, "CASES", [("v1", 32, ("lattice",))])
    monkeypatch.setattr(sys, "argv", ["crf.py", "--repetitions", "1"])
    crf.main()
    row = r"\| v1, 32 px \| lattice \| \S+ \(.*\) \| 1.00 .* \| 100.00 % \| \d+ \|"
    assert re.search(row, capsys.readouterr().out)
    assert {(preset, size) for preset, size, _ in crf.GPU_CASES} == {
        (p, s) for p in ("v1", "v2") for s in (321, 513)
    }


def test_receptive_field(run, capsys):
    saved = run("receptive_field", "--repetitions", "1", "--save")
    assert all(0 < arm["low"] <= arm["median"] <= arm["high"] for arm in saved["measured"].values())
    assert "| click on a branch | " in capsys.readouterr().out
    assert {"257 px: click", "257 px: gradient"} <= set(saved["measured"])


def test_explorers(run, capsys):
    saved = run("explorers", "--repetitions", "1", "--save")["measured"]
    assert len(saved) == 9 and all(times for kinds in saved.values() for times in kinds.values())
    assert "| CRF, theta_beta at 128 px | " in capsys.readouterr().out


@pytest.mark.parametrize("installed", [True, False])
def test_torchlens_is_asked_where_it_is_installed(timing, monkeypatch, installed):
    import receptive_field

    monkeypatch.setattr(receptive_field.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(receptive_field, "ask_torchlens", lambda: {"trace": 2.0, "click": 1.0})
    monkeypatch.setattr(receptive_field, "interleave", lambda arms, repetitions: {})
    expected = {"257 px: TorchLens, trace": [2.0] * 3, "257 px: TorchLens, click": [1.0] * 3}
    assert receptive_field.rivals(3) == (expected if installed else {})


def test_arms_take_turns_and_a_first_call_is_not_counted(timing):
    calls: list[str] = []
    seconds = timing.interleave({name: lambda name=name: calls.append(name) for name in "AB"}, 3)
    assert "".join(calls) == "AB" + "ABBAAB"
    assert {name: len(values) for name, values in seconds.items()} == {"A": 3, "B": 3}


def test_quartiles_and_ratios_by_hand(timing):
    assert timing.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert timing.quartiles([7.0]) == (7.0, 7.0, 7.0)
    low, middle, high = timing.ratio([2.0, 3.0, 4.0], [4.0, 4.0, 4.0])
    assert (low, middle, high) == (0.625, 0.75, 0.875)


def test_a_table_is_markdown(timing):
    assert timing.table(["a", "b"], [("x", 1)]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.parametrize("repetitions", ["0", "-3"])
def test_no_repetitions_are_refused(timing, monkeypatch, capsys, repetitions):
    monkeypatch.setattr(sys, "argv", ["scenes.py", f"--repetitions={repetitions}"])
    with pytest.raises(SystemExit):
        timing.parse("", 5)
    assert "--repetitions is a positive number" in capsys.readouterr().err


@pytest.mark.slow
def test_models(run, capsys):
    saved = run("models", "--repetitions", "1", "--save")["measured"]
    assert len(saved) == 3
    for result in saved.values():
        assert {len(result[kind][arm]) for kind in ("forward", "training_step") for arm in result[kind]} == {
            1
        }
        assert all(value > 0 for value in result["peak MiB"].values())
    assert "speed forward" in capsys.readouterr().out


def test_networks_that_differ_are_not_timed(timing):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install segmentation-models-pytorch")
    import models

    torch.manual_seed(0)
    one, other = (torch.nn.Conv2d(3, 4, 1) for _ in range(2))
    with pytest.raises(RuntimeError, match="the arms are not the same network"):
        models.check_equal(one, other)
    models.share_weights(one, other)
    models.check_equal(one, other)


# --- the page of all benchmarks ------------------------------------------------------------------------


@pytest.fixture
def report(timing):
    import report

    return report


def test_the_page_shows_what_is_recorded(report):
    """After `make benchmarks`, or a record taken anew, `python benchmarks/report.py` writes the page again."""
    written = report.PAGE.read_text()
    for name in report.SECTIONS:
        assert report.section(name) in written, (
            f"docs/benchmarks.md is older than results/benchmark_{name}.json"
        )
    assert report.on_a_gpu() in written, "docs/benchmarks.md is older than results/full_size_*.json"


def test_every_benchmark_has_a_section(report):
    helpers = {"all", "report", "timing", "torchlens_arm"}
    on_a_gpu = {"full_size_speed"}  # of docs/on-a-gpu.md: it has no place among measurements on a CPU
    scripts = {p.stem for p in BENCHMARKS.glob("*.py")} - helpers - on_a_gpu
    assert scripts == report.SECTIONS.keys()


def test_what_is_not_recorded_is_said_with_its_command(report, monkeypatch, tmp_path):
    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    assert report.section("models").endswith("Not recorded yet: `python benchmarks/models.py --save`.")


def test_runs_on_a_gpu_by_hand(report, monkeypatch, tmp_path):
    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    assert report.full_size_table() == "Not recorded yet: docs/on-a-gpu.md."
    result = {"model": "fcn8s", "backbone": "tiny", "recipe": {"batch_size": 4}, "image_size": 65}
    result |= {"devices": ["a GPU", "a GPU"], "date": "2026-01-02", "machine": {"versions": {"torch": "2.x"}}}
    result["measured"] = {"images_per_second": [10.0, 20.0], "peak_gib": [1.0, 1.5]}
    (tmp_path / "full_size_fcn8s.tiny.json").write_text(json.dumps(result))
    assert "\n| fcn8s, tiny | a GPU | 2.x | 4 x 65 px | 15 | 1.2 | 2026-01-02 |\n" in report.full_size_table()
    del result["measured"]["peak_gib"]
    (tmp_path / "full_size_fcn8s.tiny.json").write_text(json.dumps(result))
    assert "| 15 | not measured |" in report.full_size_table()


def test_measured_at_full_size_by_hand(report, monkeypatch, tmp_path):
    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    arm = {"step": [0.1, 0.2, 0.4], "forward": [0.05], "peak_gib": [2.0, 3.0], "batch": 32, "size": 321}
    arms = {
        "quick": arm | {"compiling": 60.0, "compiled": 0.1},
        "never": arm | {"compiling": 9.0, "compiled": 0.3},
    }
    save_result("benchmark_full_size", "python x.py", PROFILES["gpu"], arms)
    quick, never = [line for line in report.on_a_gpu().splitlines() if "32 x 321 px" in line]
    # half of each step saved: the minute is earned in two
    assert (
        quick
        == "| quick | 32 x 321 px | 160 (120 to 240) | 640 (640 to 640) | 3.0 | 320, after 60 s: pays after 2.0 min |"
    )
    assert never.endswith("| 107, after 9 s: never pays |")


def test_what_a_gpu_measured_stands_beside_the_cpu(report, monkeypatch, tmp_path):
    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    for file, seconds in {"crf": 2.0, "crf.gpu": 0.5}.items():
        arms = {"seconds": {"attention": [seconds], "lattice": [2 * seconds]}, "preset": "v1", "size": 321}
        arms |= {"megabytes": {"attention": 10, "lattice": 20}, "agree": {"attention": 1.0, "lattice": 0.995}}
        save_result(f"benchmark_{file}", f"python {file}.py", PROFILES["cpu"], [arms])
    on_cpu, on_gpu = report.section("crf").split("The same on a GPU:")
    assert "| v1, 321 px | lattice | 4 (4 to 4) | 2.00 (2.00 to 2.00) | 99.50 % | 20 |" in on_cpu
    assert "| v1, 321 px | lattice | 1 (1 to 1) | 2.00 (2.00 to 2.00) | 99.50 % | 20 |" in on_gpu
    assert "python crf.py" in on_cpu and "python crf.gpu.py" in on_gpu


def test_full_size_speed_keeps_what_was_measured_before(timing, monkeypatch, tmp_path):
    """Two sittings of the same code join; another code's measurements are not mixed with them."""
    import full_size_speed

    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    options = Namespace(models=["fcn8s"], compile=False, repetitions=1, steps=1)
    for arm in ("one", "other"):
        full_size_speed.save(options, {arm: 1})
    assert load_result("benchmark_full_size", folder=tmp_path)["measured"] == {"one": 1, "other": 1}
    monkeypatch.setattr(full_size_speed, "code_digest", lambda: "newer")
    full_size_speed.save(options, {"third": 1})
    assert load_result("benchmark_full_size", folder=tmp_path)["measured"] == {"third": 1}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fcn8s", "deeplab_v3"])
def test_full_size_speed_on_a_cpu(model, timing, monkeypatch, tmp_path, capsys):
    import full_size_speed

    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    fewer = {"resnet50": full_size_speed.RIVALS["resnet50"]}
    monkeypatch.setattr(full_size_speed, "RIVALS", fewer)  # ResNet-101 takes minutes
    words = f"x --models {model} --device cpu --batch-size 2 --steps 1 --repetitions 1 --save"
    monkeypatch.setattr(sys, "argv", words.split())
    full_size_speed.main()
    measured = load_result("benchmark_full_size", folder=tmp_path)["measured"]
    assert len(measured) == (3 if model == "deeplab_v3" else 1)
    assert all(arm["step"][0] > arm["forward"][0] > 0 for arm in measured.values())
    assert f"| {model}, " in capsys.readouterr().out


@pytest.mark.slow
def test_full_size_speed_of_a_compiled_network_on_a_cpu(timing):
    """What --compile adds, on a small trunk; and what its row says of it."""
    import full_size_speed

    recipe = dataclasses.replace(
        PROFILES["gpu"].of("fcn8s", "tiny"), device="cpu", image_size=65, batch_size=2
    )
    build = partial(build_model, "fcn8s", 12, backbone="tiny")
    arm = full_size_speed.Arm(build, recipe, Settings.from_profile(recipe, "fcn8s"))
    measured = full_size_speed.measure(arm, 1) | full_size_speed.compiled(arm, 2)
    assert measured["compiling"] > measured["compiled"] > 0
    lists = {name: [measured.pop(name)] for name in ("step", "forward")}
    row = full_size_speed.row("fcn8s", lists | measured | {"batch": 2, "size": 65})
    assert re.search(r"after \d+ s: (never pays|pays after [\d.]+ min)$", row[-1])


def test_ratios_of_models_by_hand(report):
    seconds = {"ours": [2.0, 2.0], "theirs": [1.0, 1.0]}
    cost = {"parameters": 3_000_000, "multiply-adds": 4e9}
    case = {"forward": seconds, "training_step": {"ours": [1.0, 1.0], "theirs": [4.0, 4.0]}}
    case |= {"peak MiB": {"ours": 30, "theirs": 20}, "cost": cost}
    row = report.models_table({"net": case}).splitlines()[-1]
    assert row == "| net | 0.50 (0.50 to 0.50) | 4.00 (4.00 to 4.00) | 1.50 | 3.00 M, 4.0 G |"


def test_growth_by_hand(report):
    case = {"forward": {"start": [1.0], "arm": [2.0]}, "training_step": {"start": [2.0], "arm": [6.0]}}
    case |= {"multiply_adds": {"start": 10, "arm": 40}, "peak MiB": {"start": 4, "arm": 5}}
    row = report.scaling_table({"side 321": case}).splitlines()[-1]
    assert row == "| side 321 | 4.00 | 2.00 (2.00 to 2.00) | 3.00 (3.00 to 3.00) | 1.25 |"


def test_times_of_notebooks_stand_beside_each_other(report, monkeypatch, tmp_path):
    monkeypatch.setattr("deeplab_edu.results.FOLDER", tmp_path)
    save_result("course.ci", "python x.py", PROFILES["ci"], {"00_start_here": 12.4, "02_fcn": 30.0})
    lines = report.notebook_times().splitlines()
    assert lines[0] == "| notebook | cpu, as committed | ci, one run |"
    assert next(line for line in lines if line.startswith("| 00_start_here")).endswith("| 12 |")
    assert next(line for line in lines if line.startswith("| together")).endswith("| 42 |")
    assert lines[-1].startswith("<sub>")


def test_scaling_changes_one_thing_at_a_time(timing, monkeypatch, capsys):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install segmentation-models-pytorch")
    import scaling

    for name, size in scaling.sizes().items():
        differ = [k for k, v in vars(size).items() if v != getattr(scaling.START, k)]
        assert len(differ) == 1 and name.startswith(differ[0].replace("_", " "))
        assert size.batch > 1, "batch norm behind image pooling cannot train on one picture"
    small = scaling.Size(side=33, batch=2, output_stride=16, classes=3)
    monkeypatch.setattr(scaling, "START", small)
    monkeypatch.setattr(scaling, "CHANGES", {"side": (65,)})
    monkeypatch.setattr(scaling, "peak_memory", lambda size: float(size.side))
    monkeypatch.setattr(
        scaling, "build", lambda size: build_model("deeplab_v3", size.classes, backbone="tiny")
    )
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--repetitions", "1"])
    scaling.main()
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| side 65 |"))
    assert row.endswith("| 1.97 |") and float(row.split("|")[2]) > 2


def test_all_records_the_others_where_one_fails(timing, monkeypatch, capsys):
    import all as everything

    ran = []

    def run(command, **_):
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, int("crf" in command[1]))

    monkeypatch.setattr(everything.subprocess, "run", run)
    monkeypatch.setattr(everything.report, "main", lambda: print("page"))
    monkeypatch.setattr(sys, "argv", ["all.py", "--repetitions", "1", "--only", "crf", "scenes", "course"])
    assert everything.main() == 1
    assert [Path(script).name for script, *_ in ran] == ["crf.py", "scenes.py", "notebooks.py"]
    assert [rest for _, *rest in ran[:2]] == [["--repetitions", "1", "--save"]] * 2
    assert ran[2][1:] == ["course", "--profile", "ci", "--save"]
    assert "page\nfailed, and not recorded: crf" in capsys.readouterr().out
