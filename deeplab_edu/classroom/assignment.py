"""An assignment: one source notebook with solutions and hidden tests, in nbgrader's cell format (schema 3).

========  ===================================================  =================================================
cell      metadata.nbgrader                                    what becomes of it
========  ===================================================  =================================================
answer    solution                                             the student's; the solution is cut out
test      grade, points                                        run outside the student's process; hidden part cut
given     locked                                               run first, the same for everybody
demo      locked, tag "demo"                                   a picture or a try: never run when grading
open      solution and grade, points; markdown                 words, graded by a person
========  ===================================================  =================================================

In an answer, what lies between `### BEGIN SOLUTION` and `### END SOLUTION` becomes a stub that raises
NotImplementedError; or, if `### BEGIN HANDOUT` follows, the commented lines between that and `### END HANDOUT`: broken
code to mend, a number to fill in. In a test, `### BEGIN HIDDEN TESTS` to `### END HIDDEN TESTS` is cut out.
"""

import ast
import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

SOURCES = Path(__file__).resolve().parents[2] / "notebooks" / "assignments" / "source"

REFUSED = (
    *("deeplab_edu.models", "deeplab_edu.metrics", "deeplab_edu.crf", "deeplab_edu.receptive_field"),
    *("deeplab_edu.inference", "deeplab_edu.training", "deeplab_edu.classroom"),
    *("torchvision.models.segmentation", "segmentation_models_pytorch"),
    *("torchmetrics", "timm", "sklearn", "pydensecrf"),
)
"""What a submission may not import, since it holds answers. The sandbox does not have them either."""

SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION *\n.*?^[ \t]*### END SOLUTION *(?:\n|\Z)", re.M | re.S)
HANDOUT = re.compile(r"^[ \t]*### BEGIN HANDOUT *\n(.*?)^[ \t]*### END HANDOUT *(?:\n|\Z)", re.M | re.S)
HIDDEN = re.compile(
    r"^[ \t]*### BEGIN HIDDEN TESTS *\n.*?^[ \t]*### END HIDDEN TESTS *(?:\n|\Z)", re.M | re.S
)
MARKER = re.compile(r"^[ \t]*###? *(BEGIN|END)\b", re.M)
YEAR = re.compile(r"^YEAR = \d+", re.M)


class AssignmentError(ValueError):
    """A source notebook or an argument is wrong; the message says what to do."""


@dataclass(frozen=True)
class Assignment:
    """A source notebook, with the views of it that release and grading need."""

    name: str
    notebook: Any  # nbformat.NotebookNode, whose attributes mypy can't know

    def cells(self, kind: str) -> list[Any]:
        return [cell for cell in self.notebook.cells if kind_of(cell) == kind]

    @property
    def points(self) -> dict[str, float]:
        """Points of each test, in order."""
        return {id_of(cell): cell.metadata.nbgrader.points for cell in self.cells("test")}

    @property
    def by_hand(self) -> dict[str, float]:
        """Points of each open question."""
        return {id_of(cell): cell.metadata.nbgrader.points for cell in self.cells("open")}

    @property
    def answers(self) -> dict[str, set[str]]:
        """The names that tests may ask for, by the answer that defines them."""
        return {id_of(cell): defined_names(cell.source) for cell in self.cells("answer")}


def find(
    name: str, folder: Path | None = None, year: int | None = None, hidden: Path | None = None
) -> Assignment:
    """The assignment `name` of `folder` (the course's own by default).

    Args:
        year: replaces `YEAR = ...`, from which an assignment draws its numbers.
        hidden: a folder whose `<name>.py` holds more hidden tests, private ones: after each line `# %% test_id` the
            code to add to that test.

    Raises:
        AssignmentError: no such assignment, or it or the hidden tests are malformed.
    """
    folder = SOURCES if folder is None else Path(folder)
    path = folder / name / f"{name}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in folder.glob("*/*.ipynb"))) or "none"
        raise AssignmentError(f"There is no assignment {name!r} in {folder}; there: {known}.")
    notebook = nbformat.read(path, as_version=4)
    if year is not None:
        _set_year(notebook, year)
    assignment = Assignment(name, notebook)
    _check(assignment)
    if hidden is not None:
        _add_hidden_tests(assignment, Path(hidden) / f"{name}.py")
    return assignment


def _set_year(notebook: Any, year: int) -> None:
    cells = [cell for cell in notebook.cells if kind_of(cell) == "given" and YEAR.search(cell.source)]
    if len(cells) != 1:
        raise AssignmentError("No single given cell holds a line `YEAR = ...`, so the year can't be set.")
    cells[0].source = YEAR.sub(f"YEAR = {year:d}", cells[0].source)


def _check(assignment: Assignment) -> None:
    ids = [id_of(cell) for cell in assignment.notebook.cells if kind_of(cell)]
    if doubled := sorted({i for i in ids if ids.count(i) > 1}):
        raise AssignmentError(f"{assignment.name}: the grade_id {doubled[0]!r} is used twice.")
    for cell in assignment.notebook.cells:
        kind = kind_of(cell)
        if "BEGIN SOLUTION" in cell.source and kind not in ("answer", "open"):
            raise AssignmentError(f"{assignment.name}: a solution stands in a cell that is no answer.")
        if "BEGIN HIDDEN" in cell.source and kind != "test":
            raise AssignmentError(f"{assignment.name}: hidden tests stand in a cell that is no test.")
        if kind in ("test", "open") and not cell.metadata.nbgrader.get("points", 0) > 0:
            raise AssignmentError(f"{assignment.name}: {id_of(cell)!r} has no points.")


def _add_hidden_tests(assignment: Assignment, path: Path) -> None:
    if not path.is_file():
        raise AssignmentError(f"There are no hidden tests in {path}.")
    parts = re.split(r"^# %% +(\w+) *\n", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    tests = {id_of(cell): cell for cell in assignment.cells("test")}
    for name, code in zip(parts[::2], parts[1::2], strict=True):
        if name not in tests:
            raise AssignmentError(f"{path} has tests for {name!r}; {assignment.name} has {', '.join(tests)}.")
        tests[name].source += f"\n### BEGIN HIDDEN TESTS\n{code.rstrip()}\n### END HIDDEN TESTS"


# --- cells ---------------------------------------------------------------------------------------


def id_of(cell: Any) -> str:
    """The cell's grade_id, or "" if it has none; any notebook's cell, however odd its metadata."""
    data = cell.metadata.get("nbgrader", {})
    name = data.get("grade_id", "") if isinstance(data, dict) else ""
    return name if isinstance(name, str) else ""


def kind_of(cell: Any) -> str:
    """ "answer", "test", "given", "demo" or "open" (see the module's table); "" for a cell without grade_id."""
    if not id_of(cell):
        return ""
    data = cell.metadata.nbgrader
    if data.get("solution"):
        return "open" if data.get("grade") else "answer"
    if data.get("grade"):
        return "test"
    return "demo" if "demo" in cell.metadata.get("tags", []) or cell.cell_type != "code" else "given"


def defined_names(source: str) -> set[str]:
    """Names that a cell's top level defines: functions, classes and assigned variables."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


def refused(imported: Iterable[str]) -> list[str]:
    """Those of the imported modules that hold answers."""
    return sorted({name for name in imported for bad in REFUSED if f"{name}.".startswith(f"{bad}.")})


# --- the students' version -----------------------------------------------------------------------


def release(assignment: Assignment) -> Any:
    """The notebook for the students: no solution, no hidden test, no output; a copy.

    Raises:
        AssignmentError: a line of a solution stands elsewhere too, in a test or in the text; or a marker without its
            other half.
    """
    notebook = copy.deepcopy(assignment.notebook)
    for cell in notebook.cells:
        cell.source = _without_answers(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if kind_of(cell) in ("test", "given", "demo"):
            cell.metadata["editable"] = cell.metadata["deletable"] = False
    if any(MARKER.search(cell.source) for cell in notebook.cells):
        raise AssignmentError(
            f"{assignment.name}: a `### BEGIN ...` or `### END ...` stands alone or is misspelt."
        )
    left = {line.strip() for cell in notebook.cells for line in cell.source.splitlines()}
    if shown := sorted(left & solution_lines(assignment)):
        raise AssignmentError(f"{assignment.name}: this line of a solution would be handed out: {shown[0]}")
    notebook.metadata["deeplab_edu"] = {"assignment": assignment.name}
    return notebook


def _without_answers(cell: Any) -> str:
    if kind_of(cell) == "open":
        return "*Your answer here.*"
    text = HIDDEN.sub("", cell.source)
    if not HANDOUT.search(text):
        return SOLUTION.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError\n", text).rstrip()
    text = SOLUTION.sub("", text)
    return HANDOUT.sub(lambda found: re.sub(r"^([ \t]*)# ?", r"\1", found[1], flags=re.M), text).rstrip()


def solution_lines(assignment: Assignment) -> set[str]:
    """The lines of solutions that tell something: not `step *= stride` and heads of loops."""
    cells = assignment.cells("answer")
    regions = [found[0] for cell in cells for found in SOLUTION.finditer(cell.source)]
    lines = {line.strip() for region in regions for line in region.splitlines()}
    return {line for line in lines if len(line) > 20 and not line.startswith("###") and line[-1] != ":"}
