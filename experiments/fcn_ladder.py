"""FCN-32s, 16s, 8s on thin structures: the same recipe, several seeds, scored on test scenes that nothing was tuned on.

    python experiments/fcn_ladder.py --profile cpu --seeds 0 1 2

A seed changes initial weights, order of the pictures and the training scenes themselves. Writes
results/fcn_ladder.<profile>.json.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import History, Settings, differing_fields, evaluate, fit

ARMS = ("fcn32s", "fcn16s", "fcn8s")


def train_arm(name: str, seed: int, profile: Profile, runs: str | Path) -> tuple[nn.Module, History, dict]:
    """Train one arm, or load its finished run; the model, its history, and what it was trained with."""
    train = SceneDataset("thin", "train", size=profile.image_size, length=profile.train_scenes, seed=seed)
    settings = Settings.from_profile(profile, seed=seed)
    torch.manual_seed(seed)
    model = build_model(name, num_classes=12, **profile.model_options).to(profile.device)
    history = fit(model, train, None, settings, name=f"{name}-{seed}", runs=runs, quiet=True)
    return model, history, {"model": name, "data": repr(train), **asdict(settings)}


def run(profile: Profile, seeds: list[int], runs: str | Path) -> dict[str, dict[str, list[float]]]:
    """Scores of every arm: arm -> metric -> one value a seed."""
    test = SceneDataset("thin", "test", size=profile.image_size, length=2 * profile.val_scenes)
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in ARMS}
    for seed in seeds:
        recipes = []
        for name in ARMS:
            model, history, recipe = train_arm(name, seed, profile, runs)
            recipes.append(recipe)
            measured = evaluate(model, test, detailed=True, precision=profile.precision)
            print(f"{name}, seed {seed}: {history}; test mIoU {measured['miou']:.3f}", flush=True)
            for metric, value in {**measured, "seconds": round(history.seconds, 1)}.items():
                scores[name].setdefault(metric, []).append(value)
        assert differing_fields(*recipes) == {"model"}, "arms of a comparison may differ in the model only"
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--runs", help="keep the runs in this folder; default: a temporary one, so that all is trained"
    )
    parser.add_argument("--into", type=Path, help="folder for the result; default: results/")
    arguments = parser.parse_args()
    profile = Profile.load(arguments.profile)
    with tempfile.TemporaryDirectory() as fresh:
        measured = run(profile, arguments.seeds, arguments.runs or fresh)
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python experiments/fcn_ladder.py --profile {profile.name} --seeds {seeds}"
    recipe = asdict(Settings.from_profile(profile))
    facts = {"seeds": arguments.seeds, "recipe": recipe}
    name = f"fcn_ladder.{profile.name}"
    print("wrote", save_result(name, command, profile, measured, folder=arguments.into, **facts))


if __name__ == "__main__":
    main()
