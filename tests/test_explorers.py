"""Explorers: silent outside a notebook, alive inside one."""

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from deeplab_edu.explorers import live_curve

START = """
from pathlib import Path
import matplotlib.pyplot as plt
from deeplab_edu import explorers
from deeplab_edu.figures import draw_history, use_style
from deeplab_edu.training import History

def spy(ax, *rest):
    axes.append(ax)
    return draw_history(ax, *rest)

use_style()
explorers.draw_history = spy

def train(*losses):
    update = explorers.live_curve("FCN-8s")
    history = History(Path("run"))
    for loss in losses:
        history.steps.append(10 * len(history.steps) + 10)
        history.loss.append(loss)
        update(history)

axes = []
train(2.0, 1.5)
"""
LOOK = """
(line,) = axes[-1].lines
print(line.get_xydata().tolist(), axes[-1].get_title(loc="left"), plt.get_fignums())
"""


def test_there_is_no_live_curve_outside_a_notebook():
    assert live_curve("FCN-8s") is None


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list:
    """Executed cells: a curve of two updates, a look at it, a curve of one update, one of none, a quiet one."""
    sources = [START, LOOK, "train(2.0)", "train()", "print(explorers.live_curve('FCN-8s', quiet=True))"]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("kernel"))}}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources)
    return client.execute().cells


def test_one_picture_is_kept_and_it_is_the_last(cells):
    """`update` replaces the picture in place: one output, which is the finished curve and not an empty plot."""
    (output,) = cells[0].outputs
    assert output.output_type == "display_data"
    assert "image/png" in output.data
    (looked,) = cells[1].outputs
    assert looked.text == "[[10.0, 2.0], [20.0, 1.5]] FCN-8s: step 20, loss 1.50 []\n"


def test_the_picture_changes_with_each_update(cells):
    (two,), (one,) = cells[0].outputs, cells[2].outputs
    assert one.data["image/png"] != two.data["image/png"]


def test_a_run_that_is_loaded_shows_nothing(cells):
    assert cells[3].outputs == []


def test_a_quiet_profile_has_no_curve(cells):
    assert cells[4].outputs[0].text == "None\n"
