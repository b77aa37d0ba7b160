"""The recorded benchmarks as Markdown tables of ratios: docs/benchmarks.md, from results/benchmark_*.json.

    python benchmarks/report.py

Measures nothing; `python benchmarks/all.py` measures, and then does this. A benchmark that is not recorded is said to
be missing, with its command.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import full_size_speed
import nbformat
from crf import crf_table
from timing import quartiles, ratio, spread, table

from deeplab_edu import results

TOP = Path(__file__).resolve().parent.parent
PAGE = TOP / "docs" / "benchmarks.md"
Measured = Any  # what a benchmark saved under "measured"


def models_table(measured: Measured) -> str:
    rows = []
    for name, result in measured.items():
        times = [ratio(result[kind]["theirs"], result[kind]["ours"]) for kind in ("forward", "training_step")]
        memory, cost = result["peak MiB"], result["cost"]
        share = f"{memory['ours'] / memory['theirs']:.2f}"
        work = f"{cost['parameters'] / 1e6:.2f} M, {cost['multiply-adds'] / 1e9:.1f} G"
        rows.append((name, *(spread(*speed, form=".2f") for speed in times), share, work))
    return table(
        ["network, library", "speed forward", "speed training", "memory", "parameters, multiply-adds"], rows
    )


def training_step_table(measured: Measured) -> str:
    rows = []
    for name, case in measured.items():
        theirs = case["seconds"]["torchvision's loop"]
        for arm, values in case["seconds"].items():
            about = f"{name}, {case['batch']} x {case['size']} px", arm
            milliseconds = spread(*quartiles([1000 * s for s in values]), form=".1f")
            rows.append((*about, milliseconds, spread(*ratio(theirs, values), form=".2f")))
    return table(["model, batch", "loop", "ms, median (quartiles)", "speed"], rows)


def scaling_table(measured: Measured) -> str:
    """Each row against the start: multiply-adds, seconds of a forward pass and of a training step, memory."""
    rows = []
    for name, result in measured.items():
        counts, memory = result["multiply_adds"], result["peak MiB"]
        times = [
            spread(*ratio(result[k]["arm"], result[k]["start"]), form=".2f")
            for k in ("forward", "training_step")
        ]
        rows.append(
            (
                name,
                f"{counts['arm'] / counts['start']:.2f}",
                *times,
                f"{memory['arm'] / memory['start']:.2f}",
            )
        )
    return table(["changed", "multiply-adds", "time forward", "time training step", "memory"], rows)


def explorers_table(measured: Measured) -> str:
    rows = [
        (name, *(spread(*quartiles([1000 * s for s in times]), form=".0f") for times in kinds.values()))
        for name, kinds in measured.items()
    ]
    return table(["explorer, what is moved", "first, ms", "again, ms"], rows)


def spans_table(columns: list[str], form: str) -> Callable[[Measured], str]:
    """A table of what was saved as low, median, high."""

    def render(measured: Measured) -> str:
        spans = {name: (s["low"], s["median"], s["high"]) for name, s in measured.items()}
        return table(columns, [(name, spread(*span, form=form)) for name, span in spans.items()])

    return render


SECTIONS: dict[str, tuple[str, str, Callable[[Measured], str]]] = {  # benchmark: title, how to read it, table
    "models": (
        "Networks beside torchvision's and segmentation-models-pytorch's",
        "Equal architecture, equal weights, equal logits. Speed is theirs over ours in time: above 1, ours is faster. "
        "Memory is ours over theirs, and differs by some percent from process to process; parameters and multiply-adds "
        "are the same.",
        models_table,
    ),
    "training_step": (
        "A training step beside torchvision's reference loop",
        "The same model, weights, batch and optimiser. Speed is theirs over ours in time: above 1, ours is faster.",
        training_step_table,
    ),
    "scaling": (
        "How cost grows",
        "DeepLab v3 with ResNet-50; the start is 2 pictures of 193 px, output stride 16, 21 classes. Each row changes "
        "one thing; numbers are multiples of the start's.",
        scaling_table,
    ),
    "crf": (
        "The dense CRF",
        "Ten iterations, 21 classes; the first backend of each image is 1.",
        crf_table,
    ),
    "receptive_field": (
        "A click in an explorer",
        "Exact pixels behind one unit of DeepLabv3-ResNet-50.",
        spans_table(["what", "ms, median (quartiles)"], ".1f"),
    ),
    "explorers": (
        "From a moved control to new pictures",
        "In the kernel, the browser not counted. First: before anything is kept.",
        explorers_table,
    ),
    "scenes": (
        "Scenes",
        "128 px, batches of 32.",
        spans_table(["preset", "images/s, median (quartiles)"], ".0f"),
    ),
}


def section(name: str) -> str:
    title, words, render = SECTIONS[name]
    path = results.FOLDER / f"benchmark_{name}.json"
    if not path.exists():
        return f"## {title}\n\nNot recorded yet: `python benchmarks/{name}.py --save`."
    parts = [f"## {title}", words, *shown(path, render)]
    on_a_gpu = path.with_suffix(".gpu.json")
    if on_a_gpu.exists():
        parts += ["The same on a GPU:", *shown(on_a_gpu, render)]
    return "\n\n".join(parts)


def shown(path: Path, render: Callable[[Measured], str]) -> list[str]:
    """The table of a record, and the small print below it."""
    result = results.load_result(path.stem)
    return [render(result["measured"]), measured_by(result)]


def measured_by(result: Mapping[str, Any]) -> str:
    """Command and machine, in small print."""
    machine = dict(result["machine"])
    versions = ", ".join(f"{name} {number}" for name, number in machine.pop("versions").items())
    repeated = f"{result['repetitions']} repetitions, " if "repetitions" in result else ""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    return f"<sub>{result['date']}, {repeated}`{result['command']}`; {facts}, {versions}</sub>"


def notebook_times() -> str:
    """Seconds of each notebook, as executed and committed (cpu), and as `tools/notebooks.py course --save` recorded."""
    committed = {}
    for path in sorted((TOP / "notebooks").glob("*.ipynb")):
        record = nbformat.read(path, as_version=4).metadata.get("deeplab_edu", {})
        committed[path.stem] = record.get("seconds")
    columns: dict[str, Mapping[str, Any]] = {"cpu, as committed": committed}
    notes = []
    for path in sorted(results.FOLDER.glob("course.*.json")):
        result = results.load_result(path.stem)
        columns[f"{result['profile']}, one run"] = result["measured"]
        notes.append(measured_by(result))
    rows = [
        (name, *(f"{column[name]:.0f}" if column.get(name) else "" for column in columns.values()))
        for name in committed
    ]
    totals = (f"{sum(v for v in column.values() if v):.0f}" for column in columns.values())
    return "\n\n".join([table(["notebook", *columns], [*rows, ("together", *totals)]), *notes])


def full_size_table() -> str:
    """Training on a GPU, from results/full_size_*.json: a mean over seeds of what each run itself measured."""
    rows = []
    for path in sorted(results.FOLDER.glob("full_size_*.json")):
        result = results.load_result(path.stem)
        measured = {name: fmean(values) for name, values in result["measured"].items()}
        peak = f"{measured['peak_gib']:.1f}" if "peak_gib" in measured else "not measured"
        size = f"{result['recipe']['batch_size']} x {result['image_size']} px"
        network = f"{result['model']}, {result['backbone']}"
        speed, torch = f"{measured['images_per_second']:.0f}", result["machine"]["versions"]["torch"]
        rows.append((network, result["devices"][0], torch, size, speed, peak, result["date"]))
    if not rows:
        return "Not recorded yet: docs/on-a-gpu.md."
    columns = ["network", "device", "torch", "batch", "training, images/s", "peak GiB", "date"]
    return (
        table(columns, rows)
        + "\n\nEach by `python experiments/full_size.py --model MODEL --seed SEED --minutes M`."
    )


def full_size_speed_table(measured: Measured) -> str:
    return table(full_size_speed.COLUMNS, [full_size_speed.row(name, arm) for name, arm in measured.items()])


def on_a_gpu() -> str:
    """What full-size training recorded of itself, and what benchmarks/full_size_speed.py measured apart from it."""
    words = "bfloat16, scenes drawn on the way: [on a GPU](on-a-gpu.md)."
    parts = ["## At full size, on a GPU", words, full_size_table()]
    path = results.FOLDER / "benchmark_full_size.json"
    if path.exists():
        parts += ["Measured apart from training, beside torchvision's of the same architecture:"]
        parts += shown(path, full_size_speed_table)
    return "\n\n".join(parts)


def page() -> str:
    """The whole of docs/benchmarks.md."""
    head = (
        "# Benchmarks\n\nWritten by `python benchmarks/report.py` from `results/benchmark_*.json`. `make benchmarks` "
        "measures "
        "everything\nagain, on a machine that should do nothing else. A ratio stands before the quartiles of its "
        "repetitions. "
        "No test asserts\na speed: how fast a machine is, is not a property of the code."
    )
    times = f"## Seconds of each notebook\n\nOn the machine that executed it, training included.\n\n{notebook_times()}"
    return "\n\n".join([head, *map(section, SECTIONS), on_a_gpu(), times]) + "\n"


def main() -> None:
    PAGE.write_text(page())
    missing = [name for name in SECTIONS if not (results.FOLDER / f"benchmark_{name}.json").exists()]
    print(f"written: docs/{PAGE.name}" + (f"; not recorded: {json.dumps(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
