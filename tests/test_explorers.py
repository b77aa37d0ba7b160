"""Explorers: silent outside a notebook, alive inside one."""

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from deeplab_edu.explorers import live_curve

TRAINING = """
from pathlib import Path
from deeplab_edu.explorers import live_curve
from deeplab_edu.training import History
update = live_curve("FCN-8s")
history = History(Path("run"))
shown = []
for step, loss in ((10, 2.0), (20, 1.5)):
    history.steps.append(step)
    history.loss.append(loss)
    update(history)
"""
LOOK = """
import matplotlib.pyplot as plt
figure = update.__closure__[update.__code__.co_freevars.index("figure")].cell_contents
(line,) = figure.axes[0].lines
print(line.get_xydata().tolist(), figure.axes[0].get_title(loc="left"), plt.get_fignums())
"""


def test_there_is_no_live_curve_outside_a_notebook():
    assert live_curve("FCN-8s") is None


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list:
    """Three executed cells: a curve of two updates, a look at its figure, a curve of the first update only."""
    sources = ["from deeplab_edu.figures import use_style; use_style()" + TRAINING, LOOK]
    sources.append(TRAINING.replace(", (20, 1.5)", ","))
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
