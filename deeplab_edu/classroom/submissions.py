"""What students hand in: a folder or a zip file of notebooks, of which any may be damaged, foreign or hostile.

Nothing is unpacked and nothing but notebooks is read, of bounded size. Names become plain words.

==========================================================  ======================================
layout                                                      student
==========================================================  ======================================
`kim.ipynb`                                                 kim
`kim/a1_metrics.ipynb`, `kim/a1_metrics/a1_metrics.ipynb`   kim (nbgrader, and by hand)
`leekim_LATE_123_456_a1_metrics-1.ipynb`                    leekim, number 123 (Canvas)
`Kim Lee_123_assignsubmission_file_/a1_metrics.ipynb`       Kim Lee, number 123 (Moodle)
==========================================================  ======================================
"""

import contextlib
import io
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat

from .assignment import Assignment, AssignmentError, id_of

MAX_BYTES = 5_000_000  # a notebook with many pictures; the students' version has some 30 kB
MAX_FILES = 5_000
CANVAS = re.compile(r"(?P<name>.+?)_(?:LATE_)?(?P<number>\d+)_\d+_.+")
MOODLE = re.compile(r"(?P<name>.+)_(?P<number>\d+)_assignsubmission_file_?")


class Unreadable(Exception):
    """A submission cannot be graded; the message says why."""


@dataclass(frozen=True)
class Submission:
    """One file handed in. `number` is the student's in Canvas or Moodle, if the name tells."""

    student: str
    number: str
    system: str  # "canvas", "moodle" or ""
    data: bytes | None
    problem: str = ""

    def notebook(self, assignment: Assignment) -> Any:
        """The notebook in it, in today's format. Raises Unreadable."""
        if self.data is None:
            raise Unreadable(self.problem)
        try:
            notebook = nbformat.reads(self.data.decode(), as_version=4)
            cells = [cell.source + cell.cell_type for cell in notebook.cells]
            ids = {id_of(cell) for cell in notebook.cells}
        except Exception as error:  # whatever a damaged file makes of nbformat
            raise Unreadable(f"no readable notebook ({type(error).__name__})") from None
        if not cells:
            raise Unreadable("the notebook is empty")
        if not ids & {id_of(cell) for cell in assignment.notebook.cells} - {""}:
            names = set().union(*assignment.answers.values())
            if not any(re.search(rf"^(def|class) {name}\b", text, re.M) for name in names for text in cells):
                raise Unreadable(f"the notebook has nothing of {assignment.name}; another assignment?")
        return notebook


def collect(path: Path) -> list[Submission]:
    """All submissions in a folder or a zip file, by name. Raises AssignmentError if there is none."""
    path = Path(path)
    if path.is_dir():
        files = _in_folder(path)
    elif zipfile.is_zipfile(path):
        files = _in_zip(path.read_bytes())
    else:
        raise AssignmentError(f"{path} is neither a folder nor a zip file of notebooks.")
    found: dict[str, Submission] = {}
    for name, data, problem in files:
        student, number, system = _student(PurePosixPath(name))
        key, again = student, 2
        while key in found:
            key, again = f"{student} ({again})", again + 1
        found[key] = Submission(key, number, system, data, problem)
    if not found:
        raise AssignmentError(f"There is no notebook (*.ipynb) in {path}.")
    return [found[key] for key in sorted(found)]


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes | None, str]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".ipynb", ".zip") or ".ipynb_checkpoints" in path.parts:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode):
                yield name, None, "not a file but a link, a folder or something else"
            elif about.st_size > MAX_BYTES:
                yield name, None, f"{about.st_size / 1e6:.0f} MB; {MAX_BYTES / 1e6:.0f} MB at most"
            elif path.suffix.lower() == ".zip":
                yield name, *_only_notebook(path.read_bytes())
            else:
                yield name, path.read_bytes(), ""
        except OSError as error:
            yield name, None, f"cannot be read ({error.strerror})"


def _only_notebook(data: bytes) -> tuple[bytes | None, str]:
    """The notebook in one student's zip file, or what is wrong."""
    try:
        inside = [*islice(_in_zip(data), 2)]  # no more: each may be 5 MB of zeros
    except AssignmentError as error:
        return None, str(error)
    if len(inside) != 1:
        return None, f"a zip file with {'more than one notebook' if inside else 'no notebook'}"
    return inside[0][1:]


def _in_zip(data: bytes) -> Iterator[tuple[str, bytes | None, str]]:
    """Notebooks in a zip file: read in memory, at most MAX_BYTES each, whatever the file claims about itself."""
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise AssignmentError(f"no readable zip file ({error})") from None
    if len(members) > MAX_FILES:
        raise AssignmentError(f"a zip file with {len(members)} members; {MAX_FILES} at most")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in members:
            if member.filename.lower().endswith((".ipynb", ".zip")) and "__MACOSX" not in member.filename:
                yield member.filename, *_member(archive, member)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[bytes | None, str]:
    if member.filename.lower().endswith(".zip"):
        return None, "a zip file inside a zip file"
    try:
        with archive.open(member) as file:
            data = file.read(MAX_BYTES + 1)
    except Exception as error:  # encrypted, unknown compression, wrong checksum ...
        return None, f"cannot be read from its zip file ({type(error).__name__})"
    if len(data) > MAX_BYTES:
        return None, f"more than {MAX_BYTES / 1e6:.0f} MB"
    return data, ""


def _student(path: PurePosixPath) -> tuple[str, str, str]:
    """Student, number and system from a submission's path (see the module's table)."""
    for part in path.parts:
        if found := MOODLE.fullmatch(part):
            return plain(found["name"]), found["number"], "moodle"
    if found := CANVAS.fullmatch(path.stem):
        return plain(found["name"]), found["number"], "canvas"
    folders = [part for part in path.parts[:-1] if part not in ("..", "/", "")]
    return plain(folders[0] if folders else path.stem), "", ""


def plain(name: str) -> str:
    """A name that is safe as a file name, in HTML and in a spreadsheet."""
    with contextlib.suppress(UnicodeEncodeError):
        name = name.encode("utf-8").decode()
    return re.sub(r"[^\w .()-]", "_", name).strip(" .-")[:80] or "unnamed"
