"""What runs the notebooks fails when it should: defects planted in small notebooks, run by the real commands."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

import hygiene
import notebooks as runner
from deeplab_edu.results import DECIDES, SHOWN, code_digest
from pages import code

TOP = hygiene.REPOSITORY

# name -> its code cells, and the words with which the run must fail (None: it must pass)
PLANTED = {
    "unknown_magic": ([code("%notmagic\nraise TypeError")], "UsageError: Line magic function `%notmagic`"),
    "wrong_number": (
        [code("print(6 * 7)", "nbval-check-output", count=1, stdout="41\n")],
        "Cell outputs differ",
    ),
    "dead_kernel": ([code("import os\nos._exit(1)")], "The kernel died"),
    "does_not_raise": ([code("x = 1", "raises-exception")], "tagged raises-exception but did not raise"),
    "stripped": ([code("print(6 * 7)", "nbval-check-output")], "to be checked, but none is stored"),
    "outputs_removed": (
        [code("print(42)", "nbval-check-output", count=1)],
        "to be checked, but none is stored",
    ),
    "name_error": ([code("undefined"), code("print('next')")], "NameError"),
    "good": (
        [
            code("import os\nassert os.environ['DEEPLAB_EDU_PROFILE'] == 'ci'"),
            code("assert os.listdir(os.environ['DEEPLAB_EDU_RUNS']) == []"),
            code("print(6 * 7)", "nbval-check-output", count=3, stdout="42\n"),
            code("int('seven')", "raises-exception", count=4, error="ValueError: invalid literal"),
        ],
        None,
    ),
}


@pytest.fixture(scope="module")
def nbval_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, list[ElementTree.Element]]]:
    """`tools/notebooks.py test` on all planted notebooks, beside a copy of the course's conftest.

    One run for all, because a kernel takes a second or two to start. Exit status, and the cells' results by notebook.
    """
    folder = tmp_path_factory.mktemp("planted")
    shutil.copy(TOP / "notebooks/conftest.py", folder)
    command = [sys.executable, str(TOP / "tools/notebooks.py"), "test", "--limit", "100"]
    for name, (cells, _) in PLANTED.items():
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
        command.append(f"{name}.ipynb")
    environment = os.environ | {"PYTEST_ADDOPTS": "--junitxml=report.xml"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (folder / "report.xml").exists(), done.stdout + done.stderr
    results: dict[str, list[ElementTree.Element]] = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        results.setdefault(Path(case.get("classname", "")).stem.split(".")[-1], []).append(case)
    return done.returncode, results


def test_planted_defects_make_the_run_fail(nbval_run: tuple[int, dict]) -> None:
    status, results = nbval_run
    assert status == 1
    assert set(results) == set(PLANTED)


@pytest.mark.parametrize("name", PLANTED)
def test_each_notebook_fails_for_its_own_reason(name: str, nbval_run: tuple[int, dict]) -> None:
    words = PLANTED[name][1]
    failures = [failure.text or "" for case in nbval_run[1][name] for failure in case.iter("failure")]
    assert len(failures) == (words is not None), failures
    assert words is None or words in failures[0]


def test_a_good_notebook_runs_to_its_end(nbval_run: tuple[int, dict]) -> None:
    assert [list(case) for case in nbval_run[1]["good"]] == [[]] * len(PLANTED["good"][0])


def test_a_failure_is_reported_once(nbval_run: tuple[int, dict]) -> None:
    first, second = nbval_run[1]["name_error"]
    assert first.find("failure") is not None
    skipped = second.find("skipped")
    assert skipped is not None and skipped.get("message") == "not run, because Cell 0 failed"


def test_execute_leaves_what_hygiene_wants(clean_page: Any, save: Callable[..., Path]) -> None:
    """A page without outputs, executed, is in order; edited afterwards, it is stale."""
    for cell in clean_page.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    path = save("07_page", clean_page)
    assert runner.main(["execute", str(path)]) == 0
    assert hygiene.problems(path) == []
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].outputs[0].text == "42\n"
    assert notebook.cells[3].outputs[0].traceback == [
        "ValueError: invalid literal for int() with base 10: 'seven'"
    ]
    assert notebook.metadata["deeplab_edu"]["profile"] == "cpu"
    assert 0 < notebook.metadata["deeplab_edu"]["seconds"] < 1000
    notebook.cells[1].source = "print(6 * 8)"
    nbformat.write(notebook, path)
    assert "has stale outputs" in hygiene.problems(path)[0]


@pytest.mark.parametrize("name", ["does_not_raise", "dead_kernel", "name_error"])
def test_execute_leaves_a_failing_notebook_as_it_was(
    name: str, save: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(name, *PLANTED[name][0])
    before = path.read_text()
    assert runner.main(["execute", str(path)]) == 1
    assert "failed; the file is left as it was" in capsys.readouterr().out
    assert path.read_text() == before


def test_course_prints_a_table_and_fails_if_one_fails(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [save("00_good", code("x = 1")), save("01_slow", code("import time\ntime.sleep(100)"))]
    assert runner.main(["course", *map(str, paths), "--into", str(tmp_path / "build"), "--limit", "4"]) == 1
    shown = capsys.readouterr().out
    assert "| 00_good | " in shown and " | passed |" in shown
    assert "| 01_slow | " in shown and " | failed |" in shown
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["00_good.ipynb"]


def test_a_run_on_a_gpu_leaves_what_the_notebook_showed(
    save: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In profile ci, since it is the same way: one notebook under nbval, its seed, pictures and printed lines."""
    monkeypatch.setenv("DEEPLAB_EDU_RUNS", str(tmp_path / "runs"))
    shutil.copy(runner.NOTEBOOKS / "conftest.py", tmp_path)
    seed = "from deeplab_edu.profiles import Profile\nprint('seed', Profile.load().seed)"
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    path = save("02_page", code("x = 1"), code(seed), code(draw))
    arguments = [
        "gpu",
        str(path),
        "--profile",
        "ci",
        "--seed",
        "3",
        "--into",
        str(tmp_path / "build" / "notebooks"),
    ]
    assert runner.main(arguments) == 0
    folder = tmp_path / "build" / "gpu" / "02_page.seed3"
    assert sorted(p.name for p in folder.iterdir()) == ["001.txt", "002.0.png", "02_page.json"]
    assert Image.open(folder / "002.0.png").width > 100
    result = json.loads((folder / "02_page.json").read_text())
    assert result["measured"] == {"printed": {"1": "seed 3\n"}} and result["passed"]
    assert result["command"] == "make gpu-course NOTEBOOK=02_page SEED=3"
    failing = save("03_page", code("print('so far')\n1 / 0"))
    assert runner.main(["gpu", str(failing), *arguments[2:]]) == 1
    left = json.loads((tmp_path / "build" / "gpu" / "03_page.seed3" / "03_page.json").read_text())
    assert not left["passed"] and left["measured"]["printed"] == {"0": "so far\n"}


def test_a_run_on_a_gpu_is_one_notebook_and_needs_one(
    save: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [str(save(name, code("x = 1"))) for name in ("00_page", "01_page")]
    assert runner.main(["gpu", *pages]) == 2
    assert "make gpu-course NOTEBOOK=02_fcn SEED=0" in capsys.readouterr().out
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert runner.main(["gpu", pages[0]]) == 2
    assert "Profile 'gpu' needs a CUDA device and torch sees none" in capsys.readouterr().out


def test_clean_removes_what_differs_from_run_to_run(clean_page: Any) -> None:
    first, last = clean_page.cells[1], clean_page.cells[3]
    clean_page.metadata["widgets"] = {"state": {}}
    clean_page.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    clean_page.metadata["kernelspec"]["name"] = "my-kernel"
    first.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    first.execution_count, last.execution_count = 7, 9
    result = nbformat.v4.new_output("execute_result", data={"text/plain": "42"}, execution_count=7)
    view = nbformat.v4.new_output("display_data", data={hygiene.WIDGET_VIEW: {"model_id": "1"}})
    first.outputs = [result, view]
    runner.clean(clean_page)
    assert set(clean_page.metadata) == {"kernelspec", "language_info", "deeplab_edu"}
    assert clean_page.metadata["language_info"] == {"name": "python"}
    assert clean_page.metadata["kernelspec"]["name"] == "python3"
    assert first.metadata == {"tags": ["nbval-check-output"]}
    assert (first.execution_count, last.execution_count) == (1, 2)
    assert [output.output_type for output in first.outputs] == ["execute_result"]
    assert first.outputs[0].execution_count == 1
    nbformat.validate(clean_page)


def test_kernels_find_the_real_data_that_a_relative_path_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPLAB_EDU_DATA", "data")
    with runner.kernel_environment("ci"):
        assert os.environ["DEEPLAB_EDU_DATA"] == str(tmp_path / "data")
    assert os.environ["DEEPLAB_EDU_DATA"] == "data"
    assert not os.environ.get("DEEPLAB_EDU_RUNS", "").startswith(str(tmp_path))


# --- tests/conftest.py ---------------------------------------------------------------------------

SKIPPING = """
import pytest

@pytest.mark.required_in_ci
def test_browser():
    pytest.skip("no browser here")

@pytest.mark.required_in_ci
@pytest.mark.skipif(True, reason="no sandbox here")
def test_sandbox():
    pass

def test_of_little_weight():
    pytest.skip("no photographs here")
"""


@pytest.mark.parametrize(
    ("ci", "module_skip", "status", "counted"),
    [
        ("", "", 0, "3 skipped"),
        ("true", "", 1, "1 failed, 1 skipped, 1 error"),
        ("", "pytest.importorskip('no_such_module')", 5, "1 skipped"),
        ("true", "pytest.importorskip('no_such_module')", 2, "1 error"),
    ],
)
def test_what_ci_may_not_skip(ci: str, module_skip: str, status: int, counted: str, tmp_path: Path) -> None:
    shutil.copy(TOP / "tests/conftest.py", tmp_path)
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_skips.py").write_text(f"import pytest\n{module_skip}\n{SKIPPING}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"]
    environment = os.environ | {
        "CI": ci,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # starts in a tenth of the time
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout
    assert counted in done.stdout.splitlines()[-1]


def test_one_torch_thread() -> None:
    torch = pytest.importorskip("torch")
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def test_stale_lists_what_other_code_made(tmp_path, monkeypatch, capsys):
    """A notebook and a result of today's code are left out; those of other code are named, with the command."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    crf = ["crf.py"]
    results = {"now": (code_digest(DECIDES), []), "now_too": (code_digest([*DECIDES, *crf]), crf)}
    results |= {"then": ("0" * 10, []), "then_too": (code_digest(DECIDES), crf)}
    for name, (digest, parts) in results.items():
        content = {"code": digest, "parts": parts, "command": f"python {name}.py"}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = []
    for name, digest in {"01_now": code_digest(SHOWN), "02_then": "0" * 10}.items():
        notebook = nbformat.v4.new_notebook(metadata={"deeplab_edu": {"package": digest}})
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(notebook, paths[-1])
    assert runner.main(["stale", *map(str, paths)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "notebooks/02_then.ipynb",
        "results/then.json: python then.py",
        "results/then_too.json: python then_too.py",
    ]


def test_a_notebook_that_shows_old_numbers_is_stale(tmp_path, monkeypatch, capsys):
    """Executed with a result that load_result reads in its kernel; then the result is measured again."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    for name in ("read", "not_read"):
        (tmp_path / f"{name}.json").write_text("{}")
    source = "from pathlib import Path\nfrom deeplab_edu.results import load_result\n"
    source += f"load_result('read', folder=Path({str(tmp_path)!r}))"
    cells = [nbformat.v4.new_code_cell(source)]
    path = tmp_path / "01_shows.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert runner.main(["execute", str(path)]) == 0
    assert nbformat.read(path, as_version=4).metadata.deeplab_edu.results.keys() == {"read.json"}
    (tmp_path / "not_read.json").write_text('{"x": 1}')
    capsys.readouterr()
    assert runner.main(["stale", str(path)]) == 0
    assert "everything was made by the code as it is" in capsys.readouterr().out
    (tmp_path / "read.json").write_text('{"x": 1}')
    runner.main(["stale", str(path)])
    assert capsys.readouterr().out.splitlines() == [
        "notebooks/01_shows.ipynb", "    changed since: results/read.json"
    ]  # fmt: skip


def test_stale_names_the_code_that_has_changed_since(tmp_path, monkeypatch):
    """In a repository made here: code that means something else and code that is gone, but no new comment."""
    package = tmp_path / "deeplab_edu"
    package.mkdir()
    for name in ("training.py", "metrics.py", "profiles.py", "figures.py", "inference.py"):
        (package / name).write_text("X = 1\n")
    result = tmp_path / "then.json"
    result.write_text("{}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    monkeypatch.setattr(runner.hygiene, "REPOSITORY", tmp_path)
    assert runner.changed_since(result, DECIDES) == []
    (package / "training.py").write_text("X = 2\n")
    (package / "metrics.py").write_text("X = 1  # a word\n")
    (package / "profiles.py").unlink()
    (package / "figures.py").write_text("X = 2\n")  # shows numbers and decides none
    assert runner.changed_since(result, DECIDES) == ["profiles.py", "training.py"]
    assert runner.changed_since(result, SHOWN) == ["figures.py", "profiles.py", "training.py"]
    assert runner.changed_since(tmp_path / "never committed.json", DECIDES) == []


def test_seconds_of_the_course_are_recorded_if_asked_and_all_passed(tmp_path, monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(runner, "save_result", lambda *given: saved.append(given))
    monkeypatch.setattr(runner, "run", lambda path, *_: nbformat.v4.new_notebook())
    (tmp_path / "01_a.ipynb").touch()
    arguments = ["course", "--profile", "ci", "--into", str(tmp_path / "build"), str(tmp_path / "01_a.ipynb")]
    assert runner.main(arguments) == 0 and saved == []
    assert runner.main([*arguments, "--save"]) == 0
    ((name, command, profile, seconds),) = saved
    assert (name, profile.name, list(seconds)) == ("course.ci", "ci", ["01_a"])
    assert command == "python tools/notebooks.py course --profile ci --save"

    def fails(*_):
        raise runner.NotebookFailed("no")

    monkeypatch.setattr(runner, "run", fails)
    assert runner.main([*arguments, "--save"]) == 1 and len(saved) == 1
