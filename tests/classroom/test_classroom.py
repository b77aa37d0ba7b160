"""Release, check, grade and report, on the tiny assignment of `course`: damage, names, formats, and every refusal."""

import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from course import DOUBLE, HALF, graded, submission, toy_notebook, write_source
from deeplab_edu.classroom import batch, grading, sandbox
from deeplab_edu.classroom.__main__ import main
from deeplab_edu.classroom.assignment import Assignment, AssignmentError, find, id_of, release
from deeplab_edu.classroom.grading import HereChannel, grade_notebook
from deeplab_edu.classroom.report import feedback
from deeplab_edu.classroom.submissions import collect, plain
from deeplab_edu.classroom.worker import decode, encode


@pytest.fixture
def toy(source: Path) -> Assignment:
    return find("toy", source)


def grade(made: Assignment, notebook: Any) -> tuple[list[float], str]:
    result = grade_notebook(made, notebook, HereChannel)
    return [verdict.points for verdict in result.verdicts.values()], result.state


def run_grade(source: Path, folder: Path, out: Path, *more: str) -> dict[str, dict[str, str]]:
    """Grade in processes without a sandbox, which these tests do not need; rows of grades.csv by student."""
    assert main(["grade", "toy", str(folder), str(out), "--source", str(source), "--no-sandbox", *more]) == 0
    with (out / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


# --- a submission's cells ------------------------------------------------------------------------


def test_right_wrong_and_blank(toy: Assignment) -> None:
    assert grade(toy, submission()) == ([3, 4], "graded")
    assert grade(toy, submission(q2_half="def half(x):\n    return x // 2")) == ([3, 0], "graded")
    assert grade(toy, release(toy)) == ([0, 0], "graded")


def test_messages_for_the_student(toy: Assignment) -> None:
    wrong = submission(
        q1_double="def double(x):\n    return abs(2 * x)", q2_half="def half(x):\n    return y / 2"
    )
    result = grade_notebook(toy, wrong, HereChannel)
    assert result.verdicts["test_q1"].message == "In a test that the notebook does not show: another number"
    assert result.verdicts["test_q2"].message == "NameError: name 'y' is not defined (cell q2_half, line 2)"
    blank = grade_notebook(toy, release(toy), HereChannel)
    assert {verdict.message for verdict in blank.verdicts.values()} == {"Not answered yet."}


def test_deleted_answer_costs_its_own_points(toy: Assignment) -> None:
    notebook = submission()
    notebook.cells = [cell for cell in notebook.cells if id_of(cell) != "q2_half"]
    result = grade_notebook(toy, notebook, HereChannel)
    assert [v.points for v in result.verdicts.values()] == [3, 0]
    assert result.verdicts["test_q2"].message == "half is not defined: its cell is missing or failed."


@pytest.mark.parametrize("lost", ["test_q1", "given", "q3_why"])
def test_deleted_other_cells_cost_nothing(toy: Assignment, lost: str) -> None:
    notebook = submission()
    notebook.cells = [cell for cell in notebook.cells if id_of(cell) != lost]
    assert grade(toy, notebook) == ([3, 4], "graded")


def test_edited_tests_and_points_change_nothing(toy: Assignment) -> None:
    notebook = submission(
        q1_double="def double(x):\n    return 0", test_q1="assert True", given="raise SystemExit"
    )
    for cell in notebook.cells:
        if "points" in cell.metadata.get("nbgrader", {}):
            cell.metadata.nbgrader.points = 1_000
    assert grade(toy, notebook) == ([0, 4], "graded")


def test_of_a_doubled_answer_the_last_counts_as_in_the_notebook(toy: Assignment) -> None:
    notebook = submission()
    notebook.cells.append(graded("def double(x):\n    return 0", "q1_double", answer=True))
    assert grade(toy, notebook) == ([0, 4], "graded")


def test_doubled_tests_do_not_count_twice(toy: Assignment) -> None:
    notebook = submission()
    notebook.cells += [cell for cell in notebook.cells if id_of(cell) == "test_q2"]
    assert grade(toy, notebook) == ([3, 4], "graded")


def test_helper_cells_magics_pictures_and_errors_in_between(toy: Assignment) -> None:
    notebook = submission(q1_double="def double(x):\n    return helper(x)")
    notebook.cells.insert(0, new_code_cell("%matplotlib inline\n!pip list\ndef helper(x):\n    return 2 * x"))
    notebook.cells.insert(0, new_code_cell("1 / 0"))
    notebook.cells.insert(
        0, new_code_cell("import sys, warnings\nwarnings.warn('careful')\nprint('40%', file=sys.stderr)")
    )
    notebook.cells.insert(0, new_code_cell("x = (7\n    % 4)\nassert x == 3\ndisplay(x)"))
    assert grade(toy, notebook) == ([3, 4], "graded; cell no. 3 raised division by zero (cell no. 3, line 1)")


def test_metadata_lost_as_by_some_editors(toy: Assignment) -> None:
    notebook = submission()
    for cell in notebook.cells:
        cell.metadata = {}
    assert grade(toy, notebook) == ([3, 4], "graded")


def test_answers_cannot_reach_what_tests_are_given(toy: Assignment) -> None:
    """Names of the assignment keep their meaning in the tests, whatever the submission calls them."""
    cheat = "YEAR = 0\nassert_ = None\ndef double(x):\n    return 6 if x == 3 else -2 * YEAR"
    assert grade(toy, submission(q1_double=cheat)) == ([0, 4], "graded")


@pytest.mark.parametrize(
    "code",
    [
        "from deeplab_edu import metrics",
        "import deeplab_edu.models.fcn as f",
        "def f():\n    import torchmetrics.classification",
    ],
)
def test_imports_of_answers_are_refused(toy: Assignment, code: str) -> None:
    points, state = grade(toy, submission(extra=code))
    assert points == [] and state.startswith("not graded: it imports") and "holds answers" in state


@pytest.mark.parametrize(
    "code", ["import deeplab_edu.data", "from deeplab_edu.data.scenes import make_scenes", "import timm_"]
)
def test_other_imports_are_not(toy: Assignment, code: str) -> None:
    assert grade(toy, submission(extra=code))[0] == [3, 4]


# --- files ---------------------------------------------------------------------------------------


def test_one_bad_file_never_stops_the_batch(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("kim", "lee/toy", "park"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(submission(), folder / f"{name}.ipynb")
    text = nbformat.writes(submission())
    (folder / "half.ipynb").write_text(text[:300])
    (folder / "empty.ipynb").write_text("")
    (folder / "binary.ipynb").write_bytes(bytes(range(256)))
    (folder / "list.ipynb").write_text("[1, 2]")
    (folder / "cells.ipynb").write_text('{"cells": [1], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}')
    (folder / "deep.ipynb").write_text("[" * 100_000)
    (folder / "notes.txt").write_text("not looked at")
    odd = json.loads(text)
    odd["cells"][2]["metadata"]["nbgrader"] = "what?"
    (folder / "odd.ipynb").write_text(json.dumps(odd))
    other = toy_notebook()
    other.cells = [new_code_cell("print('something else')")]
    nbformat.write(other, folder / "foreign.ipynb")
    rows = run_grade(source, folder, tmp_path / "out")
    states = {name: row["state"] for name, row in rows.items()}
    assert [name for name, state in states.items() if state == "graded"] == ["kim", "lee", "odd", "park"]
    assert {name for name, row in rows.items() if row["total"] == "7"} == {"kim", "lee", "odd", "park"}
    assert states["foreign"] == "not graded: the notebook has nothing of toy; another assignment?"
    for name in ("half", "empty", "binary", "list", "cells", "deep"):
        assert states[name].startswith("not graded: no readable notebook"), (name, states[name])
        assert rows[name]["total"] == rows[name]["test_q1"] == ""


def test_old_notebook_formats(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    old = nbformat.convert(submission(), 3)
    (tmp_path / "in/old.ipynb").write_text(nbformat.writes(old, version=3))
    assert run_grade(source, tmp_path / "in", tmp_path / "out")["old"]["total"] == "7"


def test_canvas_and_moodle(source: Path, tmp_path: Path) -> None:
    """Names as in their downloads, tables as they import them."""
    archive = tmp_path / "submissions.zip"
    text = nbformat.writes(submission())
    half_right = nbformat.writes(submission(q1_double="def double(x):\n    return 0"))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("kimminji_123_4567_toy-1.ipynb", text)
        file.writestr("leejun_LATE_124_4568_my toy.ipynb", half_right)
        file.writestr("Park Seo-yeon_125_assignsubmission_file_/toy.ipynb", text)
        file.writestr("__MACOSX/._toy.ipynb", "x")
        file.writestr("choi_126_4570_toy.ipynb", "broken")
    rows = run_grade(source, archive, tmp_path / "out")
    assert {name: row["total"] for name, row in rows.items()} == {
        "Park Seo-yeon": "7",
        "choi": "",
        "kimminji": "7",
        "leejun": "4",
    }
    with (tmp_path / "out/canvas.csv").open(encoding="utf-8-sig", newline="") as table:
        canvas = [*csv.reader(table)]
    assert canvas[0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "toy"]
    assert canvas[1] == ["    Points Possible", "", "", "", "", "7"]
    assert ["leejun", "124", "", "", "", "4"] in canvas and ["choi", "126", "", "", "", ""] in canvas
    with (tmp_path / "out/moodle.csv").open(encoding="utf-8-sig", newline="") as table:
        moodle = [*csv.reader(table)]
    assert moodle[0] == ["Identifier", "Full name", "Grade", "Feedback comments"]
    assert ["Participant 125", "Park Seo-yeon", "7", "graded"] in moodle


def test_two_files_of_one_student_are_two_rows(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in/kim").mkdir(parents=True)
    for name in ("toy", "toy-2"):
        nbformat.write(submission(), tmp_path / f"in/kim/{name}.ipynb")
    assert [*run_grade(source, tmp_path / "in", tmp_path / "out")] == ["kim", "kim (2)"]


@pytest.mark.parametrize(
    "names, state",
    [
        (["toy.ipynb"], "graded"),
        (["folder/toy.ipynb", "__MACOSX/._toy.ipynb", "notes.txt"], "graded"),
        ([], "not graded: a zip file with no notebook"),
        (["a.ipynb", "b.ipynb"], "not graded: a zip file with more than one notebook"),
    ],
)
def test_a_students_zip_file_holds_one_notebook(
    names: list[str], state: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in/kim.zip", "w") as archive:
        for name in names:
            archive.writestr(name, nbformat.writes(submission()))
    assert run_grade(source, tmp_path / "in", tmp_path / "out")["kim"]["state"] == state


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("=HYPERLINK(1)", "_HYPERLINK(1)"),
        ("-2+3", "2_3"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("김민지", "김민지"),
        ("<b>x</b>", "_b_x__b_"),
        ("..", "unnamed"),
        ("a" * 300, "a" * 80),
    ],
)
def test_names_become_plain(name: str, wanted: str) -> None:
    assert plain(name) == wanted


def test_feedback_is_escaped_and_stands_alone(toy: Assignment) -> None:
    evil = submission(
        q1_double="def double(x):\n    raise ValueError('<script>alert(1)</script>')",
        q3_why="<img src=http://x>",
    )
    page = feedback(toy, grade_notebook(toy, evil, HereChannel, student="<i>kim</i>"))
    assert "<script" not in page and "<img" not in page and "<i>" not in page
    assert "&lt;script&gt;alert(1)" in page and "&lt;img src=http://x&gt;" in page
    assert "4 of 7 points" in page and "2 graded by a person" in page
    assert "://" not in page.replace("http://x", "")


def test_feedback_does_not_show_hidden_code(toy: Assignment) -> None:
    page = feedback(
        toy, grade_notebook(toy, submission(q1_double="def double(x):\n    return 6"), HereChannel)
    )
    assert "another number" in page and "YEAR" not in page


# --- release, hidden tests, year -----------------------------------------------------------------


def test_release(source: Path, tmp_path: Path) -> None:
    assert main(["release", "toy", str(tmp_path), "--source", str(source), "--year", "2031"]) == 0
    notebook = nbformat.read(tmp_path / "toy/toy.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "YEAR = 2031" in text and "2 * x" not in text and "HIDDEN" not in text and "Because" not in text
    assert "raise NotImplementedError" in text and "double(3) is 6" in text
    locked = [id_of(cell) for cell in notebook.cells if cell.metadata.get("editable") is False]
    assert locked == ["given", "test_q1", "test_q2"]


def test_a_handout_replaces_the_stub(tmp_path: Path) -> None:
    notebook = toy_notebook()
    cell = next(c for c in notebook.cells if id_of(c) == "q1_double")
    cell.source = (
        "def double(x):\n    for _ in [1]:\n        ### BEGIN SOLUTION\n        return 2 * x\n"
        "        ### END SOLUTION\n"
        "        ### BEGIN HANDOUT\n        # if x:\n        #     return 3 * x\n        ### END HANDOUT"
    )
    shown = next(c.source for c in release(Assignment("toy", notebook)).cells if id_of(c) == "q1_double")
    assert shown == "def double(x):\n    for _ in [1]:\n        if x:\n            return 3 * x"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda nb: nb.cells.append(graded("2", "given")), "the grade_id 'given' is used twice"),
        (
            lambda nb: nb.cells[1].update(source="### BEGIN SOLUTION\nx\n### END SOLUTION"),
            "in a cell that is no answer",
        ),
        (
            lambda nb: nb.cells[2].update(source="### BEGIN HIDDEN TESTS\nx\n### END HIDDEN TESTS"),
            "in a cell that is no test",
        ),
        (lambda nb: nb.cells[3].metadata.nbgrader.update(points=0), "'test_q1' has no points"),
    ],
)
def test_malformed_sources(tmp_path: Path, change: Any, message: str) -> None:
    folder = write_source(tmp_path)
    notebook = toy_notebook()
    change(notebook)
    nbformat.write(notebook, folder / "toy/toy.ipynb")
    with pytest.raises(AssignmentError, match=message):
        find("toy", folder)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("### END SOLUTION", "### END SOLUTIONS", "stands alone or is misspelt"),
        ("    return 2 * x", "    return 2 * x + 0 * 1234567890", "would be handed out: return 2 \\* x \\+"),
    ],
)
def test_a_release_that_would_show_solutions_is_refused(old: str, new: str, message: str) -> None:
    notebook = toy_notebook()
    notebook.cells[2].source = notebook.cells[2].source.replace(old, new)
    notebook.cells[0].source += "\n\nreturn 2 * x + 0 * 1234567890"
    with pytest.raises(AssignmentError, match=message):
        release(Assignment("toy", notebook))


def test_private_hidden_tests(source: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/toy.py").write_text("# %% test_q1\nassert double('ab') == 'abab', 'text too'\n")
    (tmp_path / "in").mkdir()
    nbformat.write(submission(), tmp_path / "in/kim.ipynb")
    nbformat.write(submission(q1_double="def double(x):\n    return x + int(x)"), tmp_path / "in/lee.ipynb")
    rows = run_grade(source, tmp_path / "in", tmp_path / "out", "--hidden", str(tmp_path / "private"))
    assert (rows["kim"]["test_q1"], rows["lee"]["test_q1"]) == ("3", "0")
    assert run_grade(source, tmp_path / "in", tmp_path / "out2")["lee"]["test_q1"] == "3"
    (tmp_path / "private/toy.py").write_text("# %% test_q9\nassert False\n")
    with pytest.raises(AssignmentError, match="tests for 'test_q9'; toy has test_q1, test_q2"):
        find("toy", source, hidden=tmp_path / "private")
    with pytest.raises(AssignmentError, match="There are no hidden tests in"):
        find("toy", source, hidden=tmp_path)


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["release", "a9", "OUT"], "There is no assignment 'a9' in .*; there: a1_metrics, "),
        (["grade", "toy", "nowhere", "OUT"], "nowhere is neither a folder nor a zip file"),
        (["grade", "toy", "EMPTY", "OUT"], "There is no notebook"),
        (["grade", "toy", "EMPTY", "OUT", "--year", "1.5"], "invalid int value"),
        (["check", "nowhere.ipynb"], "No such file"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "EMPTY").mkdir()
    words = [str(tmp_path / word) if word in ("OUT", "EMPTY") else word for word in arguments]
    words += ["--source", str(source), "--no-sandbox"][: 3 if words[0] == "grade" else 0]
    try:
        code: Any = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_source_without_a_year(source: Path, tmp_path: Path) -> None:
    notebook = toy_notebook()
    notebook.cells[1].source = "THIS_YEAR = 2026"
    nbformat.write(notebook, write_source(tmp_path) / "toy/toy.ipynb")
    with pytest.raises(AssignmentError, match="YEAR = "):
        find("toy", tmp_path, year=2027)


@pytest.mark.parametrize("reason", ["missing", "broken"])
def test_without_a_sandbox_it_refuses(
    reason: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    touched = tmp_path / "touched"
    nbformat.write(submission(extra=f"open({str(touched)!r}, 'w')"), tmp_path / "in/kim.ipynb")
    fake = tmp_path / "bin/bwrap"
    fake.parent.mkdir()
    if reason == "broken":
        fake.write_text("#!/bin/sh\necho bwrap: no permission >&2; exit 1\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    assert main(["grade", "toy", str(tmp_path / "in"), str(tmp_path / "out"), "--source", str(source)]) == 2
    said = capsys.readouterr().err
    assert {"missing": "not installed", "broken": "no permission"}[reason] in said
    assert "all your rights" in said and "--no-sandbox" in said and not touched.exists()
    assert not (tmp_path / "out").exists()


def test_check_tells_the_student(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = release(find("toy", source))
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert main(["check", str(tmp_path / "mine.ipynb")]) == 1
    assert capsys.readouterr().out.count("Not answered yet.") == 2
    answers = {"q1_double": DOUBLE, "q2_half": "def half(x):\n    return 1"}
    for cell in notebook.cells:
        cell.source = answers.get(id_of(cell), cell.source)
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert main(["check", str(tmp_path / "mine.ipynb")]) == 1
    said = capsys.readouterr().out
    assert (
        "ok   test_q1: 3 of 3" in said and "LOST test_q2: 0 of 4" in said and "half(3) is 1.5, not 1" in said
    )
    for cell in notebook.cells:
        cell.source = HALF if id_of(cell) == "q2_half" else cell.source
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert main(["check", str(tmp_path / "mine.ipynb")]) == 0
    assert "grading has more" in capsys.readouterr().out


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deeplab_edu.classroom", "-h"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "release" in done.stdout and "grade" in done.stdout


# --- the channel ---------------------------------------------------------------------------------


def test_values_survive_the_way() -> None:
    import numpy as np
    import torch

    values = [1, 2.5, "é", None, True, (1, [2]), {"a": 1, (1, 2): {3: 4}}, float("inf"), torch.float16]
    back = decode(json.loads(json.dumps(encode(values, dict))), dict)
    assert back == values and type(back[5]) is tuple
    tensors = [
        torch.arange(6.0).view(2, 3).T,
        torch.tensor(True),
        torch.empty(0, 3),
        torch.ones(2).bfloat16(),
    ]
    for tensor in tensors:
        again = decode(json.loads(json.dumps(encode(tensor, dict))), dict)
        assert again.dtype == tensor.dtype and torch.equal(again, tensor)
    array = np.arange(4, dtype=np.int16).reshape(2, 2)
    again = decode(json.loads(json.dumps(encode(array, dict))), dict)
    assert again.dtype == array.dtype and (again == array).all()


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "tensor", "dtype": "load", "shape": [], "of": ""},
        {"kind": "tensor", "dtype": "float32", "shape": [2], "of": "AAAA"},
        {"kind": "tensor", "dtype": "float32", "shape": [-1, -1], "of": "AAAAAA=="},
        {"kind": "tensor", "dtype": "float32", "shape": [10**30, 0], "of": "!"},
        {"kind": "dtype", "of": "hub"},
        {"kind": "eval", "of": "1"},
        {"kind": "dict", "of": [[{"kind": "list", "of": []}, 1]]},
        {"kind": "list"},
        [1],
    ],
)
def test_what_no_honest_worker_sends_is_refused(data: Any) -> None:
    with pytest.raises(ValueError):
        decode(data, dict)


def test_tests_hand_over_plain_data_only(toy: Assignment) -> None:
    them = grading.Student(grading.student_cells(toy, submission()), HereChannel, sandbox.Limits())
    double = them.get(["double"])["double"]
    with pytest.raises(TypeError, match="plain data only, not object"):
        double(object())
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(double)
    assert double(x=4) == 8 and repr(double) == "<function>"


def test_memory_in_use_is_seen() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * 300_000_000; print(1, flush=True); input()"], stdin=-1, stdout=-1
    )
    assert child.stdout and child.stdout.readline()
    assert 0.3 < sandbox.resident_gb(child.pid) < 0.5
    child.communicate(b"\n")


def test_collect_needs_notebooks(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(AssignmentError, match="neither a folder nor a zip file"):
        collect(tmp_path / "x.zip")
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    with pytest.raises(AssignmentError, match="no notebook"):
        collect(tmp_path / "x.zip")


# --- many at once --------------------------------------------------------------------------------


def source_with(test: str, folder: Path) -> Path:
    """The toy, with a line more in the hidden part of its first test."""
    notebook = toy_notebook()
    [cell] = [c for c in notebook.cells if id_of(c) == "test_q1"]
    cell.source = cell.source.replace("### END HIDDEN TESTS", f"{test}\n### END HIDDEN TESTS")
    nbformat.write(notebook, write_source(folder) / "toy/toy.ipynb")
    return folder


def class_of(folder: Path, **doubles: str) -> Path:
    """Submissions by name, with their answer to the first question."""
    folder.mkdir()
    for name, body in doubles.items():
        answer = f"def double(x):\n    return {body}"
        nbformat.write(submission(q1_double=answer), folder / f"{name}.ipynb")
    return folder


def test_a_grader_that_dies_costs_nobody_else(tmp_path: Path) -> None:
    """Whatever a returned value may do to the process that compares it: here the test kills it over a wrong one."""
    kill = "import os\nif double(7) == 15: os.kill(os.getpid(), 9)"
    folder = class_of(tmp_path / "in", a="2 * x", b="15 if x == 7 else 2 * x", c="2 * x")
    rows = run_grade(source_with(kill, tmp_path / "source"), folder, tmp_path / "out", "--jobs", "1")
    assert [rows[name]["total"] for name in "abc"] == ["7", "", "7"]
    assert "the grader's process failed (it ended with -9); look at it by hand" in rows["b"]["state"]


def test_a_grader_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SPARE_SECONDS", 3)
    made = find("toy", source_with("hang = double(7) == 15\nwhile hang: pass", tmp_path / "source"))
    folder = class_of(tmp_path / "in", a="2 * x", b="15 if x == 7 else 2 * x", c="2 * x")
    limits = sandbox.Limits(total=3)
    results = {
        s.student: r for s, r in batch.grade_all(made, collect(folder), limits, contained=False, jobs=3)
    }
    assert (results["a"].total, results["c"].total) == (7, 7)
    assert results["b"].total is None and "it took too long" in results["b"].state


def test_a_solution_that_fails_its_own_tests_stops_the_grading(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a private hidden test would cost everybody its points."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/toy.py").write_text("# %% test_q1\nassert double(1) == 3, 'a wrong test'\n")
    folder = class_of(tmp_path / "in", a="2 * x")
    words = ["grade", "toy", str(folder), str(tmp_path / "out"), "--source", str(source), "--no-sandbox"]
    assert main([*words, "--hidden", str(tmp_path / "private")]) == 2
    said = capsys.readouterr().err
    assert "The solution of toy itself loses points" in said and "a wrong test" in said
    assert not (tmp_path / "out").exists()


def test_a_students_words_cannot_steer_the_terminal(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = class_of(tmp_path / "in", a="'\\x1b[2J\\u202e' + 'x' * 99_999")
    nbformat.write(
        submission(extra="raise ValueError('\\x1b]0;all right\\x07\\nkim 7 graded')"), folder / "b.ipynb"
    )
    run_grade(source, folder, tmp_path / "out")
    written = [path.read_text("utf-8-sig") for path in (tmp_path / "out").rglob("*.*")]
    for text in [capsys.readouterr().out, *written]:
        assert "\x1b" not in text.split("<h2>")[0] and "\u202e" not in text and "\x07" not in text
        assert "\nkim 7" not in text.split("<h2>")[0]  # no forged line
        assert len(text) < 40_000


def test_answers_are_hidden_in_every_python_that_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the course was installed as a copy, and in the Python that the environment was made from."""
    places = [
        tmp_path / "venv/lib/python3.11/site-packages/deeplab_edu",
        tmp_path / "base/lib/python3.11/site-packages/sklearn",
    ]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    words = sandbox.command(sandbox.Limits())
    for place in places:
        assert words[words.index(str(place)) - 1] == "--tmpfs"


def test_odd_notebooks_print_nothing_on_the_teachers_terminal(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """nbformat warns of doubled ids, and prints what it finds invalid, escape sequences and all."""
    (tmp_path / "in").mkdir()
    odd = submission()
    odd.cells.append(odd.cells[1])
    text = json.loads(nbformat.writes(odd))
    text["cells"][0]["surprise"] = "\x1b[2J"
    (tmp_path / "in/kim.ipynb").write_text(json.dumps(text))
    assert run_grade(source, tmp_path / "in", tmp_path / "out")["kim"]["total"] == "7"
    said = capfd.readouterr()
    assert said.err == "" and len(said.out.splitlines()) == 2
