"""What a run leaves on disk, written to survive: whole files or none, two checkpoints, one owner at a time.

A file is written beside its place, forced to the disk and then renamed, so that a process that is killed leaves the
old file or the new one. A checksum in each tells damage of any kind from what was written. The newest checkpoint and
the one before are kept, so that one of them may be damaged.
"""

import json
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deeplab_edu.models.weights import check_stride_in, stride_in

try:
    import fcntl
except ImportError:  # Windows: nobody is refused there
    fcntl = None  # type: ignore[assignment]

Tensors = dict[str, Tensor]


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `write` fill a temporary neighbour, then put it in place: readers see the old file or the new, never half.

    The old file becomes `keep`, if given, and only once the new one is complete. Raises OSError: no room, no right.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual)  # as any new file here: safetensors lets nobody but the owner read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except SafetensorError as error:  # how safetensors passes on what the system said
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=1, default=str) + "\n"))


def save_weights(path: str | Path, model: nn.Module, **facts: Any) -> None:
    """Weights as safetensors, with JSON facts in the header; the file appears whole or not at all."""
    where = {"stride_in": stride_in(model)} if stride_in(model) else {}
    _write(Path(path), model.state_dict(), where | facts)


def load_weights(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Load what `save_weights` wrote into `model`; returns the facts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, a damaged one, or weights of another architecture.
    """
    tensors, facts = read_tensors(Path(path))
    check_stride_in(model, facts, path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another model: {error}") from error
    return facts


def _write(
    path: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any], keep: Path | None = None
) -> None:
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(facts)
    header = {"facts": text, "crc32": _checksum(whole, text)}
    write_atomically(path, lambda p: save_file(whole, p, metadata=header), keep)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and facts of a file that this module wrote; other safetensors files have no facts.

    Raises:
        FileNotFoundError: no such file. ValueError: unreadable, or not what was written.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            text = header.get("facts", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header.get("crc32") not in (None, _checksum(tensors, text)):
            raise ValueError("its checksum is wrong")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); delete it to train again."
        ) from error


def _checksum(tensors: Tensors, text: str) -> str:
    """Eight hexadecimal digits over names, numbers and text."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


class Run:
    """The folder of one run: settings.json, checkpoints while it lasts, weights.safetensors when it is finished."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.weights = folder / "weights.safetensors"
        self.newest, self.before = folder / "checkpoint.safetensors", folder / "checkpoint-before.safetensors"

    def check(self, decides: dict[str, Any]) -> None:
        """Refuse to go on with a run that something else decides.

        Raises:
            ValueError: the folder holds another run; the message says in what it differs.
        """
        try:
            there = json.loads((self.folder / "settings.json").read_text()).get("decides")
        except (FileNotFoundError, json.JSONDecodeError):
            return
        here = json.loads(json.dumps(decides, default=str))
        if there is None or there == here:
            return
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        differences = [_difference(name, there.get(name), here.get(name)) for name in names]
        raise ValueError(
            f"{self.folder} holds another run: {'; '.join(differences)}. "
            "Choose another folder, or the same settings to go on with this one."
        )

    @contextmanager
    def owned(self, files: Mapping[str, Any]) -> Iterator[None]:
        """Write into the folder, JSON files to begin with, as the only process that does; a dead owner is none.

        Raises:
            BlockingIOError: another process trains this run. OSError: the folder cannot be written.
        """
        with ExitStack() as open_files:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock(open_files.enter_context(open(self.folder / "lock", "a+")))
                for left in self.folder.glob(".*.[0-9]*"):  # by a process that was killed while it wrote
                    left.unlink(missing_ok=True)
                for name, content in files.items():
                    write_json(self.folder / name, content)
            except BlockingIOError:
                raise
            except OSError as error:
                raise OSError(
                    f"The run folder {self.folder} cannot be written ({error.strerror}); choose another one."
                ) from error
            yield

    def _lock(self, file: Any) -> None:
        """A record lock, not flock: that one would live on for seconds in the forked workers of a killed process."""
        if fcntl is None:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise BlockingIOError(
                f"{self.folder} is being trained by process {file.read().strip()}; "
                "wait for it, stop it, or choose another folder."
            ) from error
        except OSError:  # a file system without locks
            return
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        facts: dict[str, Any],
        average: nn.Module | None = None,
    ) -> None:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()} if average else {}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
        with self._writing(f"checkpoint of step {facts['step']}"):
            _write(self.newest, tensors, facts, keep=self.before)

    def load(self) -> tuple[Tensors, dict[str, Any]]:
        """The newest readable checkpoint, for `restore`; nothing where there is none."""
        damaged = False
        for path in (self.newest, self.before):
            try:
                tensors, facts = read_tensors(path)
            except FileNotFoundError:
                continue
            except ValueError as error:
                print(f"{error} Looking for the checkpoint before it.")
                damaged = True
                os.replace(path, self.folder / "damaged.safetensors")  # never in place of a readable one
                continue
            if damaged:
                print(f"Going on after step {facts['step']}, from {path.name}.")
            return tensors, facts
        if damaged:
            print(f"No readable checkpoint is left in {self.folder}; training begins at the first step.")
        return {}, {}

    def finish(self, model: nn.Module, facts: dict[str, Any]) -> None:
        with self._writing("finished weights"):
            save_weights(self.weights, model, **facts)
        for path in (self.newest, self.before):
            path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"The {what} could not be written ({error}). The run is kept in {self.folder} up to the "
                "checkpoint before; make room there, or give the right to write, and run again to go on."
            ) from error


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    average: nn.Module | None = None,
) -> None:
    """Put what `Run.save` wrote back into a model, its optimiser and the average of its weights."""
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    if average:
        average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            like = parameters[int(number)]
            if value.shape == like.shape:  # fused optimisers expect the memory layout of the parameter
                value = torch.empty_like(like).copy_(value)
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _difference(name: str, there: Any, here: Any) -> str:
    digest = name in ("architecture", "initial weights", "code") or name.startswith("contents of")
    return f"{name} changed" if digest else f"{name} was {there}, is {here}"
