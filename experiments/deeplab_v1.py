"""DeepLab v1's two steps on objects of three sizes: holes in conv5, then a fc6 that reaches further; several seeds.

    python experiments/deeplab_v1.py --profile cpu --seeds 0 1 2

All arms have stride 8, the same weights to learn and the same cost: `plain` did not notice that pool4 stopped striding,
`hole` put the taps of conv5 two units apart, `largefov4` and `largefov6` those of fc6 four and six. Scores are on test
scenes that nothing was tuned on. A seed changes initial weights, order of the pictures and the training scenes
themselves. Writes results/deeplab_v1.<profile>.json.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import History, Settings, differing_fields, evaluate, fit

ARMS: dict[str, dict] = {
    "plain": {"hole": False, "rate": 1},
    "hole": {"hole": True, "rate": 1},
    "largefov4": {"hole": True, "rate": 4},
    "largefov6": {"hole": True, "rate": 6},
}


def train_arm(
    name: str, seed: int, profile: Profile, runs: str | Path, preset: str = "shapes"
) -> tuple[nn.Module, History, dict]:
    """Train one arm, or load its finished run; the model, its history, and what it was trained with."""
    train = SceneDataset(preset, "train", size=profile.image_size, length=profile.train_scenes, seed=seed)
    settings = Settings.from_profile(profile, seed=seed)
    torch.manual_seed(seed)
    options = {**profile.model_options, **ARMS[name]}
    model = build_model("deeplab_v1", num_classes=12, **options).to(profile.device)
    history = fit(model, train, None, settings, name=f"{preset}-{name}-{seed}", runs=runs, quiet=True)
    return model, history, {"arm": name, "data": repr(train), **asdict(settings)}


def cost(name: str, profile: Profile) -> dict[str, int]:
    """Parameters, and multiply-adds of one picture."""
    with torch.device("meta"):
        model = build_model("deeplab_v1", num_classes=12, **{**profile.model_options, **ARMS[name]}).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, profile.image_size, profile.image_size))
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


def run(profile: Profile, seeds: list[int], runs: str | Path) -> dict[str, dict[str, list[float]]]:
    """Scores of every arm: arm -> metric -> one value a seed."""
    test = SceneDataset("shapes", "test", size=profile.image_size, length=2 * profile.val_scenes)
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
        assert differing_fields(*recipes) == {"arm"}, "arms of a comparison may differ in the model only"
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--runs", help="keep the runs in this folder; default: a temporary one, so that all is trained"
    )
    arguments = parser.parse_args()
    profile = Profile.load(arguments.profile)
    with tempfile.TemporaryDirectory() as fresh:
        measured = run(profile, arguments.seeds, arguments.runs or fresh)
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python experiments/deeplab_v1.py --profile {profile.name} --seeds {seeds}"
    recipe = asdict(Settings.from_profile(profile))
    facts = {"seeds": arguments.seeds, "recipe": recipe, "cost": {name: cost(name, profile) for name in ARMS}}
    print("wrote", save_result(f"deeplab_v1.{profile.name}", command, profile, measured, **facts))


if __name__ == "__main__":
    main()
