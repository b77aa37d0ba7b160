"""Run, tidy and check the notebooks of the course.

    python tools/notebooks.py execute [NOTEBOOK ...]   run in place, in profile cpu, and tidy
    python tools/notebooks.py clean   [NOTEBOOK ...]   tidy without running
    python tools/notebooks.py check   [NOTEBOOK ...]   structure, links, size, stale outputs; runs nothing
    python tools/notebooks.py test    [NOTEBOOK ...]   nbval in profile ci
    python tools/notebooks.py stale   [NOTEBOOK ...]   what other code of the package made, and what changed
    python tools/notebooks.py course  [NOTEBOOK ...]   run in the active profile into build/, print a table
    python tools/notebooks.py gpu      NOTEBOOK        nbval in profile gpu; keeps figures and what was printed

Without names: every notebook of the course. Each call that runs notebooks starts from an empty folder of
training runs, which the notebooks of that call share (`--keep-runs`: the active one instead).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

import hygiene
from deeplab_edu.profiles import SEED, Profile
from deeplab_edu.results import DECIDES, READ, SHOWN, code_digest, meaning, save_result
from deeplab_edu.results import FOLDER as RESULTS

SHOWN_INTO = "DEEPLAB_EDU_SHOWN_INTO"  # the folder for what a notebook shows under nbval
NOTEBOOKS = hygiene.REPOSITORY / "notebooks"
KEPT_CELL_METADATA = {"tags", "jupyter", "slideshow", "nbgrader"}
KEPT_METADATA = {"kernelspec", "language_info", "deeplab_edu"}
PYTHON_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class NotebookFailed(Exception):
    """A notebook did not run to its end; the message says where and why."""


def clean(notebook: Any) -> None:
    """Remove in place what differs from run to run or cannot be shown without a kernel."""
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in KEPT_METADATA}
    notebook.metadata["kernelspec"] = dict(PYTHON_KERNEL)
    notebook.metadata.setdefault("language_info", {"name": "python"}).pop("version", None)
    count = 0
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA}
        if cell.cell_type == "code":
            cell.outputs = [_cleaned(o) for o in cell.outputs if not _needs_kernel(o)]
            if cell.execution_count is not None:
                count += 1
                _renumber(cell, count)


def _needs_kernel(output: Any) -> bool:
    """Whether only a kernel can show it: a widget that brings no picture of itself."""
    return hygiene.WIDGET_VIEW in output.get("data", {}) and "image/png" not in output.data


def _cleaned(output: Any) -> Any:
    output.get("data", {}).pop(hygiene.WIDGET_VIEW, None)
    if output.output_type == "error":  # the frames of a traceback name files of this machine
        output.traceback = [f"{output.ename}: {output.evalue}"]
    if png := output.get("data", {}).get("image/png"):
        output.data["image/png"] = min(png, _with_palette(png), key=len)
    return output


def _with_palette(png: str) -> str:
    """The picture in 256 colours, about a third of the size; a second call changes nothing."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":
        return png
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _renumber(cell: Any, count: int) -> None:
    cell.execution_count = count
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count


def run(path: Path, profile: str, limit: float) -> Any:
    """Execute the notebook at `path` in its own folder and return it, cleaned and with a record of the run.

    Raises NotebookFailed if a cell raises or kills the kernel, if the notebook takes longer than `limit`
    seconds, or if a cell tagged raises-exception does not raise.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile(prefix="deeplab_edu_read_") as notes:
        _execute(notebook, path, start + limit, {READ: notes.name})
        read = sorted({Path(line) for line in Path(notes.name).read_text().splitlines()})
    seconds = round(time.perf_counter() - start, 1)
    for cell in notebook.cells:
        if "raises-exception" in hygiene.tags_of(cell) and all(
            o.output_type != "error" for o in cell.outputs
        ):
            raise NotebookFailed(f"tagged raises-exception but did not raise:\n{cell.source}")
    clean(notebook)
    record = {"profile": profile, "seconds": seconds, "code_sha256": hygiene.code_sha256(notebook)}
    record["package"] = code_digest(SHOWN)
    record["results"] = {file.name: file_digest(file) for file in read if file.parent == RESULTS}
    notebook.metadata["deeplab_edu"] = record
    return notebook


def file_digest(path: Path) -> str:
    """Ten hexadecimal digits of a file's bytes; empty if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10] if path.exists() else ""


def _execute(notebook: Any, path: Path, until: float, environment: dict[str, str]) -> None:
    client = NotebookClient(
        notebook,
        timeout_func=lambda cell: max(1, int(until - time.perf_counter())),
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    try:
        client.execute(env=os.environ | environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise NotebookFailed(str(error)) from None


@contextlib.contextmanager
def kernel_environment(profile: str, keep_runs: bool = False) -> Iterator[None]:
    """For kernels to inherit: the profile, and an empty folder of training runs that goes away afterwards."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="deeplab_edu_runs_") as runs:
        os.environ["DEEPLAB_EDU_PROFILE"] = profile
        if not keep_runs:
            os.environ["DEEPLAB_EDU_RUNS"] = runs
        if data := os.environ.get("DEEPLAB_EDU_DATA"):  # kernels start in another folder
            os.environ["DEEPLAB_EDU_DATA"] = str(Path(data).resolve())
        os.environ.setdefault(
            "PYDEVD_DISABLE_FILE_VALIDATION", "1"
        )  # a debugger's note that lands in outputs
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def command_execute(paths: Sequence[Path], options: argparse.Namespace) -> int:
    for path in paths:
        print(f"{path.stem} ... ", end="", flush=True)
        try:
            notebook = run(path, options.profile, options.limit)
        except NotebookFailed as error:
            print(f"failed; the file is left as it was\n{error}")
            return 1
        nbformat.write(notebook, path)
        print(f"{notebook.metadata['deeplab_edu']['seconds']} s")
    return 0


def command_clean(paths: Sequence[Path], _: argparse.Namespace) -> int:
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        clean(notebook)
        nbformat.write(notebook, path)
    return 0


def command_check(paths: Sequence[Path], _: argparse.Namespace) -> int:
    found = [f"{path.name}: {sentence}" for path in paths for sentence in hygiene.problems(path)]
    print("\n".join(found) or f"{len(paths)} notebooks are in order")
    return bool(found)


def command_stale(paths: Sequence[Path], _: argparse.Namespace) -> int:
    """What other code than that of now made, or shows numbers of then, and what changed since; never a failure."""
    stale = 0

    def say(words: str, path: Path, parts: Sequence[str], *more: str) -> None:
        nonlocal stale
        stale += 1
        print(words)
        changed = [*changed_since(path, parts), *more]
        if changed:
            print(f"    changed since: {', '.join(changed)}")

    for path in paths:
        record = nbformat.read(path, as_version=4).metadata.get("deeplab_edu", {})
        shown = [
            name for name, was in record.get("results", {}).items() if file_digest(RESULTS / name) != was
        ]
        if record.get("package") != code_digest(SHOWN) or shown:
            say(f"notebooks/{path.name}", path, SHOWN, *(f"results/{name}" for name in shown))
    for path in sorted(RESULTS.glob("*.json")):
        recorded = json.loads(path.read_text())
        parts = (*DECIDES, *recorded.get("parts", ()))
        if "command" in recorded and recorded.get("code") != code_digest(parts):
            say(f"results/{path.name}: {recorded['command']}", path, parts)
    if not stale:
        print("everything was made by the code as it is")
    return 0


def changed_since(path: Path, parts: Sequence[str]) -> list[str]:
    """Files of the package whose meaning has changed since `path` was committed; empty where git cannot tell."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(hygiene.REPOSITORY), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    package = hygiene.REPOSITORY / "deeplab_edu"
    commit = git("log", "-1", "--format=%H", "--", str(path)).strip()
    names = (
        git("diff", "--name-only", commit, "--", *(str(package / part) for part in parts)) if commit else ""
    )
    found = []
    for name in filter(lambda name: name.endswith(".py"), names.splitlines()):
        now, then = hygiene.REPOSITORY / name, git("show", f"{commit}:{name}")
        if not now.exists() or meaning(now.read_text()) != meaning(then):
            found.append(name.removeprefix("deeplab_edu/"))
    return found


def command_test(paths: Sequence[Path], options: argparse.Namespace) -> int:
    """nbval over the notebooks; the conftest.py beside them closes nbval's holes."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--no-header", "-rfEs"]
    command += [f"--nbval-cell-timeout={options.limit:g}", "-p", "no:cacheprovider", *map(str, paths)]
    return subprocess.run(command, check=False).returncode


def command_gpu(paths: Sequence[Path], options: argparse.Namespace) -> int:
    """One notebook and one seed under nbval in profile gpu; leaves what it showed, without weights."""
    if len(paths) != 1:
        print("A run on a GPU is one notebook and one seed: make gpu-course NOTEBOOK=02_fcn SEED=0")
        return 2
    os.environ[SEED] = str(options.seed)
    try:
        profile = Profile.load(options.profile)
    except ValueError as error:
        print(f"{error} (experiments/full_size.py trains one model without Jupyter; docs/on-a-gpu.md)")
        return 2
    into = (options.into.parent / "gpu" / f"{paths[0].stem}.seed{options.seed}").resolve()
    into.mkdir(parents=True, exist_ok=True)
    os.environ[SHOWN_INTO] = str(into)  # notebooks/conftest.py fills it
    start = time.perf_counter()
    failed = command_test(paths, options)
    printed = {int(p.stem): p.read_text() for p in sorted(into.glob("*.txt"))}
    command = f"make gpu-course NOTEBOOK={paths[0].stem} SEED={options.seed}"
    facts = {"seeds": [options.seed], "seconds": round(time.perf_counter() - start), "passed": not failed}
    print("wrote", save_result(paths[0].stem, command, profile, {"printed": printed}, folder=into, **facts))
    return failed


def command_course(paths: Sequence[Path], options: argparse.Namespace) -> int:
    options.into.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    print(f"profile {options.profile}, results in {options.into}\n")
    print("| notebook | seconds | verdict |\n|---|---:|---|")
    for path in paths:
        start = time.perf_counter()
        try:
            nbformat.write(run(path, options.profile, options.limit), options.into / path.name)
        except NotebookFailed as error:
            failures[path.stem] = str(error)
        verdict = "failed" if path.stem in failures else "passed"
        seconds[path.stem] = round(time.perf_counter() - start, 1)
        print(f"| {path.stem} | {seconds[path.stem]:.0f} | {verdict} |", flush=True)
    if options.save and not failures:
        command = f"python tools/notebooks.py course --profile {options.profile} --save"
        profile = Profile.load(options.profile)
        save_result(f"course.{profile.name}", command, profile, seconds)
    for name, reason in failures.items():
        print(f"\n{name}: {reason}")
    return bool(failures)


# command -> function, profile and limit in seconds unless the caller names others
COMMANDS = {
    "execute": (command_execute, "cpu", 3600),
    "clean": (command_clean, "cpu", 0),
    "check": (command_check, "cpu", 0),
    "stale": (command_stale, "cpu", 0),
    "test": (command_test, "ci", 300),
    "gpu": (command_gpu, "gpu", 1800),
    "course": (command_course, os.environ.get("DEEPLAB_EDU_PROFILE", "cpu"), 3600),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every notebook of the course")
    parser.add_argument("--profile", help="ci, cpu or gpu")
    parser.add_argument("--limit", type=float, help="seconds a notebook may take (for `test`: a cell)")
    parser.add_argument("--into", type=Path, default=Path("build/notebooks"), help="where `course` writes")
    parser.add_argument("--save", action="store_true", help="record the seconds of `course` in results/")
    parser.add_argument("--seed", type=int, default=0, help="of `gpu`")
    parser.add_argument("--keep-runs", action="store_true", help="load and keep training runs between calls")
    options = parser.parse_intermixed_args(arguments)
    function, profile, limit = COMMANDS[options.command]
    options.profile = options.profile or profile
    options.limit = options.limit or limit
    paths = [path.resolve() for path in options.notebooks] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    if not paths:
        print("There is no notebook yet.")
        return 0
    with kernel_environment(options.profile, options.keep_runs or options.command == "gpu"):
        return function(paths, options)


if __name__ == "__main__":
    sys.exit(main())
