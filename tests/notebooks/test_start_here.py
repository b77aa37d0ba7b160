"""Notebook 00: its stored map is that of the folder, its solutions run, its training can fail."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch.utils.data import Dataset

import notebooks as runner
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES
from deeplab_edu.training import Settings, evaluate, fit
from shuffled import Shuffled

PATH = runner.NOTEBOOKS / "00_start_here.ipynb"


@pytest.fixture(scope="module")
def page() -> Any:
    return nbformat.read(PATH, as_version=4)


def stored_markdown(page: Any) -> str:
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs)


def test_the_stored_map_links_exactly_the_notebooks_of_the_folder(page):
    """Fails when a notebook is added: execute 00 again, it takes a minute."""
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", stored_markdown(page))
    assert linked == [path.name for path in sorted(runner.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]


def first_training(train: Dataset, runs: Path) -> float:
    """The notebook's, in profile ci."""
    settings = Settings(iterations=200, batch_size=16, warmup=10, precision="float32")
    torch.manual_seed(0)
    model = build_model("fcn8s", num_classes=12, backbone="tiny", width=16)
    fit(model, train, None, settings, runs=runs, quiet=True)
    return evaluate(model, SceneDataset("full", "val", size=64, length=48))["miou"]


def test_shuffled_labels_fail_the_acceptance(page, tmp_path):
    settings = "Settings(iterations=200, batch_size=16, warmup=10, precision=profile.precision)"
    assert any(settings in cell.source for cell in page.cells)  # what is tried here is what the notebook does
    train = SceneDataset("full", "train", size=64, length=640)
    assert first_training(Shuffled(train), tmp_path) < PROFILES["ci"].accept["00_first_miou"]


def test_prose_does_not_skip_a_heading_level(page):
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    levels = [
        len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    ]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
