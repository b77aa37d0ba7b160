"""`python -m deeplab_edu train` and `evaluate`: a run folder from a shell, and the scores of what it holds.

The folder holds all that a repetition needs: settings.json (what decides the outcome), run.json (command, versions),
model.json (how to build the network, its classes), log.txt, curve.png, checkpoints, weights and metrics.json.
"""

import argparse
import ast
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from deeplab_edu.checkpoints import load_weights, write_atomically, write_json
from deeplab_edu.data import DATASETS, open_dataset
from deeplab_edu.data.augment import train_transforms
from deeplab_edu.data.labels import LabelSet
from deeplab_edu.figures import draw_history
from deeplab_edu.models import MODELS, build_model
from deeplab_edu.models.weights import stride_in
from deeplab_edu.processes import Processes, leave, processes
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import machine
from deeplab_edu.training import History, Settings, fit
from deeplab_edu.training import evaluate as score

CROP = {"ci": 64, "cpu": 224, "gpu": 321}  # px of photographs; scenes have the profile's own size
TRAIN_HELP = """
Trains a network and keeps everything in one folder. The same command again goes on where the run was stopped (Ctrl-C,
a full disk, kill -9), or only prints the scores if it was finished. A folder that was begun with other settings is
refused, and the difference is named.

The profile (ci: a check of seconds, cpu: minutes on a laptop, gpu: full size) gives the size of pictures and network,
batch, rate and number of steps; every option changes one of these. Photographs are scaled by 0.5 to 2, cropped and
mirrored at random for training, and scored whole; scenes are endless and need none of that.
"""
TRAIN_EXAMPLES = """
examples:
  python -m deeplab_edu train --model fcn8s --profile ci --run runs/first
  python -m deeplab_edu train --model deeplab_v3plus --data camvid --root data --iterations 3000 --run runs/camvid
  python -m deeplab_edu train --model deeplab_v3 --option backbone=resnet50 --option pretrained=True \\
      --data voc2012 --download --profile gpu --run runs/voc
  python -m deeplab_edu train --model fcn8s --data folder --root my_photos --classes background cat
  accelerate launch --multi_gpu --num_processes 4 -m deeplab_edu train --model deeplab_v3 ...   (docs/many-gpus.md)
"""
EVALUATE_HELP = """
Scores a finished run on a whole split with one confusion matrix: mIoU, pixel accuracy, near outlines, each class. Void
is not counted. Without options: on what the run was validated on. Several --scales, and --flip, average the answers
for resized and mirrored pictures: report such numbers beside those without, not in their place. A test split is for
the last number, not for choosing.
"""
EVALUATE_EXAMPLES = """
examples:
  python -m deeplab_edu evaluate --run runs/first
  python -m deeplab_edu evaluate --run runs/camvid --split test
  python -m deeplab_edu evaluate --run runs/camvid --split test --scales 0.75 1 1.25 --flip
"""


def train_arguments(parser: argparse.ArgumentParser) -> None:
    models = "\n".join(f"  {name:<15} {text}" for name, text in MODELS.items())
    parser.description, parser.epilog = TRAIN_HELP, f"models:\n{models}\n{TRAIN_EXAMPLES}"
    parser.add_argument("--model", default="fcn8s", help="see below (default: %(default)s)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, e.g. backbone=resnet50, output_stride=8, pretrained=True; may be repeated, and an unknown "
        "one lists those that there are",
    )
    _data_arguments(parser, "scenes")
    parser.add_argument("--split", default="train", help="to learn from (default: %(default)s)")
    parser.add_argument(
        "--val-split", default="val", help="to score each epoch; 'none' for none (default: val)"
    )
    parser.add_argument(
        "--crop", type=int, help="side of the crops of photographs, px (default: the profile's)"
    )
    parser.add_argument("--profile", choices=PROFILES, help="default: DEEPLAB_EDU_PROFILE, or cpu")
    parser.add_argument(
        "--seed", type=int, default=0, help="of initial weights, order, augmentation (default: 0)"
    )
    for name, kind, text in (
        ("iterations", int, "steps in all"),
        ("batch-size", int, "pictures a step, over all processes"),
        ("learning-rate", float, "after the warm-up"),
        ("warmup", int, "steps in which the rate rises"),
        ("workers", int, "processes that prepare pictures, for each that trains"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), help="default: adamw")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="default: the profile's")
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="default: a name made of the settings, in runs/"
    )


def _data_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    told = f"(default: {default or 'that of the run'})"
    parser.add_argument("--data", choices=DATASETS, default=default, help=f"data set {told}")
    parser.add_argument("--root", help="where the files lie (default: DEEPLAB_EDU_DATA, then data/)")
    parser.add_argument(
        "--download", action="store_true", help="fetch the data set if it is not there; it tells from where"
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="of --data folder, in the order of their ids"
    )
    parser.add_argument("--preset", help="of --data scenes: shapes, thin, context, noisy or full (default)")


def train(arguments: argparse.Namespace) -> int:
    """Train as the arguments say; the run's folder is printed first and last."""
    profile = Profile.load(arguments.profile)
    team = processes(cpu=profile.device == "cpu")
    with _one_voice(team):
        _check_folder(arguments.run)
        data = open_data(arguments, profile, arguments.split, training=True)
        val = None if arguments.val_split == "none" else open_data(arguments, profile, arguments.val_split)
        settings = settings_of(arguments, profile)
        torch.manual_seed(settings.seed)
        options = options_of(arguments, profile)
        model = build_model(arguments.model, data.labels.num_classes, **options).to(profile.device)
    told = {**vars(arguments), "profile": profile.name}
    kept = {
        "model.json": describe_model(arguments.model, options, data.labels, stride_in(model)),
        "run.json": {"command": _command(), "arguments": told, "machine": machine()},
    }
    log = Log(settings, team)
    where = {"folder": arguments.run, "name": f"{arguments.data}-{arguments.model}"}
    with _one_voice(team, training=True):
        quiet = not sys.stderr.isatty()
        history = fit(model, data, val, settings, **where, files=kept, quiet=quiet, watch=log)
        if val is not None:
            scores = score(model, val, batch_size=settings.batch_size, detailed=True, per_class=True)
    if team.first:
        print(history)
        if val is not None:
            file = history.folder / "metrics.json"
            found = tell_scores(scores, arguments.data, val)
            if not file.exists():  # those of a finished run stay what they are, wherever it is copied to
                write_json(file, found)
        print(f"Everything is in {history.folder}")
    leave()
    return 0


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = EVALUATE_HELP, EVALUATE_EXAMPLES
    parser.add_argument("--run", type=Path, metavar="FOLDER", required=True, help="that `train` has finished")
    _data_arguments(parser, None)
    parser.add_argument("--split", help="default: that which the run was validated on")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="default: 1")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--profile", choices=PROFILES, help="default: that of the run")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="pictures at a time, of one size (default: %(default)s)"
    )


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a finished run; the numbers are printed and kept beside its weights."""
    told = _read_json(arguments.run, "run.json")["arguments"]
    same = arguments.data in (None, told["data"])
    for name in ("data", "root", "classes", "preset"):
        if getattr(arguments, name) is None and same:
            setattr(arguments, name, told[name])
    profile = Profile.load(arguments.profile or told["profile"])
    split = arguments.split or (told["val_split"] if told["val_split"] != "none" else "val")
    model, labels = load_run(arguments.run)
    data = open_data(arguments, profile, split)
    if data.labels.names != labels.names:
        ours, theirs = (", ".join(names[:5]) for names in (labels.names, data.labels.names))
        raise ValueError(
            f"The run knows {ours}, ...; {arguments.data} has {theirs}, ...: it cannot be scored there."
        )
    more = {"scales": arguments.scales, "flip": arguments.flip}
    model.to(profile.device)
    scores = score(model, data, batch_size=arguments.batch_size, detailed=True, per_class=True, **more)
    plain = arguments.scales == [1.0] and not arguments.flip
    file = f"metrics-{arguments.data}-{split}{'' if plain else '-multi-scale'}.json"
    write_json(arguments.run / file, tell_scores(scores, arguments.data, data) | more)
    print(f"Kept in {arguments.run / file}")
    return 0


def open_data(arguments: argparse.Namespace, profile: Profile, split: str, training: bool = False) -> Any:
    """A split as it is trained on (photographs: scaled, cropped, mirrored) or scored (as it is)."""
    if arguments.data == "scenes":
        length = profile.train_scenes if training else profile.val_scenes
        preset = arguments.preset or "full"
        return open_dataset("scenes", split, preset=preset, size=profile.image_size, length=length)
    transforms = train_transforms(arguments.crop or CROP[profile.name]) if training else None
    more = {"classes": arguments.classes} if arguments.data == "folder" and arguments.classes else {}
    more |= {"root": arguments.root, "download": arguments.download}
    return open_dataset(arguments.data, split, transforms=transforms, **more)


def settings_of(arguments: argparse.Namespace, profile: Profile) -> Settings:
    """The profile's recipe for the model with what the command changes; processes share the work of augmentation."""
    names = (
        "iterations",
        "batch_size",
        "learning_rate",
        "warmup",
        "workers",
        "optimizer",
        "precision",
        "seed",
    )
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return Settings.from_profile(profile, arguments.model, **given, draws="picture")


def options_of(arguments: argparse.Namespace, profile: Profile) -> dict[str, Any]:
    """Options of the model: the profile's, unless another backbone is asked for."""
    given = dict(map(read_option, arguments.option))
    usual = profile.options(arguments.model)
    if given.get("backbone", usual["backbone"]) != usual["backbone"]:
        return given
    return usual | given


def read_option(text: str) -> tuple[str, Any]:
    """`--option NAME=VALUE` as a pair; a value that is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text} should be NAME=VALUE, e.g. backbone=resnet50.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def describe_model(
    name: str, options: dict[str, Any], labels: LabelSet, strides: str | None
) -> dict[str, Any]:
    """What builds the network again; its weights come from the run, so nothing pretrained is asked for.

    Pretrained ResNets stride elsewhere (`stride_in`), which has to be said from now on.
    """
    kept = {key: value for key, value in options.items() if key not in ("pretrained", "weights")}
    if strides and options.get("pretrained"):
        kept["stride_in"] = strides
    return {"name": name, "num_classes": labels.num_classes, "options": kept, "labels": asdict(labels)}


def load_run(folder: Path) -> tuple[nn.Module, LabelSet]:
    """The trained network of a run folder, in evaluation mode, and its classes.

    Raises:
        FileNotFoundError: no run, or one that is not finished.
    """
    told = _read_json(folder, "model.json")
    weights = folder / "weights.safetensors"
    if not weights.exists():
        raise FileNotFoundError(
            f"The run in {folder} is not finished; train it to the end with the same command."
        )
    model = build_model(told["name"], told["num_classes"], **told["options"])
    load_weights(weights, model)
    labels = told["labels"]
    groups = {name: tuple(ids) for name, ids in labels["groups"].items()}
    return model.eval(), LabelSet(tuple(labels["names"]), tuple(map(tuple, labels["colors"])), groups)


class Log:
    """Called by `fit` with the history: a line for the reader and log.txt, and the curve every ten seconds."""

    def __init__(self, settings: Settings, team: Processes):
        self.settings, self.team = settings, team
        self.begun = False
        self.drawn = -10.0

    def __call__(self, history: History) -> None:
        step, total = history.steps[-1], self.settings.iterations
        if not self.begun:
            self.begun = True
            versions = f"torch {torch.__version__}, processes: {self.team.count}"
            self.say(history.folder, f"{_command()} ({versions})")
        left = (total - step) * history.seconds / step
        rate = f"{history.images_per_second:.0f} images/s, {_clock(left)} left"
        miou = f", validation mIoU {history.val_miou[-1]:.3f}" if history.val_miou else ""
        self.say(history.folder, f"step {step}/{total}, loss {history.loss[-1]:.3f}{miou}, {rate}")
        if time.monotonic() - self.drawn > 10 or step == total:
            self.draw(history)

    def say(self, folder: Path, line: str) -> None:
        tqdm.write(line)
        with open(folder / "log.txt", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def draw(self, history: History) -> None:
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        draw_history(figure.subplots(), {"": history}, f"{history.folder.name}: loss")
        write_atomically(history.folder / "curve.png", lambda path: figure.savefig(path, format="png"))
        self.drawn = time.monotonic()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _command() -> str:
    return shlex.join(["python", "-m", "deeplab_edu", *sys.argv[1:]])


def _check_folder(folder: Path | None) -> None:
    there = {path.name for path in folder.iterdir()} if folder and folder.is_dir() else set()
    if there - {"lock"} and "settings.json" not in there:
        raise ValueError(f"{folder} is not empty and holds no run; choose a new folder for it.")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{folder} holds no run of `python -m deeplab_edu train` (no {name})."
        ) from error


def tell_scores(scores: dict[str, float], name: str, data: Any) -> dict[str, Any]:
    """Print the scores, and return what to keep of them."""
    print(f"{name}, {data.split}, {len(data)} pictures:")
    for key, value in scores.items():
        print(f"  {key:<24} {100 * value:5.1f}")
    return {"data": repr(data), "pictures": len(data), "scores": scores, "machine": machine()}


@contextmanager
def _one_voice(team: Processes, training: bool = False) -> Iterator[None]:
    """Let only the first process tell what goes wrong in all alike; elsewhere each speaks for itself.

    Before training, and when the loss is not finite or the run is stopped, all of them see the same.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        shared = not training or isinstance(error, FloatingPointError | KeyboardInterrupt)
        if shared and not team.first:
            raise SystemExit(2) from None
        raise
