"""`python -m deeplab_edu segment`: photographs in; label maps, overlays and the area of each class out."""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from deeplab_edu.cli_train import load_run, read_option
from deeplab_edu.data import photos
from deeplab_edu.data.labels import CAMVID, PETS, SCENES, VOC, LabelSet, voc_palette
from deeplab_edu.figures import add_class_legend
from deeplab_edu.inference import check_settings
from deeplab_edu.inference import segment as probabilities_of
from deeplab_edu.models import MODELS, build_model

LABELS = {"voc": VOC, "camvid": CAMVID, "pets": PETS, "scenes": SCENES}
SUFFIXES = (
    *photos.IMAGE_SUFFIXES,
    ".avif",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".mpo",
)  # some are refused in words
COCO = {"model": "deeplab_v3", "labels": "voc"}  # what goes with --weights coco
STRENGTH = 0.55  # of the colours in an overlay

HELP = """
Labels photographs with a trained network. For each photograph NAME it writes into --out:

  NAME.labels.png    the label map: class ids 0, 1, ... with the colours of the classes as palette
  NAME.overlay.png   these colours over the photograph
and for all together areas.csv and areas.json (share of the area of each class) and legend.png.

Any photograph that Pillow reads will do: colour, grey, palette, CMYK, 16 bits, turned by EXIF, up to 89 megapixels. Of
animations the first frame counts. What cannot be read is refused in a sentence, and the rest is done.

A network finds what it was trained on, and nothing else: one that knows the scenes of this course sees their discs and
stars in any photograph. Without one of your own, --weights coco gives torchvision's, which knows people, animals,
vehicles and furniture (the 20 classes of PASCAL VOC); the first time, its 161 MB are downloaded.
"""
EXAMPLES = """
examples:
  python -m deeplab_edu segment holiday.jpg --weights coco
  python -m deeplab_edu segment holiday.jpg --run runs/my-run
  python -m deeplab_edu segment photos/ more/x.png --run runs/my-run --scales 0.75 1 1.25 --flip
  python -m deeplab_edu segment photos/ --model deeplab_v3plus --option backbone=mobilenet_v2 \\
      --weights weights.safetensors --labels camvid

exit status: 0 every photograph was labelled; 1 some were refused; 2 none was labelled
"""


def segment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = HELP, EXAMPLES
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO_OR_FOLDER", help="files, and folders of files (not those inside)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("segmented"), help="folder for the results (%(default)s)"
    )
    network = parser.add_argument_group("the network: of a run, or with its weights in a file")
    network.add_argument("--run", type=Path, metavar="FOLDER", help="what `python -m deeplab_edu train` made")
    network.add_argument("--model", help=f"one of {', '.join(MODELS)}")
    network.add_argument(
        "--weights",
        metavar="FILE",
        help="a state dict, .safetensors or .pth; or coco: torchvision's DeepLab v3, which needs no --model, --labels",
    )
    network.add_argument(
        "--labels", help=f"its classes: {', '.join(LABELS)}, or a text file with a name a line"
    )
    network.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, e.g. backbone=resnet50",
    )
    look = parser.add_argument_group("how it looks at a photograph")
    look.add_argument("--scales", nargs="+", type=float, default=[1.0], help="average over these sizes (1)")
    look.add_argument("--flip", action="store_true", help="average with the mirrored photograph")
    look.add_argument(
        "--long-side",
        type=int,
        default=1024,
        metavar="PX",
        help="larger photographs are shown to the network at this size, since it has learned from small ones, and the "
        "answer is enlarged again; 0 shows them as they are (%(default)s)",
    )
    look.add_argument("--device", help="cpu, cuda, ... (cuda where there is one)")


def segment(arguments: argparse.Namespace) -> int:
    """Label every photograph that can be; returns 0, or 1 or 2 if some or all were refused."""
    if arguments.long_side < 0:
        raise ValueError(
            f"--long-side is a number of pixels, or 0 for as they are, not {arguments.long_side}."
        )
    check_settings(arguments.scales)
    model, labels, network = load_network(arguments)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = _to_device(model, device)
    _make_folder(arguments.out)
    report = Report(
        arguments.out, labels, {"network": network, "scales": arguments.scales, "flip": arguments.flip}
    )
    try:
        _label_all(model, list(find_photos(arguments.photos, arguments.out, report)), arguments, report)
    finally:  # what is done when it is interrupted is not lost
        report.write()
    print(f"{len(report.areas)} labelled, {len(report.refused)} refused; everything is in {arguments.out}")
    return 0 if not report.refused else 1 if report.areas else 2


def _label_all(
    model: nn.Module, files: Sequence[tuple[Path, str]], arguments: argparse.Namespace, report: "Report"
) -> None:
    quiet = not sys.stderr.isatty() or len(files) < 2
    for path, name in tqdm(files, disable=quiet, unit="photo", leave=False):
        try:
            image, labels = label_photo(model, path, arguments)
        except (ValueError, OSError) as error:
            report.refuse(path, error)
        else:
            report.add(path, name, image, labels)


def label_photo(model: nn.Module, path: Path, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The photograph, uint8 (3, H, W), and its label map, uint8 (H, W)."""
    image = photos.read_image(path).as_subclass(Tensor)
    height, width = image.shape[1:]
    shrink = min(1.0, arguments.long_side / max(height, width)) if arguments.long_side else 1.0
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    seen = image
    if shrink < 1:
        seen = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().byte()
    try:
        return image, enlarge(probabilities_of(model, seen, arguments.scales, arguments.flip), height, width)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in f"{error} {type(error).__name__}".lower():
            raise
        raise ValueError(
            f"{path} ({width} x {height} px) needs more memory than there is: lower --long-side."
        ) from error


def enlarge(probabilities: Tensor, height: int, width: int) -> Tensor:
    """Probabilities (C, h, w) -> the likeliest class (height, width), uint8; one class at a time, to save memory."""
    best = torch.full((height, width), -1.0)
    labels = torch.zeros(height, width, dtype=torch.uint8)
    for number, one in enumerate(probabilities):
        if one.shape != best.shape:
            one = F.interpolate(one[None, None], (height, width), mode="bilinear")[0, 0]
        better = one > best
        labels[better] = number
        best = torch.maximum(best, one)
    return labels


@dataclass
class Report:
    """What is written and printed: the pictures of each photograph at once, the tables at the end."""

    out: Path
    labels: LabelSet
    facts: dict[str, Any]
    areas: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # photograph -> class -> share of its area
    sizes: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # photograph -> sentence
    began: float = field(default_factory=time.perf_counter)

    def add(self, path: Path, name: str, image: Tensor, labels: Tensor) -> None:
        picture = Image.fromarray(labels.numpy())
        picture.putpalette([channel for color in self.labels.colors for channel in color])
        picture.save(self.out / f"{name}.labels.png")
        Image.fromarray(overlay(image, labels, self.labels)).save(self.out / f"{name}.overlay.png")
        counts = np.bincount(labels.numpy().ravel(), minlength=self.labels.num_classes)
        shares = {c: float(n / labels.numel()) for c, n in zip(self.labels.names, counts)}
        self.areas[str(path)], self.sizes[str(path)] = shares, [labels.shape[1], labels.shape[0]]
        largest = sorted(shares.items(), key=lambda item: -item[1])
        words = ", ".join(f"{c} {100 * share:.1f} %" for c, share in largest[:5] if share > 0)
        seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
        renamed = f" -> {name}.*" if name != path.stem else ""
        tqdm.write(f"{path}{renamed} ({labels.shape[1]} x {labels.shape[0]} px, {seconds:.1f} s): {words}")

    def refuse(self, path: Path, error: Exception) -> None:
        self.refused[str(path)] = str(error)
        tqdm.write(f"refused: {error}", file=sys.stderr)

    def write(self) -> None:
        """areas.csv, areas.json and legend.png, if there is anything to write about."""
        if not self.areas and not self.refused:
            return
        with open(self.out / "areas.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["photo", "width", "height", *self.labels.names])
            for path, shares in self.areas.items():
                table.writerow([path, *self.sizes[path], *(f"{share:.6f}" for share in shares.values())])
        told = {**self.facts, "areas": self.areas, "refused": self.refused}
        (self.out / "areas.json").write_text(
            json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        figure = Figure(figsize=(8, 1 + self.labels.num_classes / 25))
        add_class_legend(figure, self.labels, [np.arange(self.labels.num_classes)], columns=6)
        figure.savefig(self.out / "legend.png", bbox_inches="tight")


def overlay(image: Tensor, labels: Tensor, classes: LabelSet) -> np.ndarray:
    """The colours of the classes over the photograph: uint8 (H, W, 3)."""
    mixed = (1 - STRENGTH) * image.permute(1, 2, 0).numpy() + STRENGTH * classes.colorize(labels)
    return mixed.round().astype(np.uint8)


def find_photos(given: Sequence[str], out: Path, report: Report) -> Iterator[tuple[Path, str]]:
    """Each photograph with a name for its results that no other one has; what is none is refused."""
    taken: set[str] = set()
    paths = [found for one in given for found in _photos_in(Path(one).expanduser(), out, report)]
    for path in {path.resolve(): path for path in paths}.values():
        name, number = path.stem, 2
        while (
            name.lower() in taken
        ):  # two folders, or two endings, with the same name; some disks know no case
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        yield path, name


def _photos_in(path: Path, out: Path, report: Report) -> list[Path]:
    if not path.is_dir():
        return [path]
    if out.exists() and path.samefile(out):
        raise ValueError(
            f"--out {out} is a folder of photographs: choose another one, or results become photographs."
        )
    files = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not files:
        report.refuse(path, ValueError(f"{path} holds no photograph; folders inside it are not looked into."))
    return files


def load_network(arguments: argparse.Namespace) -> tuple[nn.Module, LabelSet, dict[str, Any]]:
    """The network in evaluation mode, its classes, and what to call it in the report."""
    own = {name: getattr(arguments, name) for name in ("model", "weights", "labels")}
    options = dict(map(read_option, arguments.option))
    if arguments.run:
        if any(own.values()) or options:
            raise ValueError("A --run knows its model, weights, labels and options: leave these out.")
        model, labels = load_run(arguments.run)
        return model, labels, {"run": str(arguments.run)}
    if own["weights"] == "coco":
        own = {**COCO, **{name: value for name, value in own.items() if value}}
        options = {"compat": "torchvision", **options}
    if missing := [f"--{name}" for name, value in own.items() if not value]:
        raise ValueError(
            "Which network? Give --run FOLDER, one that you have trained; --weights coco, torchvision's for people, "
            "animals, vehicles and furniture (161 MB, downloaded once); or --model, --weights and --labels "
            f"({', '.join(missing)} missing)."
        )
    labels = read_labels(own["labels"])
    model = build_model(own["model"], labels.num_classes, weights=own["weights"], **options)
    return model.eval(), labels, {**own, "options": options}


def read_labels(text: str) -> LabelSet:
    """A label set of the course by its name, or names of classes, one a line, from a file."""
    if text in LABELS:
        return LABELS[text]
    if not Path(text).is_file():
        raise ValueError(
            f"--labels {text} is neither one of {', '.join(LABELS)} nor a file with a class name a line."
        )
    names = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(set(names)) != len(names):
        raise ValueError(f"{text} names a class twice; each one needs a name of its own.")
    return LabelSet(tuple(names), voc_palette(len(names)))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be a folder ({error.strerror}): choose another one.") from error


def _to_device(model: nn.Module, device: str) -> nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
