"""The command that trains a model at full size: measured first, restartable, one result for all seeds."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import MODELS, build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import show_full_size
from deeplab_edu.training import Settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import full_size

QUICK = "--backbone tiny --device cpu --steps 2 --batch-size 2 --test-scenes 2 --timed 1 1 --minutes 60"


@pytest.fixture
def command(tmp_path):
    """Runs the command for FCN-8s with a tiny trunk, on a CPU, into a temporary folder; returns its result."""

    def run(*changes: str, model: str = "fcn8s", options: str = QUICK) -> dict:
        folders = ["--into", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
        full_size.main(["--model", model, *options.split(), *folders, *changes])
        (path,) = (tmp_path / "results").glob(f"full_size_{model}.*.json")
        return json.loads(path.read_text())

    return run


def test_seeds_join_in_one_result_that_notebooks_show(command, tmp_path, capsys):
    for seed in ("2", "0", "2"):
        again = command("--seed", seed, "--test-scenes", "15")
    assert again["seeds"] == [0, 2] and again["devices"] == ["cpu", "cpu"]
    assert {len(values) for values in again["measured"].values()} == {2}
    assert again["recipe"]["ema"] == 0.999 and again["recipe"]["batch_size"] == 2
    assert again["parameters"] == sum(
        p.numel() for p in build_model("fcn8s", 12, backbone="tiny").parameters()
    )
    assert again["measured"]["steps"] == [2, 2] and again["profile"] == "gpu"
    assert (
        again["command"]
        == "python experiments/full_size.py --model fcn8s --backbone tiny --seed 2 --minutes 60"
    )
    capsys.readouterr()
    show_full_size("fcn8s", folder=tmp_path / "results")
    printed = capsys.readouterr().out
    assert "fcn8s on tiny" in printed and "2 seeds (0, 2)" in printed and "memory not measured" in printed
    (picture,) = (tmp_path / "results").glob("*.png")
    assert picture.stat().st_size < 300_000 and Image.open(picture).width > 600


def test_an_interrupted_run_keeps_its_number_of_steps(command, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(full_size, "evaluate", stop)
        command()
    plan = json.loads(next(tmp_path.glob("runs/*/plan.json")).read_text())
    monkeypatch.setattr(full_size, "seconds_a_step", stop)  # nothing is measured again, whatever is asked for
    measured = command("--steps", "1")["measured"]
    assert plan["steps"] == 2 and measured["steps"] == [2]


def test_measuring_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = build_model("fcn8s", 12, backbone="tiny", width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = SceneDataset("full", size=64, length=8)
    measured = full_size.measure(model, data, Settings(batch_size=2), (1, 1))
    assert measured["images_per_second"] > 0 and measured["batch_size"] == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, capsys):
    def seconds(model, data, settings, *steps):
        if settings.batch_size > 8:
            raise torch.cuda.OutOfMemoryError
        return 0.5

    monkeypatch.setattr(full_size, "seconds_a_step", seconds)
    model = build_model("fcn8s", 12, backbone="tiny", width=4)
    measured = full_size.measure(model, None, Settings(batch_size=32), (1, 1))
    assert (measured["batch_size"], measured["images_per_second"]) == (8, 16)
    assert "trying batches of 8" in capsys.readouterr().out
    monkeypatch.setattr(full_size, "seconds_a_step", lambda *a: seconds(None, None, Settings(batch_size=32)))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        full_size.measure(model, None, Settings(batch_size=32), (1, 1))


def test_steps_that_fit_by_hand():
    assert full_size.fitting_steps(160.0, 32, 400.0, 4000) == 2000
    assert full_size.fitting_steps(160.0, 32, 4000.0, 4000) == 4000
    with pytest.raises(ValueError, match=r"Not one step fits into the 0 s that are left; raise --minutes\."):
        full_size.fitting_steps(160.0, 32, -3.0, 4000)


def test_the_plan_keeps_within_its_minutes(monkeypatch, tmp_path):
    """At 100 images a second, 8 minutes less the reserve and the scoring of 500 scenes."""
    fake = {"batch_size": 32, "images_per_second": 100.0, "peak_gib": None, "device": "cpu"}
    monkeypatch.setattr(full_size, "measure", lambda *arguments: fake)
    monkeypatch.setattr(full_size, "BEGAN", full_size.time.perf_counter() - 60)
    options = Namespace(timed=(1, 1), test_scenes=500, minutes=8)
    plan = full_size.make_plan(tmp_path, None, None, Settings(iterations=4000), options)
    assert plan.steps == pytest.approx((8 * 60 * 0.9 - 5 - 60) * 100 / 32, abs=2)
    assert plan.minutes == 8 and plan.batch_size == 32


@pytest.mark.parametrize("changed", ["--learning-rate=0.01", "--minutes=30", "code"])
def test_seeds_of_another_recipe_or_code_are_not_joined(changed, command, monkeypatch):
    command()
    if changed == "code":
        monkeypatch.setattr(full_size, "code_digest", lambda: "other")
    name = {"--learning-rate=0.01": "recipe", "--minutes=30": "minutes", "code": "code"}[changed]
    options = ["--seed", "1", *[changed] * (changed != "code")]
    with pytest.raises(
        ValueError, match=rf"holds seeds of another run \(different: {name}\); --replace begins"
    ):
        command(*options)
    assert command(*options, "--replace")["seeds"] == [1]


def test_a_result_that_cannot_be_joined_is_refused_before_anything_is_measured(command, monkeypatch):
    command()

    def measure(*arguments):
        raise AssertionError("measured first")

    monkeypatch.setattr(full_size, "measure", measure)
    with pytest.raises(ValueError, match="different: minutes"):
        command("--minutes", "8")


def test_what_a_cpu_computes_is_no_result(capsys):
    with pytest.raises(SystemExit):
        full_size.main(["--model", "fcn8s", "--device", "cpu"])
    assert "what a CPU computes is a trial and no result" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Profile 'gpu' needs a CUDA device and torch sees none"):
        full_size.main(["--model", "fcn8s"])


BARE = """
import sys

MISSING = {"IPython", "ipykernel", "ipywidgets", "anywidget", "jupyter_client", "nbformat", "nbclient", "nbval"}
MISSING |= {"jupytext", "hypothesis", "scipy", "sklearn", "xdist", "pydensecrf", "segmentation_models_pytorch", "yaml"}
sys.modules.update(dict.fromkeys(MISSING))  # None: an import fails
sys.path[:0] = ["experiments", "benchmarks"]
import full_size_speed, full_size
import pytest
plugins = ["-p", "no:nbval", "-p", "no:xdist", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
sys.exit(pytest.main(["--collect-only", "-q", "-m", "gpu", *plugins, "tests/gpu"]))
"""


def test_a_machine_without_jupyter_can_run_all_that_needs_a_gpu():
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    top = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", BARE]
    done = subprocess.run(command, cwd=top, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for model in MODELS:
        assert f"test_steps_at_full_size_in_bfloat16[{model}-" in done.stdout


@pytest.fixture
def gpu_tests(monkeypatch):
    """tests/gpu/test_full_models.py, which believes that the CPU is the GPU."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent / "gpu"))
    module = importlib.import_module("test_full_models")
    monkeypatch.setattr(module, "DEVICE", "cpu")
    return module


@pytest.mark.parametrize("model", MODELS)
def test_what_a_gpu_has_to_show_holds_on_a_cpu_with_small_trunks(model, gpu_tests, monkeypatch):
    recipe = PROFILES["gpu"].of(model, "tiny")
    small = replace(recipe, device="cpu", image_size=65, batch_size=2)
    monkeypatch.setattr(type(recipe), "of", lambda *given: small)
    gpu_tests.test_steps_at_full_size_in_bfloat16(model, "tiny")
    gpu_tests.test_logits_at_full_size_are_those_of_a_cpu(model, "tiny", None)
    gpu_tests.test_gradients_are_those_of_a_cpu(model, "tiny")


RECIPES = [(model, None) for model in MODELS]
RECIPES += [("deeplab_v2", "vgg16_bn"), ("deeplab_v3", "resnet101"), ("deeplab_v3plus", "resnet101")]


@pytest.mark.slow
@pytest.mark.parametrize("model, backbone", RECIPES, ids=lambda value: value or "recipe")
def test_every_recipe_at_full_size_on_a_cpu(model, backbone, command, tmp_path):
    """The path of a GPU but for the device: measured, two steps, average, scores, result and picture."""
    named = ("--backbone", backbone) if backbone else ()
    result = command(*named, model=model, options=QUICK.removeprefix("--backbone tiny "))
    recipe = PROFILES["gpu"].of(model, backbone)
    assert (result["backbone"], result["image_size"]) == (recipe.model_options["backbone"], recipe.image_size)
    assert result["measured"]["steps"] == [2] and result["parameters"] > 20e6
    assert 0 <= result["measured"]["miou"][0] <= 1
    for weights in tmp_path.glob("runs/*/weights.safetensors"):  # half a gigabyte each
        weights.unlink()
