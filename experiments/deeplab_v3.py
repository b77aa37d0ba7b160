"""DeepLab v3, part by part, over several seeds: cascade, multi-grid, image pooling, batch norm, output stride.

    python experiments/deeplab_v3.py --profile cpu --seeds 0 1 2
    python experiments/deeplab_v3.py --arms "momentum 0.1"   # this arm anew; the rest of the result stays

A seed changes initial weights, order of the pictures and the training scenes; scores are on test scenes that nothing
was tuned on. Each trained network is an arm; some are scored in several ways. Writes results/deeplab_v3.<profile>.json.
"""

import argparse
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torchvision.models.resnet import BasicBlock

from deeplab_edu.data.augment import normalize
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.models.deeplab_v3 import ASPP
from deeplab_edu.models.layers import init_he
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.receptive_field import receptive_field
from deeplab_edu.results import replace_arms, save_result
from deeplab_edu.training import Settings, evaluate, fit, stack

TEST_SCENES = 128
PLAIN = {"head": "cascade", "cascade_blocks": 4}  # block 4 and scores, no ASPP


@dataclass(frozen=True)
class Arm:
    """One network to train: `change` is done to the model that `options` build, `settings` differ from the recipe."""

    options: Mapping[str, Any]
    preset: str = "shapes"
    iterations: int = 350
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[nn.Module], None] | None = None


def cut_short(groups: int, unit_rates: tuple[int, ...] = ()) -> Callable[[nn.Module], None]:
    """Keep the first `groups` of the backbone's layers, add units with these rates, and put a new head on top.

    What is left sees a part of the picture only. The new ASPP keeps its rates as they are, in units of this map.
    """

    def change(model: nn.Module) -> None:
        backbone = model.backbone
        channels = backbone.channels[groups - 1]
        units = nn.Sequential(*(BasicBlock(channels, channels) for _ in unit_rates))
        for unit, rate in zip(units, unit_rates):
            for conv in (unit.conv1, unit.conv2):
                conv.dilation = conv.padding = (rate, rate)
        init_he(units)
        backbone.layers = nn.ModuleList([*backbone.layers[:groups], *([units] if unit_rates else [])])
        out = model.score.in_channels
        if isinstance(model.head, ASPP):
            model.head = ASPP(channels, out, (1, 2), model.head.image_pooling is not None)
        else:
            model.score = nn.Conv2d(channels, model.score.out_channels, 1)
            nn.init.normal_(model.score.weight, std=0.01)

    return change


class StoredBatchNorm(nn.BatchNorm2d):
    """Batch norm that never looks at a batch: its stored mean 0 and variance 1 stay, scale and shift are trained."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def freeze_statistics(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, StoredBatchNorm(child.num_features))


def cascades() -> Iterator[tuple[str, Arm]]:
    for block in (4, 5, 6, 7):
        for stride in (16, 32 * 2 ** (block - 4)):
            options = {"head": "cascade", "cascade_blocks": block, "output_stride": stride}
            yield f"block {block}, output stride {stride}", Arm(options)


STUDIES: dict[str, dict[str, Arm]] = {
    "image_pooling": {
        "short, without": Arm(
            {"output_stride": 8, "image_pooling": False}, "context", 400, change=cut_short(2)
        ),
        "short, with": Arm({"output_stride": 8}, "context", 400, change=cut_short(2)),
        "whole, without": Arm({"image_pooling": False}, "context", 400),
        "whole, with": Arm({}, "context", 400),
    },
    "cascade": dict(cascades()),
    "multi_grid": {
        "short, (1, 1, 1)": Arm(PLAIN | {"output_stride": 8}, change=cut_short(2, (1, 1, 1))),
        "short, (1, 2, 4)": Arm(PLAIN | {"output_stride": 8}, change=cut_short(2, (1, 2, 4))),
        "output stride 16, (1, 2, 4)": Arm(PLAIN | {"output_stride": 16, "multi_grid": (1, 2, 4)}),
        "output stride 8, (1, 1, 1)": Arm(PLAIN | {"output_stride": 8}),
        "output stride 8, (1, 2, 4)": Arm(PLAIN | {"output_stride": 8, "multi_grid": (1, 2, 4)}),
    },  # (1, 1, 1) at output stride 16 is the cascade's "block 4, output stride 16"
    "batch_norm": {
        "momentum 0.1": Arm({}),
        "momentum 0.0003": Arm({}, settings={"bn_momentum": 0.0003}),
        "stored statistics": Arm({}, change=freeze_statistics),
    },
}
ARMS = {name: arm for arms in STUDIES.values() for name, arm in arms.items()}
STRIDES_SCORED = {  # arm -> output strides it is scored at, beside its own
    "block 4, output stride 32": (16, 8),
    "block 4, output stride 16": (32, 8),
    "output stride 8, (1, 1, 1)": (32, 16),
    "momentum 0.1": (32, 8),
}
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
ASKED = {  # how the network of "momentum 0.1" is asked at output strides 16 and 8, all in float32
    "asked once": {"precision": "float32"},
    "scales": {"scales": SCALES},
    "scales and mirror": {"scales": SCALES, "flip": True},
}


def build(arm: Arm, profile: Profile, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model("deeplab_v3", num_classes=12, **profile.options("deeplab_v3"), **arm.options)
    if arm.change:
        arm.change(model)
    return model


def fields(arm: Arm, profile: Profile) -> dict[str, Any]:
    """What a unit of the network could see, px: after the backbone, and at the scores (None: the whole picture)."""
    model, size = build(arm, profile, 0), (profile.image_size,) * 2
    last = f"backbone.layers.{len(model.backbone.layers) - 1}"
    parameters = sum(p.numel() for p in model.parameters())
    of = {
        where: receptive_field(model, size, layer).size[0]
        for where, layer in (("backbone", last), ("scores", "score"))
    }
    return {"receptive_field": of, "parameters": parameters}


def score(model: nn.Module, test: SceneDataset, profile: Profile) -> dict[str, float]:
    return evaluate(model, test, detailed=True, precision=profile.precision)


def score_all(
    name: str, model: nn.Module, train: SceneDataset, test: SceneDataset, profile: Profile
) -> dict[str, dict[str, float]]:
    """The arm's scores, and those of the same weights used in another way."""
    scores = {name: score(model, test, profile)}
    for stride in STRIDES_SCORED.get(name, ()):
        own = model.output_stride
        model.set_output_stride(stride)
        scores[f"{name} -> {stride}"] = score(model, test, profile)
        model.set_output_stride(own)
    if name == "momentum 0.1":
        for stride in (16, 8):
            model.set_output_stride(stride)
            for way, how in ASKED.items():
                scores[f"{name} -> {stride}, {way}"] = evaluate(model, test, detailed=True, **how)
        model.set_output_stride(own)
    if name == "momentum 0.0003":
        update_bn([normalize(stack(train, range(16 * i, 16 * i + 16))[0]) for i in range(20)], model)
        scores[f"{name}, statistics taken again"] = score(model, test, profile)
    return scores


def run(
    profile: Profile, names: Collection[str], seeds: list[int], runs: str | Path
) -> Iterator[dict[str, dict[str, list[float]]]]:
    """After each seed the scores so far: arm -> metric -> one value a seed."""
    size, measured = profile.image_size, {}
    tests = {p: SceneDataset(p, "test", size=size, length=TEST_SCENES) for p in ("context", "shapes")}
    for seed in seeds:
        length = 2 * profile.train_scenes // 3  # about as many as so few steps use
        trains = {p: SceneDataset(p, "train", size=size, length=length, seed=seed) for p in tests}
        for name, arm in ((name, ARMS[name]) for name in names):
            model = build(arm, profile, seed)
            settings = recipe(profile, arm, seed)
            history = fit(model, trains[arm.preset], None, settings, name=f"v3-{seed}", runs=runs, quiet=True)
            print(f"{name}, seed {seed}: {history}", flush=True)
            for way, scores in score_all(name, model, trains[arm.preset], tests[arm.preset], profile).items():
                print(f"    {way}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()), flush=True)
                seconds = {"seconds": round(history.seconds, 1)} if way == name else {}
                for metric, value in {**scores, **seconds}.items():
                    measured.setdefault(way, {}).setdefault(metric, []).append(value)
        yield measured


def recipe(profile: Profile, arm: Arm, seed: int = 0) -> Settings:
    iterations = min(arm.iterations, profile.iterations)
    return Settings.from_profile(profile, iterations=iterations, loss_stride=2, seed=seed, **arm.settings)


def describe_studies(profile: Profile) -> dict[str, dict[str, Any]]:
    return {
        study: {
            name: {
                "preset": arm.preset,
                "iterations": recipe(profile, arm).iterations,
                **fields(arm, profile),
            }
            for name, arm in arms.items()
        }
        for study, arms in STUDIES.items()
    }


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
    profile, again, folder = Profile.load(arguments.profile), arguments.arms, arguments.into
    facts = {"recipe": asdict(recipe(profile, Arm({}))), "studies": describe_studies(profile)}
    name, script = f"deeplab_v3.{profile.name}", f"python experiments/deeplab_v3.py --profile {profile.name}"
    with tempfile.TemporaryDirectory() as fresh:
        runs = arguments.runs or fresh
        for count, measured in enumerate(run(profile, again or ARMS, arguments.seeds, runs), 1):
            seeds = arguments.seeds[:count]
            command = f"{script} --seeds {' '.join(map(str, seeds))}"
            if not again:
                path = save_result(name, command, profile, measured, folder=folder, seeds=seeds, **facts)
                print("wrote", path, flush=True)
    if again:
        command += " --arms " + " ".join(f'"{arm}"' for arm in again)
        same = {"seeds": arguments.seeds, **facts}
        print("wrote", replace_arms(name, command, measured, same=same, folder=folder))


if __name__ == "__main__":
    main()
