"""The dense CRF on a lattice beside pydensecrf, and computed exactly: seconds and memory of one image.

    python benchmarks/crf.py [--repetitions 5] [--save]

Ten iterations with 21 classes on matplotlib's photograph, resized, with smooth random probabilities as a network of
stride 8 gives them. How large a lattice is, and so the time, depends on the image's texture and on theta, so that two
presets are measured. In profile gpu the exact filter, as attention, is at hand at these sizes, too, and is what the
others are compared with: time, and labels that agree. pydensecrf always runs on one core of the CPU. Memory is how far
a fresh process's peak lies above what it held before (on Linux only), the median of three, on the CPU; in profile gpu,
the device's.
A case's arms take turns.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image
from timing import interleave, machine_line, parse, quartiles, ratio, resident, save, spread, table
from torch import Tensor

from deeplab_edu.crf import PRESETS
from deeplab_edu.profiles import Profile

FAST, EXACT = ("pydensecrf", "lattice"), ("lattice", "exact", "attention")
CASES = [("v1", 128, EXACT), *((preset, size, FAST) for preset in ("v1", "v2") for size in (321, 513))]
ON_A_GPU = ("attention", "lattice", *(["pydensecrf"] if find_spec("pydensecrf") else []))
GPU_CASES = [(preset, size, ON_A_GPU) for preset in ("v1", "v2") for size in (321, 513)]


def inputs(size: int, device: str) -> tuple[np.ndarray, Tensor]:
    with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as photograph:
        image = np.asarray(photograph.convert("RGB").resize((size, size)))
    coarse = 3 * torch.randn(1, 21, size // 8 + 1, size // 8 + 1, generator=torch.manual_seed(0))
    logits = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    return image, logits.softmax(1)[0].to(device)


def refine(preset: str, backend: str, image: np.ndarray, probabilities: Tensor) -> Tensor:
    return replace(PRESETS[preset], backend=backend).refine(image, probabilities)


def peak_memory(preset: str, backend: str, size: int) -> float:
    """MB by which the peak of this process grows; call it in a fresh one."""
    refine(preset, backend, *inputs(16, "cpu"))  # what is loaded once is not counted
    given = inputs(size, "cpu")
    before = resident("VmRSS")
    refine(preset, backend, *given)
    return resident("VmHWM") - before


def peak_memory_of_its_own(preset: str, backend: str, size: int) -> float:
    code = f"import crf; print(crf.peak_memory({preset!r}, {backend!r}, {size}))"
    command, folder = [sys.executable, "-c", code], Path(__file__).parent
    peaks = [
        float(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)  # one process in five keeps what it freed: 1 GB where the others have 56 MB
    ]
    return median(peaks)


def peak_on_a_gpu(preset: str, backend: str, given: tuple[np.ndarray, Tensor]) -> float:
    """MB that the device's peak lies above what it held before; pydensecrf takes none."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    refine(preset, backend, *given)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(
    preset: str, size: int, backends: tuple[str, ...], device: str, repetitions: int
) -> dict[str, Any]:
    given = inputs(size, device)
    arms = {backend: partial(refine, preset, backend, *given) for backend in backends}
    labels = {backend: arm().argmax(0).cpu() for backend, arm in arms.items()}
    seconds = interleave(arms, repetitions)
    if device == "cuda":
        memory = {backend: peak_on_a_gpu(preset, backend, given) for backend in backends}
    else:
        memory = {backend: peak_memory_of_its_own(preset, backend, size) for backend in backends}
    agree = {b: float((labels[b] == labels[backends[0]]).double().mean()) for b in backends}
    return {"preset": preset, "size": size, "seconds": seconds, "megabytes": memory, "agree": agree}


def crf_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Here and not in report.py, which wants nbformat: this benchmark runs on machines without Jupyter, too."""
    rows = []
    for case in measured:
        first = next(iter(case["seconds"].values()))
        for backend, values in case["seconds"].items():
            times = spread(*ratio(values, first), form=".2f")
            seconds, memory = spread(*quartiles(values)), f"{case['megabytes'][backend]:.0f}"
            agree = f"{100 * case['agree'][backend]:.2f} %"
            rows.append((f"{case['preset']}, {case['size']} px", backend, seconds, times, agree, memory))
    columns = ["preset, image", "backend", "s, median (quartiles)", "time / first", "labels as first", "MB"]
    return table(columns, rows)


def main() -> None:
    options, profile = parse(__doc__, repetitions=5), Profile.load()
    cases = GPU_CASES if profile.device == "cuda" else CASES
    measured = [measure(*case, profile.device, options.repetitions) for case in cases]
    print(f"Dense CRF, {options.repetitions} repetitions; {machine_line()}\n")
    print(crf_table(measured))
    if options.save:
        save("crf", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
