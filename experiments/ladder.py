"""All models of the course on the same scenes by one recipe: the ladder of notebook 09, several seeds.

    python experiments/ladder.py --profile cpu --seeds 0 1 2

Scenes are of preset "full": shapes of three sizes, thin structures, and lakes and ice that only the sun or moon tells
apart. One learning rate serves all: the one of --rates with the best mean mIoU on validation scenes of three of the
models, one a generation (seed 0 only). The CRF's parameters are chosen on validation scenes too, for the first seed's
network. Scores are on test scenes. A seed changes initial weights, order of the pictures and the training scenes.
From random weights v3+ hardly learns interiors in so few steps (experiments/deeplab_v3plus.py), and its paper does not
begin there: an arm more gives it the encoder of the seed's v3 and trains half as many steps again.
Writes results/ladder.<profile>.json after every seed; with --runs FOLDER it goes on where it was interrupted.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from dense_crf import Refined, choose
from torch import nn

from deeplab_edu.cost import cost
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import History, Settings, evaluate, fit

PRESET = "full"
ARMS = ("fcn32s", "fcn16s", "fcn8s", "deeplab_v1", "deeplab_v2", "deeplab_v3", "deeplab_v3plus")
WITH_CRF = "deeplab_v1"  # its probabilities are refined too: one arm more
ENCODER, AFTER = "deeplab_v3", "deeplab_v3plus after v3"  # and another, on an encoder that was trained before
SEARCHED = ("fcn8s", "deeplab_v2", "deeplab_v3plus")
RATES = (1.5e-3, 3e-3, 8e-3)


def build(name: str, profile: Profile) -> nn.Module:
    return build_model(name, num_classes=12, **profile.options(name)).to(profile.device)


def train_arm(
    name: str,
    seed: int,
    rate: float,
    profile: Profile,
    runs: str | Path | None,
    encoder: nn.Module | None = None,
) -> tuple[nn.Module, History]:
    """Train one model, or load its finished run; with a trained `encoder`, begin with it and take half the steps."""
    train = SceneDataset(PRESET, "train", size=profile.image_size, length=profile.train_scenes, seed=seed)
    steps = profile.iterations // (2 if encoder else 1)
    settings = Settings.from_profile(profile, seed=seed, learning_rate=rate, iterations=steps)
    torch.manual_seed(seed)
    model = build(name, profile)
    if encoder:
        model.backbone.load_state_dict(encoder.state_dict())
    history = fit(model, train, None, settings, name=f"ladder-{name}-{seed}", runs=runs, quiet=True)
    print(f"{name}, seed {seed}, rate {rate:g}: {history}", flush=True)
    return model, history


def search(
    rates: list[float], profile: Profile, runs: str | Path | None
) -> tuple[float, dict[str, dict[str, float]]]:
    """The rate with the best mean over SEARCHED; and rate -> model -> mIoU, on validation scenes."""
    val = SceneDataset(PRESET, "val", size=profile.image_size, length=profile.val_scenes)
    reached: dict[float, dict[str, float]] = {}
    for rate in rates:
        for name in SEARCHED:
            model, _ = train_arm(name, 0, rate, profile, runs)
            scores = evaluate(model, val, precision=profile.precision)
            reached.setdefault(rate, {})[name] = scores["miou"]
        print(f"rate {rate:g}: validation mIoU {reached[rate]}", flush=True)
    best = max(rates, key=lambda rate: sum(reached[rate].values()))
    return best, {f"{rate:g}": scores for rate, scores in reached.items()}


def facts_of(name: str, profile: Profile) -> dict[str, int]:
    """Parameters, and multiply-adds of one picture."""
    model, side = build(name, profile), profile.image_size
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": cost(model, (side, side)).flops // 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--runs", help="keep the runs in this folder; default: a temporary one")
    parser.add_argument("--into", type=Path, help="folder for the result; default: results/")
    arguments = parser.parse_args()
    profile = Profile.load(arguments.profile)
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python experiments/ladder.py --profile {profile.name} --seeds {seeds}"
    if arguments.rates != list(RATES):
        command += " --rates " + " ".join(map(str, arguments.rates))
    with tempfile.TemporaryDirectory() as fresh:
        run(arguments.seeds, arguments.rates, command, profile, arguments.runs or fresh, arguments.into)


def run(
    seeds: list[int],
    rates: list[float],
    command: str,
    profile: Profile,
    runs: str | Path,
    into: Path | None = None,
) -> None:
    """Search, train, score, save."""
    side, precision = profile.image_size, profile.precision
    test = SceneDataset(PRESET, "test", size=side, length=2 * profile.val_scenes)
    rate, reached = search(rates, profile, runs)
    facts = {
        "preset": PRESET,
        "recipe": asdict(Settings.from_profile(profile, learning_rate=rate)),
        "val_miou_of_rates": reached,
        "costs": {name: facts_of(name, profile) for name in ARMS},
        "scenes": {"train": profile.train_scenes, "val": profile.val_scenes, "test": len(test)},
    }
    measured: dict[str, dict[str, list[float]]] = {}
    crf = None
    for number, seed in enumerate(seeds):
        encoder = None
        for name in (*ARMS, AFTER):
            first = encoder if name == AFTER else None
            model, history = train_arm(name.split()[0], seed, rate, profile, runs, first)
            scores = {name: evaluate(model, test, detailed=True, precision=precision)}
            if name == ENCODER:
                encoder = model.backbone
            scores[name]["seconds"] = round(history.seconds, 1)
            if name == WITH_CRF:
                crf = crf or choose(model, PRESET, profile)[0]
                scores[f"{name} + CRF"] = evaluate(
                    Refined(model, crf), test, detailed=True, precision=precision
                )
            for arm, values in scores.items():
                print(arm, seed, {m: round(v, 3) for m, v in values.items()}, flush=True)
                for metric, value in values.items():
                    measured.setdefault(arm, {}).setdefault(metric, []).append(value)
        given = {"seeds": seeds[: number + 1], **facts, "crf": asdict(crf)}  # type: ignore[call-overload]
        print(
            "wrote", save_result(f"ladder.{profile.name}", command, profile, measured, folder=into, **given)
        )


if __name__ == "__main__":
    main()
