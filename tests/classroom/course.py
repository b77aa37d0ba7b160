"""A tiny assignment without torch, in which a sandboxed submission takes a tenth of a second, and notebooks for it."""

from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOUBLE = "def double(x):\n    return 2 * x"
HALF = "def half(x):\n    return x / 2"
WORDS = "Because."
TEST = """got = {0}
assert got == {1}, f"{0} is {1}, not {{got!r}}"
### BEGIN HIDDEN TESTS
assert {2} == {3}, "another number"
### END HIDDEN TESTS"""


def graded(source: str, name: str, points: int = 0, answer: bool = False) -> Any:
    data = {"schema_version": 3, "grade_id": name, "grade": points > 0, "solution": answer, "task": False}
    data |= {"locked": not answer} | ({"points": points} if points else {})
    make = new_markdown_cell if points and answer else new_code_cell
    return make(source, id=name.replace("_", "-"), metadata={"nbgrader": data})


def solution(body: str) -> str:
    head, line = body.split("\n")
    return f"{head}\n    ### BEGIN SOLUTION\n{line}\n    ### END SOLUTION"


def toy_notebook() -> Any:
    return new_notebook(
        cells=[
            new_markdown_cell("# Toy", id="title"),
            graded("YEAR = 2026", "given"),
            graded(solution(DOUBLE), "q1_double", answer=True),
            graded(TEST.format("double(3)", "6", "double(-YEAR)", "-2 * YEAR"), "test_q1", points=3),
            graded(solution(HALF), "q2_half", answer=True),
            graded(TEST.format("half(3)", "1.5", "half(5)", "2.5"), "test_q2", points=4),
            graded(WORDS, "q3_why", points=2, answer=True),
        ]
    )


def write_source(folder: Path) -> Path:
    """A folder of sources with the assignment `toy` in it."""
    path = folder / "toy" / "toy.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(toy_notebook(), path)
    return folder


def submission(**answers: str) -> Any:
    """The toy with answers by grade_id, right ones where none is given; `extra` is a cell before all others."""
    notebook = toy_notebook()
    texts = {"q1_double": DOUBLE, "q2_half": HALF} | answers
    for cell in notebook.cells:
        if (name := cell.metadata.get("nbgrader", {}).get("grade_id")) in texts:
            cell.source = texts[name]
    if extra := answers.get("extra"):
        notebook.cells.insert(0, new_code_cell(extra))
    return notebook
