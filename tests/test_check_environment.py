"""`deeplab_edu.environment`: each thing that can be missing gives its line and its remedy."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deeplab_edu import environment
from deeplab_edu.environment import Check, check_environment


def by_item(checks: list[Check]) -> dict[str, Check]:
    return {check.item: check for check in checks}


def failing_import(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    real: Callable = importlib.import_module

    def import_module(wanted: str, package: str | None = None) -> object:
        if wanted.partition(".")[0] == name:
            raise error
        return real(wanted, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_this_machine_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_EDU_RUNS", str(tmp_path / "runs"))
    lines: list[str] = []
    checks = check_environment(lines.append)
    assert [c for c in checks if c.status == "PROBLEM"] == []
    assert len(lines) == len(checks) == 11
    assert lines[0] == f"[OK]      Python: {sys.version.split()[0]}"
    assert str(tmp_path) not in "\n".join(lines), "outputs of a committed notebook name no path"


@pytest.mark.parametrize("name", sorted(environment.NEEDED))
def test_a_missing_package_is_a_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, name, ModuleNotFoundError(f"No module named {name!r}"))
    check = by_item(check_environment(lambda line: None))[name]
    assert str(check) == f"[PROBLEM] {name}: not installed -> {environment.INSTALL}"


def test_a_broken_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist\nmore"))
    check = by_item(check_environment(lambda line: None))["torchvision"]
    assert check.status == "PROBLEM"
    assert check.found == "cannot be imported (operator torchvision::nms does not exist)"


def test_an_old_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", lambda name: "2.9.1+cpu")
    check = environment.check_package("torch", "2.11")
    assert (check.status, check.found) == ("PROBLEM", "2.9.1+cpu is too old")
    assert "2.11 or newer" in check.remedy


@pytest.mark.parametrize("found", ["2.11.0", "2.11", "2.14.1+cu130", "3.0.0a0"])
def test_a_newer_package_is_fine(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", lambda name: found)
    assert environment.check_package("torch", "2.11").status == "OK"


def test_without_torch_the_rest_is_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, "torch", ModuleNotFoundError("No module named 'torch'"))
    items = by_item(check_environment(lambda line: None))
    assert "Device" not in items
    assert items["jupyterlab"].status == "OK"


def test_pydensecrf_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, "pydensecrf", ModuleNotFoundError("No module named 'pydensecrf'"))
    check = environment.check_crf()
    assert check.status == "NOTE"
    assert "make crf" in check.remedy


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    assert environment.check_python().status == "PROBLEM"
    assert "3.11 or newer" in environment.check_python().remedy


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_EDU_RUNS", str(tmp_path))
    monkeypatch.setattr(environment, "FREE_GB", 10**9)
    check = environment.check_runs()
    assert check.status == "PROBLEM"
    assert "DEEPLAB_EDU_RUNS" in check.remedy


def test_an_unwritable_runs_folder_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    monkeypatch.setenv("DEEPLAB_EDU_RUNS", str(tmp_path / "runs"))
    check = environment.check_runs()
    assert check.status == "PROBLEM"
    assert check.found.startswith(f"{tmp_path / 'runs'} cannot be written")


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    check = environment.check_threads()
    assert check.status == "NOTE"
    assert "OMP_NUM_THREADS" in check.remedy


def test_slow_bfloat16_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplab_edu.profiles.bf16_is_fast", lambda: False)
    assert environment.check_bf16().status == "NOTE"


def test_a_data_folder_that_is_not_there_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAB_EDU_DATA", str(tmp_path / "nowhere"))
    check = environment.check_data()
    assert check.status == "PROBLEM"
    assert "nowhere is no folder" in check.found


def test_the_command_fails_where_something_is_missing(tmp_path: Path) -> None:
    """A bare interpreter without the course's packages still gets its list, and exit status 1."""
    source = Path(environment.__file__).read_text(encoding="utf-8")
    (tmp_path / "environment.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-S", "-I", str(tmp_path / "environment.py")]  # -S: no site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "[PROBLEM] torch: not installed" in done.stdout
    assert done.stderr == ""


def test_importing_it_costs_nothing() -> None:
    probe = "import sys, deeplab_edu.environment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
