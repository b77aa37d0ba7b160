"""Is this machine ready? `python -m deeplab_edu.environment` says what is wrong and how to mend it.

Runs where nothing of the course is installed, too: everything beyond the standard library is imported late.
"""

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

PYTHON = (3, 11)
NEEDED = {
    "torch": "2.11",
    "torchvision": "0.26",
    "jupyterlab": "4.2",
    "ipywidgets": "8.1",
}  # as in pyproject.toml
INSTALL = "run `make lab` again, or: python -m pip install -c constraints.txt -e ."
FREE_GB = 2  # room for the checkpoints of the whole course in profile cpu, and to spare


@dataclass(frozen=True)
class Check:
    """What was found about one item. A PROBLEM must be mended; a NOTE is worth knowing."""

    item: str
    status: Literal["OK", "NOTE", "PROBLEM"]
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        tail = f" -> {self.remedy}" if self.remedy else ""
        return f"{f'[{self.status}]':<10}{self.item}: {self.found}{tail}"


def check_environment(show: Callable[[str], object] = print) -> list[Check]:
    """Look at Python, packages, device, disk and folders; show one line each and return them."""
    checks = [check_python(), *(check_package(name, least) for name, least in NEEDED.items()), check_crf()]
    if all(check.status == "OK" for check in checks if check.item in ("torch", "torchvision")):
        checks += [check_device(), check_threads(), check_bf16(), check_runs()]
    checks += [check_data()]
    for check in checks:
        show(str(check))
    return checks


def check_python() -> Check:
    found = platform.python_version()
    if sys.version_info < PYTHON:
        return Check(
            "Python", "PROBLEM", found, "install Python 3.11 or newer, delete .venv and run `make lab`"
        )
    return Check("Python", "OK", found)


def check_package(name: str, least: str) -> Check:
    """Import the package for real: an installation can be there and broken."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return Check(name, "PROBLEM", "not installed", INSTALL)
    except Exception as error:  # a broken installation raises anything: OSError, RuntimeError, ...
        return Check(name, "PROBLEM", f"cannot be imported ({_first_line(error)})", INSTALL)
    found = version(name)
    if _numbers(found) < _numbers(least):
        return Check(name, "PROBLEM", f"{found} is too old", f"{least} or newer is needed; {INSTALL}")
    return Check(name, "OK", found)


def check_crf() -> Check:
    try:
        importlib.import_module("pydensecrf.densecrf")
    except Exception:
        remedy = (
            "only the comparison with it is left out; to add it, install a C++ compiler and run `make crf`"
        )
        return Check("pydensecrf", "NOTE", "not installed (optional)", remedy)
    return Check("pydensecrf", "OK", version("pydensecrf2"))


def check_device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("Device", "OK", f"{torch.cuda.get_device_name()}; use it with DEEPLAB_EDU_PROFILE=gpu")
    if torch.backends.mps.is_available():
        return Check("Device", "OK", "CPU (Apple's GPU is not used by the course)")
    return Check("Device", "OK", "CPU, which is what the default profile is made for")


def check_threads() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"torch uses {threads} of {cores} cores"
    if threads > cores:
        return Check("Threads", "NOTE", found, f"slow: set OMP_NUM_THREADS={cores} before you start Jupyter")
    return Check("Threads", "OK", found)


def check_bf16() -> Check:
    from deeplab_edu.profiles import bf16_is_fast

    if bf16_is_fast():
        return Check("bfloat16", "OK", "the CPU has units for it: training runs at full speed")
    return Check("bfloat16", "NOTE", "no units for it in the CPU", "training takes about twice as long")


def check_runs() -> Check:
    """The folder of training runs can be written and has room."""
    from deeplab_edu.profiles import runs_folder

    folder = runs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = "name a folder you may write to in DEEPLAB_EDU_RUNS"
        return Check("Training runs", "PROBLEM", f"{folder} cannot be written ({_first_line(error)})", remedy)
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_GB:
        remedy = f"free some, or name a folder on another disk in DEEPLAB_EDU_RUNS ({FREE_GB} GB are enough)"
        return Check("Training runs", "PROBLEM", f"{free:.1f} GB are free", remedy)
    return Check("Training runs", "OK", f"can be written, {free:.0f} GB are free")


def check_data() -> Check:
    named = os.environ.get("DEEPLAB_EDU_DATA")
    if named and not Path(named).is_dir():
        remedy = "name the folder that holds voc2012/, camvid/, ... or unset the variable"
        return Check("Real data", "PROBLEM", f"DEEPLAB_EDU_DATA={named} is no folder", remedy)
    if named:
        return Check("Real data", "OK", "DEEPLAB_EDU_DATA names a folder")
    return Check("Real data", "OK", "none named; the course draws its own scenes")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _numbers(text: str) -> tuple[int, ...]:
    """The release numbers of a version: "2.14.1+cpu" -> (2, 14, 1)."""
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


if __name__ == "__main__":
    sys.exit(any(check.status == "PROBLEM" for check in check_environment()))
