"""How fast each full model trains and answers on a GPU, and in how much memory, beside torchvision's.

    python benchmarks/full_size_speed.py [--models deeplab_v3 ...] [--compile] [--save]

The networks are profile gpu's, each at its own image size and batch; a step is one of `fit`'s (scenes drawn on the
device, bfloat16, channels last, fused AdamW, average of the weights), and rivals of the same architecture take the same
steps. Arms take turns (A B, B A, ...), one network on the device at a time. With --compile also torch.compile, with
the seconds until its first step is done, and in how many minutes it has paid for them. Last line: scenes alone.
--save writes results/benchmark_full_size.json after each network, and keeps the others that are there.
(segmentation-models-pytorch wants sides that 8 divides; benchmarks/models.py has it.)
Without a GPU: `--device cpu --batch-size 2 --steps 1 --repetitions 1`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from timing import machine_line, quartiles, spread, synchronize, table, timed
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from deeplab_edu.data.augment import normalize
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.evaluation import autocast_dtype, stack
from deeplab_edu.models import MODELS, build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import Record, code_digest, load_result, machine, save_result
from deeplab_edu.training import Settings, seconds_a_step

CLASSES = 12
PRESET = "full"
RIVALS = {"resnet50": deeplabv3_resnet50, "resnet101": deeplabv3_resnet101}


class Out(nn.Module):
    """A model of torchvision as one of ours: logits instead of a dictionary of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["out"]


@dataclass(frozen=True)
class Arm:
    build: Callable[[], nn.Module]
    recipe: Profile
    settings: Settings


def arms_of(model: str, options: argparse.Namespace) -> dict[str, Arm]:
    """Ours by the recipe; of v3 also the arms of torchvision's architecture, built by us and by them."""
    recipe = PROFILES["gpu"].of(model)
    recipe = replace(recipe, device=options.device)
    changes = {"batch_size": options.batch_size} if options.batch_size else {}
    settings = Settings.from_profile(recipe, model, **changes)
    builds: dict[str, Callable[[], nn.Module]] = {
        f"{model}, {recipe.model_options['backbone']}": partial(
            build_model, model, CLASSES, **recipe.model_options
        )
    }
    if model == "deeplab_v3":
        for name, theirs in RIVALS.items():
            builds[f"torchvision's architecture, {name}: ours"] = partial(
                build_model, model, CLASSES, backbone=name, compat="torchvision"
            )
            builds[f"torchvision's architecture, {name}: torchvision"] = partial(rival, theirs)
    return {name: Arm(build, recipe, settings) for name, build in builds.items()}


def rival(build: Callable[..., nn.Module]) -> nn.Module:
    return Out(build(weights=None, weights_backbone=None, num_classes=CLASSES))


def measure(arm: Arm, steps: int) -> dict[str, float]:
    """Seconds a training step and a forward pass, and the peak of memory; in evaluation the same autocast."""
    recipe, settings, cuda = arm.recipe, arm.settings, arm.recipe.device == "cuda"
    torch.manual_seed(0)
    model = arm.build().to(recipe.device)
    scenes = SceneDataset(PRESET, size=recipe.image_size, length=4096, device=recipe.device, cache=False)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    result = {"step": seconds_a_step(model, scenes, settings, min(3, steps), steps)}
    if cuda:
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    images = normalize(stack(scenes, range(settings.batch_size))[0]).contiguous(
        memory_format=torch.channels_last
    )
    dtype = autocast_dtype(settings.precision, recipe.device)
    model.eval()
    with torch.inference_mode(), torch.autocast(recipe.device, dtype=dtype, enabled=dtype != torch.float32):
        model(images)
        result["forward"] = timed(lambda: [model(images) for _ in range(steps)]) / steps
    return result


def compiled(arm: Arm, steps: int) -> dict[str, float]:
    """Seconds until the first compiled step is done, and a step's after it."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = arm.build().to(arm.recipe.device)
    settings = replace(arm.settings, compile=True)
    scenes = SceneDataset(
        PRESET, size=arm.recipe.image_size, length=4096, device=arm.recipe.device, cache=False
    )
    start = time.perf_counter()
    seconds_a_step(model, scenes, settings, 0, 1)
    synchronize()
    first = time.perf_counter() - start
    return {"compiling": first, "compiled": seconds_a_step(model, scenes, settings, 2, steps)}


def measure_model(model: str, options: argparse.Namespace) -> dict[str, Any]:
    arms = arms_of(model, options)
    measured: dict[str, Any] = {name: {} for name in arms}
    for repetition in range(options.repetitions):
        for name in list(arms)[:: 1 if repetition % 2 == 0 else -1]:
            for what, value in measure(arms[name], options.steps).items():
                measured[name].setdefault(what, []).append(value)
            if options.device == "cuda":
                torch.cuda.empty_cache()
    if options.compile:
        name = next(iter(arms))
        measured[name] |= compiled(arms[name], options.steps)
    for name, arm in arms.items():
        measured[name] |= {"batch": arm.settings.batch_size, "size": arm.recipe.image_size}
    return measured


def drawn(options: argparse.Namespace) -> list[float]:
    """Seconds for a batch of 32 scenes of 513 px; on a CPU for two."""
    count = options.batch_size or 32
    scenes = SceneDataset(PRESET, size=513, length=4096, device=options.device, cache=False)
    stack(scenes, range(count))
    return [
        timed(lambda: stack(scenes, range(count))) / count for _ in range(max(1, options.repetitions * 3))
    ]


COLUMNS = ["network", "batch", "training, images/s", "forward, images/s", "peak GiB", "compiled, images/s"]


def row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    batch, speeds = result["batch"], []
    for what in ("step", "forward"):
        speeds.append(spread(*quartiles([batch / s for s in result[what]]), form=".3g"))
    peak = f"{max(result['peak_gib']):.1f}" if "peak_gib" in result else ""
    paid = ""
    if "compiled" in result:
        saved = 1 - result["compiled"] / median(result["step"])
        after = f"pays after {result['compiling'] / saved / 60:.1f} min" if saved > 0 else "never pays"
        paid = f"{batch / result['compiled']:.3g}, after {result['compiling']:.0f} s: {after}"
    return name, f"{batch} x {result['size']} px", *speeds, peak, paid


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed in each repetition")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too: about a minute a model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--save", action="store_true", help="write results/benchmark_full_size.json as well")
    options = parser.parse_args()
    if min(options.steps, options.repetitions) < 1:
        parser.error("--steps and --repetitions are positive numbers")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no CUDA device; --device cpu --batch-size 2 --steps 1 --repetitions 1 is a trial"
        )
    return options


def main() -> None:
    options, measured = parse(), {}
    torch.backends.cudnn.benchmark = True
    for model in options.models:
        measured |= measure_model(model, options)
        print(f"{model} is measured", flush=True)
        if options.save:
            save(options, measured)
    print(f"\n{options.repetitions} repetitions of {options.steps} steps; {machine_line()}\n")
    print(table(COLUMNS, [row(name, result) for name, result in measured.items()]))
    rates = quartiles([1 / s for s in drawn(options)])
    print(f"\nscenes of 513 px, drawn alone: {spread(*rates)} images/s")


def save(options: argparse.Namespace, measured: dict[str, Any]) -> None:
    """After each model, so that a time limit does not take all; beside what the same code measured here before."""
    name, here = "benchmark_full_size", machine()
    try:
        before = load_result(name)
    except FileNotFoundError:
        before = Record()
    if before.get("code") == code_digest() and before.get("machine") == here:
        measured = before["measured"] | measured
    words = ["python benchmarks/full_size_speed.py --models", *options.models]
    words += ["--compile"] * options.compile + ["--save"]
    facts = {"repetitions": options.repetitions, "steps": options.steps}
    save_result(name, " ".join(words), PROFILES["gpu"], measured, **facts)


if __name__ == "__main__":
    main()
