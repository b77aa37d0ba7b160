"""DeepLab v2 on shapes of three sizes: one rate, several, a control, several image sizes, and two schedules.

    python experiments/deeplab_v2.py --profile cpu --seeds 0 1 2
    python experiments/deeplab_v2.py --arms "LargeFOV, step"   # this arm anew; the rest of the result stays

The control has ASPP's parameters and one rate: what it lacks is nothing but the variety. A seed changes initial
weights, order of the pictures and the training scenes themselves; nothing was tuned on the test scenes. Costs are CPU
time, which other work on the machine disturbs least. Writes results/deeplab_v2.<profile>.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.models.deeplab_v2 import MultiScaleInputs
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import replace_arms, save_result
from deeplab_edu.training import History, Settings, differing_fields, evaluate, fit, stack, train_step

Scores = dict[str, dict[str, list[float]]]  # arm -> metric -> one value a seed

ASPP = (1, 2, 4, 6)  # rates at 128 px; they grow with the picture
ARMS = {  # rates, image scales, schedule
    "LargeFOV": ((6,), (1.0,), "poly"),
    "ASPP": (ASPP, (1.0,), "poly"),
    "control": ((6, 6, 6, 6), (1.0,), "poly"),
    "control, rate 1": ((1, 1, 1, 1), (1.0,), "poly"),
    "LargeFOV, step": ((6,), (1.0,), "step"),
    "LargeFOV, 3 scales": ((6,), (0.5, 0.75, 1.0), "poly"),
}
PAIRS = {  # comparison: the two arms, and in what they differ
    ("LargeFOV", "ASPP"): "rates",
    ("control", "ASPP"): "rates",
    ("control, rate 1", "ASPP"): "rates",
    ("LargeFOV, step", "LargeFOV"): "schedule",
    ("LargeFOV", "LargeFOV, 3 scales"): "scales",
}
METRICS = ("miou", "pixel_accuracy", "trimap1", "trimap3", "inner", "small", "mid", "big")
COST_REPEATS = 15


def make(name: str, profile: Profile) -> nn.Module:
    """The arm's network with new weights; around it, where there are several image scales, their fusion."""
    rates, scales, _ = ARMS[name]
    rates = tuple(max(1, round(rate * profile.image_size / 128)) for rate in rates)
    model = build_model("deeplab_v2", num_classes=12, rates=rates, **profile.model_options)
    return (model if len(scales) == 1 else MultiScaleInputs(model, scales)).to(profile.device)


def settings_of(name: str, profile: Profile, seed: int = 0) -> Settings:
    return Settings.from_profile(profile, seed=seed, schedule=ARMS[name][2])


def check_pairs(profile: Profile) -> None:
    """Compared arms differ in what they are compared for, and in nothing else."""
    recipes = {
        name: {"rates": rates, "scales": scales, **asdict(settings_of(name, profile))}
        for name, (rates, scales, _) in ARMS.items()
    }
    for pair, field in PAIRS.items():
        differ = differing_fields(*(recipes[name] for name in pair))
        assert differ == {field}, f"{' and '.join(pair)} may differ in {field} only, not in {differ}"


def train_arm(name: str, seed: int, profile: Profile, runs: str | Path) -> tuple[nn.Module, History]:
    """Train one arm, or load its finished run; the model and its history."""
    train = SceneDataset("shapes", "train", size=profile.image_size, length=profile.train_scenes, seed=seed)
    torch.manual_seed(seed)
    model = make(name, profile)
    folder = f"v2-{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    return model, fit(
        model, train, None, settings_of(name, profile, seed), name=folder, runs=runs, quiet=True
    )


def run(
    profile: Profile, arms: list[str], seeds: list[int], runs: str | Path
) -> Iterator[tuple[Scores, Scores]]:
    """After each arm: scores of those so far, and those of ASPP with one branch switched off."""
    test = SceneDataset("shapes", "test", size=profile.image_size, length=2 * profile.val_scenes)
    scores: Scores = {}
    without: Scores = {f"without rate {rate}": {} for rate in ASPP}
    for name in arms:
        for seed in seeds:
            model, history = train_arm(name, seed, profile, runs)
            measured = evaluate(model, test, detailed=True, precision=profile.precision)
            print(f"{name}, seed {seed}: {history}; test mIoU {measured['miou']:.4f}", flush=True)
            add(scores.setdefault(name, {}), measured)
            if name == "ASPP":
                for number, scored in enumerate(without.values()):
                    add(scored, score_without(model, number, test, profile))
        yield scores, without


def add(scores: dict[str, list[float]], measured: dict[str, float]) -> None:
    for metric in METRICS:
        scores.setdefault(metric, []).append(measured[metric])


def score_without(model: nn.Module, number: int, test: SceneDataset, profile: Profile) -> dict[str, float]:
    """Scores with branch `number` of the pyramid silenced: its map of class scores is zero."""
    silence = model.aspp[number].register_forward_hook(
        lambda module, inputs, scores: torch.zeros_like(scores)
    )
    try:
        return evaluate(model, test, detailed=True, precision=profile.precision)
    finally:
        silence.remove()


def costs(profile: Profile) -> dict[str, dict[str, float]]:
    """Parameters of each arm, and CPU milliseconds an image takes to train on and to label.

    Arms take turns, so that whatever slows the machine down meets all of them; the median of the turns counts.
    """
    data = SceneDataset("shapes", "train", size=profile.image_size, length=profile.batch_size)
    images, masks = stack(data, range(profile.batch_size))
    settings = Settings.from_profile(profile)
    models = {name: make(name, profile) for name in ARMS}
    spent: dict[str, dict[str, list[float]]] = {name: {"train_ms": [], "label_ms": []} for name in ARMS}
    for _ in range(COST_REPEATS):
        for name, model in models.items():
            spent[name]["train_ms"].append(1000 * training_time(model, images, masks, settings) / len(images))
            spent[name]["label_ms"].append(1000 * labelling_time(model, data, profile) / len(images))
    return {
        name: {"parameters": sum(p.numel() for p in model.parameters())}
        | {what: round(statistics.median(times), 2) for what, times in spent[name].items()}
        for name, model in models.items()
    }


def training_time(model: nn.Module, images: Tensor, masks: Tensor, settings: Settings) -> float:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    began = time.process_time()
    train_step(model, optimizer, images, masks, settings)
    return time.process_time() - began


def labelling_time(model: nn.Module, data: SceneDataset, profile: Profile) -> float:
    began = time.process_time()
    evaluate(model, data, batch_size=profile.batch_size, precision=profile.precision)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, help="measure these anew; the others stay as recorded"
    )
    parser.add_argument(
        "--runs", help="keep the runs in this folder, and go on from there; default: a temporary one"
    )
    parser.add_argument("--into", type=Path, help="folder of the result; default: results/")
    arguments = parser.parse_args()
    profile, seeds = Profile.load(arguments.profile), arguments.seeds
    check_pairs(profile)
    command = f"python experiments/deeplab_v2.py --profile {profile.name} --seeds {' '.join(map(str, seeds))}"
    arms = {name: dict(zip(("rates", "scales", "schedule"), arm, strict=True)) for name, arm in ARMS.items()}
    facts = {"seeds": seeds, "recipe": asdict(Settings.from_profile(profile)), "arms": arms}
    name, again = f"deeplab_v2.{profile.name}", arguments.arms
    if again:
        command += " --arms " + " ".join(f'"{arm}"' for arm in again)
    else:
        facts["costs"] = costs(profile)
    with tempfile.TemporaryDirectory() as fresh:
        for measured, without in run(profile, again or list(ARMS), seeds, arguments.runs or fresh):
            if again:
                more = {"without": without} if "ASPP" in measured else {}
                path = replace_arms(name, command, measured, folder=arguments.into, same=facts, **more)
            else:
                facts["without"] = without
                path = save_result(name, command, profile, measured, folder=arguments.into, **facts)
            print("wrote", path, flush=True)


if __name__ == "__main__":
    main()
