"""How cost grows with the image's side, the batch, the output stride and the classes: DeepLab v3, one thing at a time.

    python benchmarks/scaling.py [--repetitions 5] [--save]

DeepLab v3 with ResNet-50 at output stride 16, 2 pictures of 193 px and 21 classes is the start; each other arm changes
one of the four. Forward passes and training steps of the arms take turns. Memory is what the first training step of a
fresh process adds to it at its peak. Multiply-adds are counted, and say how much of the growth is work.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import models
import torch
from models import forward, training_step
from report import scaling_table
from timing import interleave, machine_line, parse, resident, save

from deeplab_edu.cost import cost
from deeplab_edu.models import build_model
from deeplab_edu.profiles import Profile


@dataclass(frozen=True)
class Size:
    side: int = 193  # px
    batch: int = 2
    output_stride: int = 16
    classes: int = 21


START = Size()
CHANGES: dict[str, tuple[int, ...]] = {
    "side": (97, 129, 257, 321),
    "batch": (4, 8),  # image pooling cannot train on one picture
    "output_stride": (32, 8),
    "classes": (2, 150),
}


def sizes() -> dict[str, Size]:
    """What is changed -> the size."""
    named = {}
    for what, values in CHANGES.items():
        named |= {f"{what.replace('_', ' ')} {value}": replace(START, **{what: value}) for value in values}
    return named


def build(size: Size) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("deeplab_v3", size.classes, output_stride=size.output_stride)


def set_size(size: Size) -> None:
    """The pictures that `models.forward` and `models.training_step` make."""
    models.BATCH, models.SIZE, models.CLASSES = size.batch, size.side, size.classes


def measure(size: Size, repetitions: int) -> dict[str, Any]:
    """One arm beside the start, so that both saw the same machine."""
    result: dict[str, Any] = {"size": asdict(size)}
    pairs = {"start": START, "arm": size}
    for kind in (forward, training_step):
        calls = {}
        for name, one in pairs.items():
            set_size(one)
            calls[name] = kind(build(one))
        result[kind.__name__] = interleave(calls, repetitions)
    for name, one in pairs.items():
        work = cost(build(one), (one.side, one.side)).flops // 2 * one.batch
        result.setdefault("multiply_adds", {})[name] = work
        result.setdefault("peak MiB", {})[name] = peak_memory(one)
    return result


@cache
def peak_memory(size: Size) -> float:
    command = [sys.executable, __file__, "--memory", json.dumps(asdict(size))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def print_peak(size: Size) -> None:
    """In a process of its own: MiB that a training step adds to what the process had with the model built."""
    set_size(size)
    step, before = training_step(build(size)), resident("VmRSS")
    step()
    print(json.dumps(resident("VmHWM") - before))


def main() -> None:
    if "--memory" in sys.argv:
        print_peak(Size(**json.loads(sys.argv[2])))
        return
    options, profile = parse(__doc__, repetitions=5), Profile.load()
    measured = {}
    for name, size in sizes().items():
        measured[name] = measure(size, options.repetitions)
        print(f"{name} measured", flush=True)
    print(f"\nDeepLab v3, ResNet-50, {options.repetitions} repetitions; {machine_line()}\n")
    print(scaling_table(measured))
    if options.save:
        save("scaling", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
