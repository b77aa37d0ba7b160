"""Every folded solution that holds code runs, after its notebook, in profile ci."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell

import notebooks as tool

PAGES = sorted(tool.NOTEBOOKS.glob("*.ipynb"))


def solutions(notebook) -> list[str]:
    """The fenced Python inside <details> of the notebook's markdown."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    folded = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    return [code for block in folded for code in re.findall(r"```python\n(.*?)```", block, re.DOTALL)]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_solutions_run(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    found = solutions(notebook)
    assert found, "no folded solution holds code"
    notebook.cells += [new_code_cell(code) for code in found]
    copy = tmp_path / path.name
    nbformat.write(notebook, copy)
    with tool.kernel_environment("ci"):
        done = tool.run(copy, "ci", limit=900)  # raises NotebookFailed with the traceback
    assert all(cell.execution_count for cell in done.cells[-len(found) :])
