"""Our training step beside torchvision's reference loop: same model, same weights, same batch, same optimiser.

    python benchmarks/training_step.py [--repetitions 15] [--save]

The peer is one turn of `train_one_epoch` in torchvision's references/segmentation/train.py, restated: forward,
cross-entropy with void left out, zero_grad, backward, step, polynomial schedule; float32. Its metric logger is left
out, and both arms begin with uint8 pictures and normalise them. Ours runs in float32 and, as a third arm, with
bfloat16 autocast. Steps of the arms take turns (A B C, C B A, ...). The float32 arms must agree on the first loss.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from report import training_step_table
from timing import interleave, machine_line, parse, save
from torch import Tensor, nn
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms.v2 import functional as V

from deeplab_edu.data.augment import IMAGENET_MEAN, IMAGENET_STD
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import Profile
from deeplab_edu.training import Settings, stack, train_step

STEPS = 10_000  # of the schedule; far more than are measured


class Out(nn.Module):
    """A model of torchvision as one of ours: logits instead of a dictionary of them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["out"]


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    batch: int
    size: int  # px


CASES = {
    "FCN-8s tiny": Case(lambda: build_model("fcn8s", num_classes=12, backbone="tiny", width=16), 16, 128),
    "torchvision fcn_resnet50": Case(
        lambda: Out(fcn_resnet50(weights=None, weights_backbone=None, num_classes=12)), 2, 128
    ),
}


def optimizer_for(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The reference's: plain SGD with momentum."""
    return torch.optim.SGD(
        model.parameters(),
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def reference_loop(
    model: nn.Module, images: Tensor, masks: Tensor, settings: Settings
) -> Callable[[], Tensor]:
    """One turn of torchvision's loop at each call; returns the loss."""
    device = next(model.parameters()).device
    optimizer = optimizer_for(model.train(), settings)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9)

    def step() -> Tensor:
        image = V.to_dtype(images.to(device), torch.float32, scale=True)
        image = V.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))
        loss = F.cross_entropy(model(image), masks.to(device), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.detach()

    return step


def our_loop(model: nn.Module, images: Tensor, masks: Tensor, settings: Settings) -> Callable[[], Tensor]:
    """What `fit` does at each step, without data loading and bookkeeping."""
    model.to(memory_format=torch.channels_last)
    optimizer = optimizer_for(model.train(), settings)
    steps = iter(range(STEPS))

    def step() -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(next(steps))
        return train_step(model, optimizer, images, masks, settings)

    return step


def measure(case: Case, device: str, repetitions: int) -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = case.build().to(device)
    for module in model.modules():  # dropout would draw differently in each arm
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, masks = stack(SceneDataset("full", size=case.size, length=case.batch), range(case.batch))
    settings = Settings(iterations=STEPS, optimizer="sgd", learning_rate=0.01, warmup=0, precision="float32")
    bf16 = Settings(iterations=STEPS, optimizer="sgd", learning_rate=0.01, warmup=0, precision="bfloat16")
    arms = {
        "torchvision's loop": reference_loop(deepcopy(model), images, masks, settings),
        "ours": our_loop(deepcopy(model), images, masks, settings),
        "ours, bfloat16": our_loop(deepcopy(model), images, masks, bf16),
    }
    theirs, ours = arms["torchvision's loop"](), arms["ours"]()
    if not torch.isclose(theirs, ours, rtol=1e-4):
        raise RuntimeError(f"The arms do not compute the same: losses {theirs:.6f} and {ours:.6f}.")
    return interleave(arms, repetitions)


def main() -> None:
    options, profile = parse(__doc__, repetitions=15), Profile.load()
    measured = {}
    for name, case in CASES.items():
        seconds = measure(case, profile.device, options.repetitions)
        measured[name] = {"batch": case.batch, "size": case.size, "seconds": seconds}
    print(f"A training step, {options.repetitions} repetitions; {machine_line()}\n")
    print(training_step_table(measured))
    if options.save:
        save("training_step", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
