"""`tools/setup.sh` and `tools/check.sh` with a pretended Python, so that every failure can be had in a moment."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
NEEDED_COMMANDS = ("sh", "dirname", "df", "awk", "rm", "mkdir", "cp", "cat", "date", "env")

# Says it is $VERSION; new enough if its file name is not in $OLD; any call that matches $FAIL fails.
PRETENDED_PYTHON = """#!/bin/sh
case "$*" in
    *"(3, 11)"*) case " $OLD " in *" ${0##*/} "*) exit 1 ;; esac ;;
    *"(3, 13)"*) exit "${BEFORE_313:-1}" ;;
    --version) echo "Python $VERSION" ;;
    $FAIL) echo "pretended failure of: $*" >&2; exit 1 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
echo "$CYTHON_FORCE_REGEN $*" >>calls
"""


class Machine:
    """A folder with the scripts, and a PATH with nothing on it but the named programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        shutil.copytree(TOOLS, folder / "tools")
        for command in NEEDED_COMMANDS:
            (self.bin / command).symlink_to(shutil.which(command) or command)
        self.add("python3", PRETENDED_PYTHON)
        self.add("c++", "#!/bin/sh\n")

    def add(self, name: str, text: str, folder: str = "bin") -> None:
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "VERSION": "3.12.1", "OLD": "", "FAIL": "", "MIN_FREE_GB": "0"}
        return subprocess.run(
            ["sh", *command], cwd=self.folder, env=environment | variables, capture_output=True, text=True
        )

    def setup(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("tools/setup.sh", *arguments, **variables)

    @property
    def calls(self) -> str:
        return (self.folder / "calls").read_text() if (self.folder / "calls").exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if os.name != "posix":
        pytest.skip("the scripts are for a POSIX shell; on Windows the README's three commands replace them")
    return Machine(tmp_path)


INSTALL = "-m uv pip install --quiet --compile-bytecode --python .venv/bin/python"


def test_a_new_machine_gets_everything(machine: Machine) -> None:
    done = machine.setup(FAIL="-c import pydensecrf*")
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in machine.calls
    assert f"{INSTALL} -c constraints.txt -e .[dev]" in machine.calls
    assert "-c constraints.txt pydensecrf2" in machine.calls
    assert "Note" not in done.stderr


def test_newest_versions_on_demand(machine: Machine) -> None:
    assert machine.setup(FAIL="-c import pydensecrf*", NEWEST="1").returncode == 0
    assert f"{INSTALL} --upgrade -e .[dev]" in machine.calls
    assert "--upgrade pydensecrf2" in machine.calls and "constraints.txt" not in machine.calls


def test_an_old_python_is_named(machine: Machine) -> None:
    done = machine.setup(OLD="python3", VERSION="3.9.18")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, and there is only: Python 3.9.18" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (machine.folder / ".venv").exists()


def test_no_python_at_all(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    done = machine.setup()
    assert done.returncode == 1
    assert "there is only: no python3" in done.stderr


def test_a_newer_python_beside_an_old_one_is_found(machine: Machine) -> None:
    machine.add("python3.12", PRETENDED_PYTHON)
    assert machine.setup(OLD="python3").returncode == 0
    assert "-m venv .venv" in machine.calls


def test_the_named_python_is_the_only_one_tried(machine: Machine) -> None:
    machine.add("python3.10", PRETENDED_PYTHON)
    done = machine.setup(PYTHON="python3.10", OLD="python3.10", VERSION="3.10.13")
    assert done.returncode == 1
    assert "there is only: Python 3.10.13" in done.stderr


def test_a_full_disk_is_noticed_before_anything_is_fetched(machine: Machine) -> None:
    done = machine.setup(MIN_FREE_GB="99999999")
    assert done.returncode == 1
    assert "PyTorch and its libraries need about 99999999 GB" in done.stderr
    assert machine.calls.count("-m ") == 0


def test_a_missing_venv_module(machine: Machine) -> None:
    done = machine.setup(FAIL="-m venv *")
    assert done.returncode == 1
    assert "sudo apt install python3-venv" in done.stderr
    assert not (machine.folder / ".venv").exists()


def test_no_network(machine: Machine) -> None:
    done = machine.setup(FAIL="-m [up][vi]*")  # neither uv nor pip
    assert done.returncode == 1
    assert "Is this machine online?" in done.stderr


def test_a_package_that_cannot_be_installed(machine: Machine) -> None:
    done = machine.setup(FAIL="-m uv pip install --quiet*")
    assert done.returncode == 1
    assert "not every package could be installed" in done.stderr
    assert "pretended failure" in done.stderr, "the installer's own words are shown"


def test_a_foreign_venv_is_left_alone(machine: Machine) -> None:
    (machine.folder / ".venv").mkdir()
    done = machine.setup()
    assert done.returncode == 1
    assert "Delete the folder .venv" in done.stderr
    assert (machine.folder / ".venv").is_dir()


def test_without_a_compiler_the_rest_goes_on(machine: Machine) -> None:
    (machine.bin / "c++").unlink()
    done = machine.setup(FAIL="-c import pydensecrf*")
    assert done.returncode == 0
    assert "there is no C++ compiler" in done.stderr
    assert "make crf" in done.stderr
    assert "pydensecrf2" not in machine.calls


def test_a_build_that_fails_does_not_stop_the_rest(machine: Machine) -> None:
    machine.add("python", PRETENDED_PYTHON.replace("$FAIL)", "*pydensecrf*)"), ".venv/bin")
    done = machine.setup()
    assert done.returncode == 0
    assert "it could not be built, see .venv/pydensecrf-build.log" in done.stderr
    assert "pretended failure" in (machine.folder / ".venv/pydensecrf-build.log").read_text()


def test_on_python_3_13_a_newer_cython_is_used(machine: Machine) -> None:
    machine.setup()
    machine.setup("crf", FAIL="-c import pydensecrf*", BEFORE_313="0")
    assert (
        "1 -m uv pip install --python .venv/bin/python -c constraints.txt --no-build-isolation"
        in machine.calls
    )
    assert machine.calls.count("-e .[dev]") == 1, "`crf` does not install the rest again"


@pytest.mark.parametrize("broken", ["ruff", "mypy", "python", ""])
def test_checks_stop_at_the_first_that_fails(machine: Machine, broken: str) -> None:
    for name in ("ruff", "mypy", "python"):
        machine.add(name, f'#!/bin/sh\necho "{name} $*"\nexit {3 * (name == broken)}\n', ".venv/bin")
    done = machine.run("tools/check.sh")
    assert done.returncode == (3 if broken else 0)
    assert ("FAILED" in done.stdout) == bool(broken)
    assert ("notebooks.py test" in done.stdout) == (not broken)
    assert ("-m pytest" in done.stdout) == (broken in ("", "python"))


@pytest.mark.parametrize("broken", ["ruff", "python", ""])
def test_with_the_newest_packages_all_checks_run_before_it_fails(machine: Machine, broken: str) -> None:
    for name in ("ruff", "mypy", "python"):
        machine.add(name, f'#!/bin/sh\necho "{name} $*"\nexit {3 * (name == broken)}\n', ".venv/bin")
    done = machine.run("tools/check.sh", NEWEST="1")
    assert done.returncode == (3 if broken else 0)
    assert "-m pytest" in done.stdout and "notebooks.py test" in done.stdout


def test_all_checks_select_every_test(machine: Machine) -> None:
    for name in ("ruff", "mypy", "python"):
        machine.add(name, '#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n', ".venv/bin")
    assert "<not slow and not gpu>" in machine.run("tools/check.sh").stdout
    assert "<-m>\n<>\n<tests>" in machine.run("tools/check.sh", "all").stdout
