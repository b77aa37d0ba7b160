"""The CamVid experiments on a handful of made pictures, two steps each: their path, and what they keep."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_edu.ledger import camvid_scores

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import camvid_protocol
import camvid_recipes

DRIVES = {"train": ["0001TP_1", "0016E5_1", "0006R0_1", "Seq05VD_f1"], "test": ["0001TP_9", "Seq05VD_f9"]}


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    """Pictures of noise in CamVid's folders, and an empty folder to work in."""
    rng = np.random.default_rng(0)
    for split, names in DRIVES.items():
        for folder in (split, f"{split}annot"):
            (tmp_path / "data/camvid" / folder).mkdir(parents=True)
        for name in names:
            picture = rng.integers(0, 256, (360, 480, 3), dtype=np.uint8)
            mask = np.kron(rng.integers(0, 12, (18, 24), dtype=np.uint8), np.ones((20, 20), np.uint8))
            Image.fromarray(picture).save(tmp_path / f"data/camvid/{split}/{name}.png")
            Image.fromarray(mask).save(tmp_path / f"data/camvid/{split}annot/{name}.png")
    monkeypatch.setenv("DEEPLAB_EDU_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def protocol(camvid, monkeypatch):
    """Runs the command from random weights with one learning rate, tuned for one step; returns its result."""
    monkeypatch.setattr(camvid_protocol, "TUNING", 1)
    monkeypatch.setattr(camvid_protocol, "RATES", {"imagenet": (1e-3,), "scratch": (1e-3,)})
    monkeypatch.setattr(camvid_protocol, "SCALES", (1.0,))

    def run(*options: str) -> dict:
        words = ["--start", "scratch", "--iterations", "2", "--into", "results", "--runs", "runs", *options]
        monkeypatch.setattr(sys, "argv", ["camvid_protocol.py", *words])
        camvid_protocol.main()
        (path,) = (camvid / "results").glob("*.json")
        return json.loads(path.read_text())

    return run


def test_the_protocol_scores_once_and_joins_seeds(protocol, camvid, monkeypatch):
    first = protocol("--seed", "3")
    assert first["measured"]["scratch"].keys() == {
        "held_out", "chosen", "held_out_full_length", "test", "test, scales and flip"
    }  # fmt: skip
    assert Image.open("build/camvid_protocol/scratch/overlays.png").width > 600
    assert first["seeds"] == [3] and first["resolution"] == "half"
    assert 2e6 < first["parameters"] < 10e6
    for part in Path("build/camvid_protocol").glob("*-3-*.json"):
        part.unlink()  # seed 3 was measured on another machine, and only its result is here
    own = next(Path("build/camvid_protocol").glob("*.json"), None)
    assert own is None, "only what seed 0 writes comes from here"
    second = protocol("--seed", "0")
    each = second["by_seed"]["scratch"]
    assert second["seeds"] == [0, 3] and each["3"] == first["measured"]["scratch"]
    scores = [each[seed]["test"]["miou"] for seed in ("0", "3")]
    assert scores[0] != scores[1]
    assert second["measured"]["scratch"]["test"]["miou"] == pytest.approx(sum(scores) / 2)
    assert second["measured"]["scratch"]["chosen"] == 1e-3

    whole = next(Path("build/camvid_protocol").glob("*-0-*.json"))
    begun = whole.with_name(whole.name.replace("-0-", "-7-"))
    begun.write_text(json.dumps({"held_out": {"0.001": 0.5}, "chosen": 0.001}))  # interrupted: it waits

    def never(*arguments, **options):
        raise AssertionError("test pictures are scored once")

    monkeypatch.setattr(camvid_protocol, "per_class", never)
    assert protocol("--seed", "0")["measured"] == second["measured"]
    titles = {
        title: record["seeds"] for title, (record, _) in camvid_scores(folder=camvid / "results").items()
    }
    assert titles == {
        "v3+ MobileNetV2, half size": [0, 3],
        "v3+ MobileNetV2, half size, scales and flips": [0, 3],
    }


@pytest.mark.slow
def test_the_larger_protocol_of_a_gpu_on_a_cpu(protocol):
    """ResNet-50 on whole pictures, the path that docs/on-a-gpu.md asks for, but for the device."""
    result = protocol("--backbone", "resnet50", "--full-resolution")
    assert (result["backbone"], result["resolution"]) == ("resnet50", "full")
    assert result["command"].endswith("--seed 0 --device cpu --backbone resnet50 --full-resolution")


@pytest.mark.slow
def test_each_other_recipe_takes_two_steps(camvid, monkeypatch):
    monkeypatch.setattr(camvid_protocol, "SCALES", (1.0,))
    for name, changes in camvid_recipes.RECIPES.items():
        scores = camvid_recipes.score(None, "cpu", start="scratch", **{**changes, "iterations": 2})
        assert scores["steps"] == 2 and 0 <= scores["miou"] <= 1, name
