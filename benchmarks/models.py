"""Our DeepLab v3 and v3+ beside torchvision's and segmentation-models-pytorch's: speed and memory, one process each.

    python benchmarks/models.py [--repetitions 7] [--save]

Each pair has equal architecture and weights, and must agree on its logits before anything is timed. v3 is
torchvision's (`compat="torchvision"`; SMP's two deviations undone). SMP's v3+ is not the paper's: ours is rebuilt as
theirs, and they too lose the two deviations. Calls take turns (A B, B A, ...). Memory is what the first training step
of a fresh process adds to it at its peak; the median of five.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from timing import interleave, machine_line, parse, ratio, resident, save, spread, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.segmentation import deeplabv3_resnet50

from deeplab_edu.models import build_model
from deeplab_edu.models.layers import separable_conv_bn_relu
from deeplab_edu.profiles import Profile

BATCH, SIZE, CLASSES = 2, 225, 21


def torchvisions() -> nn.Module:
    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)


def set_own_rate(unit: nn.Module, rate: int) -> None:
    """Of a unit that would stride, `rate` is what the strides before it left. SMP dilates all of it further.

    Its 1x1 convolutions, too: that changes no number, but torch then computes them with another library.
    """
    for conv in unit.modules():
        if isinstance(conv, nn.Conv2d):
            conv.dilation = (rate, rate)
    unit.get_submodule("conv2").padding = (rate, rate)  # type: ignore[assignment]


def smps_v3() -> nn.Module:
    """Without its two deviations: the strided units' own rates, and corners that are aligned."""
    net = smp.DeepLabV3("resnet50", encoder_weights=None, classes=CLASSES, encoder_output_stride=8)
    set_own_rate(net.encoder.layer3[0], 1)
    set_own_rate(net.encoder.layer4[0], 2)
    net.requires_divisible_input_shape = False
    net.segmentation_head[1] = nn.Upsample(size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return net


def smps_v3plus() -> nn.Module:
    """Without its two deviations, as above; dropout is the paper's."""
    net = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=CLASSES, decoder_aspp_dropout=0.1)
    set_own_rate(net.encoder.layer4[0], 1)
    net.requires_divisible_input_shape = False
    stride4 = (SIZE + 3) // 4
    net.decoder.up = nn.Upsample(size=(stride4, stride4), mode="bilinear", align_corners=True)
    net.segmentation_head[1] = nn.Upsample(size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    return net


def v3plus_as_smps() -> nn.Module:
    """Ours with SMP's rates and its single decoder convolution, a separable convolution more behind ASPP, and nothing
    between depthwise and pointwise steps."""
    options = {"rates": (12, 24, 36), "decoder_convs": 1, "multi_grid": (1, 1, 1), "stride_in": "3x3"}
    net = build_model("deeplab_v3plus", CLASSES, backbone="resnet50", **options)
    net.aspp = nn.Sequential(net.aspp, separable_conv_bn_relu(256, 256))
    for layer in (*net.aspp[0].branches[1:], net.aspp[1], net.decoder[0]):
        del layer[1:3]
    return net


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "DeepLabv3-ResNet50, torchvision": (
        partial(build_model, "deeplab_v3", CLASSES, compat="torchvision"),
        torchvisions,
    ),
    "DeepLabv3-ResNet50, SMP": (partial(build_model, "deeplab_v3", CLASSES, compat="torchvision"), smps_v3),
    "DeepLabv3+-ResNet50, SMP": (v3plus_as_smps, smps_v3plus),
}


def logits(model: nn.Module, images: Tensor) -> Tensor:
    answer = model(images)
    return answer["out"] if isinstance(answer, dict) else answer


def share_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give their network our weights. Names differ; the order, that in which the parts compute, does not."""
    for module in ours.modules():  # fresh statistics would hide a batch norm in a wrong place
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))


def check_equal(ours: nn.Module, theirs: nn.Module) -> None:
    """Raises RuntimeError unless parameters, multiply-adds and logits of both are the same."""
    answers = forward(ours)(), forward(theirs)()
    error = float((answers[0] - answers[1]).abs().max() / answers[1].abs().max())
    if error > 1e-4 or cost(ours) != cost(theirs):
        raise RuntimeError(
            f"the arms are not the same network: {cost(ours)}, {cost(theirs)}; logits differ by {error}"
        )


def training_step(model: nn.Module) -> Callable[[], None]:
    """Forward, cross-entropy, backward and SGD on the same pictures at each call."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    masks = torch.randint(0, CLASSES, (BATCH, SIZE, SIZE), generator=generator)

    def step() -> None:
        model.train()
        loss = F.cross_entropy(logits(model, images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forward(model: nn.Module) -> Callable[[], Tensor]:
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def call() -> Tensor:
        return logits(model.eval(), images)

    return call


def cost(model: nn.Module) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        forward(model)()
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply-adds": counter.get_total_flops() / 2 / BATCH}


def measure(name: str, repetitions: int) -> dict[str, Any]:
    torch.manual_seed(0)
    build_ours, build_theirs = CASES[name]
    ours, theirs = build_ours(), build_theirs()
    share_weights(ours, theirs)
    check_equal(ours, theirs)
    result: dict[str, Any] = {"cost": cost(ours)}
    for kind in (forward, training_step):
        arms = {"ours": kind(ours), "theirs": kind(theirs)}
        result[kind.__name__] = interleave(arms, repetitions)
    # one process's peak differs from the next by some percent; they take turns, too
    peaks = [{arm: peak_memory(name, arm) for arm in ("ours", "theirs")} for _ in range(5)]
    result["peak MiB"] = {arm: median(peak[arm] for peak in peaks) for arm in peaks[0]}
    return result


def peak_memory(name: str, arm: str) -> float:
    command = [sys.executable, __file__, "--memory", name, arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def print_peak(name: str, arm: str) -> None:
    """In a process of its own: MiB that a training step adds to what the process had with the model built."""
    model = CASES[name][0 if arm == "ours" else 1]()
    step, before = training_step(model), resident("VmRSS")
    step()
    print(json.dumps(resident("VmHWM") - before))


def main() -> None:
    if "--memory" in sys.argv:
        print_peak(*sys.argv[2:4])
        return
    options, profile = parse(__doc__, repetitions=7), Profile.load()
    measured, rows = {}, []
    for name in CASES:
        measured[name] = result = measure(name, options.repetitions)
        memory, cost = result["peak MiB"], result["cost"]
        speeds = (
            ratio(result[kind]["theirs"], result[kind]["ours"]) for kind in ("forward", "training_step")
        )
        work = f"{cost['parameters'] / 1e6:.2f} M, {cost['multiply-adds'] / 1e9:.1f} G"
        share = f"{memory['ours'] / memory['theirs']:.2f}"
        rows.append((name, *(spread(*speed, form=".2f") for speed in speeds), share, work))
    print(f"Ours against theirs, {BATCH} x {SIZE} px, {options.repetitions} pairs; {machine_line()}\n")
    columns = ["network, library", "speed forward", "speed training", "memory", "parameters, multiply-adds"]
    print(table(columns, rows))
    if options.save:
        save("models", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
