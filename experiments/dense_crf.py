"""What the dense CRF gains and loses on top of DeepLab v1 (LargeFOV): scenes of three kinds, several seeds.

    python experiments/dense_crf.py --profile cpu --seeds 0 1 2

For each kind of scene the CRF's parameters are those of a small grid with the best mIoU on validation scenes, for the
first seed's network; scores before and after are on test scenes, on which nothing was chosen. `published` is the preset
"v1" without any choosing, its widths scaled from pictures of 500 px to these. Writes results/dense_crf.<profile>.json.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch
from deeplab_v1 import train_arm
from torch import Tensor, nn

from deeplab_edu.crf import PRESETS, DenseCRF
from deeplab_edu.data.augment import denormalize
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, evaluate

SCENES = ("thin", "shapes", "noisy")
CHOOSING, REPORTING = 12, 40  # validation and test scenes
# what the papers searched (w1 and both widths of the first kernel; w2 = 3 and theta_gamma = 3 stay), for 128 px
GRID = [DenseCRF(*w, 3, 3) for w in product((3, 6), (8, 16, 32), (8, 16, 32))]


class Refined(nn.Module):
    """A network with a CRF behind it: normalised images (N, 3, H, W) -> log probabilities (N, C, H, W)."""

    def __init__(self, model: nn.Module, crf: DenseCRF) -> None:
        super().__init__()
        self.model, self.crf = model, crf

    def forward(self, images: Tensor) -> Tensor:
        photographs, probabilities = denormalize(images), self.model(images).float().softmax(1)
        pairs = zip(photographs, probabilities, strict=True)
        return torch.stack([self.crf.refine(image, given) for image, given in pairs]).log()


def scaled(crf: DenseCRF, size: int, from_size: int = 500) -> DenseCRF:
    """The same CRF for pictures of another size: widths in pixels grow with them, those in colours do not."""
    factor = size / from_size
    return replace(crf, theta_alpha=crf.theta_alpha * factor, theta_gamma=crf.theta_gamma * factor)


def scores(model: nn.Module, data: SceneDataset, profile: Profile) -> dict[str, float]:
    return evaluate(model, data, detailed=True, precision=profile.precision)


def choose(model: nn.Module, preset: str, profile: Profile) -> tuple[DenseCRF, list[float]]:
    """The setting with the best mIoU on validation scenes; and what each of GRID reached."""
    val = SceneDataset(preset, "val", size=profile.image_size, length=CHOOSING)
    grid = [scaled(crf, profile.image_size, from_size=128) for crf in GRID]
    reached = [scores(Refined(model, crf), val, profile)["miou"] for crf in grid]
    return grid[reached.index(max(reached))], reached


def compare(
    preset: str, profile: Profile, seeds: list[int], runs: str | Path
) -> tuple[dict[str, dict[str, list[float]]], dict]:
    """Scores on test scenes before and after, arm -> metric -> one value a seed; and what was chosen."""
    test = SceneDataset(preset, "test", size=profile.image_size, length=REPORTING)
    models = [train_arm("largefov6", seed, profile, runs, preset)[0] for seed in seeds]
    chosen, reached = choose(models[0], preset, profile)
    crfs = {"published": scaled(PRESETS["v1"], profile.image_size), "chosen": chosen}
    measured: dict[str, dict[str, list[float]]] = {}
    for model in models:
        arms = {"network": model} | {name: Refined(model, crf) for name, crf in crfs.items()}
        for name, arm in arms.items():
            for metric, value in scores(arm, test, profile).items():
                measured.setdefault(name, {}).setdefault(metric, []).append(value)
    means = {name: {m: round(sum(v) / len(v), 3) for m, v in arm.items()} for name, arm in measured.items()}
    print(preset, chosen, *means.items(), sep="\n", flush=True)
    return measured, {"crf": {name: asdict(crf) for name, crf in crfs.items()}, "val_miou_of_grid": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--runs", help="keep the runs in this folder; default: a temporary one, so that all is trained"
    )
    arguments = parser.parse_args()
    profile = Profile.load(arguments.profile)
    measured, settings = {}, {}
    with tempfile.TemporaryDirectory() as fresh:
        for preset in SCENES:
            measured[preset], settings[preset] = compare(
                preset, profile, arguments.seeds, arguments.runs or fresh
            )
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python experiments/dense_crf.py --profile {profile.name} --seeds {seeds}"
    facts = {"seeds": arguments.seeds, "recipe": asdict(Settings.from_profile(profile)), "settings": settings}
    facts |= {"grid": [asdict(crf) for crf in GRID], "scenes": {"val": CHOOSING, "test": REPORTING}}
    print("wrote", save_result(f"dense_crf.{profile.name}", command, profile, measured, **facts))


if __name__ == "__main__":
    main()
