"""CamVid by a protocol that never tunes on the test pictures: DeepLab v3+ with MobileNetV2, at half resolution.

    DEEPLAB_EDU_DATA=... python experiments/camvid_protocol.py       (about 25 minutes on one quiet core for each start)

1. Tune: drive 0006R0 (101 of the 367 training pictures) is held out. Learning rates are tried on the other two drives
   for 300 steps, and the best on the held-out drive is kept; a run of full length is scored there, too. The official
   validation pictures lie in the middle of a training drive and would flatter (results are 10 points better there).
2. Train on all 367 with that recipe, keep the last weights, and score the 233 test pictures once: batch norm with
   running statistics, at one scale, and apart from that with several scales and mirror images.

Both from ImageNet weights (weights/mobilenet_v2_imagenet_tf.pth in the data folder, or --weights FILE) and from
scratch; --start runs one of them. What is measured is kept under build/camvid_protocol/ step by step, with overlays,
and gathered in results/camvid_protocol.json: an interrupted command goes on where it was, and never scores again.
experiments/camvid_recipes.py says what other recipes give on the held-out drive.

On a GPU, and larger: `--device cuda --backbone resnet50 --full-resolution --iterations 3000`, which has its own result.
Another `--seed` joins those that are there: what stands under "measured" is then the mean, and "by_seed" has each.
Notebook 09 shows every such result beside published ones.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from camvid import draw_examples
from torch import Tensor, nn
from torch.nn import functional as F

from deeplab_edu.data import open_dataset
from deeplab_edu.data.augment import train_transforms
from deeplab_edu.data.photos import PhotoDataset
from deeplab_edu.inference import segment
from deeplab_edu.metrics import ConfusionMatrix
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import Record, code_digest, load_result, save_result
from deeplab_edu.training import Settings, fit, write_atomically

HELD_OUT = "0006R0"
RATES = {"imagenet": (3e-4, 1e-3, 3e-3), "scratch": (1e-3, 3e-3, 8e-3)}
TUNING = 300  # steps with each rate
SCALES = (0.75, 1.0, 1.25)
LAST = "test, scales and flip"  # what an arm measures in the end
CROP = train_transforms(
    256, scale=(0.75, 1.5)
)  # never padded: batch norm would count padding that no test has
ASPP_RATES = (2, 4, 6)  # 6, 12, 18 belong to maps of 33 x 33 units; these are of 9 x 9, in test 13 x 16
BUILD = Path("build/camvid_protocol")
CODE = code_digest()  # now: files may change in the hour that this takes


class HalfResolution(nn.Module):
    """`model` on images of half the height and width; its logits come back at full size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        half = (max(1, height // 2), max(1, width // 2))
        small = F.interpolate(images, half, mode="bilinear", antialias=True)
        return F.interpolate(self.model(small), (height, width), mode="bilinear", align_corners=False)


def drives(held_out: bool, transforms: Any) -> PhotoDataset:
    """The training pictures of the held-out drive, or of all others."""
    everything = open_dataset("camvid", "train")
    pairs = [p for p in everything.pairs if p[0].stem.startswith(HELD_OUT) == held_out]
    name = "camvid" if held_out else f"camvid without {HELD_OUT}"
    return PhotoDataset(name, "train", pairs, everything.labels, void=everything.void, transforms=transforms)


def build(
    start: str,
    weights: Path | None,
    num_classes: int,
    seed: int,
    backbone: str = "mobilenet_v2",
    full: bool = False,
) -> nn.Module:
    """DeepLab v3+; from ImageNet, with the `weights` of its backbone, or those that torchvision downloads."""
    torch.manual_seed(seed)
    pretrained = (str(weights) if weights else True) if start == "imagenet" else False
    options = {"backbone": backbone, "rates": ASPP_RATES, "pretrained": pretrained}
    model = build_model("deeplab_v3plus", num_classes, **options)
    return model if full else HalfResolution(model)


def parameters(backbone: str) -> int:
    model = build("scratch", None, num_classes=11, seed=0, backbone=backbone)
    return sum(parameter.numel() for parameter in model.parameters())


def recipe(iterations: int, rate: float, seed: int, device: str = "cpu") -> Settings:
    """On a CPU in float32: depthwise convolutions in bfloat16 take ten times as long there."""
    there = {"cpu": {"precision": "float32"}, "cuda": {"precision": "auto", "workers": 8}}[device]
    changes = {"learning_rate": rate, "seed": seed, "loss_stride": 2, **there}
    return Settings.from_profile(PROFILES["cpu"], iterations=iterations, **changes)


def per_class(model: nn.Module, data: PhotoDataset, **views: Any) -> dict[str, Any]:
    """mIoU, pixel accuracy and the IoU of each class, one picture at a time through `segment`."""
    matrix = ConfusionMatrix(data.labels.num_classes)
    for image, target in data:
        matrix.update(segment(model, image, **views).argmax(0), target.long())
    named = dict(zip(data.labels.names, map(float, matrix.iou_per_class), strict=True))
    return {"miou": float(matrix.miou), "pixel_accuracy": float(matrix.pixel_accuracy), "iou": named}


class Arm:
    """One start, from ImageNet or from scratch; what it has measured is kept in a file of its own."""

    def __init__(self, start: str, arguments: argparse.Namespace) -> None:
        self.start, self.arguments = start, arguments
        self.file = part_file(start, arguments, arguments.seed)
        self.measured: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` returns, kept under `name`; measured in an earlier sitting, it is only read."""
        if name not in self.measured:
            self.measured[name] = measure()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, lambda path: path.write_text(json.dumps(self.measured)))
            said = self.measured[name]
            print(self.start, name, said.get("miou", said) if isinstance(said, dict) else said, flush=True)
        return self.measured[name]

    def train(self, data: PhotoDataset, iterations: int, rate: float) -> nn.Module:
        made = self.arguments
        larger = {"backbone": made.backbone, "full": made.full_resolution}
        model = build(self.start, made.weights, data.labels.num_classes, made.seed, **larger).to(made.device)
        settings = recipe(iterations, rate, made.seed, made.device)
        name, runs = f"camvid-{self.start}", self.arguments.runs
        history = fit(model, data, None, settings, name=name, runs=runs, quiet=True)
        print(f"{self.start}, learning rate {rate:g}, {len(data)} pictures: {history}", flush=True)
        return model

    def tune(self) -> dict[str, float]:
        def held_out(rate: float) -> float:
            model = self.train(drives(False, CROP), TUNING, rate)
            miou = per_class(model, drives(True, None))["miou"]
            print(f"{self.start}, learning rate {rate:g}: held-out mIoU {miou:.3f}", flush=True)
            return miou

        return {f"{rate:g}": held_out(rate) for rate in RATES[self.start]}

    def run(self) -> None:
        iterations = self.arguments.iterations
        scores = self.once("held_out", self.tune)
        best = self.once("chosen", lambda: float(max(scores, key=scores.__getitem__)))
        self.once(
            "held_out_full_length",
            lambda: per_class(self.train(drives(False, CROP), iterations, best), drives(True, None)),
        )
        model = self.train(open_dataset("camvid", "train", transforms=CROP), iterations, best)
        test = open_dataset("camvid", "test")
        self.once("test", lambda: per_class(model, test))
        self.once(LAST, lambda: per_class(model, test, scales=SCALES, flip=True))
        title = f"v3+ {self.arguments.backbone}, {'ImageNet' if self.start == 'imagenet' else 'scratch'}"
        draw_examples(model, test, BUILD / self.start, title)


def part_file(start: str, arguments: argparse.Namespace, seed: int | str) -> Path:
    parts = (result_name(arguments), start, arguments.iterations, seed, CODE)
    return BUILD / ("-".join(map(str, parts)) + ".json")


def result_name(arguments: argparse.Namespace) -> str:
    """That of the small network on a CPU, or with what is different in its name."""
    larger = [arguments.backbone, "full" if arguments.full_resolution else "half", arguments.device]
    return (
        "camvid_protocol"
        if larger == ["mobilenet_v2", "half", "cpu"]
        else ".".join(["camvid_protocol", *larger])
    )


def mean(values: Sequence[Any]) -> Any:
    """Of numbers, or of what stands under each key."""
    if isinstance(values[0], dict):
        return {key: mean([value[key] for value in values]) for key in values[0]}
    return statistics.fmean(values)


def by_seed(start: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each finished seed has measured with this start: in this process, in others here, or in the result."""
    try:
        recorded = load_result(result_name(arguments), folder=arguments.into)
    except FileNotFoundError:
        recorded = Record()
    same = recorded.get("code") == CODE and recorded["recipe"]["iterations"] == arguments.iterations
    found = dict(recorded.get("by_seed", {}).get(start, {})) if same else {}
    for file in BUILD.glob(part_file(start, arguments, "*").name):
        part = json.loads(file.read_text())
        if LAST in part:
            found[file.stem.split("-")[-2]] = part
    return {seed: found[seed] for seed in sorted(found, key=int)}


def gather(arguments: argparse.Namespace) -> None:
    """The result file from the parts of all seeds."""
    parts = {start: seeds for start in RATES if (seeds := by_seed(start, arguments))}
    measured: dict[str, Any] = {}
    for start, seeds in parts.items():
        measured[start] = mean(list(seeds.values()))
        if len(chosen := {part["chosen"] for part in seeds.values()}) > 1:
            measured[start]["chosen"] = sorted(chosen)
    seeds = sorted(map(int, set().union(*parts.values())))
    name = result_name(arguments)
    words = ["python experiments/camvid_protocol.py", f"--iterations {arguments.iterations}"]
    words += [f"--seed {arguments.seed}"]
    if name != "camvid_protocol":
        words += [f"--device {arguments.device}", f"--backbone {arguments.backbone}"]
        words += ["--full-resolution"] * arguments.full_resolution
    shared = asdict(recipe(arguments.iterations, 1.0, arguments.seed, arguments.device))
    del shared["learning_rate"]  # it is the arm's, "chosen"
    facts: dict[str, Any] = {"seeds": seeds, "code": CODE, "recipe": shared}
    facts["backbone"] = arguments.backbone
    facts["resolution"] = "full" if arguments.full_resolution else "half"
    facts["parameters"] = parameters(arguments.backbone)
    facts["by_seed"] = parts
    profile = PROFILES["gpu" if arguments.device == "cuda" else "cpu"]
    save_result(name, " ".join(words), profile, measured, folder=arguments.into, **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start", choices=RATES, help="one of the two starts; default: both, one after another"
    )
    parser.add_argument("--runs", type=Path, help="folder of training runs; default: the usual one")
    parser.add_argument("--into", type=Path, help="folder of the result; default: results/")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of the backbone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backbone", default="mobilenet_v2", help="another than mobilenet_v2")
    parser.add_argument("--full-resolution", action="store_true", help="do not halve the pictures")
    arguments = parser.parse_args()
    if arguments.backbone == "mobilenet_v2" and not arguments.weights:
        folder = Path(os.environ.get("DEEPLAB_EDU_DATA", "."))
        arguments.weights = folder / "weights/mobilenet_v2_imagenet_tf.pth"
    Profile.load("gpu" if arguments.device == "cuda" else "cpu")  # says what is missing; sets the threads
    for start in [arguments.start] if arguments.start else RATES:
        Arm(start, arguments).run()
        gather(arguments)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, ValueError) as error:
        sys.exit(str(error))
