"""The command line as a whole: what it answers without a command, with a wrong one, and when something goes wrong."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from deeplab_edu import cli


@pytest.fixture
def fault(monkeypatch):
    """A command `fail` that raises what the test puts in here."""
    box = SimpleNamespace(error=None)

    def fail(arguments):
        if box.error:
            raise box.error

    module = SimpleNamespace(fail=fail, fail_arguments=lambda parser: parser.add_argument("--deep"))
    monkeypatch.setitem(cli.COMMANDS, "fail", ("deeplab_edu.failing", "fails"))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return box


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and all(f"    {name} " in shown for name in cli.COMMANDS)


def test_help_answers_at_once_because_torch_is_not_imported():
    code = "import sys; from deeplab_edu import cli; cli.build_parser(None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("words", [[], ["dance"], ["--loud"]])
def test_a_command_is_needed(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.startswith("usage: python -m deeplab_edu")


@pytest.mark.parametrize(
    "error", [ValueError, TypeError, FileNotFoundError, ConnectionError, FloatingPointError]
)
def test_errors_for_the_reader_are_one_sentence(fault, error, capsys):
    fault.error = error("It is so.")
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == "python -m deeplab_edu fail: It is so.\n"


def test_their_traceback_can_be_asked_for(fault):
    fault.error = ValueError("It is so.")
    with pytest.raises(ValueError, match=r"^It is so\.$"):
        cli.main(["--traceback", "fail"])


def test_other_errors_are_bugs_and_keep_their_traceback(fault):
    fault.error = KeyError("x")
    with pytest.raises(KeyError):
        cli.main(["fail"])


@pytest.mark.parametrize(("told", "shown"), [("Kept in x.", "\nKept in x.\n"), ("", "\nStopped.\n")])
def test_an_interrupt_ends_with_130(fault, told, shown, capsys):
    fault.error = KeyboardInterrupt(told) if told else KeyboardInterrupt()
    assert cli.main(["fail"]) == 130
    assert capsys.readouterr().err == shown


def test_success_is_zero(fault):
    assert cli.main(["fail"]) == 0
