"""Training: the schedule by hand, resuming bit for bit with a real killed process, and one sentence for each mishap."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import tv_tensors

from deeplab_edu.data.augment import normalize
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.inference import segment
from deeplab_edu.metrics import ConfusionMatrix, trimap
from deeplab_edu.models import build_model
from deeplab_edu.training import (
    History,
    Settings,
    _Steps,
    differing_fields,
    evaluate,
    fit,
    load_weights,
    run_key,
    save_weights,
    stack,
    train_step,
)

QUICK = Settings(iterations=12, batch_size=4, warmup=2, precision="float32")


def tiny(seed=0, name="fcn8s"):
    torch.manual_seed(seed)
    return build_model(name, num_classes=12, backbone="tiny", width=4)


def scenes(split="train", length=16):
    return SceneDataset("shapes", split, size=32, length=length)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_poly_schedule_by_hand():
    settings = Settings(iterations=100, learning_rate=1.0, power=0.9, warmup=10)
    assert settings.rate(0) == pytest.approx(0.1)  # a tenth of the warm-up
    assert settings.rate(9) == pytest.approx(0.91**0.9)
    assert settings.rate(50) == pytest.approx(0.5**0.9)
    assert settings.rate(99) == pytest.approx(0.01**0.9)


def test_step_schedule_by_hand():
    settings = Settings(iterations=6000, learning_rate=1e-3, schedule="step", warmup=0)  # DeepLab v1's own
    rates = [settings.rate(step) for step in (0, 1999, 2000, 3999, 4000, 5999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert settings.rate(0) == replace(settings, schedule="poly").rate(0)


def test_training_lowers_the_loss_and_returns_its_history(tmp_path):
    seen = []
    model, settings = tiny(), replace(QUICK, iterations=40)
    history = fit(
        model,
        scenes(),
        scenes("val", 8),
        settings,
        runs=tmp_path,
        quiet=True,
        watch=lambda h: seen.append(len(h.steps)),
    )
    assert history.steps == list(range(1, 41)) == seen  # short runs report every step
    assert len(history.val_miou) == 10  # and validate once an epoch of four
    assert history.loss[-1] < 0.75 * history.loss[0]
    assert history.images == 160 and history.seconds > 0 and not model.training
    assert history.val_miou[-1] == evaluate(model, scenes("val", 8), batch_size=4)["miou"]
    assert "40 steps" in str(history) and (history.folder / "settings.json").exists()


def test_a_finished_run_is_loaded(tmp_path):
    first, second = tiny(), tiny()
    history = fit(first, scenes(), None, QUICK, runs=tmp_path, quiet=True)
    again = fit(second, scenes(), None, QUICK, runs=tmp_path, quiet=True)
    assert again.loaded and not history.loaded
    assert again.loss == history.loss and again.folder == history.folder
    assert same_weights(first, second)


class Doubled(nn.Module):
    """Two versions of this class differ in the code of `forward` alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 1)

    def forward(self, images):
        return self.conv(images)


def test_the_key_changes_with_everything_that_decides_the_outcome():
    key = run_key(tiny(), scenes(), None, QUICK)
    assert key == run_key(tiny(), scenes(), None, replace(QUICK, workers=2))
    others = [
        run_key(tiny(seed=1), scenes(), None, QUICK),
        run_key(tiny(name="fcn16s"), scenes(), None, QUICK),
        run_key(tiny(), scenes(length=17), None, QUICK),
        run_key(tiny(), SceneDataset("shapes", size=32, length=16, seed=1), None, QUICK),
        run_key(tiny(), scenes(), scenes("val"), QUICK),
        run_key(tiny(), scenes(), None, replace(QUICK, learning_rate=1e-3)),
        run_key(tiny(), scenes(), None, replace(QUICK, precision="bfloat16")),
    ]
    assert len({key, *others}) == 1 + len(others)


FACTOR, NAMES = 5, {"a": 1}


def helper(x):
    return 2 * x


def test_the_key_changes_with_the_code_of_a_readers_own_model(monkeypatch):
    torch.manual_seed(0)
    model = Doubled()
    keys = [run_key(model, scenes(), None, QUICK)]
    for forward in (
        lambda self, images: self.conv(images).relu(),
        lambda self, images: 2 * self.conv(images),
        lambda self, images: 3 * self.conv(images),  # only a constant differs
        lambda self, images: sum(2 * self.conv(images) for _ in range(1)),
        lambda self, images: sum(3 * self.conv(images) for _ in range(1)),  # within an inner function
        lambda self, images: helper(self.conv(images)),
        lambda self, images: FACTOR * NAMES["a"] * self.conv(images),
    ):
        monkeypatch.setattr(Doubled, "forward", forward)
        keys.append(run_key(model, scenes(), None, QUICK))
    monkeypatch.setitem(globals(), "FACTOR", 6)
    keys.append(run_key(model, scenes(), None, QUICK))
    monkeypatch.setattr(Doubled, "forward", lambda self, images: helper(self.conv(images)))
    monkeypatch.setitem(globals(), "helper", lambda x: 4 * x)
    keys.append(run_key(model, scenes(), None, QUICK))
    assert len(set(keys)) == len(keys)
    assert run_key(model, scenes(), None, QUICK) == keys[-1]


def test_the_key_changes_when_layers_are_frozen():
    model = tiny()
    before = run_key(model, scenes(), None, QUICK)
    model.score_pool4.requires_grad_(False)
    assert run_key(model, scenes(), None, QUICK) != before


def interrupted(tmp_path, after: int):
    """Interrupt a run as Jupyter's stop button does, with a signal, after some epochs."""

    def stop(history: History):
        if history.steps[-1] == 4 * after:  # an epoch is four steps
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="the run is kept in"):
        fit(tiny(), scenes(), None, QUICK, runs=tmp_path, quiet=True, watch=stop)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_run_goes_on_to_identical_weights(tmp_path, optimizer, monkeypatch):
    monkeypatch.setitem(globals(), "QUICK", replace(QUICK, optimizer=optimizer))
    whole, resumed = tiny(), tiny()
    fit(whole, scenes(), None, QUICK, runs=tmp_path / "whole", quiet=True)
    interrupted(tmp_path / "parts", after=1)
    history = fit(resumed, scenes(), None, QUICK, runs=tmp_path / "parts", quiet=True)
    assert same_weights(whole, resumed)
    assert history.images == 48 and history.steps[-1] == 12 and not history.loaded


AVERAGING = replace(QUICK, ema=0.9)


def averaged_by_hand(runs, decay=0.9, steps=12) -> dict[str, torch.Tensor]:
    """The average of the weights after each step, from runs that were stopped there: no AveragedModel takes part."""
    after: list[dict] = []
    model = tiny()

    def see(_: History) -> None:  # a short run reports every step
        after.append({k: v.clone() for k, v in model.state_dict().items()})

    fit(model, scenes(), None, replace(QUICK, iterations=steps), runs=runs, quiet=True, watch=see)
    average = {k: v.double() for k, v in after[0].items()}
    for n, weights in enumerate(after[1:], 1):
        share = 1 - min(decay, (1 + n) / (10 + n))
        average = {k: v + share * (weights[k] - v) for k, v in average.items()}
    return average


def test_the_average_of_weights_by_hand(tmp_path):
    expected = averaged_by_hand(tmp_path / "plain")
    model = tiny()
    history = fit(model, scenes(), scenes("val", 8), AVERAGING, runs=tmp_path, quiet=True)
    found = model.state_dict()
    assert found.keys() == tiny().state_dict().keys()
    assert any(key.endswith("running_var") for key in found)  # batch norm's statistics are averaged, too
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
    assert (
        history.val_miou[-1] == evaluate(model, scenes("val", 8), batch_size=4)["miou"]
    )  # what is scored is kept
    last = tiny()
    fit(last, scenes(), None, QUICK, runs=tmp_path, quiet=True)
    assert not same_weights(model, last)


def test_an_average_goes_on_after_an_interrupt_and_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "QUICK", AVERAGING)
    whole, resumed, loaded = tiny(), tiny(), tiny()
    fit(whole, scenes(), None, AVERAGING, runs=tmp_path / "whole", quiet=True)
    interrupted(tmp_path / "parts", after=2)
    fit(resumed, scenes(), None, AVERAGING, runs=tmp_path / "parts", quiet=True)
    assert same_weights(whole, resumed)
    assert fit(loaded, scenes(), None, AVERAGING, runs=tmp_path / "parts", quiet=True).loaded
    assert same_weights(whole, loaded)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none(decay):
    with pytest.raises(
        ValueError, match=r"Settings.ema is .*; a decay lies from 0 \(no average\) to below 1\."
    ):
        Settings(ema=decay)


@pytest.fixture
def compiled(monkeypatch) -> list[nn.Module]:
    """What was given to torch.compile, which here traces graphs but leaves them to Python: no compiler is needed."""
    given: list[nn.Module] = []
    real = torch.compile

    def traced(model):
        given.append(model)
        return real(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    return given


def test_compiling_changes_neither_weights_nor_their_names(tmp_path, compiled):
    settings = replace(AVERAGING, compile=True)
    model, plain = tiny(), tiny()
    history = fit(model, scenes(), None, settings, runs=tmp_path, quiet=True)
    assert compiled == [model]
    kept = load_file(history.folder / "weights.safetensors")
    assert kept.keys() == tiny().state_dict().keys()
    fit(plain, scenes(), None, AVERAGING, runs=tmp_path, quiet=True)
    for (name, value), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-5, msg=name)


def test_a_compiled_run_goes_on_after_an_interrupt(tmp_path, compiled, monkeypatch):
    settings = replace(AVERAGING, compile=True)
    monkeypatch.setitem(globals(), "QUICK", settings)
    whole, resumed = tiny(), tiny()
    fit(whole, scenes(), None, settings, runs=tmp_path / "whole", quiet=True)
    interrupted(tmp_path / "parts", after=1)
    checkpoint = load_file(next((tmp_path / "parts").glob("*/checkpoint.safetensors")))
    assert not [name for name in checkpoint if "_orig_mod" in name]
    fit(resumed, scenes(), None, settings, runs=tmp_path / "parts", quiet=True)
    assert same_weights(whole, resumed)


def test_runs_from_before_averages_keep_their_names(tmp_path):
    """`runs/` of a reader is found again: settings that came later count only where they are used."""
    model, data = tiny(), scenes()
    keys = [run_key(model, data, None, replace(QUICK, **c)) for c in ({}, {"ema": 0.9}, {"compile": True})]
    assert len(set(keys)) == 3
    fit(model, data, None, QUICK, runs=tmp_path, quiet=True)
    (told,) = tmp_path.glob("*/settings.json")
    assert not {"ema", "compile"} & json.loads(told.read_text())["decides"].keys()


def test_an_interrupt_in_the_middle_of_an_epoch_keeps_whole_steps(tmp_path, monkeypatch):
    whole, resumed = tiny(), tiny()
    fit(whole, scenes(), None, QUICK, runs=tmp_path / "whole", quiet=True)
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return train_step(*arguments)

    monkeypatch.setattr("deeplab_edu.training.train_step", stopping)
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 6;"):
        fit(tiny(), scenes(), None, QUICK, runs=tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    fit(resumed, scenes(), None, QUICK, runs=tmp_path / "parts", quiet=True)
    assert same_weights(whole, resumed)


SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    from deeplab_edu.data.scenes import SceneDataset
    from deeplab_edu.models import build_model
    from deeplab_edu.training import Settings, fit
    torch.manual_seed(0)
    model = build_model("fcn8s", num_classes=12, backbone="tiny", width=4)
    settings = Settings(iterations=200, batch_size=4, warmup=2, precision="float32")
    fit(model, SceneDataset("shapes", size=32, length=16), None, settings, runs=sys.argv[1], quiet=True)
"""


def test_kill_minus_nine_and_the_same_command_again_end_in_identical_weights(tmp_path):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / folder)])

    whole = start("whole")
    for rest in (3, 11):  # killed twice, at different moments
        process = start("killed")
        until(lambda n=rest: checkpoint_step(tmp_path / "killed") >= n, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0 and whole.wait() == 0
    weights = [load_file(next((tmp_path / f).glob("*/weights.safetensors"))) for f in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not list((tmp_path / "killed").glob("*/checkpoint*.safetensors"))


def checkpoint_step(folder) -> int:
    from deeplab_edu.checkpoints import read_tensors

    try:
        return read_tensors(next(folder.glob("*/checkpoint.safetensors")))[1]["step"]
    except (StopIteration, FileNotFoundError, ValueError):  # being replaced at this moment
        return 0


def until(condition, process, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < limit, (
            "the child ended, or never wrote a checkpoint"
        )
        time.sleep(0.005)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, monkeypatch):
    whole, resumed = tiny(), tiny()
    fit(whole, scenes(), None, QUICK, runs=tmp_path / "whole", quiet=True)
    interrupted(tmp_path / "parts", after=2)
    newest = next((tmp_path / "parts").glob("*/checkpoint.safetensors"))
    newest.write_bytes(newest.read_bytes()[:1000])
    steps = count_steps(monkeypatch)
    fit(resumed, scenes(), None, QUICK, runs=tmp_path / "parts", quiet=True)
    assert "Looking for the checkpoint before it." in (said := capsys.readouterr().out)
    assert "Going on after step 8, from checkpoint-before.safetensors." in said
    assert "begins at the first step" not in said
    assert same_weights(whole, resumed) and len(steps) == 4  # the one before was that of step 8


def count_steps(monkeypatch) -> list:
    """A list that grows by one with each training step from here on."""
    steps: list = []
    monkeypatch.setattr("deeplab_edu.training.train_step", lambda *a: steps.append(1) or train_step(*a))
    return steps


def test_with_no_readable_checkpoint_left_the_run_begins_anew_and_says_so(tmp_path, capsys):
    interrupted(tmp_path, after=2)
    for path in tmp_path.glob("*/checkpoint*.safetensors"):
        path.write_bytes(b"nothing")
    history = fit(tiny(), scenes(), None, QUICK, runs=tmp_path, quiet=True)
    assert "No readable checkpoint is left" in capsys.readouterr().out
    assert history.images == 48


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    interrupted(tmp_path, after=1)
    monkeypatch.setattr("deeplab_edu.checkpoints.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fit(tiny(), scenes(), None, QUICK, runs=tmp_path, quiet=True)
    monkeypatch.undo()
    whole, resumed = tiny(), tiny()
    fit(whole, scenes(), None, QUICK, runs=tmp_path / "whole", quiet=True)
    steps = count_steps(monkeypatch)
    fit(resumed, scenes(), None, QUICK, runs=tmp_path, quiet=True)
    assert same_weights(whole, resumed) and 0 < len(steps) < 12
    assert not list(tmp_path.rglob(".*"))  # no half-written file stays behind


def test_worker_processes_change_nothing(tmp_path):
    alone, helped = tiny(), tiny()
    data = scenes()
    data.transforms = Flip()
    fit(alone, data, None, QUICK, runs=tmp_path / "0", quiet=True)
    fit(helped, data, None, replace(QUICK, workers=2), runs=tmp_path / "2", quiet=True)
    assert same_weights(alone, helped)


class Flip:
    def __call__(self, image, mask):
        return (image.flip(-1), mask.flip(-1)) if torch.rand(()) < 0.5 else (image, mask)

    def __repr__(self):
        return "Flip()"


def test_each_epoch_sees_each_picture_once_in_another_order():
    steps = _Steps(scenes(), QUICK)
    first, second = ([i for k in range(4) for i in steps.indices(e * 4 + k)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(16)) and first != second


def test_random_state_of_the_caller_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = tiny()
    torch.manual_seed(5)
    fit(model, scenes(), None, QUICK, runs=tmp_path, quiet=True)
    assert torch.equal(torch.rand(3), expected)


def test_a_step_is_one_step_of_sgd_by_hand():
    """A 1x1 convolution on one void and one counted pixel: gradient of the cross-entropy written out."""
    model = nn.Conv2d(3, 2, 1, bias=False)
    nn.init.zeros_(model.weight)
    images = torch.tensor([[10, 200], [30, 100], [250, 7]], dtype=torch.uint8).view(1, 3, 1, 2)
    masks = torch.tensor([[[1, 255]]])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixel = (images[0, :, 0, 0] / 255 - mean) / std
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = train_step(model, optimizer, images, masks, Settings(precision="float32"))
    assert float(loss) == pytest.approx(0.693147, abs=1e-5)
    expected = 0.1 * torch.stack([-0.5 * pixel, 0.5 * pixel])  # softmax 1/2 each, target class 1
    torch.testing.assert_close(model.weight.detach().view(2, 3), expected)


def test_the_losses_of_several_answers_are_summed():
    class Answers(nn.Module):
        def __init__(self, factors):
            super().__init__()
            self.conv, self.factors = nn.Conv2d(3, 12, 1), factors

        def forward(self, images):
            logits = [k * self.conv(images) for k in self.factors]
            return tuple(logits) if len(logits) > 1 else logits[0]

    images, masks = stack(scenes(), range(4))
    losses = []
    for factors in ((1.0,), (0.5,), (1.0, 0.5)):
        torch.manual_seed(0)
        model = Answers(factors)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append(float(train_step(model, optimizer, images, masks, Settings(precision="float32"))))
    assert losses[2] == pytest.approx(losses[0] + losses[1], abs=1e-6) and losses[0] != losses[1]


def test_weights_come_back_with_their_facts(tmp_path):
    first, second = tiny(0), tiny(1)
    save_weights(tmp_path / "w.safetensors", first, seed=3)
    assert load_weights(tmp_path / "w.safetensors", second) == {"seed": 3}
    assert same_weights(first, second)


def test_evaluation_is_one_confusion_matrix_over_all_pictures(tmp_path):
    model, data = tiny(), scenes("val", 10)
    fit(
        model, scenes(), None, replace(QUICK, iterations=60), runs=tmp_path, quiet=True
    )  # else all scores are zero
    matrix, regions = ConfusionMatrix(12), {r: ConfusionMatrix(12) for r in ("trimap1", "trimap3", "inner")}
    with torch.inference_mode():
        for image, mask in (data[i] for i in range(10)):
            prediction = model.eval()(normalize(image)[None]).argmax(1)[0]
            matrix.update(prediction, mask)
            for region, where in zip(
                regions, (trimap(mask, 1), trimap(mask, 3), ~trimap(mask, 5)), strict=True
            ):
                regions[region].update(prediction, mask, where=where)
    for batch_size in (3, 10):
        scores = evaluate(model, data, batch_size=batch_size, detailed=True, precision="float32")
        assert scores["miou"] == pytest.approx(float(matrix.miou))
        for region, counted in regions.items():
            occurring = counted.matrix.sum(1) > 0
            assert 0 < scores[region] == pytest.approx(float(counted.iou_per_class[occurring].mean()))
        assert len({scores[name] for name in ("miou", *regions)}) == 4
        assert {"shapes", "small", "mid", "big"} <= scores.keys() and "thin" not in scores  # none is there


def test_pictures_of_several_sizes_and_very_large_ones_are_scored_whole(monkeypatch):
    model, data = nn.Conv2d(3, 12, 1), Sizes(size=32, length=6)
    matrix = ConfusionMatrix(12)
    with torch.inference_mode():
        for image, mask in data.__getitems__(range(6)):
            matrix.update(model(normalize(image)[None]).argmax(1)[0], mask)
    expected = {f"iou of {n}": float(v) for n, v in zip(data.labels.names, matrix.iou_per_class) if v == v}
    for batch_size in (1, 4):
        scores = evaluate(model, data, batch_size=batch_size, per_class=True, precision="float32")
        assert scores == pytest.approx(
            {"miou": matrix.miou, "pixel_accuracy": matrix.pixel_accuracy} | expected
        )
    tiled = []
    monkeypatch.setattr("deeplab_edu.evaluation.LARGE", 9)  # px; the pictures are 8 to 13 px high
    monkeypatch.setattr("deeplab_edu.evaluation.segment", lambda *a: tiled.append(a) or segment(*a))
    again = evaluate(model, data, batch_size=4, per_class=True, precision="float32")
    assert again == pytest.approx(scores) and len(tiled) == 4


def test_scales_and_flips_are_those_of_segment():
    model, data = nn.Conv2d(3, 12, 3, padding=1), scenes("val", 4)
    matrix = ConfusionMatrix(12)
    for image, mask in (data[i] for i in range(4)):
        matrix.update(segment(model, image, (0.5, 1.0), flip=True).argmax(0), mask)
    scores = evaluate(model, data, scales=[0.5, 1.0], flip=True)
    assert scores["miou"] == pytest.approx(matrix.miou)
    assert scores["miou"] != evaluate(model, data, precision="float32")["miou"]


class Oracle(nn.Module):
    """Answers with the label it was given, wherever it is within a margin of the left edge; ground elsewhere."""

    def __init__(self, data, columns):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        masks = torch.stack([data[i][1].as_subclass(torch.Tensor) for i in range(len(data))]).long()
        masks[..., columns:] = 0
        self.logits = nn.functional.one_hot(masks, 12).permute(0, 3, 1, 2).float()

    def forward(self, images):
        return self.logits * self.scale


def test_a_perfect_answer_scores_one_everywhere_and_half_an_answer_does_not():
    data = SceneDataset("full", "val", size=64, length=8)
    perfect = evaluate(Oracle(data, 64), data, batch_size=8, detailed=True)
    assert set(perfect.values()) == {1.0}
    half = evaluate(Oracle(data, 32), data, batch_size=8, detailed=True)
    assert all(half[k] < 0.95 for k in ("miou", "trimap1", "thin", "mid", "shapes"))


def test_differing_fields():
    assert differing_fields(QUICK, replace(QUICK, seed=1)) == {"seed"}
    assert differing_fields({"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "c": 2}) == {"b", "c"}
    assert differing_fields(QUICK, QUICK) == set()


class Sizes(SceneDataset):
    def __getitems__(self, indices):
        items = super().__getitems__(indices)
        return [
            (
                tv_tensors.Image(image[:, : 8 + i, :8]),
                tv_tensors.Mask(mask[: 8 + i, :8]),
            )
            for i, (image, mask) in zip(indices, items, strict=True)
        ]


class Void(SceneDataset):
    def __getitems__(self, indices):
        return [
            (image, tv_tensors.Mask(torch.full_like(mask, 255)))
            for image, mask in super().__getitems__(indices)
        ]


class Empty(SceneDataset):
    def __len__(self):
        return 0


def test_mishaps_end_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"differ in size .*; crop them with train_transforms\(size\)"):
        fit(tiny(), Sizes(length=8), None, QUICK, runs=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="The training data set is empty"):
        fit(tiny(), Empty(length=8), None, QUICK, runs=tmp_path, quiet=True)
    with pytest.raises(
        FloatingPointError, match=r"The loss became nan at step 1; lower learning_rate .* void everywhere"
    ):
        fit(tiny(), Void("shapes", size=32, length=16), None, QUICK, runs=tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"Settings.iterations is 0; it must be greater than zero."):
        Settings(iterations=0)
    with pytest.raises(ValueError, match=r"Unknown optimizer 'adam'; choose adamw or sgd."):
        Settings(optimizer="adam")
    with pytest.raises(ValueError, match=r"Unknown schedule 'cosine'; choose poly or step."):
        Settings(schedule="cosine")
    with pytest.raises(ValueError, match=r"Unknown precision 'fp16'; choose one of auto, float32, bfloat16."):
        Settings(precision="fp16")
    with pytest.raises(ValueError, match=r"Unknown draws 'batch'; choose step or picture."):
        Settings(draws="batch")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_weights(tmp_path / "none.safetensors", tiny())
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match=r"not a readable safetensors file .*; delete it to train again"):
        load_weights(tmp_path / "text.safetensors", tiny())


def test_a_diverging_run_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    interrupted(tmp_path, after=1)
    before = next(tmp_path.glob("*/checkpoint.safetensors")).read_bytes()
    monkeypatch.setattr("deeplab_edu.training.train_step", lambda *a: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="at step 6;"):
        fit(tiny(), scenes(), None, QUICK, runs=tmp_path, quiet=True)
    assert next(tmp_path.glob("*/checkpoint.safetensors")).read_bytes() == before


def test_runs_go_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLAB_EDU_RUNS", str(tmp_path / "elsewhere"))
    history = fit(tiny(), scenes(), None, QUICK, name="mine", quiet=True)
    assert history.folder.parent == tmp_path / "elsewhere" and history.folder.name.startswith("mine-")
    assert os.listdir(history.folder)


KERNEL_CELL = """
import torch
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.training import Settings, fit
torch.manual_seed(0)
model = build_model("fcn8s", num_classes=12, backbone="tiny", width=4)
settings = Settings(iterations=100_000, batch_size=4, precision="float32")
fit(model, SceneDataset("shapes", size=32, length=16), None, settings, runs=RUNS, quiet=True)
"""


def test_the_stop_button_of_a_notebook_keeps_the_run(tmp_path):
    """A real kernel, interrupted while it trains, answers with the sentence and leaves a readable checkpoint."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        asked = client.execute(f"RUNS = {str(tmp_path)!r}\n{KERNEL_CELL}")
        limit = time.monotonic() + 60
        while checkpoint_step(tmp_path) < 8:
            assert time.monotonic() < limit, "the kernel never wrote a checkpoint"
            time.sleep(0.05)
        manager.interrupt_kernel()
        while (message := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != asked:
            pass
        reply = message["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["ename"] == "KeyboardInterrupt" and "the run is kept in" in reply["evalue"]
    stopped = int(reply["evalue"].split("Stopped after step ")[1].split(";")[0])
    assert checkpoint_step(tmp_path) == stopped
