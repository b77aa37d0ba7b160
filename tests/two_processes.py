"""Trains each of `SCENARIOS`; `tests/test_processes.py` runs it in two processes, and the same in its own one.

As a program: python tests/two_processes.py FOLDER, with RANK and so on set, as `accelerate launch` does. With "cuda"
after the folder, both share one GPU and train a network with batch normalisation.
"""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torchvision import tv_tensors
from torchvision.ops import FrozenBatchNorm2d

from deeplab_edu.data.augment import train_transforms
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.processes import leave, processes
from deeplab_edu.training import Settings, evaluate, fit

PLAIN = Settings(
    iterations=8, batch_size=8, warmup=2, optimizer="sgd", learning_rate=0.05, precision="float32"
)


class UnevenVoid(SceneDataset):
    """Picture i is void in all but a few columns, so that no two processes count the same number of pixels."""

    def __getitems__(self, indices):
        items = []
        for i, (image, mask) in zip(indices, super().__getitems__(indices), strict=True):
            mask = mask.clone()
            mask[:, 1 + i % 13 :] = 255
            items.append((image, tv_tensors.Mask(mask)))
        return items


class TwoAnswers(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images)
        return [logits, 0.5 * logits] if self.training else logits


def model(norm: str = "group") -> nn.Module:
    torch.manual_seed(0)
    net = build_model("fcn8s", num_classes=12, backbone="tiny", width=4)
    replace_norms(net, norm)
    return net


def replace_norms(module: nn.Module, norm: str) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            new = nn.GroupNorm(2, channels) if norm == "group" else FrozenBatchNorm2d(channels)
            setattr(module, name, new)
        else:
            replace_norms(child, norm)


def scenes(length=20, transforms=None):
    return SceneDataset("shapes", size=32, length=length, transforms=transforms)


def uneven():
    return UnevenVoid("shapes", size=32, length=20)


# name: how to make the model, the data, the settings
SCENARIOS = {
    "group norm": (model, scenes, PLAIN),
    "frozen batch norm": (lambda: model("frozen"), scenes, PLAIN),
    "uneven void": (model, uneven, PLAIN),
    "several logits": (lambda: TwoAnswers(model()), uneven, PLAIN),
    "seven pictures a step": (model, scenes, replace(PLAIN, batch_size=7)),
    "one stream a step": (model, lambda: scenes(transforms=train_transforms(24)), PLAIN),
    "one stream a picture": (
        model,
        lambda: scenes(transforms=train_transforms(24)),
        replace(PLAIN, draws="picture", workers=1),
    ),
}


def train_batch_norm(device: str, folder: Path) -> None:
    torch.manual_seed(0)
    net = build_model("fcn8s", num_classes=12, backbone="tiny", width=4).to(device)
    fit(net, scenes(), val(), PLAIN, folder=folder, quiet=True)


def share_a_gpu(folder: Path) -> None:
    """NCCL wants a GPU for each process; gloo carries numbers between two that share one."""
    dist.init_process_group("gloo")
    train_batch_norm("cuda", folder)
    leave()


def val():
    return SceneDataset("shapes", "val", size=32, length=9)


def train(name: str, folder: Path, watch=None, settings: Settings | None = None):
    make, data, usual = SCENARIOS[name]
    net = make()
    return net, fit(net, data(), val(), settings or usual, folder=folder / name, quiet=True, watch=watch)


def guesser() -> nn.Module:
    """Answers by colour, with many classes."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 12, 1)


def failure(call) -> str:
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def stop_after(steps: int):
    def watch(history):
        if history.steps[-1] == steps:
            signal.raise_signal(signal.SIGINT)

    return watch


def raise_here():
    raise ValueError("only the first process looked")


def main(folder: Path) -> None:
    team = processes(cpu=True)
    if not team.first:  # only the first process may write

        def forbidden(*arguments, **more):
            raise AssertionError("this process wrote a file")

        import deeplab_edu.checkpoints

        deeplab_edu.checkpoints.write_atomically = forbidden
    told = {"count": team.count, "miou": {}}
    for name in SCENARIOS:
        told["miou"][name] = train(name, folder)[1].val_miou
    told["loss"] = train("uneven void", folder)[1].loss
    told["scores"] = evaluate(guesser(), val(), batch_size=2, detailed=True)
    told["sum"] = int(team.sum(torch.tensor(team.index + 1)))
    told["first"] = failure(lambda: team.from_first(raise_here))
    told["small"] = failure(
        lambda: train("group norm", folder / "small", settings=replace(PLAIN, batch_size=1))
    )
    told["stopped"] = failure(lambda: train("group norm", folder / "stopped", watch=stop_after(5)))
    told["nan"] = failure(
        lambda: train("group norm", folder / "nan", settings=replace(PLAIN, learning_rate=1e30))
    )
    (folder / f"told-{team.index}.json").write_text(json.dumps(told))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = share_a_gpu if sys.argv[2:] == ["cuda"] else main
    run(Path(sys.argv[1]))
