"""A process for a stranger's code: bubblewrap around `worker`, and limits on memory, processes, files and time.

What it sees, all of it read-only: /usr, the Python environment, the few files of the course that assignments use, and
an empty /tmp of its own, in memory. What it does not see: network, other processes, home folders, tests, solutions,
other submissions, and libraries that hold answers. Needs Linux and bubblewrap 0.7 or newer.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import worker

PACKAGE = Path(__file__).resolve().parents[1]
GIVEN = ("__init__.py", "data")  # parts of the package that a submission may import
COURSE = Path("/course")  # where they lie inside
COMPILED = Path("/compiled")
ANSWERS = (
    "deeplab_edu",
    "torchvision/models/segmentation",
    "torchmetrics",
    "timm",
    "sklearn",
    "pydensecrf",
    "segmentation_models_pytorch",
)
"""Parts of site-packages that hold answers; `assignment.REFUSED` says so to the student."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    seconds: float = 10  # a call, or a cell, unless the assignment grants it more
    total: float = 600  # the whole submission
    memory: float = 2  # GB resident, all its processes together
    processes: int = 32  # and threads
    tmp: int = 64_000_000  # bytes in /tmp
    user: int = field(default_factory=lambda: 60_600 + 8 * (os.getpid() % 70))  # its id, see below
    compiled: str = ""  # folder of modules that Python has compiled

    # An id that nobody has: systemd leaves 60578 to 61183 free, and containers often end at 65535. The kernel counts
    # processes by user, and one submission's fork bomb must not be counted for another: so each run of the grader has
    # eight ids of its own, and each job in it another one.

    @property
    def hard(self) -> dict[str, int]:
        """What `worker.confine` sets, per process. torch alone maps more than 3 GB that it never touches."""
        memory = int((self.memory + 4) * 1e9)
        return {
            "memory": memory,
            "cpu": int(self.total),
            "file": self.tmp,
            "files": 256,
            "processes": self.processes,
            "user": self.user,
        }


class NoSandbox(Exception):
    """bubblewrap does not work here; the message says why and what to do."""


def check_sandbox() -> None:
    """Raise NoSandbox unless student code can be contained on this machine."""
    if not sys.platform.startswith("linux") or shutil.which("bwrap") is None:
        reason = "bubblewrap (bwrap) is not installed"
    else:
        inside = subprocess.run([*command(Limits()), "/bin/true"], capture_output=True, text=True)
        if inside.returncode == 0:
            return
        reason = f"bubblewrap does not work here ({inside.stderr.strip() or inside.returncode})"
    raise NoSandbox(
        f"{reason}, so submissions would run with all your rights. On Debian and Ubuntu: sudo apt install "
        "bubblewrap. Elsewhere grade in a Linux virtual machine (Windows: WSL), or type --no-sandbox on a machine "
        "that holds nothing of value. See docs/teaching-guide.md."
    )


def command(limits: Limits) -> list[str]:
    """The bwrap command line up to the program. Order matters: later mounts lie over earlier ones."""
    args = [shutil.which("bwrap") or "bwrap"]
    args += [f"--unshare-{part}" for part in ("pid", "net", "ipc", "uts", "cgroup-try")]
    args += ["--die-with-parent", "--new-session", "--clearenv"]
    if os.getuid() == 0:  # the worker changes to a real, unprivileged user id: see worker.confine
        args += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        args += ["--unshare-user"]
    args += ["--ro-bind", "/usr", "/usr"]
    for link in ("bin", "lib", "lib64"):
        args += ["--symlink", f"usr/{link}", f"/{link}"]
    args += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    args += ["--perms", "1777", "--size", str(limits.tmp), "--tmpfs", "/tmp"]
    for folder in sorted({Path(sys.base_prefix), Path(sys.prefix)} - {Path("/usr")}):
        args += parents_of(folder) + ["--ro-bind", str(folder), str(folder)]
    for hidden in _answers():
        args += ["--perms", "0755", "--tmpfs", str(hidden), "--remount-ro", str(hidden)]
    args += parents_of(COURSE / "deeplab_edu" / "any")
    args += ["--ro-bind", str(worker.__file__), str(COURSE / "worker.py")]
    if limits.compiled:
        args += ["--ro-bind", limits.compiled, str(COMPILED)]
    for part in GIVEN:
        args += ["--ro-bind", str(PACKAGE / part), str(COURSE / "deeplab_edu" / part)]
    for name, value in environment(COMPILED if limits.compiled else None).items():
        args += ["--setenv", name, value]
    return [*args, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"]


def parents_of(folder: Path) -> list[str]:
    """Make the folders above `folder` readable: by themselves they would be root's alone."""
    parents = [p for p in reversed(folder.parents) if p not in (Path("/"), Path("/tmp"))]
    return [word for parent in parents for word in ("--perms", "0755", "--dir", str(parent))]


def _answers() -> list[Path]:
    """Folders that hold answers, in every Python that the sandbox sees: this one, what a venv was made from, /usr's."""
    roots = {Path(sys.prefix), Path(sys.base_prefix), Path("/usr"), Path("/usr/local")}
    found = {Path(folder) for folder in site.getsitepackages()}
    for root in roots:
        found |= {*root.glob("lib*/python3*/site-packages"), *root.glob("lib*/python3*/dist-packages")}
    return sorted({folder / name for folder in found for name in ANSWERS if (folder / name).is_dir()})


def environment(compiled: Path | None = None) -> dict[str, str]:
    """All that a submission's process, and bwrap, whose environment it may read, know of their surroundings."""
    known = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp/matplotlib"}
    known |= {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    known |= {"PYTHONPYCACHEPREFIX": str(compiled)} if compiled else {}
    return known | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextlib.contextmanager
def worker_process(
    limits: Limits, contained: bool = True
) -> Iterator[tuple[socket.socket, subprocess.Popen]]:
    """A started worker and the socket that it serves. It and all it started are gone afterwards."""
    ours, theirs = socket.socketpair()
    number, python = str(theirs.fileno()), sys.executable
    if contained:
        args = [*command(limits), python, str(COURSE / "worker.py"), number, str(COURSE)]
        args += [json.dumps(limits.hard)]
    else:
        args = [python, worker.__file__, number, str(PACKAGE.parent), "{}"]
    with tempfile.TemporaryDirectory() as empty, ours:
        outside = environment(None if contained or not limits.compiled else Path(limits.compiled))
        if not contained:
            outside |= {"PATH": os.environ["PATH"], "HOME": empty, "PYTHONDONTWRITEBYTECODE": ""}
        process = subprocess.Popen(
            args,
            cwd=empty,
            env=outside,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        try:
            yield ours, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # bwrap's end is the end of its process namespace
            process.wait()


@contextlib.contextmanager
def compiled_folder() -> Iterator[str]:
    """A folder for modules compiled to bytecode, or "" where the environment has its own, as pip leaves it.

    uv installs sources alone, and in the sandbox nothing can be kept: each import of torch would compile them all.
    """
    torch = importlib.util.find_spec("torch")
    source = Path(torch.origin) if torch and torch.origin else Path()
    if (source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc").exists():
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        os.chmod(folder, 0o755)  # the sandbox's user reads it
        yield folder


def resident_gb(pid: int) -> float:
    """Memory in use by a process and all its descendants, GB (Linux; elsewhere 0)."""
    total, todo = 0, [pid]
    while todo:
        process = Path("/proc") / str(todo.pop())
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (process / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    return total / 1e9
