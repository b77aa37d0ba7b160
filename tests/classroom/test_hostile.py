"""Hostile submissions in one batch behind the sandbox: what each got, that the batch finished, that nothing changed.

Each attack reports what it saw as the value of an answer, which the feedback quotes, so that a test can tell "could
not" from "did not try".
"""

import contextlib
import csv
import hashlib
import html
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest

from course import DOUBLE, HALF, submission
from deeplab_edu.classroom.__main__ import main
from deeplab_edu.classroom.sandbox import PACKAGE, parents_of

pytestmark = pytest.mark.required_in_ci

FULL = (3, 4)
NAP = 987.125  # seconds that a background process sleeps, by which it is recognised


@dataclass(frozen=True)
class Case:
    """One attack: the answer cells it replaces, the points it gets, and what its row or its feedback says."""

    points: tuple[int, int] | None
    says: str  # regular expression
    q1: str = DOUBLE
    q2: str = HALF
    extra: str = ""


def tries(*actions: str) -> str:
    """An answer that tries each action, an expression, and returns what became of them."""
    return dedent("""\
        import os, socket, glob, resource, ctypes
        def half(x):
            seen = []
            for action in ACTIONS:
                try:
                    seen.append(eval(action, globals()))
                except Exception as error:
                    seen.append(type(error).__name__)
            return seen
        """).replace("ACTIONS", repr(actions))


CASES = {
    # --- time
    "endless_loop": Case((0, 4), "took longer than 8 s", "def double(x):\n    while True: pass"),
    "endless_cell": Case(FULL, "cell no. 1 took longer than 8 s", extra="while True: pass"),
    "uninterruptible_loop": Case(
        (0, 4),
        "took longer than 8 s",
        dedent("""\
            import signal
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            def double(x):
                while True:
                    try:
                        while True: pass
                    except BaseException: pass
            """),
    ),
    "hangs_up": Case(
        (0, 4),
        "its process ended",
        "import os, time\ndef double(x):\n    os.closerange(0, 99)\n    time.sleep(99)",
    ),
    # --- memory, processes, output
    "memory": Case(
        (0, 4),
        "more than 0.4 GB",
        "def double(x):\n    hog = []\n    while True: hog.append(bytearray(10**8))",
    ),
    "memory_at_once": Case((0, 4), "MemoryError", "def double(x):\n    return bytearray(10**11)"),
    "memory_of_many": Case(
        (0, 4),
        "more than 0.4 GB",
        dedent("""\
            import os, time
            def double(x):
                for _ in range(8):
                    if os.fork() == 0:
                        hog = bytearray(b'x') * 3 * 10**8
                        time.sleep(99)
                time.sleep(99)
            """),
    ),
    "memory_in_files": Case(
        (3, 0),
        r"not \('files', [1-6]\)",
        q2=dedent("""\
            def half(x):
                made = 0
                try:
                    while True:
                        open(f'/tmp/{made}', 'wb').write(b'x' * 10**7)
                        made += 1
                except OSError:
                    return 'files', made
            """),
    ),
    "fork_bomb": Case(
        (0, 4),
        r"not \('made', [1-9]\d?\)",
        dedent("""\
            import os, time
            def double(x):
                made = 0
                try:
                    while True:
                        if os.fork() == 0:
                            time.sleep(99)
                        made += 1
                except OSError:
                    return 'made', made
            """),
    ),
    "output_flood": Case(
        FULL,
        "graded$",
        f"{DOUBLE}\nimport os\nfor _ in range(3000): os.write(1, b'x' * 10**5)\nprint('x' * 10**7)",
    ),
    "huge_answer": Case((0, 4), "too large", "def double(x):\n    return 'x' * (7 * 10**7)"),
    "huge_error": Case((0, 4), "xxx", "def double(x):\n    raise ValueError('x' * 10**8)"),
    "deep_answer": Case(
        (0, 4),
        "RecursionError",
        "def double(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    ),
    # --- an end before its time
    "exit": Case((0, 4), "its process ended", "import os\ndef double(x):\n    os._exit(0)"),
    "exit_cell": Case(FULL, "cell no. 1: its process ended", extra="import os; os._exit(0)"),
    "sys_exit": Case((0, 4), "SystemExit", "import sys\ndef double(x):\n    sys.exit(0)"),
    "kernel_kill": Case(
        (0, 4), "its process ended", "import os\ndef double(x):\n    os.kill(os.getpid(), 9)"
    ),
    "kill_everything": Case(
        (0, 4), "ProcessLookupError|ended", "import os\ndef double(x):\n    os.kill(-1, 9)"
    ),
    "crash_parser": Case(
        FULL, "cell no. 1 raised (MemoryError|RecursionError)", extra="x = " + "-" * 100_000 + "1"
    ),
    "crash_python": Case(
        (0, 4), "its process ended", "import ctypes\ndef double(x):\n    ctypes.string_at(0)"
    ),
    # --- reading, writing, reaching out
    "read_solutions": Case(
        (3, 0), r"not \['FileNotFoundError', \[\]\]", q2=tries("open(SOURCE)", "glob.glob(SOURCES + '/*')")
    ),
    "read_others": Case(
        (3, 0), r"not \['FileNotFoundError', \[\]\]", q2=tries("open(OTHER)", "glob.glob(OTHERS + '/*')")
    ),
    "read_home": Case(
        (3, 0),
        r"not \['FileNotFoundError', \[\], \[\]\]",
        q2=tries(
            "open(HOME + '/secret')",
            "glob.glob('/home/*')",
            # where the course itself lies below /tmp, the folder that leads to its packages is there, and nothing else
            "[n for n in os.listdir('/tmp') if not any(p.startswith('/tmp/' + n) for p in __import__('sys').path)]",
        ),
    ),
    "read_processes": Case(
        (3, 0),
        r"not \[('PermissionError'|False), True, False\]",
        q2=tries(
            "'SECRET' in open('/proc/1/environ').read()",
            "len(glob.glob('/proc/[0-9]*')) < 5",
            "'SECRET' in os.environ",
        ),
    ),
    "find_tests": Case(
        (3, 0),
        r"not \(\[\], True\)",
        q2=dedent("""\
            import gc, sys
            def half(x):
                frame, names = sys._getframe(), set()
                while frame:
                    names |= set(frame.f_globals) | set(frame.f_locals)
                    frame = frame.f_back
                mark = 'BEGIN ' + 'HIDDEN'
                texts = [o for o in gc.get_objects() if isinstance(o, str)] + list(map(str, names))
                return [t[:99] for t in texts if mark in t], 'half' in names
            """),
    ),
    "delete": Case(
        (3, 0),
        r"not \[('(OSError|PermissionError|FileNotFoundError)'(, )?){5}\]",
        q2=tries(
            "os.remove(SOURCE)",
            "os.remove(OTHER)",
            "os.remove(HOME + '/secret')",
            "os.remove('/usr/bin/env')",
            "os.remove('/course/worker.py')",
        ),
    ),
    "write": Case(
        (3, 0),
        r"not \[('(OSError|PermissionError|FileNotFoundError)'(, )?){6}\]",
        q2=tries(
            *(
                f"open({place} + '/PWNED', 'w')"
                for place in ("''", "'/usr'", "'/course'", "'/dev'", "'/dev/shm'", "OTHERS")
            )
        ),
    ),
    "grade_store": Case(
        (3, 0),
        r"not \['FileNotFoundError', 'FileNotFoundError'\]",
        q2=tries("open(OUT + '/grades.csv', 'a').write('me,3,4')", "os.mkdir(OUT)"),
    ),
    "network": Case(
        (3, 0),
        r"not \['(OSError|ConnectionRefusedError)', '(OSError|TimeoutError)', 'gaierror'\]",
        q2=tries(
            "socket.create_connection(('127.0.0.1', PORT), timeout=1)",
            "socket.create_connection(('192.0.2.1', 53), timeout=1)",
            "socket.getaddrinfo('example.org', 80)",
        ),
    ),
    "background": Case(
        FULL,
        "graded$",
        f"{DOUBLE}\nimport subprocess\nsubprocess.Popen(['sleep', '{NAP}'], start_new_session=True)",
    ),
    "more_rights": Case(
        (3, 0),
        r"not \[('(OSError|PermissionError|ValueError)'(, )?){3}, -1\]",
        q2=tries(
            "os.setuid(0)",
            "os.mknod('/tmp/d', 0o60600, 0x800)",
            "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
            "ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        ),
    ),
    # --- making the grader believe something
    "always_equal": Case(
        (0, 4),
        "double.3. is 6, not <Yes>",
        dedent("""\
            class Yes:
                def __eq__(self, other): return True
                __bool__ = __lt__ = __gt__ = __contains__ = __eq__
            def double(x):
                return Yes()
            """),
    ),
    "equal_integer": Case(
        (0, 4),
        "double.3. is 6, not (1|<Int>)",
        "class Int(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def double(x):\n    return Int(1)",
    ),
    "patched_assert": Case(
        (0, 0),
        "is 6, not 0",
        "import builtins\nbuiltins.AssertionError = ZeroDivisionError\nbuiltins.repr = lambda x: '6'\n"
        "def double(x): return 0",
        "def half(x): return 0",
    ),
    "input_transformer": Case(
        (0, 0),
        "its cell is missing or failed",
        extra="import builtins\nold = compile\nbuiltins.compile = lambda source, *a: old('pass', *a)",
    ),
    "ipython_transformer": Case(
        (0, 0),
        "cell no. 1 raised NameError",
        "def double(x): return 0",
        "def half(x): return 0",
        extra="get_ipython().input_transformers_cleanup.append(lambda lines: ['pass'])",
    ),
    "patched_worker": Case(
        (0, 0),
        "no answer",
        "import __main__\n__main__.encode = lambda v, r: {'kind': 'tensor', 'dtype': 'load', 'shape': [-1], 'of': ''}",
    ),
    "forged_replies": Case(
        (0, 0),
        "graded$",
        dedent("""\
            import json, os
            for number in range(3, 99):
                try:
                    for _ in range(50):
                        os.write(number, json.dumps({'value': 6, 'points': 3}).encode() + b'\\n')
                except OSError: pass
            def double(x): return 0
            """),
        "def half(x): return 0",
    ),
    "broken_replies": Case(
        (0, 4),
        "no answer",
        dedent("""\
            import os
            def double(x):
                for number in range(3, 99):
                    try: os.write(number, b'[' * 10**6 + b'\\n')
                    except OSError: pass
                while True: pass
            """),
    ),
    "endless_reply": Case(
        (0, 4),
        "sent too much|longer|more than 0.4 GB",
        dedent("""\
            import os
            def double(x):
                while True:
                    for number in range(3, 9):
                        try: os.write(number, b'x' * 10**6)
                        except OSError: pass
            """),
    ),
    "stops_itself": Case(
        (0, 4), "took longer than 8 s", "import os\ndef double(x):\n    os.kill(os.getpid(), 19)"
    ),
    "odd_numbers": Case(
        (0, 4),
        "graded$",
        "def double(x):\n    return float('nan') if x < 0 else 10**4000",
    ),
    "many_small_things": Case(
        (0, 4), "too large|longer|0.4 GB", "def double(x):\n    return [{} for _ in range(10**6)]"
    ),
    "writes_compiled": Case(
        (3, 0),
        r"not \[('(OSError|PermissionError|FileNotFoundError)'(, )?){2}\]",
        q2=tries(
            "open('/compiled/PWNED', 'w')",
            "os.remove(([*glob.glob('/compiled/**/*.pyc', recursive=True), '/compiled/x'])[0])",
        ),
    ),
    # --- taking the answer from a library
    "imports_answers": Case(
        None,
        "not graded: it imports deeplab_edu.metrics",
        extra="from deeplab_edu.metrics import ConfusionMatrix",
    ),
    "finds_answers": Case(
        (3, 0),
        r"not \[\[\], \[\], \['__init__.py', 'data'\], \[\], \[\]\]",
        q2=tries(
            "glob.glob(SITE + '/torchvision/models/segmentation/*')",
            "glob.glob(SITE + '/torchmetrics/*') + glob.glob(SITE + '/sklearn/*') + glob.glob(SITE + '/timm/*')",
            "sorted(os.listdir('/course/deeplab_edu'))",
            "glob.glob('/course/**/*classroom*', recursive=True) + glob.glob('/**/a1_metrics*')",
            "glob.glob('/compiled/**/deeplab_edu/[a-z]*.pyc', recursive=True)",
        ),
    ),
    # --- odd files, written by `odd_files`
    "gigabyte": Case(None, "not graded: 1000 MB; 5 MB at most"),
    "zip_bomb": Case(None, "not graded: more than 5 MB"),
    "zip_path": Case(FULL, "graded$"),
    "zip_many": Case(None, "6000 members; 5000 at most"),
    "zip_in_zip": Case(None, "a zip file inside a zip file"),
    "zip_broken": Case(None, "no readable zip file"),
    "link": Case(None, "not graded: not a file but a link"),
    "pipe": Case(None, "not graded: not a file"),
    "damaged": Case(None, "no readable notebook"),
    # --- and between them
    "aa_honest": Case(FULL, "graded$"),
    "zz_honest": Case(FULL, "graded$"),
}


def odd_files(folder: Path, source: Path) -> None:
    text = nbformat.writes(submission())
    with (folder / "gigabyte.ipynb").open("wb") as file:
        file.truncate(10**9)
    archives = {
        "zip_bomb": {"toy.ipynb": " " * 20_000_000},
        "zip_path": {"../../../PWNED/toy.ipynb": text},
        "zip_many": {f"{i}.ipynb": "{}" for i in range(6_000)},
        "zip_in_zip": {"inner.zip": "PK"},
    }
    for name, members in archives.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    (folder / "zip_broken.zip").write_bytes(b"PK\3\4 no zip")
    (folder / "damaged.ipynb").write_text(text[: len(text) // 2])
    (folder / "link.ipynb").symlink_to(source / "toy/toy.ipynb")
    os.mkfifo(folder / "pipe.ipynb")


@dataclass
class Batch:
    """Folders of the graded batch, and what was seen of it."""

    top: Path
    source: Path
    heard: list[object] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict, repr=False)
    after: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.submissions, self.out, self.home = (self.top / name for name in ("in", "graded", "home"))
        self.submissions.mkdir()
        self.home.mkdir()
        (self.home / "secret").write_text("secret")
        odd_files(self.submissions, self.source)

    def write(self, port: int) -> None:
        paths = {"SOURCES": self.source, "SOURCE": self.source / "toy/toy.ipynb", "OTHERS": self.submissions}
        paths |= {"OTHER": self.submissions / "aa_honest.ipynb", "HOME": self.home, "OUT": self.out}
        paths |= {"SITE": Path(pytest.__file__).parents[1]}
        constants = "".join(f"{name} = {str(path)!r}\n" for name, path in paths.items()) + f"PORT = {port}"
        for name, case in CASES.items():
            if not [*self.submissions.glob(f"{name}.*")]:
                notebook = submission(q1_double=case.q1, q2_half=case.q2, extra=case.extra)
                notebook.cells.append(nbformat.v4.new_code_cell(constants))
                nbformat.write(notebook, self.submissions / f"{name}.ipynb")

    def fingerprint(self) -> dict[str, str]:
        """Everything that must not change."""
        files = [
            path for top in (self.submissions, self.source, self.home) for path in sorted(top.rglob("*"))
        ]
        return {
            str(p): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
            if p.is_file() and p.stat().st_size < 1e8
        } | {str(p): "" for p in files}

    def grade(self) -> None:
        self.before = self.fingerprint()
        arguments = ["grade", "toy", str(self.submissions), str(self.out), "--source", str(self.source)]
        assert main([*arguments, "--seconds", "8", "--memory", "0.4"]) == 0
        self.after = self.fingerprint()


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "grades.csv").open(encoding="utf-8-sig") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def feedback(out: Path, name: str) -> str:
    text = (out / "feedback" / f"{name}.html").read_text(encoding="utf-8")
    return html.unescape(re.sub(r"<h2>.*", "", text, flags=re.S))  # without the answers, which it quotes


def check(out: Path, name: str) -> None:
    """Points, total and words of one case in the graded folder `out`."""
    case, row, page = CASES[name], rows(out)[name], feedback(out, name)
    points = ("", "") if case.points is None else tuple(map(str, case.points))
    assert (row["test_q1"], row["test_q2"]) == points, (row, page)
    assert row["total"] == ("" if case.points is None else str(sum(case.points)))
    assert re.search(case.says, row["state"]) or re.search(case.says, page), (row, page)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, source: Path, sandbox: None) -> Batch:
    made = Batch(tmp_path_factory.mktemp("hostile"), source)
    os.environ["SECRET"] = "of the teacher's shell"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        made.write(listener.getsockname()[1])
        made.grade()
        with contextlib.suppress(TimeoutError):
            made.heard.append(listener.accept())
    del os.environ["SECRET"]
    return made


@pytest.mark.parametrize("name", CASES)
def test_what_it_got(batch: Batch, name: str) -> None:
    check(batch.out, name)


def test_the_batch_finished(batch: Batch) -> None:
    assert set(rows(batch.out)) == set(CASES)
    assert {path.stem for path in (batch.out / "feedback").iterdir()} == set(CASES)


def test_nothing_else_changed(batch: Batch) -> None:
    assert batch.after == batch.before
    assert not [*batch.top.rglob("PWNED")] and not [*batch.top.parent.rglob("PWNED")]
    assert {path.name for path in batch.out.iterdir()} == {
        "grades.csv",
        "canvas.csv",
        "moodle.csv",
        "feedback",
    }


AS_USER = (
    "fork_bomb",
    "memory",
    "read_processes",
    "write",
    "delete",
    "network",
    "more_rights",
    "read_home",
    "aa_honest",
)


@pytest.mark.skipif(os.getuid() != 0, reason="not root, so that all the other tests have shown this")
def test_an_ordinary_user_is_contained_too(batch: Batch, tmp_path: Path) -> None:
    """Without root, bubblewrap makes a user namespace. The grader runs as user 12345 in a room where it can read."""
    own = tmp_path / "own"
    (own / "in").mkdir(parents=True)
    for name in AS_USER:
        shutil.copy(batch.submissions / f"{name}.ipynb", own / "in")
    shutil.copytree(batch.source, own / "source")
    for path in [own, *own.rglob("*")]:
        os.chown(path, 12345, 12345)
    room = ["bwrap", "--ro-bind", "/usr", "/usr", "--dev-bind", "/dev", "/dev", "--bind", "/proc", "/proc"]
    for link in ("bin", "lib", "lib64"):
        room += ["--symlink", f"usr/{link}", f"/{link}"]
    for folder in (Path(sys.base_prefix), Path(sys.prefix), PACKAGE):
        room += [*parents_of(folder), "--ro-bind", str(folder), str(folder)]
    room += [*parents_of(own), "--bind", str(own), str(own), "--perms", "1777", "--tmpfs", "/var/tmp"]
    room += [
        "--setenv",
        "TMPDIR",
        "/var/tmp",
        "--setenv",
        "PYTHONPATH",
        str(PACKAGE.parent),
        "--setenv",
        "SECRET",
        "of the shell",
    ]
    user = [
        "--cap-add",
        "ALL",
        "setpriv",
        "--reuid",
        "12345",
        "--regid",
        "12345",
        "--clear-groups",
        "--inh-caps=-all",
    ]
    command = [
        sys.executable,
        "-m",
        "deeplab_edu.classroom",
        "grade",
        "toy",
        str(own / "in"),
        str(own / "out"),
    ]
    command += ["--source", str(own / "source"), "--seconds", "8", "--memory", "0.4"]
    done = subprocess.run([*room, *user, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in AS_USER:
        check(own / "out", name)


def test_nobody_called(batch: Batch) -> None:
    assert batch.heard == []


def test_nothing_runs_on(batch: Batch) -> None:
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [command for command in commands if str(NAP).encode() in command]
