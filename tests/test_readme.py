"""Figures in the README are those of the recorded results."""

from pathlib import Path
from statistics import median

from deeplab_edu.results import load_result, spread

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
ROWS = {"fcn32s": "FCN-32s", "fcn16s": "FCN-16s", "fcn8s": "FCN-8s"}


def test_the_ladder_is_the_recorded_one():
    measured = load_result("fcn_ladder.cpu")["measured"]
    for arm, name in ROWS.items():
        cells = [spread(measured[arm][metric]) for metric in ("miou", "thin", "trimap1", "inner")]
        assert f"| {name} | {' | '.join(cells)} |" in README


def test_camvid_is_the_recorded_one():
    camvid = load_result("camvid_tiny")
    measured, steps = camvid["measured"], camvid["recipe"]["iterations"]
    text = " ".join(README.split())
    assert f"reaches {measured['miou']:.3f} mIoU on CamVid's 233 test pictures after {steps} steps" in text
    assert f"{measured['seconds'] / 60:.0f} minutes with one torch thread" in text


def test_speeds_are_the_recorded_ones():
    text = " ".join(README.split())
    rates = [arm["median"] for arm in load_result("benchmark_scenes")["measured"].values()]
    assert f"one thread draws {min(rates):.0f} to {max(rates):.0f} scenes a second at 128 px" in text
    seconds = load_result("benchmark_training_step")["measured"]["FCN-8s tiny"]["seconds"]
    peer, ours, fast = (median(seconds[arm]) for arm in ("torchvision's loop", "ours", "ours, bfloat16"))
    assert f"takes {ours / peer:.2f} of the time of torchvision's reference loop" in text
    assert f"or {fast / peer:.2f} in bfloat16" in text
