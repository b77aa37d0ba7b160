"""One model of the course at its full size, trained from random weights on a GPU, in a given number of minutes.

    python experiments/full_size.py --model deeplab_v3plus --seed 0 --minutes 8

The recipe is profile gpu's (`Profile.of`): scenes drawn on the GPU, bfloat16, channels last, fused AdamW, an average of
the weights. How many steps fit is measured first, on the same model and batch, and kept with the run, because a
schedule needs to know its end. So a run that was interrupted goes on (the same command), and a finished one is only
scored again. Scored on test scenes that nothing was tuned on, with the averaged weights. Writes
results/full_size_<model>.<backbone>.json, a seed more at each call, and a picture beside it; weights stay in the runs
folder. Seeds join only if recipe, minutes and code are the same: --replace begins the result anew. Without a GPU,
`--device cpu --steps 2 --batch-size 2 --test-scenes 2 --into /tmp/try` takes the same path.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.figures import add_class_legend, draw_errors, draw_image, draw_labels
from deeplab_edu.inference import segment
from deeplab_edu.models import MODELS, build_model
from deeplab_edu.profiles import PROFILES, Profile, runs_folder
from deeplab_edu.results import FOLDER, code_digest, save_result
from deeplab_edu.training import Settings, differing_fields, evaluate, fit, seconds_a_step

BEGAN = time.perf_counter()
PRESET = "full"  # every diagnostic at once: shapes of three sizes, thin structures, context
SHOWN = (0, 3, 11, 14)  # test scenes of the picture
STEPS = (5, 15)  # that warm up (algorithms are chosen, memory is asked for), and that are timed
RESERVE = 0.1  # of the minutes, for checkpoints and the picture
EPOCHS = 3  # at most; there is a checkpoint after each, and of a VGG-16 it takes seconds to write


@dataclass(frozen=True)
class Plan:
    """What was measured before training, and the number of steps that follows from it."""

    steps: int
    batch_size: int
    images_per_second: float
    peak_gib: float | None  # None on a CPU, where it is not measured
    device: str
    minutes: float  # the budget


def measure(
    model: nn.Module, data: SceneDataset, settings: Settings, steps: tuple[int, int]
) -> dict[str, Any]:
    """Images a second that `fit` trains with these settings, and peak memory; the model is left as it was.

    A batch that does not fit into memory is halved.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cuda = next(model.parameters()).is_cuda
    while True:
        if cuda:  # what a batch that was too large left behind
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = seconds_a_step(model, data, settings, *steps)
            break
        except torch.cuda.OutOfMemoryError:
            if settings.batch_size < 4:
                raise
            settings = replace(settings, batch_size=settings.batch_size // 2)
            print(f"out of memory; trying batches of {settings.batch_size}", flush=True)
    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    return {
        "batch_size": settings.batch_size,
        "images_per_second": settings.batch_size / seconds,
        "peak_gib": peak_gib() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30


def fitting_steps(images_per_second: float, batch_size: int, seconds: float, most: int) -> int:
    """Steps that fit into `seconds`, at most `most`.

    Raises:
        ValueError: not even one does.
    """
    fits = int(seconds * images_per_second / batch_size)
    if fits < 1:
        raise ValueError(
            f"Not one step fits into the {max(seconds, 0):.0f} s that are left; raise --minutes."
        )
    return min(fits, most)


def make_plan(
    folder: Path, model: nn.Module, data: SceneDataset, settings: Settings, options: argparse.Namespace
) -> Plan:
    """The plan of an interrupted run, or a new one."""
    kept = folder / "plan.json"
    if kept.exists():
        return Plan(**json.loads(kept.read_text()))
    measured = measure(model, data, settings, options.timed)
    scoring = options.test_scenes / measured["images_per_second"]
    left = 60 * options.minutes * (1 - RESERVE) - scoring - (time.perf_counter() - BEGAN)
    steps = fitting_steps(measured["images_per_second"], measured["batch_size"], left, settings.iterations)
    return Plan(steps=steps, minutes=options.minutes, **measured)


def earlier(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The result of other seeds that this one joins; empty where there is none.

    Raises:
        ValueError: there is one of another recipe or number of minutes, or of other code.
    """
    if not path.exists():
        return {}
    there = json.loads(path.read_text())
    differing = differing_fields({name: there.get(name) for name in facts}, facts)
    if there["code"] != code_digest():
        differing.add("code")
    if differing:
        raise ValueError(
            f"{path} holds seeds of another run (different: {', '.join(sorted(differing))}); "
            "--replace begins it anew, --into FOLDER leaves it alone."
        )
    return there


def joined(there: dict[str, Any], seed: int, device: str, scores: dict[str, float]) -> dict[str, Any]:
    """Seeds in their order, with their devices and lists of scores; a seed that was there before is replaced."""
    rows = {
        number: (there["devices"][i], {name: values[i] for name, values in there["measured"].items()})
        for i, number in enumerate(there.get("seeds", ()))
    }
    rows[seed] = (device, scores)
    seeds = sorted(rows)
    return {
        "seeds": seeds,
        "devices": [rows[s][0] for s in seeds],
        "measured": {name: [rows[s][1][name] for s in seeds] for name in scores},
    }


def draw(model: nn.Module, test: SceneDataset, title: str) -> Figure:
    """Some test scenes: picture, labels, those of the model, and where these are wrong."""
    shown = [i for i in SHOWN if i < len(test)]
    figure = Figure(figsize=(8.4, 8.8), layout="constrained", dpi=80)
    axes = figure.subplots(4, len(shown), squeeze=False)
    masks, wrong = [], []
    for column, index in zip(axes.T, shown, strict=True):
        image, target = (part.cpu() for part in test[index])
        found = segment(model, image).argmax(0)
        wrong.append(100 * float((found != target).float().mean()))
        draw_image(column[0], image)
        draw_labels(column[1], target, test.labels)
        draw_labels(column[2], found, test.labels)
        draw_errors(column[3], found, target, f"{wrong[-1]:.1f} % wrong")
        masks += [target, found]
    for ax, text in zip(axes[:, 0], ("picture", "truth", "the model", "wrong pixels"), strict=True):
        ax.set_ylabel(text)
    figure.suptitle(f"{title}: {sum(wrong) / len(wrong):.1f} % of the pixels of these scenes are wrong")
    add_class_legend(figure, test.labels, masks, columns=6)
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """As a PNG of 128 colours, which takes a third of the bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)


def run(recipe: Profile, settings: Settings, options: argparse.Namespace) -> None:
    """Train one seed, go on with it, or load it; then score it and write its result and picture."""
    backbone = recipe.model_options["backbone"]
    folder = options.runs / f"full_size-{options.model}-{backbone}-{options.seed}-{options.minutes:g}min"
    torch.manual_seed(options.seed)
    model = build_model(options.model, num_classes=12, **recipe.model_options).to(recipe.device)
    where = {"size": recipe.image_size, "device": recipe.device}

    def scenes(length: int) -> SceneDataset:
        return SceneDataset(PRESET, length=length, seed=options.seed, cache=False, **where)

    facts = {
        "model": options.model,
        "backbone": backbone,
        "image_size": recipe.image_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_scenes": options.test_scenes,
        "minutes": options.minutes,
    }
    path = options.into / f"full_size_{options.model}.{backbone}.json"
    if not options.replace:
        earlier(path, facts)  # before anything is measured
    plan = make_plan(folder, model, scenes(recipe.train_scenes), settings, options)
    print(
        f"{plan.images_per_second:.4g} images/s: {plan.steps} steps of {plan.batch_size} scenes", flush=True
    )
    settings = replace(settings, iterations=plan.steps, batch_size=plan.batch_size)
    facts["recipe"] = {k: v for k, v in asdict(settings).items() if k not in ("seed", "iterations")}
    there = {} if options.replace else earlier(path, facts)
    train = scenes(max(recipe.train_scenes, plan.steps * plan.batch_size // EPOCHS))
    told: dict[str, Any] = {"files": {"plan.json": asdict(plan)}, "quiet": not sys.stderr.isatty()}
    history = fit(model, train, None, settings, folder=folder, **told)
    print(history, flush=True)
    test = SceneDataset(PRESET, "test", length=options.test_scenes, **where)
    scores = evaluate(model, test, batch_size=plan.batch_size, detailed=True, precision=recipe.precision)
    costs = {
        "steps": plan.steps,
        "minutes": history.seconds / 60,
        "images_per_second": history.images_per_second,
    }
    if plan.peak_gib is not None:
        costs["peak_gib"] = max(plan.peak_gib, peak_gib())
    facts |= joined(there, options.seed, plan.device, scores | costs)
    save_result(path.stem, options.command, recipe, facts.pop("measured"), folder=options.into, **facts)
    save_picture(draw(model, test, f"{options.model}, seed {options.seed}"), path.with_suffix(".png"))
    minutes = (time.perf_counter() - BEGAN) / 60
    print(f"mIoU {scores['miou']:.3f}; wrote {path} and its picture; {minutes:.1f} min in all")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--backbone", help="another than the recipe's, e.g. resnet101")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order and training scenes")
    parser.add_argument("--minutes", type=float, default=8, help="for everything")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: as in the recipe")
    parser.add_argument("--learning-rate", type=float, help="another than the recipe's")
    parser.add_argument("--runs", type=Path, default=runs_folder(), help="folder of training runs")
    parser.add_argument("--into", type=Path, help="folder for result and picture; default: results/")
    parser.add_argument(
        "--replace", action="store_true", help="begin the result anew, without what is recorded"
    )
    trial = parser.add_argument_group("for a trial")
    trial.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    trial.add_argument("--steps", type=int, help="at most; default: the recipe's")
    trial.add_argument("--timed", type=int, nargs=2, default=STEPS, help="steps that warm up, that are timed")
    trial.add_argument("--batch-size", type=int)
    trial.add_argument("--test-scenes", type=int, default=PROFILES["gpu"].val_scenes)
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.into:
        parser.error("what a CPU computes is a trial and no result; name a folder for it with --into")
    options.into = options.into or FOLDER
    options.command = command(options)
    return options


def command(options: argparse.Namespace) -> str:
    """How to measure this seed again."""
    words = ["python experiments/full_size.py", f"--model {options.model}"]
    words += [f"--backbone {options.backbone}"] if options.backbone else []
    words += [f"--seed {options.seed}", f"--minutes {options.minutes:g}"]
    words += [f"--learning-rate {options.learning_rate:g}"] if options.learning_rate else []
    words += {True: ["--compile"], False: ["--no-compile"], None: []}[options.compile]
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    profile = Profile.load("gpu") if options.device == "cuda" else replace(PROFILES["gpu"], device="cpu")
    recipe = profile.of(options.model, options.backbone)
    changes = {
        "iterations": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "compile": options.compile,
        "seed": options.seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    torch.backends.cudnn.benchmark = True  # all batches have one size
    run(recipe, Settings.from_profile(recipe, options.model, **given), options)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
