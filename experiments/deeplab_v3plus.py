"""What the decoder of DeepLab v3+ gains on thin structures and outlines, against v3 and a control without its skip.

    python experiments/deeplab_v3plus.py --profile cpu --seeds 0 1 2

`scratch`: plain v3+ from random weights by several recipes, one seed, scored on validation scenes: does its decoder
use the encoder? `decoder` and `ablation` start, as the paper does, from an encoder that was trained before:
here the backbone of a v3, trained on the same scenes, under a new head. `decoder` compares v3 with variants of v3+;
`ablation` varies low-level channels and 3x3 convolutions (the paper's tables 1 and 2). Both are scored on test scenes
that nothing was tuned on. A seed changes initial weights, order of the pictures and the training scenes. Writes
results/deeplab_v3plus.<profile>.json after every arm; with --runs FOLDER it goes on where it was interrupted.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, evaluate, fit

PLAIN = {"separable": False}
SCRATCH_SEED = 2


@dataclass(frozen=True)
class Arm:
    """One network to train: on an encoder trained before, or from random weights by a `recipe` of its own."""

    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "deeplab_v3plus"
    recipe: Mapping[str, Any] | None = None


STUDIES: dict[str, dict[str, Arm]] = {
    "scratch": {
        "rate 0.008": Arm(PLAIN, recipe={"learning_rate": 8e-3}),
        "rate 0.003": Arm(PLAIN, recipe={"learning_rate": 3e-3}),
        "rate 0.003, warm-up 400": Arm(PLAIN, recipe={"learning_rate": 3e-3, "warmup": 400}),
        "SGD, rate 0.1": Arm(PLAIN, recipe={"learning_rate": 0.1, "optimizer": "sgd"}),
        "rate 0.002": Arm(PLAIN, recipe={"learning_rate": 2e-3}),
        "rate 0.001": Arm(PLAIN, recipe={"learning_rate": 1e-3}),
        "encoder trained first": Arm(PLAIN),
    },
    "decoder": {
        "v3": Arm(model="deeplab_v3"),
        "v3+ separable": Arm(),
        "v3+ plain": Arm(PLAIN),
        "v3+ plain, no low-level map": Arm({**PLAIN, "low_level_channels": 0}),
    },
    "ablation": {
        "16 channels, 2 convs": Arm(PLAIN),  # v3+ plain once more: its finished run is loaded
        "4 channels": Arm({**PLAIN, "low_level_channels": 4}),
        "1 conv": Arm({**PLAIN, "decoder_convs": 1}),
        "3 convs": Arm({**PLAIN, "decoder_convs": 3}),
    },
}


def build(model: str, profile: Profile, seed: int, options: Mapping[str, Any]) -> nn.Module:
    """v3 and v3+ on one and the same backbone, that which the profile has for v3+."""
    torch.manual_seed(seed)
    options = {**profile.options("deeplab_v3plus"), **options}
    return build_model(model, num_classes=12, **options).to(profile.device)


def recipes(profile: Profile, seed: int = 0) -> tuple[Settings, Settings]:
    """Of the encoder, and of what is then trained with it: in all, not much more than the profile's steps."""
    steps = 2 * profile.iterations // 3, profile.iterations // 2
    first, second = (Settings.from_profile(profile, iterations=n, seed=seed) for n in steps)
    return first, second


def train(arm: Arm, seed: int, profile: Profile, runs: str | Path) -> nn.Module:
    scenes = SceneDataset("thin", "train", size=profile.image_size, length=profile.train_scenes, seed=seed)
    learn = partial(fit, train=scenes, runs=runs, quiet=True)
    model = build(arm.model, profile, seed, arm.options)
    if arm.recipe is not None:
        settings = Settings.from_profile(profile, seed=seed, **arm.recipe)
        learn(model, settings=settings, name=f"{arm.model}-{seed}")
        return model
    first, second = recipes(profile, seed)
    encoder = build("deeplab_v3", profile, seed, {})
    learn(encoder, settings=first, name=f"encoder-{seed}")
    model.backbone.load_state_dict(encoder.backbone.state_dict())
    learn(model, settings=second, name=f"{arm.model}-{seed}")
    return model


def run_arm(study: str, arm: Arm, seed: int, profile: Profile, runs: str | Path) -> dict[str, float]:
    """Train and score one network; metric -> value, with its parameters."""
    model = train(arm, seed, profile, runs)
    split, length = ("val", 1) if study == "scratch" else ("test", 2)
    scenes = SceneDataset("thin", split, size=profile.image_size, length=length * profile.val_scenes)
    score = partial(evaluate, model, scenes, detailed=True, precision=profile.precision)
    scores = score() | {"parameters": sum(p.numel() for p in model.parameters())}
    if study == "scratch":
        with strangers_features(model):
            scores["inner, another picture's encoder"] = score()["inner"]
    if study == "decoder":
        model.set_output_stride(8)
        scores["miou at output stride 8"] = score()["miou"]
    return scores


@contextmanager
def strangers_features(model: nn.Module) -> Iterator[None]:
    """Inside, the decoder gets the encoder's features of another picture of the batch, and its own low-level map."""
    hook = model.aspp.register_forward_hook(lambda module, inputs, features: features.roll(1, 0))
    try:
        yield
    finally:
        hook.remove()


def run(profile: Profile, seeds: list[int], runs: str | Path) -> Iterator[dict]:
    """After each arm what was measured so far: study -> arm -> metric -> one value a seed."""
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    for study, arms in STUDIES.items():
        for seed in [SCRATCH_SEED] if study == "scratch" else seeds:
            for name, arm in arms.items():
                scores = run_arm(study, arm, seed, profile, runs)
                told = ", ".join(f"{metric} {scores[metric]:.3f}" for metric in ("miou", "thin", "inner"))
                print(f"{study}: {name}, seed {seed}: {told}", flush=True)
                lists = measured.setdefault(study, {}).setdefault(name, {})
                for metric, value in scores.items():
                    lists.setdefault(metric, []).append(value)
                yield measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", help="keep the runs in this folder; default: a temporary one")
    parser.add_argument("--into", type=Path, help="folder for the result; default: results/")
    arguments = parser.parse_args()
    profile, seeds = Profile.load(arguments.profile), arguments.seeds
    command = (
        f"python experiments/deeplab_v3plus.py --profile {profile.name} --seeds {' '.join(map(str, seeds))}"
    )
    name = f"deeplab_v3plus.{profile.name}"
    first, second = map(asdict, recipes(profile))
    facts = {"seeds": seeds, "scratch_seed": SCRATCH_SEED, "recipe": {"encoder": first, "arms": second}}
    with tempfile.TemporaryDirectory() as fresh:
        for measured in run(profile, seeds, arguments.runs or fresh):
            path = save_result(name, command, profile, measured, folder=arguments.into, **facts)
    print("wrote", path)


if __name__ == "__main__":
    main()
