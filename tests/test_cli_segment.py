"""`segment` from a shell: its pictures and tables against numpy and Pillow, every kind of photograph, each sentence."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from bad_input import HANDLED, PAGE, network, page, photo
from deeplab_edu import cli, cli_segment
from deeplab_edu.data.labels import CAMVID, VOC
from deeplab_edu.inference import segment
from deeplab_edu.models import build_model
from deeplab_edu.training import save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return network(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory: an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(run, *words: object) -> int:
    return cli.main(["segment", *map(str, words), "--run", str(run)])


def areas() -> dict:
    return json.loads(Path("segmented/areas.json").read_text())


def labels_of(name: str) -> np.ndarray:
    with Image.open(f"segmented/{name}.labels.png") as file:
        assert file.mode == "P"
        return np.asarray(file)


def expected(run, path: str) -> np.ndarray:
    """The likeliest class of each pixel, by `inference.segment`."""
    model, _ = cli_segment.load_run(run)
    return segment(model, path).argmax(0).numpy()


def test_label_map_is_what_the_network_says(run, capsys):
    photo().save("a.png")
    assert call(run, "a.png") == 0
    labels = labels_of("a")
    assert np.array_equal(labels, expected(run, "a.png")) and len(np.unique(labels)) > 1
    with Image.open("segmented/a.labels.png") as file:
        colors = [(0, 255, 20), (40, 215, 20), (80, 175, 20)]
        assert np.array_equal(file.convert("RGB"), np.array(colors, np.uint8)[labels])
    assert capsys.readouterr().out.endswith("1 labelled, 0 refused; everything is in segmented\n")


def test_overlay_is_a_blend_of_photograph_and_colours(run):
    photo().save("a.png")
    call(run, "a.png")
    with Image.open("segmented/a.labels.png") as labels, Image.open("segmented/a.overlay.png") as overlay:
        blend = Image.blend(photo(), labels.convert("RGB"), 0.55)
        assert np.abs(np.asarray(overlay).astype(int) - np.asarray(blend)).max() <= 1


def test_tables_and_printed_areas_are_counts_of_pixels(run, capsys):
    photo().save("a.png")
    photo(40, 30).save("b.png")
    call(run, "a.png", "b.png", "missing.png")
    told, rows = areas(), list(csv.DictReader(Path("segmented/areas.csv").read_text().splitlines()))
    assert [row["photo"] for row in rows] == list(told["areas"]) == ["a.png", "b.png"]
    printed = capsys.readouterr().out
    for name, row in zip("ab", rows):
        labels = labels_of(name)
        shares = [(labels == i).mean() for i in range(3)]
        assert list(told["areas"][f"{name}.png"].values()) == pytest.approx(shares)
        assert [float(row[f"class {i}"]) for i in range(3)] == pytest.approx(shares, abs=1e-6)
        assert (int(row["height"]), int(row["width"])) == labels.shape
        assert f"class {np.argmax(shares)} {100 * max(shares):.1f} %" in printed
    assert told["network"] == {"run": str(run)} and list(told["refused"]) == ["missing.png"]


def test_legend_names_the_classes(run):
    photo().save("a.png")
    call(run, "a.png")
    with Image.open("segmented/legend.png") as legend:
        found = {tuple(color) for color in np.asarray(legend.convert("RGB")).reshape(-1, 3)}
    assert {(0, 255, 20), (40, 215, 20), (80, 175, 20)} <= found


def test_scales_and_flip_reach_the_network(run):
    photo().save("a.png")
    call(run, "a.png", "--scales", "0.5", "1", "--flip")
    model, _ = cli_segment.load_run(run)
    averaged = segment(model, "a.png", scales=(0.5, 1.0), flip=True).argmax(0).numpy()
    assert np.array_equal(labels_of("a"), averaged) and not np.array_equal(averaged, expected(run, "a.png"))


def test_a_turned_photograph_gets_upright_results(run):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save("turned.png", exif=exif)
    photo().rotate(-90, expand=True).save("upright.png")
    call(run, "turned.png", "upright.png")
    assert labels_of("turned").shape == (80, 60)
    assert np.array_equal(labels_of("turned"), labels_of("upright"))


def test_large_photographs_are_shown_small_and_labelled_in_full(run, monkeypatch):
    seen = []

    def spy(model, image, *rest):
        seen.append(tuple(image.shape))
        return segment(model, image, *rest)

    monkeypatch.setattr(cli_segment, "probabilities_of", spy)
    photo(200, 300).save("a.png")
    call(run, "a.png", "--long-side", 90)
    call(run, "a.png", "--long-side", 0, "--out", "whole")
    call(run, "a.png", "--long-side", 400, "--out", "small")
    assert seen == [(3, 60, 90), (3, 200, 300), (3, 200, 300)]
    assert labels_of("a").shape == (200, 300)


def test_enlarging_class_by_class_is_enlarging_all_at_once():
    torch.manual_seed(0)
    probabilities = torch.rand(5, 7, 9).softmax(0)
    together = F.interpolate(probabilities[None], (31, 40), mode="bilinear")[0].argmax(0)
    assert torch.equal(cli_segment.enlarge(probabilities, 31, 40).long(), together)
    assert torch.equal(cli_segment.enlarge(probabilities, 7, 9).long(), probabilities.argmax(0))


def test_folders_files_and_names_that_meet(run, here):
    for path in ("one/x.png", "one/x.jpg", "two/X.png", "two/notes.txt", "two/.hidden.png", "two/deep/y.png"):
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        photo(20, 20).save(here / path) if path.endswith(("png", "jpg")) else (here / path).write_text("-")
    assert call(run, "one", "two", "one/x.png", "--out", "out/deeper") == 0
    made = sorted(path.name for path in (here / "out/deeper").glob("*.labels.png"))
    assert made == ["X-3.labels.png", "x-2.labels.png", "x.labels.png"]


def test_the_rest_of_a_folder_is_done_and_the_status_says_so(run, here, capsys):
    (here / "p").mkdir()
    for name in ("a", "b", "c"):
        photo().save(here / "p" / f"{name}.png")
    (here / "p/b.png").write_bytes(b"not a picture")
    assert call(run, "p") == 1
    assert list(areas()["areas"]) == ["p/a.png", "p/c.png"]
    shown = capsys.readouterr()
    sentence = "p/b.png is no image in a format that Pillow reads: save it as JPEG or PNG, or get it again."
    assert shown.err == f"refused: {sentence}\n" and areas()["refused"] == {"p/b.png": sentence}
    assert "2 labelled, 1 refused" in shown.out
    assert call(run, "p/b.png", "--out", "other") == 2


def test_interrupted_work_is_kept(run, monkeypatch):
    photo().save("a.png")
    photo().save("b.png")
    label = cli_segment.label_photo

    def stop(model, path, arguments):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return label(model, path, arguments)

    monkeypatch.setattr(cli_segment, "label_photo", stop)
    assert call(run, "a.png", "b.png") == 130
    assert list(areas()["areas"]) == ["a.png"]


def test_weights_in_a_file(run):
    photo().save("a.png")
    (run.parent / "names.txt").write_text("sky\n\nground\nsea\n")
    options = ["--option", "backbone=tiny", "--option", "width=4"]
    words = [
        "a.png",
        "--model",
        "fcn8s",
        "--weights",
        run / "weights.safetensors",
        "--labels",
        run.parent / "names.txt",
    ]
    assert cli.main(["segment", *map(str, words), *options]) == 0
    assert np.array_equal(labels_of("a"), expected(run, "a.png"))
    assert list(areas()["areas"]["a.png"]) == ["sky", "ground", "sea"]
    assert areas()["network"]["options"] == {"backbone": "tiny", "width": 4}


def test_labels_by_name():
    assert cli_segment.read_labels("voc") is VOC and cli_segment.read_labels("camvid") is CAMVID


def test_examples_of_the_help_can_be_typed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["segment", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "exit status" in shown
    examples = re.findall(r"python -m deeplab_edu (segment \w.*)", shown.replace("\\\n", " "))
    assert len(examples) == 4
    for example in examples:
        arguments = cli.build_parser("segment").parse_args(shlex.split(example))
        own = arguments.model and arguments.weights and arguments.labels
        assert arguments.run or arguments.weights == "coco" or own


def test_the_page_of_bad_input_tells_what_happens():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/bad_input.py"


def test_every_kind_of_picture_that_is_handled_is_of_that_kind(here):
    modes = {}
    for _, name, make, _ in HANDLED:
        make(here / name)
        with Image.open(here / name) as file:
            modes[name] = (file.mode, getattr(file, "n_frames", 1), file.format)
    assert {n: m for n, (m, *_) in modes.items()} == {
        "turned.jpg": "RGB",
        "grey.png": "L",
        "bits.png": "1",
        "deep.png": "I;16",
        "alpha.png": "RGBA",
        "palette.gif": "P",
        "clear.png": "P",
        "print.jpg": "CMYK",
        "moving.gif": "P",
        "pages.tif": "RGB",
        "views.mpo": "RGB",
        "png.jpg": "RGB",
        "pixel.png": "RGB",
        "large.jpg": "RGB",
    }
    assert [n for n, (_, frames, _) in modes.items() if frames > 1] == [
        "moving.gif",
        "pages.tif",
        "views.mpo",
    ]
    assert modes["png.jpg"][2] == "PNG"


# ---- sentences


def refused(sentence: str, capsys, *words: object) -> None:
    """The command line is refused as a whole, in exactly this sentence."""
    assert cli.main(["segment", *map(str, words)]) == 2
    assert capsys.readouterr().err == f"python -m deeplab_edu segment: {sentence}\n"


def test_sentence_which_network(run, capsys):
    which = "Which network? Give --run FOLDER, one that you have trained; --weights coco, torchvision's for people, "
    which += "animals, vehicles and furniture (161 MB, downloaded once); or --model, --weights and --labels"
    refused(f"{which} (--model, --weights, --labels missing).", capsys, "a.png")
    refused(f"{which} (--weights missing).", capsys, "a.png", "--model", "fcn8s", "--labels", "voc")
    both = "A --run knows its model, weights, labels and options: leave these out."
    refused(both, capsys, "a.png", "--run", run, "--labels", "voc")
    refused(both, capsys, "a.png", "--run", run, "--option", "width=4")


def test_weights_coco_is_all_that_a_beginner_has_to_say(monkeypatch, capsys):
    """The smallest network that fits stands in for torchvision's; no byte is fetched."""
    asked = []

    def build(*name, **options):
        asked.append((name, options))
        return build_model("fcn8s", 21, backbone="tiny", width=4)

    monkeypatch.setattr(cli_segment, "build_model", build)
    photo().save("a.png")
    assert cli.main(["segment", "a.png", "--weights", "coco"]) == 0
    assert asked == [(("deeplab_v3", 21), {"weights": "coco", "compat": "torchvision"})]
    assert list(areas()["areas"]["a.png"]) == list(VOC.names)
    words = ["segment", "a.png", "--weights", "coco", "--option", "backbone=resnet101"]
    assert cli.main(words) == 0
    assert asked[1][1] == {"weights": "coco", "compat": "torchvision", "backbone": "resnet101"}


def test_sentence_no_run(run, here, capsys):
    refused(
        "nowhere holds no run of `python -m deeplab_edu train` (no model.json).",
        capsys,
        "a",
        "--run",
        "nowhere",
    )
    (here / "begun").mkdir()
    (here / "begun/model.json").write_text((run / "model.json").read_text())
    sentence = "The run in begun is not finished; train it to the end with the same command."
    refused(sentence, capsys, "a", "--run", "begun")


def test_sentence_labels(here, capsys):
    given = ("a.png", "--model", "fcn8s", "--weights", "w", "--labels")
    known = "voc, camvid, pets, scenes"
    refused(
        f"--labels kitti is neither one of {known} nor a file with a class name a line.",
        capsys,
        *given,
        "kitti",
    )
    (here / "names").write_text("sky\nsea\nsky\n")
    refused("names names a class twice; each one needs a name of its own.", capsys, *given, "names")


def test_sentence_option(capsys):
    given = ("a.png", "--model", "fcn8s", "--weights", "w", "--labels", "voc", "--option")
    refused("--option tiny should be NAME=VALUE, e.g. backbone=resnet50.", capsys, *given, "tiny")


def test_sentences_of_the_model_come_through(run, capsys):
    weights = (
        "a.png",
        "--weights",
        run / "weights.safetensors",
        "--labels",
        "voc",
        "--option",
        "backbone=tiny",
    )
    assert cli.main(["segment", *map(str, weights), "--model", "fcn8s", "--option", "width=4"]) == 2
    assert "are for 3 classes and the model has 21" in capsys.readouterr().err
    assert cli.main(["segment", *map(str, weights), "--model", "unet"]) == 2
    assert "no model is called 'unet'; choose from fcn32s" in capsys.readouterr().err


def test_sentence_scales_and_sizes(run, capsys):
    numbers = "scales is a sequence of positive numbers, e.g. (0.5, 1.0), not [1.0, 0.0]"
    refused(numbers, capsys, "a.png", "--run", run, "--scales", 1, 0)
    sentence = "--long-side is a number of pixels, or 0 for as they are, not -1."
    refused(sentence, capsys, "a.png", "--run", run, "--long-side", -1)


def test_sentence_device(run, capsys):
    assert call(run, "a.png", "--device", "warp") == 2
    assert re.search(r"segment: --device warp cannot be used here: .*warp", capsys.readouterr().err)


def test_sentence_out(run, here, capsys):
    (here / "p").mkdir()
    photo().save(here / "p/a.png")
    sentence = "--out p is a folder of photographs: choose another one, or results become photographs."
    refused(sentence, capsys, "p", "--run", run, "--out", "p")
    (here / "file").touch()
    assert call(run, "p", "--out", "file") == 2
    assert re.search(r"--out file cannot be a folder \(.+\): choose another one\.", capsys.readouterr().err)


def test_sentence_more_memory_than_there_is(run, monkeypatch):
    photo().save("a.png")

    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(cli_segment, "probabilities_of", full)
    assert call(run, "a.png") == 2
    sentence = "a.png (80 x 60 px) needs more memory than there is: lower --long-side."
    assert areas()["refused"] == {"a.png": sentence}
    monkeypatch.setattr(cli_segment, "probabilities_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(run, "a.png")


def test_weights_that_are_damaged_by_training_are_told(here, capsys):
    run = network(here / "run", classes=2)
    model = build_model("fcn8s", 2, backbone="tiny", width=4)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_weights(run / "weights.safetensors", model)
    photo().save("a.png")
    assert call(run, "a.png") == 2
    assert "NaN or infinite scores" in capsys.readouterr().err
