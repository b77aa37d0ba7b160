"""What the decoder of DeepLab v3+ gains on thin structures and outlines, against v3 and a control without its skip.

    python experiments/deeplab_v3plus.py --profile cpu --seeds 0 1 2

Two studies with the same data: `decoder` trains v3 and variants of v3+ by the profile's recipe; `ablation` varies the
low-level channels and the 3x3 convolutions (the paper's tables 1 and 2) in a third of the steps. A seed changes initial
weights, order of the pictures and the training scenes. Scored on test scenes that nothing was tuned on. Writes
results/deeplab_v3plus.<profile>.json after every arm; with --runs FOLDER it goes on where it was interrupted.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, evaluate, fit

PLAIN = {"separable": False}
STUDIES: dict[str, dict[str, tuple[str, dict]]] = {
    "decoder": {
        "v3": ("deeplab_v3", {}),
        "v3+ separable": ("deeplab_v3plus", {}),
        "v3+ plain": ("deeplab_v3plus", PLAIN),
        "v3+ plain, no low-level map": ("deeplab_v3plus", {**PLAIN, "low_level_channels": 0}),
    },
    "ablation": {
        "16 channels, 2 convs": ("deeplab_v3plus", PLAIN),
        "4 channels": ("deeplab_v3plus", {**PLAIN, "low_level_channels": 4}),
        "1 conv": ("deeplab_v3plus", {**PLAIN, "decoder_convs": 1}),
        "3 convs": ("deeplab_v3plus", {**PLAIN, "decoder_convs": 3}),
    },
}


def run_arm(name: str, options: dict, seed: int, profile: Profile, iterations: int, runs: str | Path) -> dict:
    """Train and score one network; metric -> value, with its parameters and seconds of training."""
    size = profile.image_size
    train = SceneDataset("thin", "train", size=size, length=profile.train_scenes, seed=seed)
    test = SceneDataset("thin", "test", size=size, length=2 * profile.val_scenes)
    torch.manual_seed(seed)
    model = build_model(name, num_classes=12, **profile.options(name), **options).to(profile.device)
    settings = Settings.from_profile(profile, seed=seed, iterations=iterations)
    history = fit(model, train, None, settings, name=f"{name}-{seed}", runs=runs, quiet=True)
    parameters = sum(p.numel() for p in model.parameters())
    scores = evaluate(model, test, detailed=True, precision=profile.precision)
    return {**scores, "parameters": parameters, "seconds": round(history.seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", help="keep the runs in this folder; default: a temporary one")
    parser.add_argument("--into", type=Path, help="folder for the result; default: results/")
    arguments = parser.parse_args()
    profile = Profile.load(arguments.profile)
    command = (
        f"python experiments/deeplab_v3plus.py --profile {profile.name} --seeds "
        f"{' '.join(map(str, arguments.seeds))}"
    )
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as fresh:
        for study, arms in STUDIES.items():
            iterations = profile.iterations // (3 if study == "ablation" else 1)
            for seed in arguments.seeds:
                for arm, (name, options) in arms.items():
                    scores = run_arm(name, options, seed, profile, iterations, arguments.runs or fresh)
                    print(f"{study}: {arm}, seed {seed}: mIoU {scores['miou']:.3f}", flush=True)
                    lists = measured.setdefault(study, {}).setdefault(arm, {})
                    for metric, value in scores.items():
                        lists.setdefault(metric, []).append(value)
                    facts = {"seeds": arguments.seeds, "recipe": asdict(Settings.from_profile(profile))}
                    path = save_result(
                        f"deeplab_v3plus.{profile.name}",
                        command,
                        profile,
                        measured,
                        folder=arguments.into,
                        **facts,
                    )
    print("wrote", path)


if __name__ == "__main__":
    main()
