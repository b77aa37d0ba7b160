"""How all benchmarks measure: arms in turn, medians and quartiles, a Markdown table, the machine beside it."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from deeplab_edu.profiles import Profile
from deeplab_edu.results import machine, save_result


def interleave(arms: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each call of each arm: A B C, C B A, A B C, ..., so that a drift of the machine hits all alike.

    One call of each arm goes before and is not counted.
    """
    for arm in arms.values():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions):
        for name in list(arms)[:: 1 if repetition % 2 == 0 else -1]:
            seconds[name].append(timed(arms[name]))
    return seconds


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, work on the GPU included."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value."""
    if len(values) == 1:
        return (values[0],) * 3
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, median(values), high


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios of neighbouring pairs, which saw the same machine."""
    return quartiles([a / b for a, b in zip(ours, theirs, strict=True)])


def resident(field: str) -> float:
    """MB of memory now (VmRSS) or at most so far (VmHWM). `getrusage` would count the parent's peak, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; all but the first column are aligned to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(low: float, middle: float, high: float, form: str = ".3g") -> str:
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def machine_line() -> str:
    facts = machine()
    versions = ", ".join(f"{name} {number}" for name, number in facts.pop("versions").items())
    return f"{', '.join(f'{name} {value}' for name, value in facts.items())}, {versions}"


def parse(description: str | None, repetitions: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=repetitions, help="calls of each arm that count")
    parser.add_argument("--save", action="store_true", help="write results/benchmark_*.json as well")
    options = parser.parse_args()
    if options.repetitions < 1:
        parser.error("--repetitions is a positive number")
    return options


def save(name: str, profile: Profile, measured: Any, repetitions: int) -> None:
    command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    file = f"benchmark_{name}" + (".gpu" if profile.device == "cuda" else "")  # beside the CPU's, not over it
    path = save_result(file, command, profile, measured, repetitions=repetitions)
    print(f"\nwritten: {path.parent.name}/{path.name}")
