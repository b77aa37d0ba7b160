"""Proof that grading is right, for every assignment of the course.

The source passes its own tests; the students' version holds no solution and scores nothing; each typical mistake loses
exactly its points; right answers written differently lose none. Cells run in this process (`HereChannel`), through the
same messages as in the sandbox, which costs a kernel and an import of torch less each time; a few go the whole way.
"""

import ast
import copy
import importlib.util
import re
from functools import cache
from typing import Any

import nbformat
import pytest
import torch

from deeplab_edu.classroom.assignment import SOURCES, Assignment, defined_names, find, id_of, kind_of, release
from deeplab_edu.classroom.grading import HereChannel, ProcessChannel, grade_notebook
from deeplab_edu.classroom.sandbox import Limits

NAMES = sorted(path.stem for path in SOURCES.glob("*/*.ipynb"))
every = pytest.mark.parametrize("name", NAMES)


@cache
def assignment(name: str) -> Assignment:
    return find(name)


@cache
def about(name: str) -> Any:
    """The module mutants/<name>.py."""
    path = SOURCES.parent / "mutants" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"mutants_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases(table: str) -> list[Any]:
    rows = [(name, row) for name in NAMES for row in getattr(about(name), table)]
    return [pytest.param(name, *row, id=f"{name}: {row[0]}") for name, row in rows]


def points(made: Assignment, notebook: Any) -> dict[str, float]:
    result = grade_notebook(made, notebook, HereChannel, Limits(seconds=60))
    assert not result.reason, result.reason
    return {test: verdict.points for test, verdict in result.verdicts.items()}


def answered(made: Assignment, answers: dict[str, str]) -> Any:
    """The source with some answer cells replaced."""
    notebook = copy.deepcopy(made.notebook)
    known = {id_of(cell): cell for cell in notebook.cells if kind_of(cell) == "answer"}
    for name, source in answers.items():
        known[name].source = source
    return notebook


def test_there_are_assignments() -> None:
    """So that the tests below cannot pass with nothing to look at."""
    assert NAMES


@every
def test_the_source_passes_its_own_tests(name: str) -> None:
    made = assignment(name)
    result = grade_notebook(made, made.notebook, HereChannel, Limits(seconds=60))
    assert {t: (v.points, v.message) for t, v in result.verdicts.items()} == {
        t: (p, "") for t, p in made.points.items()
    }
    assert result.notes == []


@every
def test_the_students_version_holds_no_solution_and_scores_nothing(name: str) -> None:
    made = assignment(name)
    handed_out = release(made)
    text = nbformat.writes(handed_out)
    for word in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "BEGIN HANDOUT"):
        assert word not in text
    for cell in made.notebook.cells:
        for region in re.findall(r"### BEGIN HIDDEN TESTS\n(.*?)### END", cell.source, re.S):
            assert not any(region.strip() in shown.source for shown in handed_out.cells)
    assert set(points(made, handed_out).values()) == {0}


@every
def test_there_are_enough_mutants_and_right_answers(name: str) -> None:
    assert len(about(name).MUTANTS) >= 8
    assert len(about(name).CORRECT) >= 3
    hit = {test for _, _, _, _, lost in about(name).MUTANTS for test, points in lost.items() if points}
    assert hit == set(assignment(name).points), "a test that no mutant fails"


@pytest.mark.parametrize("name, mutant, cell, old, new, lost", cases("MUTANTS"))
def test_a_mutant_loses_exactly_its_points(
    name: str, mutant: str, cell: str, old: str, new: str, lost: dict[str, float]
) -> None:
    made = assignment(name)
    [right] = [c.source for c in made.cells("answer") if id_of(c) == cell]
    assert right.count(old) == 1, "the mutant no longer fits the solution"
    got = points(made, answered(made, {cell: right.replace(old, new)}))
    assert {t: p - got[t] for t, p in made.points.items() if got[t] != p} == {
        t: p for t, p in lost.items() if p
    }


@pytest.mark.parametrize(
    "name, index", [(name, i) for name in NAMES for i in range(len(about(name).CORRECT))]
)
def test_a_right_answer_written_differently_loses_nothing(name: str, index: int) -> None:
    made = assignment(name)
    result = grade_notebook(made, answered(made, about(name).CORRECT[index]), HereChannel, Limits(seconds=60))
    assert {t: (v.points, v.message) for t, v in result.verdicts.items()} == {
        t: (p, "") for t, p in made.points.items()
    }


AGREES = '''
class Agrees:
    """Is called, asked, compared, counted, and always agrees."""
    def __call__(self, *args, **options): return self
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return self
    def __eq__(self, other): return True
    __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = None
    def __len__(self): return 2
    def __float__(self): return 0.5
    def __getitem__(self, index): return self
'''
LAZY = {
    "agrees": "Agrees()",
    "first argument": "(args or [0])[0]",
    "last argument": "(args or [0])[-1]",
    "not a number": "(args or [1.0])[0] * float('nan')",
    "nothing": "None",
    "one": "1.0",
    "empty": "__import__('torch').zeros(0)",
    "refuses": "(_ for _ in ()).throw(ValueError('no'))",
}


@pytest.mark.parametrize("lazy", LAZY)
@every
def test_answers_without_any_work_score_nothing(name: str, lazy: str) -> None:
    made = assignment(name)
    answers = {}
    for cell in made.cells("answer"):
        called = {node.name for node in ast.parse(cell.source).body if hasattr(node, "name")}
        source = [AGREES, "args = ()"]
        for defined in sorted(defined_names(cell.source)):
            shape = f"def {defined}(*args, **options): return " if defined in called else f"{defined} = "
            source.append(shape + (LAZY[lazy] if defined in called or lazy != "refuses" else "[0.5, 0.5]"))
        answers[id_of(cell)] = "\n".join(source)
    assert set(points(made, answered(made, answers)).values()) == {0}


@every
def test_last_years_numbers_are_wrong_this_year(name: str) -> None:
    """Numbers typed in one year, as a student hands them on, are right then and wrong the year after."""
    made, next_year = assignment(name), find(name, year=2027)
    names: dict[str, Any] = {}
    typed = {}
    for cell in made.notebook.cells:
        if kind_of(cell) in ("given", "answer"):
            exec(cell.source, names)
        if kind_of(cell) == "answer" and "BEGIN HANDOUT" in cell.source and "def " not in cell.source:
            typed[id_of(cell)] = "\n".join(f"{n} = {names[n]!r}" for n in defined_names(cell.source))
    assert points(made, answered(made, typed)) == made.points
    got = points(next_year, answered(next_year, typed))
    assert {t: p - got[t] for t, p in made.points.items() if got[t] != p} == about(name).YEARLY
    assert points(next_year, next_year.notebook) == made.points


@every
def test_texts_state_points_and_minutes(name: str) -> None:
    made = assignment(name)
    text = "\n".join(cell.source for cell in made.notebook.cells if cell.cell_type == "markdown")
    total = sum(made.points.values()) + sum(made.by_hand.values())
    assert f"**Points** {total:g}" in text
    minutes = [int(m) for m in re.findall(r"^## .*\b(\d+) minutes\)", text, re.M)]
    questions = re.findall(r"^## Q", text, re.M)
    assert len(minutes) == len(questions) and 60 <= sum(minutes) <= 120
    assert f"**Time** {sum(minutes)} minutes" in text
    for heading in re.findall(r"^## Q.*", text, re.M):
        assert (
            re.search(r"\(\d+ points( by hand)?, (easy|middle|hard), \d+ minutes\)", heading)
            or "by hand" in heading
        )


@every
def test_questions_that_are_not_easy_have_a_folded_hint(name: str) -> None:
    text = "\n".join(cell.source for cell in release(assignment(name)).cells if cell.cell_type == "markdown")
    questions = re.split(r"^(?=## )", text, flags=re.M)
    assert text.count("<details>") == text.count("</details>")
    for question in questions:
        if re.match(r"## Q.*, (middle|hard), ", question):
            assert "<details><summary>Hint" in question, question.splitlines()[0]


def test_the_teaching_guide_lists_every_assignment() -> None:
    guide = (SOURCES.parents[2] / "docs" / "teaching-guide.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (a\d_\w+) \| (\d+) \| (\d+) \| (\d+) \|", guide, re.M)
    for name, (_, minutes, total, by_hand) in zip(NAMES, listed, strict=True):
        made = assignment(name)
        text = "\n".join(cell.source for cell in made.notebook.cells)
        assert f"**Time** {minutes} minutes. **Points** {total}, of which {by_hand} for words" in text
        assert sum(made.by_hand.values()) == int(by_hand)
    assert [row[0] for row in listed] == NAMES


def test_all_assignments_compare_in_the_same_way() -> None:
    helpers = set()
    for name in NAMES:
        [cell] = [c.source for c in assignment(name).cells("given") if "def expect(" in c.source]
        helpers.add(cell[cell.index("def same(") :])
    assert len(helpers) == 1


@pytest.mark.parametrize(
    "got, wanted, expected, found",
    [
        ([1, 2], [1, 3], "[1, 3]", "[1, 2]"),
        (torch.tensor([1.0]), torch.tensor([2.0]), "[2.0]", "[1.0]"),
        (torch.zeros(9, 9), torch.eye(9) * 3, "3 at [0, 0] of shape (9, 9)", "0 there, .* of 9 among 81"),
        (torch.zeros(9, 8), torch.zeros(8, 9), "shape (8, 9)", "shape [(]9, 8[)]"),
        (
            torch.full((7, 7), torch.nan),
            torch.zeros(7, 7),
            "0 at [0, 0] of shape (7, 7)",
            "nan there, .* of 49 among 49",
        ),
    ],
)
def test_a_failure_says_input_expected_got_and_a_hint(
    got: Any, wanted: Any, expected: str, found: str
) -> None:
    names: dict[str, Any] = {"torch": torch}
    [cell] = [c.source for c in assignment(NAMES[0]).cells("given") if "def expect(" in c.source]
    exec(cell, names)
    names["expect"]("the input", wanted, wanted, "a hint")
    with pytest.raises(AssertionError) as caught:
        names["expect"]("the input", got, wanted, "a hint")
    [shown] = caught.value._render_traceback_()  # type: ignore[attr-defined]  # IPython's: all a notebook shows
    lines = [line.split(":", 1)[-1].strip() for line in shown.splitlines()]
    assert lines[0] == "This is not right yet."
    assert (lines[1], lines[2], lines[4]) == ("the input", expected, "a hint")
    assert re.fullmatch(found, lines[3]) or lines[3] == found


@every
def test_a_question_by_hand_left_open_says_so(name: str) -> None:
    made = assignment(name)
    result = grade_notebook(made, release(made), HereChannel, Limits(seconds=60))
    said = [verdict.message for verdict in result.verdicts.values()]
    assert "not answered yet: replace ... by a number" in said
    assert not [text for text in said if "ellipsis" in text or "TypeError" in text]


def test_the_bug_hunt_misbehaves_until_it_is_mended() -> None:
    """What a7 says of its script, seen by running it as handed out and with the faults mended."""
    seen = []
    for notebook in (release(assignment("a7_bug_hunt")), assignment("a7_bug_hunt").notebook):
        names: dict[str, Any] = {}
        for cell in notebook.cells:
            if id_of(cell) in ("imports", "pictures", "script"):
                exec(cell.source, names)
        net, data = names["main"]()
        scores = [names["evaluate"](net, *data["test"], 16, batch) for batch in (1, 6, 48)]
        seen.append((len(data["train"][1].unique()), max(scores), max(scores) - min(scores)))
    (labels, score, spread), (labels_mended, score_mended, spread_mended) = seen
    assert labels > 200 and labels_mended == 6
    assert spread > 0.005 and spread_mended < 1e-6
    assert score < 0.3 and score_mended > 0.35


@every
def test_outputs_are_not_committed(name: str) -> None:
    cells = [cell for cell in assignment(name).notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.required_in_ci
@every
def test_the_source_passes_in_the_sandbox(name: str, sandbox: None) -> None:
    made = assignment(name)
    limits = Limits(seconds=60, memory=4)
    result = grade_notebook(made, made.notebook, lambda: ProcessChannel(limits), limits)
    assert {t: (v.points, v.message) for t, v in result.verdicts.items()} == {
        t: (p, "") for t, p in made.points.items()
    }
    assert result.state == "graded"
