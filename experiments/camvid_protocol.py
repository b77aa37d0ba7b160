"""CamVid by a protocol that never tunes on the test pictures: DeepLab v3+ with MobileNetV2, at half resolution.

    DEEPLAB_EDU_DATA=... python experiments/camvid_protocol.py --runs FOLDER        (about 40 minutes on one core)

1. Tune: drive 0006R0 (101 of the 367 training pictures) is held out; learning rates are tried on the other two drives
   with a third of the steps, and the best on the held-out drive is kept. The official validation pictures lie in the
   middle of a training drive and would flatter (results are 10 points better there).
2. Train on all 367 with that recipe, keep the last weights, and score the 233 test pictures once: batch norm with
   running statistics, at one scale, and apart from that with several scales and mirror images.

Both from ImageNet weights (../shared/data/weights, or --weights FILE) and from scratch. Writes
results/camvid_protocol.json after every step, and overlays under build/camvid_protocol/.
"""

import argparse
import os
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
from deeplab_edu.profiles import Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, evaluate, fit

HELD_OUT = "0006R0"
RATES = {"imagenet": (3e-4, 1e-3), "scratch": (1e-3, 3e-3)}
SCALES = (0.75, 1.0, 1.25)


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


def build(start: str, weights: Path, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    pretrained = str(weights) if start == "imagenet" else False
    net = build_model("deeplab_v3plus", num_classes, backbone="mobilenet_v2", pretrained=pretrained)
    return HalfResolution(net)


def per_class(model: nn.Module, data: PhotoDataset, **views: Any) -> dict[str, Any]:
    """mIoU, pixel accuracy and the IoU of each class, one picture at a time through `segment`."""
    matrix = ConfusionMatrix(data.labels.num_classes)
    for image, target in data:
        matrix.update(segment(model, image, **views).argmax(0), target.long())
    named = dict(zip(data.labels.names, map(float, matrix.iou_per_class), strict=True))
    return {"miou": float(matrix.miou), "pixel_accuracy": float(matrix.pixel_accuracy), "iou": named}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=750)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder of training runs; default: the usual one")
    default = Path(os.environ.get("DEEPLAB_EDU_DATA", ".")) / "weights/mobilenet_v2_imagenet_tf.pth"
    parser.add_argument("--weights", type=Path, default=default, help="ImageNet weights of MobileNetV2")
    arguments = parser.parse_args()
    profile, crop = Profile.load("cpu"), train_transforms(320, scale=(0.5, 1.5))
    command = (
        f"python experiments/camvid_protocol.py --iterations {arguments.iterations} --seed {arguments.seed}"
    )
    measured: dict[str, Any] = {}

    def train(start: str, data: PhotoDataset, iterations: int, rate: float) -> tuple[nn.Module, Settings]:
        model = build(start, arguments.weights, data.labels.num_classes, arguments.seed)
        changes = {"iterations": iterations, "learning_rate": rate, "seed": arguments.seed}
        settings = Settings.from_profile(profile, **changes)
        history = fit(model, data, None, settings, name=f"camvid-{start}", runs=arguments.runs, quiet=True)
        print(f"{start}, learning rate {rate:g}, {len(data)} pictures: {history}", flush=True)
        return model, settings

    def keep(settings: Settings) -> None:
        save_result(
            "camvid_protocol", command, profile, measured, seeds=[arguments.seed], recipe=asdict(settings)
        )

    for start, rates in RATES.items():
        scores = {}
        for rate in rates:
            model, settings = train(start, drives(False, crop), arguments.iterations // 3, rate)
            scores[rate] = evaluate(model, drives(True, None), batch_size=4)["miou"]
            print(f"{start}, learning rate {rate:g}: held-out mIoU {scores[rate]:.3f}", flush=True)
        best = max(scores, key=scores.__getitem__)
        measured[start] = {"held_out": {f"{rate:g}": miou for rate, miou in scores.items()}, "chosen": best}
        keep(settings)
    for start in RATES:
        best = measured[start]["chosen"]
        model, settings = train(start, drives(False, crop), arguments.iterations, best)
        measured[start]["held_out_full_length"] = evaluate(model, drives(True, None), batch_size=4)
        model, settings = train(
            start, open_dataset("camvid", "train", transforms=crop), arguments.iterations, best
        )
        test = open_dataset("camvid", "test")
        measured[start]["test"] = per_class(model, test)
        measured[start]["test, scales and flip"] = per_class(model, test, scales=SCALES, flip=True)
        print(start, {k: v["miou"] for k, v in measured[start].items() if k.startswith("test")}, flush=True)
        keep(settings)
        draw_examples(model, test, Path("build/camvid_protocol") / start)


if __name__ == "__main__":
    main()
