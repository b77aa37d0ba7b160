"""Why the CamVid protocol stays below 0.45 on the held-out drive: one change of its recipe at a time, scored there.

    DEEPLAB_EDU_DATA=... python experiments/camvid_recipes.py     (10 minutes on an H200; --device cpu: two hours)

DeepLab v3+ with MobileNetV2 from ImageNet weights, trained on the drives without 0006R0 and scored on 0006R0, as in
experiments/camvid_protocol.py; no test picture is read. Writes results/camvid_recipes.json after each recipe.
"""

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import camvid_protocol as protocol
import torch
from torchvision.transforms import v2

from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import save_result
from deeplab_edu.training import fit

STEPS, RATE = 1500, 1e-3
RECIPES: dict[str, dict[str, Any]] = {
    "as in the protocol": {},
    "twice the steps": {"iterations": 2 * STEPS},
    "three times the learning rate": {"learning_rate": 3 * RATE},
    "colours jittered": {"jitter": True},
    "full resolution": {"full": True},
}


def score(
    weights: Path | None,
    device: str,
    *,
    start: str = "imagenet",
    full: bool = False,
    jitter: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Train one recipe and score it on the held-out drive, at one scale, and with several and mirror images."""
    colours = [v2.ColorJitter(0.4, 0.4, 0.4, 0.05)] if jitter else []
    train = protocol.drives(False, v2.Compose([protocol.CROP, *colours]))
    model = protocol.build(start, weights, train.labels.num_classes, seed=0)
    model = (model.model if full else model).to(device)  # type: ignore[operator, union-attr]
    settings = replace(protocol.recipe(STEPS, RATE, seed=0), **changes)
    history = fit(model, train, None, settings, name="camvid-recipe", quiet=True)
    held_out = protocol.drives(True, None)
    views = {"scales": protocol.SCALES, "flip": True}
    scores = protocol.per_class(model, held_out) | {
        "miou, scales and flip": protocol.per_class(model, held_out, **views)["miou"]
    }
    return scores | {"steps": history.steps[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    default = Path(os.environ.get("DEEPLAB_EDU_DATA", ".")) / "weights/mobilenet_v2_imagenet_tf.pth"
    parser.add_argument("--weights", type=Path, default=default, help="ImageNet weights of MobileNetV2")
    options = parser.parse_args()
    profile = PROFILES["gpu" if options.device == "cuda" else "cpu"]
    torch.set_num_threads(profile.threads)
    measured: dict[str, Any] = {}
    for name, changes in RECIPES.items():
        measured[name] = score(options.weights, options.device, **changes)
        print(f"{name}: held-out mIoU {measured[name]['miou']:.3f}", flush=True)
        command = f"python experiments/camvid_recipes.py --device {options.device}"
        facts = {"seeds": [0], "recipe": asdict(protocol.recipe(STEPS, RATE, seed=0))}
        save_result("camvid_recipes", command, profile, measured, **facts)


if __name__ == "__main__":
    main()
