"""Grade one submission: its cells run in a worker, the tests run here and call what the cells defined.

A test is plain Python, the same in the students' notebook and here. There it sees the student's functions; here it
sees `Remote` stand-ins that hand plain data to the worker and take plain data back. A call that takes too long, or a
worker that dies, costs that test; the next one finds a fresh worker in which the fatal cell is left out.
"""

import contextlib
import io
import json
import re
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .assignment import HIDDEN, Assignment, id_of, kind_of, refused
from .sandbox import Limits, resident_gb, worker_process
from .worker import MAX_MESSAGE, Worker, decode, encode

START_SECONDS = 120  # Python, torch and what the assignment itself gives, on a slow machine
MAX_TEXT = 10_000  # characters of a message or a note
LOOK_SECONDS = 0.1  # between two looks at the memory in use


class Stopped(Exception):
    """The student's process hung, died, or took too much; the message says which."""


class StudentError(Exception):
    """Something the student's code raised; the message is what it would have been there."""


# --- the two ways to reach a worker --------------------------------------------------------------


class HereChannel:
    """A worker in this very process: quick and without any protection, for solutions and one's own work."""

    def __init__(self) -> None:
        self.worker = Worker()

    def ask(self, request: dict, seconds: float) -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return json.loads(json.dumps(self.worker.answer(json.loads(json.dumps(request)))))

    def close(self) -> None:
        pass


class ProcessChannel:
    """A worker in a process of its own, contained unless `contained` is False."""

    def __init__(self, limits: Limits, contained: bool = True) -> None:
        self.limits = limits
        self.stack = contextlib.ExitStack()
        self.socket, self.process = self.stack.enter_context(worker_process(limits, contained))
        self.unread = b""
        try:
            self._line(time.monotonic() + START_SECONDS)  # says that it is ready
        except (Stopped, OSError):
            self.close()
            raise Stopped("the process for the submission did not start") from None

    def ask(self, request: dict, seconds: float) -> Any:
        end = time.monotonic() + seconds
        try:
            self.socket.settimeout(max(seconds, 0.01))  # a worker that does not read must not stop the grader
            self.socket.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(self._line(end))
        except TimeoutError:
            raise Stopped(f"took longer than {seconds:g} s") from None
        except OSError:
            raise Stopped("its process ended") from None
        except (ValueError, RecursionError):
            raise Stopped("its process sent something that is no answer") from None

    def _line(self, end: float) -> bytes:
        pieces = [self.unread]
        size = len(self.unread)
        while b"\n" not in pieces[-1]:
            pieces.append(self._receive(end))
            size += len(pieces[-1])
            if size > MAX_MESSAGE + 1000:
                raise Stopped("its process sent too much")
        line, _, self.unread = b"".join(pieces).partition(b"\n")
        return line

    def _receive(self, end: float) -> bytes:
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(min(left, LOOK_SECONDS))
            with contextlib.suppress(TimeoutError):
                if data := self.socket.recv(1 << 20):
                    return data
                raise Stopped("its process ended")
            if resident_gb(self.process.pid) > self.limits.memory:
                raise Stopped(f"needed more than {self.limits.memory:g} GB of memory")
        raise TimeoutError

    def close(self) -> None:
        self.stack.close()


# --- what a test sees ----------------------------------------------------------------------------


class Remote:
    """Stands for an object in the student's process. Can be called, and asked for attributes; is equal to nothing."""

    def __init__(self, student: "Student", number: int, type_name: str) -> None:
        self._student, self._number, self._type, self._life = student, number, type_name, student.life

    def __call__(self, *args: Any, **options: Any) -> Any:
        request = {"do": "call", "of": self._reference()["of"]}
        given = {"args": args, "options": options}
        return self._student.request(request | {k: encode(v, _reference) for k, v in given.items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._student.request({"do": "attribute", "of": self._reference()["of"], "name": name})

    def _reference(self) -> dict:
        if self._life != self._student.life:
            raise Stopped("the object was lost when its process ended")
        return {"kind": "reference", "of": self._number}

    def __bool__(self) -> bool:
        raise TypeError(f"a {self._type} is neither true nor false here")

    def __repr__(self) -> str:
        return f"<{self._type}>"


def _reference(value: Any) -> dict:
    if isinstance(value, Remote):
        return value._reference()
    raise TypeError(f"a test can hand over plain data only, not {type(value).__name__}")


# --- a submission, alive ---------------------------------------------------------------------------


@dataclass
class Student:
    """The cells of a submission, run in a worker that is replaced when it hangs or dies.

    `cells` are (name, source, given): the assignment's own and the student's, in order.
    """

    cells: list[tuple[str, str, bool]]
    channel: Callable[[], HereChannel | ProcessChannel]
    limits: Limits
    notes: list[str] = field(default_factory=list)
    seconds: float = 0  # a call may take; grading sets it for each test

    def __post_init__(self) -> None:
        self.life = 0  # counts workers
        self.worker: HereChannel | ProcessChannel | None = None
        self.started = False
        self.fatal: set[int] = set()
        self.end = time.monotonic() + self.limits.total

    def imports(self) -> list[str]:
        """What the student's cells import; asked of a worker before anything has run in it."""
        self.worker, self.started = self.channel(), False
        cells = [source for _, source, given in self.cells if not given]
        found: list[str] = []
        for source in cells:
            with contextlib.suppress(SyntaxError, StudentError, *EXPECTED):  # not parsed: it won't run either
                found += self._ask({"do": "imports", "source": source}, START_SECONDS)
        return found

    def start(self) -> None:
        """Have a worker that has run every cell that can be run. Raises Stopped if the time is up."""
        while self.worker is None or not self.started:
            if time.monotonic() > self.end:
                raise Stopped(f"the submission as a whole took longer than {self.limits.total:g} s")
            self.worker, self.started = self.worker or self.channel(), True
            self.life += 1
            for number, (name, source, given) in enumerate(self.cells):
                if number not in self.fatal and not self._run(number, name, source, given):
                    break

    def _run(self, number: int, name: str, source: str, given: bool) -> bool:
        """Run one cell; False if that was the worker's end."""
        try:
            seconds = START_SECONDS if given else self.limits.seconds
            self._ask({"do": "run", "cell": f"cell {name}", "source": source}, seconds)
        except Stopped as stop:
            self.fatal.add(number)
            self.note(f"cell {name} {stop}" if "took" in str(stop) else f"cell {name}: {stop}")
            return False
        except Exception as error:
            self.note(f"cell {name} raised {error}")
        return True

    def note(self, text: str) -> None:
        text = " ".join(printable(text).split())  # a line is a line, in the terminal and in a table
        if text not in self.notes:
            self.notes.append(text)

    def get(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of `names` that the cells have defined."""
        self.start()
        return self.request({"do": "get", "names": sorted(names)})

    def request(self, request: dict) -> Any:
        """Ask the worker. Raises Stopped, or what the student's code raised."""
        return self._ask(request, self.seconds or self.limits.seconds)

    def _ask(self, request: dict, seconds: float) -> Any:
        if self.worker is None:
            raise Stopped("its process ended")
        try:
            reply = self.worker.ask(request, min(seconds, max(0.0, self.end - time.monotonic())))
            raised = _error(reply) if "raised" in reply else None
            value = None if raised else decode(reply["value"], self._remote)
        except Stopped:
            self.close()
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            self.close()
            raise Stopped("its process sent something that is no answer") from None
        if raised:
            raise raised
        return value

    def _remote(self, data: dict) -> Remote:
        return Remote(self, int(data["of"]), re.sub(r"\W", "", str(data["type"]))[:40])

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


EXPECTED = (ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError, ZeroDivisionError)


def _error(reply: dict) -> Exception:
    """What was raised over there. Kinds that a test may expect are raised as such; the rest as StudentError."""
    kind, text, where = (str(reply.get(key, ""))[:2000] for key in ("raised", "text", "where"))
    place = f" ({where})" if where else ""
    error_type = next((e for e in EXPECTED if e.__name__ == kind), None)
    return error_type(text + place) if error_type else StudentError(f"{kind}: {text}{place}")


def printable(text: str) -> str:
    """A student's words without what steers a terminal or turns the direction of writing, and not without end."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[:MAX_TEXT])


# --- the tests -----------------------------------------------------------------------------------


@dataclass
class Verdict:
    """One test of one submission."""

    points: float
    most: float
    message: str = ""  # why points were lost, in words for the student

    def __post_init__(self) -> None:
        self.message = printable(self.message)


@dataclass
class Result:
    """A graded submission, or the reason why it is none."""

    student: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by test; empty if not graded
    notes: list[str] = field(default_factory=list)
    reason: str = ""  # why it was not graded
    answers: dict[str, str] = field(default_factory=dict)  # source by grade_id, for the feedback
    seconds: float = 0

    @property
    def state(self) -> str:
        if self.reason:
            return f"not graded: {self.reason}"
        return "; ".join(["graded", *self.notes])

    @property
    def total(self) -> float | None:
        return sum(v.points for v in self.verdicts.values()) if self.verdicts else None


def student_cells(assignment: Assignment, notebook: Any) -> list[tuple[str, str, bool]]:
    """The cells to run: what the assignment gives, from the source; then the student's own code, in their order.

    So deleted, edited or doubled tests and given cells change nothing; of a doubled answer the last one counts, as it
    does in the notebook; and answers whose metadata was lost are run like any other cell.
    """
    own = [cell for cell in assignment.notebook.cells if kind_of(cell) in ("test", "given", "demo")]
    skipped_ids, skipped_text = {id_of(cell) for cell in own}, {_public(cell) for cell in own}
    cells = [(id_of(cell), cell.source, True) for cell in assignment.cells("given")]
    for number, cell in enumerate(notebook.cells, 1):
        source = cell.source.strip()
        if cell.cell_type != "code" or not source or id_of(cell) in skipped_ids or source in skipped_text:
            continue
        cells.append((id_of(cell) or f"no. {number}", cell.source, False))
    return cells


def _public(cell: Any) -> str:
    return HIDDEN.sub("", cell.source).strip()


def grade_notebook(
    assignment: Assignment,
    notebook: Any,
    channel: Callable[[], HereChannel | ProcessChannel],
    limits: Limits = Limits(),  # noqa: B008  frozen
    student: str = "",
) -> Result:
    """Run a submission's cells behind `channel` and the tests here."""
    started = time.monotonic()
    result = Result(student, answers={id_of(c): c.source for c in notebook.cells if id_of(c)})
    them = Student(student_cells(assignment, notebook), channel, limits, notes=result.notes)
    try:
        if found := refused(them.imports()):
            result.reason = f"it imports {', '.join(found)}, which holds answers"
            return result
        names = _given(assignment)
        for test in assignment.cells("test"):
            result.verdicts[id_of(test)] = run_test(assignment, test, them, names)
    except Stopped as stop:
        result.reason = f"{stop}; look at it by hand"
    finally:
        them.close()
        result.seconds = time.monotonic() - started
    return result


def _given(assignment: Assignment) -> dict[str, Any]:
    """The names the assignment gives, as the tests see them: from the source, whatever the student did to them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in assignment.cells("given"):
            exec(compile(cell.source, f"cell {id_of(cell)}", "exec"), names)
    return names


def run_test(assignment: Assignment, test: Any, them: Student, names: dict[str, Any]) -> Verdict:
    """Run one test cell: all its points, or none and the reason. Tests share `names`, as cells of a notebook do."""
    most, cell = test.metadata.nbgrader.points, id_of(test)
    them.seconds = test.metadata.get("deeplab_edu", {}).get("seconds", 0)
    wanted: set[str] = set()
    found: dict[str, Any] = {}
    try:
        wanted = set().union(*assignment.answers.values())
        found = them.get(wanted)
        for name in wanted:  # a function that the last worker still had may be gone
            names.pop(name, None)
        names |= found
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(test.source, f"test {cell}", "exec"), names)
        return Verdict(most, most)
    except Stopped as stop:
        return Verdict(0, most, f"Your code was stopped: {stop}.")
    except NotImplementedError:
        return Verdict(0, most, "Not answered yet.")
    except NameError as error:
        missing = error.name in wanted - set(found)
        return Verdict(
            0, most, f"{error.name} is not defined: its cell is missing or failed." if missing else f"{error}"
        )
    except AssertionError as error:
        return Verdict(0, most, _hidden(test, error) + (str(error) or "An assertion failed."))
    except Exception as error:
        kind = "" if isinstance(error, StudentError) else f"{type(error).__name__}: "
        return Verdict(0, most, _hidden(test, error) + kind + str(error))


def _hidden(test: Any, error: Exception) -> str:
    """A word before messages of hidden tests, so that nobody looks for them in the notebook."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("test ")]
    begin = test.source.partition("### BEGIN HIDDEN TESTS")[0].count("\n") + 1
    return "In a test that the notebook does not show: " if frames and (frames[0].lineno or 0) > begin else ""
