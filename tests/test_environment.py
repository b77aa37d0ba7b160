"""One list of dependencies in four places: pyproject.toml, constraints.txt, environment.yml, the environment check."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deeplab_edu import environment

TOP = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
CONDA = (TOP / "environment.yml").read_text()
PINS = {
    canonicalize_name(pin.name): pin
    for line in (TOP / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
    for pin in [Requirement(line)]
}
DIRECT = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in group] for name, group in PROJECT["optional-dependencies"].items()
}
EVERY = [*DIRECT, *(requirement for group in EXTRAS.values() for requirement in group)]


def conda_requirements() -> dict[str, Requirement]:
    """What environment.yml asks pip for, by name."""
    listed = yaml.safe_load(CONDA)["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    return {r.name: r for r in (Requirement(line) for line in pip if not line.startswith("-"))}


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    wanted = [*DIRECT, *EXTRAS["dev"], *EXTRAS["crf"]]
    assert {name: (str(r.specifier), str(r.marker)) for name, r in conda_requirements().items()} == {
        r.name: (str(r.specifier), str(r.marker)) for r in wanted
    }


@pytest.mark.parametrize(
    "name", ["jupyterlab", "torch", "torchvision", "matplotlib", "ipywidgets", "nbval", "pydensecrf2"]
)
def test_the_course_names_its_foundations(name: str) -> None:
    assert name in conda_requirements()
    assert name in {r.name for r in EVERY}


def test_every_line_of_environment_yml_says_what_it_is_for() -> None:
    lines = [
        line for line in CONDA.splitlines() if line.lstrip().startswith("- ") and line.strip() != "- pip:"
    ]
    assert len(lines) > 25
    assert [line for line in lines if not re.search(r" # \w.{3,}", line)] == []


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    for requirement in EVERY:
        pin = PINS[canonicalize_name(requirement.name)]
        version = re.fullmatch(r"==([\w.]+)", str(pin.specifier))
        assert version, f"{pin} is not an exact pin"
        assert requirement.specifier.contains(version[1]), f"{pin} is outside {requirement}"


@pytest.mark.parametrize("name", ["constraints.txt", "environment.yml", "pyproject.toml", "tools/setup.sh"])
def test_no_index_is_named(name: str) -> None:
    text = (TOP / name).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


def test_environment_check_asks_for_what_pyproject_asks_for() -> None:
    least = {r.name: str(r.specifier) for r in DIRECT}
    assert {name: f">={version}" for name, version in environment.NEEDED.items()}.items() <= least.items()
    assert PROJECT["requires-python"] == ">=" + ".".join(map(str, environment.PYTHON))


def test_makefile_has_the_documented_targets() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    shown = subprocess.run(["make", "help"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make ([\w-]+)", shown, re.MULTILINE))
    documented = {
        "help",
        "lab",
        "test",
        "test-all",
        "course",
        "gpu-course",
        "site",
        "benchmarks",
        "stale",
        "format",
        "lint",
        "crf",
        "clean",
    }
    assert targets == documented
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([\w-]+)`", (TOP / document).read_text())) <= targets


@pytest.mark.required_in_ci
def test_pydensecrf_can_be_imported() -> None:
    densecrf = pytest.importorskip(
        "pydensecrf.densecrf", reason="pydensecrf is not installed; `make crf` tries to build it"
    )
    assert densecrf.DenseCRF2D(4, 3, 2).inference(1) is not None
