"""Profiles: chosen by one variable, complete, and not to be changed by accident."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from deeplab_edu.models import MODELS, build_model
from deeplab_edu.profiles import PROFILES, SEED, THREADS, VARIABLE, Profile, bf16_is_fast, runs_folder
from deeplab_edu.training import Settings, differing_fields

NUMBERS = ("threads", "image_size", "train_scenes", "val_scenes", "batch_size", "iterations", "learning_rate")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable set by whoever runs the tests, and torch's threads as they were before."""
    threads = torch.get_num_threads()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.delenv(SEED, raising=False)
    yield
    torch.set_num_threads(threads)


def test_the_default_is_cpu():
    assert Profile.load() is PROFILES["cpu"]


def test_the_variable_chooses_and_an_argument_overrides_it(monkeypatch):
    monkeypatch.setenv(VARIABLE, "ci")
    assert Profile.load().name == "ci"
    assert Profile.load("cpu").name == "cpu"


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert Profile.load().name == "cpu"


@pytest.mark.parametrize("where", ["argument", "variable"])
def test_an_unknown_name_lists_the_choices(where, monkeypatch):
    if where == "variable":
        monkeypatch.setenv(VARIABLE, "laptop")
    with pytest.raises(ValueError, match=f"Unknown profile 'laptop'; set {VARIABLE} to one of ci, cpu, gpu."):
        Profile.load("laptop" if where == "argument" else None)


def test_gpu_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=r"needs a CUDA device .* set DEEPLAB_EDU_PROFILE=cpu"):
        Profile.load("gpu")
    assert torch.get_num_threads() == before


def test_threads_are_the_profile_s_unless_the_variable_says_otherwise(monkeypatch):
    torch.set_num_threads(2)
    Profile.load("ci")
    assert torch.get_num_threads() == PROFILES["ci"].threads == 1
    monkeypatch.setenv(THREADS, "3")
    Profile.load("ci")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_threads_is_refused(wrong, monkeypatch):
    monkeypatch.setenv(THREADS, wrong)
    with pytest.raises(ValueError, match=rf"{THREADS} is '{wrong}'; set it to a positive number"):
        Profile.load("ci")


def test_the_seed_is_zero_unless_the_variable_says_otherwise(monkeypatch):
    assert Profile.load("ci").seed == Settings.from_profile(Profile.load("ci")).seed == 0
    monkeypatch.setenv(SEED, "2")
    assert Settings.from_profile(Profile.load("ci")).seed == 2
    assert PROFILES["ci"].seed == 0


@pytest.mark.parametrize("wrong", ["-1", "one", "0.5"])
def test_a_wrong_seed_is_refused(wrong, monkeypatch):
    monkeypatch.setenv(SEED, wrong)
    with pytest.raises(ValueError, match=rf"{SEED} is '{wrong}'; set it to a whole number from 0 up"):
        Profile.load("ci")


@pytest.mark.parametrize("name", MODELS)
def test_the_recipe_of_one_model_at_full_size(name):
    gpu, recipe = PROFILES["gpu"], PROFILES["gpu"].of(name)
    assert recipe.options(name) == gpu.options(name)
    assert recipe.image_size == (513 if name in ("deeplab_v3", "deeplab_v3plus") else 321)
    assert recipe.iterations * recipe.batch_size >= recipe.train_scenes
    settings = Settings.from_profile(recipe)
    assert settings.ema == 0.999 and settings.batch_size == recipe.batch_size
    assert PROFILES["cpu"].of(name).image_size == PROFILES["cpu"].image_size


def test_another_backbone_changes_nothing_else():
    recipe, other = PROFILES["gpu"].of("deeplab_v3"), PROFILES["gpu"].of("deeplab_v3", "resnet101")
    assert other.options("deeplab_v3") == {"backbone": "resnet101"}
    assert dataclasses.replace(other, model_options=recipe.model_options) == recipe


def test_a_profile_cannot_be_changed():
    profile = Profile.load("ci")
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.iterations = 1
    for mapping in (profile.model_options, profile.accept, profile.minutes):
        if mapping:
            with pytest.raises(TypeError):
                mapping["new"] = 1


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_what_notebooks_use(name):
    profile = PROFILES[name]
    assert profile.name == name
    assert all(getattr(profile, number) > 0 for number in NUMBERS)
    assert profile.device == ("cuda" if name == "gpu" else "cpu")
    assert profile.image_size % 32 == 0 or name == "gpu"  # whole units of the coarsest map
    assert profile.iterations * profile.batch_size >= profile.train_scenes  # every scene is seen
    with torch.device("meta"):
        for model_name in MODELS:
            model = build_model(model_name, num_classes=12, **profile.options(model_name)).eval()
            assert model(torch.empty(1, 3, 64, 64)).shape == (1, 12, 64, 64)


def test_a_model_may_have_a_recipe_of_its_own():
    profile = dataclasses.replace(PROFILES["cpu"], recipe_of={"deeplab_v3plus": {"warmup": 7}})
    usual, own = (Settings.from_profile(profile, name) for name in ("deeplab_v3", "deeplab_v3plus"))
    assert differing_fields(usual, own) == {"warmup"} and own.warmup == 7
    assert usual == Settings.from_profile(profile)
    assert Settings.from_profile(profile, "deeplab_v3plus", warmup=9).warmup == 9
    for profile in PROFILES.values():
        for name, recipe in profile.recipe_of.items():
            assert name in MODELS
            assert Settings.from_profile(profile, name) == Settings.from_profile(profile, **recipe)


def test_profiles_agree_on_what_they_promise():
    """A notebook that asks for a threshold or a time finds it in each profile, or in none."""
    assert len({frozenset(p.accept) for p in PROFILES.values()}) == 1
    assert PROFILES["ci"].minutes.keys() == PROFILES["cpu"].minutes.keys()
    assert all(minutes <= 1 for minutes in PROFILES["ci"].minutes.values())
    assert all(minutes <= 10 for minutes in PROFILES["cpu"].minutes.values())


def test_ci_is_quiet_and_smaller_than_cpu_and_cpu_than_gpu():
    ci, cpu, gpu = (PROFILES[name] for name in ("ci", "cpu", "gpu"))
    assert ci.quiet and not cpu.quiet
    assert ci.image_size < cpu.image_size < gpu.image_size
    assert ci.iterations < cpu.iterations < gpu.iterations


def test_the_banner_names_profile_device_precision_and_time():
    profile = dataclasses.replace(Profile.load("ci"), minutes={"02_fcn": 0.5})
    banner = profile.banner("02_fcn")
    assert banner == "Profile ci: CPU, 1 thread, float32; this notebook takes about 0.5 min."
    assert "time not measured yet" in profile.banner("99_unknown")
    torch.set_num_threads(2)
    assert "CPU, 2 threads," in profile.banner("02_fcn")


def test_the_banner_s_precision_is_what_the_hardware_does_well(monkeypatch):
    profile = PROFILES["cpu"]
    for fast, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("deeplab_edu.profiles.bf16_is_fast", lambda fast=fast: fast)
        assert profile.dtype_name == name
    assert PROFILES["ci"].dtype_name == "float32"
    assert isinstance(bf16_is_fast(), bool)


def test_runs_go_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPLAB_EDU_RUNS", str(tmp_path / "here"))
    assert runs_folder() == tmp_path / "here"
    monkeypatch.delenv("DEEPLAB_EDU_RUNS")
    assert runs_folder().name == "runs" and (runs_folder().parent / "pyproject.toml").exists()
