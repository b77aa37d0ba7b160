"""What the course does on a GPU is what it does on a CPU: scenes, scores, CRF, whole photographs, training."""

import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from deeplab_edu.crf import BACKENDS, PRESETS
from deeplab_edu.data.scenes import SceneDataset, make_scenes
from deeplab_edu.inference import segment
from deeplab_edu.metrics import ConfusionMatrix, trimap
from deeplab_edu.models import build_model
from deeplab_edu.training import History, Settings, evaluate, fit

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact")]

SETTINGS = Settings(iterations=12, batch_size=4, warmup=2, ema=0.9)


def tiny(score: float = 0.0) -> nn.Module:
    """FCN-8s whose score layers, zero at first, are drawn with this deviation."""
    torch.manual_seed(0)
    model = build_model("fcn8s", num_classes=12, backbone="tiny", width=4)
    for name, parameter in model.named_parameters():
        if name.startswith("score") and score:
            nn.init.normal_(parameter, std=score)
    return model


@pytest.mark.parametrize("size", [128, 513])
def test_scenes_are_the_same_up_to_rounding(size):
    cpu, gpu = (make_scenes(range(32), "full", size=size, device=d) for d in ("cpu", "cuda"))
    assert gpu.images.is_cuda and gpu.images.dtype == torch.uint8
    assert (cpu.labels != gpu.labels.cpu()).float().mean() < 1e-3
    assert (cpu.images.float() - gpu.images.cpu().float()).abs().mean() < 0.1


def test_scores_of_scenes_that_lie_on_the_gpu():
    model = tiny(0.3)
    scenes = {d: SceneDataset("full", "test", size=64, length=20, device=d) for d in ("cpu", "cuda")}
    options = {"batch_size": 8, "detailed": True, "precision": "float32"}
    expected = evaluate(model, scenes["cpu"], **options)
    found = evaluate(model.cuda(), scenes["cuda"], **options)
    assert found == pytest.approx(expected, abs=5e-3)


def test_maps_that_are_counted_may_lie_on_different_devices():
    target = torch.randint(0, 4, (2, 9, 9), generator=torch.manual_seed(0))
    found = (target + (torch.rand(2, 9, 9) < 0.3)) % 4
    expected = ConfusionMatrix(4).update(found, target)
    for pair in ((found.cuda(), target), (found, target.cuda()), (found.cuda(), target.cuda())):
        assert torch.equal(ConfusionMatrix(4).update(*pair).matrix, expected.matrix)
    assert torch.equal(trimap(target.cuda(), 1).cpu(), trimap(target, 1))


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "pydensecrf"])
def test_crf(backend):
    generator = torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 100, 130), dtype=torch.uint8, generator=generator)
    logits = 2 * torch.randn(1, 7, 13, 17, generator=generator)
    probabilities = F.interpolate(logits, (100, 130), mode="bilinear").softmax(1)[0]
    crf = replace(PRESETS["v1"], backend=backend)
    found, expected = crf.refine(image, probabilities.cuda()), crf.refine(image, probabilities)
    assert found.is_cuda
    assert (found.cpu().argmax(0) == expected.argmax(0)).float().mean() > 0.999


def test_a_whole_photograph_comes_back_to_the_cpu():
    image = torch.randint(0, 256, (3, 100, 300), dtype=torch.uint8, generator=torch.manual_seed(0))
    how = {"tile": 128, "overlap": 32, "flip": True}
    found = segment(tiny(0.3).cuda(), image, **how)
    assert found.device.type == "cpu"
    assert torch.allclose(found, segment(tiny(0.3), image, **how), atol=1e-2)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_goes_on_after_an_interrupt(compiled, tmp_path):
    """Not bit for bit, as on a CPU: some of a GPU's sums have no order. Yet far nearer than one more step brings."""
    settings = replace(SETTINGS, compile=compiled)
    data = SceneDataset("shapes", size=64, length=16, device="cuda")

    def stop(history: History) -> None:
        if history.steps[-1] == 8:
            signal.raise_signal(signal.SIGINT)

    whole, stopped, resumed = (tiny().cuda() for _ in range(3))
    fit(whole, data, None, settings, runs=tmp_path / "whole", quiet=True)
    with pytest.raises(KeyboardInterrupt, match="the run is kept in"):
        fit(stopped, data, None, settings, runs=tmp_path / "parts", quiet=True, watch=stop)
    history = fit(resumed, data, None, settings, runs=tmp_path / "parts", quiet=True)
    assert history.steps[-1] == 12 and not history.loaded and next(resumed.parameters()).is_cuda
    kept = load_file(history.folder / "weights.safetensors")
    assert kept.keys() == tiny().state_dict().keys()
    there, back = (torch.cat([p.flatten() for p in m.parameters()]) for m in (whole, resumed))
    start = torch.cat([p.flatten() for p in tiny().cuda().parameters()])
    assert (there - back).norm() < 0.1 * (there - start).norm()
