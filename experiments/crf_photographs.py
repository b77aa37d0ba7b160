"""The dense CRF on photographs: before and after, on the VOC 2012 validation images at hand, with published parameters.

    DEEPLAB_EDU_DATA=... python experiments/crf_photographs.py --weights FILE [--pictures FOLDER]

The network is a MobileNet-v2 with DeepLabv3's image pooling at output stride 16, trained on COCO and VOC by its
authors and read from a file of converted weights. Nothing is chosen here: every preset of `deeplab_edu.crf` is scored,
and each of them was found by others, for other networks, on other images. The band around borders is PASCAL's: pixels
close to the void that surrounds every annotated object. Writes results/crf_photographs.json; pictures stay out of the
repository.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from deeplab_edu.crf import PRESETS
from deeplab_edu.data import open_dataset
from deeplab_edu.data.augment import normalize
from deeplab_edu.data.labels import VOC
from deeplab_edu.figures import add_class_legend, draw_image, draw_labels, draw_overlay, use_style
from deeplab_edu.metrics import ConfusionMatrix, trimap
from deeplab_edu.models.backbones import pretrained_weights
from deeplab_edu.profiles import Profile
from deeplab_edu.results import save_result

SIDE = 513  # px the network was trained at; VOC's images are at most 500
WIDTHS = (1, 3, 5, 10, 20)
GREY = 128  # what its authors pad with


def conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class VocNetwork(nn.Module):
    """DeepLabv3 with MobileNet-v2, without atrous branches: images (N, 3, H, W) float -> logits (N, 21, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features[:18]
        self.features[14].conv[1][0].stride = (1, 1)
        for block in self.features[15:]:
            depthwise = block.conv[1][0]
            depthwise.dilation = depthwise.padding = (2, 2)
        self.aspp0, self.image_pooling = conv_bn(320, 256), conv_bn(320, 256)
        self.concat_projection = conv_bn(512, 256)
        self.logits = nn.Conv2d(256, 21, 1)

    def forward(self, images: Tensor) -> Tensor:
        f = self.features(images)  # (N, 320, ~H / 16, ~W / 16)
        pooled = self.image_pooling(f.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *f.shape[2:])
        joined = self.concat_projection(torch.cat([pooled, self.aspp0(f).relu()], 1)).relu()
        return F.interpolate(self.logits(joined), images.shape[2:], mode="bilinear", align_corners=True)


def load_network(weights: str | Path) -> VocNetwork:
    network = VocNetwork().eval()
    network.load_state_dict(pretrained_weights("mobilenet_v2", weights))
    return network


@torch.inference_mode()
def probabilities(network: nn.Module, image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (21, H, W), from a picture filled up with grey to SIDE x SIDE pixels, as in training."""
    height, width = image.shape[1:]
    padded = F.pad(image, (0, SIDE - width, 0, SIDE - height), value=GREY)
    return network(normalize(padded)[None]).softmax(1)[0, :, :height, :width]


class Tally:
    """Scores of one arm: a confusion matrix for all pixels, one for each width of the band, one for the inside.

    A mean IoU is over the classes that are annotated there. A class that only occurs in a prediction would count as
    a zero, and with so few images a single speck of it, there or erased, would move the mean by points.
    """

    def __init__(self) -> None:
        self.regions = {name: ConfusionMatrix(21) for name in ("all", *map(str, WIDTHS), "inner")}
        self.by_image: list[float] = []  # pixel accuracy in the band of 3 px

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.regions["all"].update(prediction, target)
        for width in WIDTHS:
            band = trimap(target, width, around="void")
            self.regions[str(width)].update(prediction, target, where=band)
            if width == 3:
                self.by_image.append((prediction == target)[band].float().mean().item())
        self.regions["inner"].update(prediction, target, where=~trimap(target, 5, around="void"))

    def scores(self) -> dict:
        everything = self.regions["all"]
        classes = {VOC.names[i]: everything.iou_per_class[i].item() for i in annotated(everything)}
        scores = {"miou": miou(everything), "pixel_accuracy": everything.pixel_accuracy}
        scores |= {"inner": miou(self.regions["inner"])}
        scores |= {f"trimap{w}": miou(self.regions[str(w)]) for w in WIDTHS}
        return {**scores, "classes": classes, "band_accuracy_by_image": self.by_image}


def annotated(matrix: ConfusionMatrix) -> list[int]:
    return matrix.matrix.sum(1).nonzero().flatten().tolist()


def miou(matrix: ConfusionMatrix) -> float:
    return matrix.mean_iou_of(annotated(matrix))


def refined(data, network: nn.Module) -> Iterator[tuple[str, Tensor, Tensor, dict[str, Tensor]]]:
    """Name, image, target, and arm -> label map of each photograph."""
    for name, (image, target) in zip(data.names, data, strict=True):
        given = probabilities(network, image.as_subclass(Tensor))
        arms = {"network": given} | {n: crf.refine(image, given) for n, crf in PRESETS.items()}
        yield name, image, target, {arm: p.argmax(0) for arm, p in arms.items()}


def draw(folder: Path, name: str, image: Tensor, target: Tensor, arms: dict[str, Tensor]) -> None:
    """Photograph, truth and predictions side by side, for the eye."""
    figure, axes = plt.subplots(1, 2 + len(arms), figsize=(4 * (2 + len(arms)), 3.6), layout="constrained")
    draw_image(axes[0], image, name)
    draw_labels(axes[1], target, VOC, "annotated")
    for ax, (arm, mask) in zip(axes[2:], arms.items(), strict=True):
        draw_overlay(ax, image, mask, VOC, arm)
    add_class_legend(figure, VOC, [target, *arms.values()])
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="deeplabv3_mnv2_voc.pth")
    parser.add_argument("--pictures", type=Path, help="draw every photograph into this folder")
    arguments = parser.parse_args()
    use_style()
    profile, network = Profile.load("cpu"), load_network(arguments.weights)
    data = open_dataset("voc2012", "val")
    tallies = {arm: Tally() for arm in ("network", *PRESETS)}
    with torch.inference_mode():
        for name, image, target, arms in refined(data, network):
            for arm, mask in arms.items():
                tallies[arm].update(mask, target)
            if arguments.pictures:
                draw(arguments.pictures, name, image, target, arms)
    measured = {arm: tally.scores() for arm, tally in tallies.items()}
    for arm, values in measured.items():
        print(arm, {k: round(v, 3) for k, v in values.items() if isinstance(v, float)})
    command = f"python experiments/crf_photographs.py --weights {arguments.weights.name}"
    facts = {"images": data.names, "presets": {name: asdict(crf) for name, crf in PRESETS.items()}}
    print("wrote", save_result("crf_photographs", command, profile, measured, **facts))


if __name__ == "__main__":
    main()
