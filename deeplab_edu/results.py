"""Measured results as small JSON files: what was measured, and all that is needed to measure it again.

A result names its command, profile, device, seeds, versions and a digest of the code that decides its numbers.
Figures and tables in the notebooks draw from these files, never from numbers typed in.
"""

import ast
import hashlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deeplab_edu.models import MODELS
from deeplab_edu.profiles import Profile, bf16_is_fast

FOLDER = Path(__file__).resolve().parent.parent / "results"
DECIDES = (  # what every number can depend on
    "data",
    "models",
    "metrics.py",
    "evaluation.py",
    "inference.py",
    "training.py",
    "profiles.py",
)
IF_USED = ("cost.py", "crf.py", "receptive_field.py")  # those of programs that import them
READ = "DEEPLAB_EDU_RESULTS_READ"  # names a file in which load_result notes what was read
SHOWN = (  # or a notebook
    *DECIDES,
    "cost.py",
    "crf.py",
    "explorers.py",
    "field_figures.py",
    "figures.py",
    "ledger.py",
    "receptive_field.py",
    "result_figures.py",
    "widgets.py",
)


def machine() -> dict[str, Any]:
    """Processor or GPU, what it can do, and the versions of what computes on it."""
    packages = ("torch", "torchvision", "numpy")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "processor": _processor(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16": bf16_is_fast(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    """Name, family and model: two with the same capabilities may still round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = said.get("model name", platform.machine())
    return f"{name}, family {said['cpu family']}, model {said['model']}" if "cpu family" in said else name


def deciding() -> tuple[str, ...]:
    """The parts of the package that can decide a number of this process."""
    used = (part for part in IF_USED if f"deeplab_edu.{part.removesuffix('.py')}" in sys.modules)
    return (*DECIDES, *used)


def code_digest(parts: Iterable[str] | None = None) -> str:
    """Ten hexadecimal digits over the package's code in `parts`, by default `deciding()`.

    Files are compared as the interpreter sees them, without comments and docstrings.
    """
    package = Path(__file__).resolve().parent
    files = sorted(
        f
        for part in parts or deciding()
        for f in [package / part, *(package / part).rglob("*.py")]
        if f.is_file()
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(package).as_posix().encode() + meaning(file.read_text()).encode())
    return digest.hexdigest()[:10]


def meaning(source: str) -> str:
    """Python source as a tree in words, without comments, docstrings and other strings that stand for themselves.

    The words are those of Python 3.11, whichever Python says them: a result of one machine is compared on another.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if getattr(node, "type_params", None) == []:  # of each function and class from Python 3.12 on
            del node.type_params  # type: ignore[attr-defined]
        if isinstance(body := getattr(node, "body", None), list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept  # type: ignore[attr-defined]
    empty: dict[str, Any] = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **empty)


def save_result(
    name: str, command: str, profile: Profile, measured: Any, *, folder: Path | None = None, **facts: Any
) -> Path:
    """Write `results/<name>.json`; `facts` are seeds, settings and whatever else a repetition needs."""
    path = (folder or FOLDER) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "command": command,
        "profile": profile.name,
        "date": date.today().isoformat(),
        "code": code_digest(),
        "parts": [part for part in deciding() if part not in DECIDES],
    }
    content = {**header, **facts, "machine": machine(), "measured": measured}
    path.write_text(json.dumps(content, indent=1, default=_plain, allow_nan=False) + "\n")
    return path


def replace_arms(
    name: str,
    command: str,
    measured: Mapping[str, Any],
    *,
    same: Mapping[str, Any],
    folder: Path | None = None,
    **facts: Any,
) -> Path:
    """Put arms that were measured anew in the place of those in `results/<name>.json`; the others stay as they are.

    What has to be the same for all arms, recipe and seeds, is in `same`; a setting that the record does not have yet
    is passed over. Under "again" the result says of each such arm when, where and by what code it was measured.

    Raises:
        ValueError: the recorded arms were measured in another way than `same` says.
    """
    content = load_result(name, folder=folder)
    for key, value in json.loads(json.dumps(same, default=_plain)).items():
        recorded = content.get(key)
        if isinstance(recorded, dict) and isinstance(value, dict):
            value = {k: v for k, v in value.items() if k in recorded}
        if recorded != value:
            raise ValueError(
                f"The recorded arms of {name!r} have another {key!r}; measure all of them again."
            )
    note = {"command": command, "date": date.today().isoformat(), "code": code_digest(), "machine": machine()}
    again = content.get("again", {}) | dict.fromkeys(measured, note)
    content["measured"] |= measured
    content |= {**facts, "again": again}
    path = (folder or FOLDER) / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, default=_plain, allow_nan=False) + "\n")
    return path


class Record(dict[str, Any]):
    """What a file in `results/` holds. Figures of results take nothing else, so that no number in them is typed in."""


def load_result(name: str, *, folder: Path | None = None) -> Record:
    """Read `results/<name>.json`.

    Raises:
        FileNotFoundError: no such result; the message lists those that there are.
    """
    path = (folder or FOLDER) / f"{name}.json"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise FileNotFoundError(f"There is no result {name!r} in {path.parent.name}/; recorded are: {there}.")
    if noted := os.environ.get(
        READ
    ):  # tools/notebooks.py asks, so that it can tell when a notebook shows old numbers
        with Path(noted).open("a") as notes:
            print(path.resolve(), file=notes)
    return Record(json.loads(path.read_text()))


def provenance(record: Mapping[str, Any]) -> str:
    """One line that says where a record's numbers come from: command, profile, seeds, device and versions.

    Raises:
        TypeError: it was not loaded from a file.
        ValueError: the file does not say one of these.
    """
    if not isinstance(record, Record):
        raise TypeError(f"results are shown as load_result reads them, not from a {type(record).__name__}")
    machine = record.get("machine") or {}
    seeds = record.get("seeds") or ([record["seed"]] if "seed" in record else None)
    needed = {
        "command": record.get("command"),
        "profile": record.get("profile"),
        "seeds": seeds,
        "device": machine.get("device"),
        "versions": machine.get("versions"),
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise ValueError(
            f"this result does not say its {' and '.join(missing)}: measure it again and save it"
        )
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    seeds = ", ".join(map(str, seeds or []))
    return (
        f"{record['command']} (profile {record['profile']}, seeds {seeds}, {machine['device']}, {versions})"
    )


def spread(values: Iterable[float]) -> str:
    """Mean and range over seeds, in points: '17.1 (16.4 to 17.6)'; of one seed '17.1'."""
    points = [100 * v for v in values]
    seeds = f" ({min(points):.1f} to {max(points):.1f})" if len(points) > 1 else ""
    return f"{statistics.mean(points):.1f}{seeds}"


SCORES = {  # of a run at full size: metric -> how it is called
    "miou": "mIoU",
    "big": "big",
    "mid": "mid",
    "small": "small",
    "thin": "thin",
    "context": "context",
    "trimap1": "trimap 1 px",
    "inner": "inner",
}


def show_full_size(model: str, *, pictures: bool = True, folder: Path | None = None) -> None:
    """Print what a GPU recorded of `model` (results/full_size_MODEL.BACKBONE.json), with the picture beside each file.

    Where nothing is recorded it says so, and by what command it would be. Raises ValueError: an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"No model is called {model!r}; choose from {', '.join(MODELS)}.")
    paths = sorted((folder or FOLDER).glob(f"full_size_{model}.*.json"))
    if not paths:
        print(
            f"No run of {model} at full size is recorded yet. On a machine with a CUDA device this command makes one:\n"
            f"python experiments/full_size.py --model {model} --seed 0 --minutes 8"
        )
    for path in paths:
        print(full_size_text(load_result(path.stem, folder=folder)))
        if pictures and (picture := path.with_suffix(".png")).exists():
            from IPython.display import Image, display

            display(Image(picture.read_bytes(), alt=f"Test scenes, their labels, and those of {path.stem}"))


def full_size_text(result: Mapping[str, Any]) -> str:
    """What a file that `experiments/full_size.py` wrote says: network, machine, cost, and test scores over seeds."""
    measured, seeds = result["measured"], result["seeds"]
    runs = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
    peak = (
        f"{_range(measured['peak_gib'])} GiB at the peak" if "peak_gib" in measured else "memory not measured"
    )
    lines = [
        f"{result['model']} on {result['backbone']}: {result['parameters'] / 1e6:.1f} M parameters, "
        f"scenes of {result['image_size']} px, profile {result['profile']}, {result['date']}",
        f"{', '.join(dict.fromkeys(result['devices']))}; {runs}: {_range(measured['minutes'])} min, "
        f"{_range(measured['steps'], '.0f')} steps of {result['recipe']['batch_size']} scenes, "
        f"{_range(measured['images_per_second'])} images/s, {peak}",
        f"IoU on {result['test_scenes']} test scenes, points{', mean (range over seeds)' if len(seeds) > 1 else ''}:",
        *(f"  {name:12s}{spread(measured[key])}" for key, name in SCORES.items() if key in measured),
        f"made by: {result['command']}",
    ]
    return "\n".join(lines)


def _range(values: Iterable[float], form: str = ".3g") -> str:
    """'3.1 to 3.4', or '3.1' where that is all."""
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if hasattr(value, "item") else str(value)
