"""Every model of the course at its full size on a GPU: forward, backward and steps in bfloat16; GPU = CPU in float32.

    python -m pytest -m gpu tests/gpu

needs torch, torchvision, matplotlib and pytest alone, so that it runs on a machine that has no Jupyter. That these
tests are right themselves, tests/test_full_size.py finds out on a CPU, with small trunks.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deeplab_edu.data.augment import normalize
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import MODELS, build_model
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.training import Settings, seconds_a_step, stack

pytestmark = pytest.mark.gpu
DEVICE = "cuda"

NETWORKS = [(model, None) for model in MODELS]
NETWORKS += [("deeplab_v2", "vgg16_bn"), ("deeplab_v3", "resnet101"), ("deeplab_v3plus", "resnet101")]
each_network = pytest.mark.parametrize("model, backbone", NETWORKS, ids=lambda value: value or "recipe")


def built(model: str, recipe: Profile) -> nn.Module:
    """Random weights; score layers, zero at first, say something, and batch norm's statistics are those of pictures.

    (With the first statistics, zero and one, maps grow from layer to layer, and rounding with them.)
    """
    torch.manual_seed(0)
    net = build_model(model, num_classes=12, **recipe.model_options)
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(normalize(stack(SceneDataset("full", size=129, length=2, seed=1), [0, 1])[0]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu() - theirs).norm() / theirs.norm())


@each_network
def test_steps_at_full_size_in_bfloat16(model, backbone):
    """Two steps of the recipe: every weight moves, but FCN's fixed bilinear kernels, and stays a number."""
    recipe = PROFILES["gpu"].of(model, backbone)
    settings = replace(Settings.from_profile(recipe, model), warmup=0)
    net = built(model, recipe).to(DEVICE)
    before = {name: value.clone() for name, value in net.named_parameters()}
    scenes = SceneDataset("full", size=recipe.image_size, length=64, device=DEVICE, cache=False)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_a_step(net, scenes, settings, warm=1, timed=1)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"{model}: {settings.batch_size / seconds:.0f} images/s after one step, {peak:.1f} GiB at the peak")
    for name, value in net.named_parameters():
        assert value.isfinite().all(), name
        assert torch.equal(value, before[name]) != value.requires_grad, name
    net.eval()
    images = normalize(stack(scenes, [0, 1])[0])
    with torch.inference_mode(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = net(images)
    assert logits.shape == (2, 12, recipe.image_size, recipe.image_size) and logits.isfinite().all()


@each_network
def test_logits_at_full_size_are_those_of_a_cpu(model, backbone, exact):
    recipe = PROFILES["gpu"].of(model, backbone)
    net = built(model, recipe).eval()
    image = normalize(stack(SceneDataset("full", size=recipe.image_size, length=1), [0])[0])
    with torch.inference_mode():
        expected = net(image)
        found = net.to(DEVICE)(image.to(DEVICE))
        channels_last = net.to(memory_format=torch.channels_last)(
            image.to(DEVICE).contiguous(memory_format=torch.channels_last)
        )
    assert expected.std() > 0
    assert difference(found, expected) < 1e-3 and difference(channels_last, expected) < 1e-3


@each_network
def test_gradients_are_those_of_a_cpu(model, backbone):
    """Of the whole full network, on smaller pictures; without dropout, and with stored statistics: rounding alone.

    In float64: in float32 rounding turns some of a deep network's units on or off, and gradients differ by 5 %.
    """
    recipe = PROFILES["gpu"].of(model, backbone)
    net = built(model, recipe).eval().double()
    images, masks = stack(SceneDataset("full", size=129, length=2), [0, 1])
    trained = sum(p.requires_grad for p in net.parameters())

    def gradients(device: str) -> list[Tensor]:
        net.to(device).zero_grad()
        logits = net(normalize(images.to(device)).double())
        nn.functional.cross_entropy(logits, masks.to(device)).backward()
        # copies: a network that moves takes its gradients along
        return [p.grad.detach().clone().cpu() for p in net.parameters() if p.grad is not None]

    expected = gradients("cpu")
    found = gradients(DEVICE)
    assert len(found) == len(expected) == trained
    whole = [torch.cat([g.flatten() for g in each]) for each in (found, expected)]
    assert whole[1].norm() > 0 and difference(*whole) < 1e-6
