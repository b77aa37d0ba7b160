"""The same code on real photographs: FCN-8s with the tiny trunk, from scratch, on CamVid's 367 training pictures.

    DEEPLAB_EDU_DATA=... python experiments/camvid.py            (about 6 minutes on one core)

Every setting was fixed beforehand: those of the scenes, with crops of 224 px scaled by 0.5 to 1.5. The 233 test
pictures are scored once, with the last weights. Writes results/camvid_tiny.json, and overlays under build/camvid/.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from deeplab_edu.data import open_dataset
from deeplab_edu.data.augment import train_transforms
from deeplab_edu.figures import add_class_legend, draw_image, draw_labels, use_style
from deeplab_edu.inference import segment
from deeplab_edu.models import build_model
from deeplab_edu.profiles import Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, evaluate, fit


def draw_examples(model: torch.nn.Module, test, folder: Path, title: str, every: int = 58) -> None:
    """Photographs beside truth and prediction, for the eye; they stay out of the repository."""
    use_style()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = range(min(10, len(test) - 1), len(test), every)
    figure, axes = plt.subplots(
        len(chosen), 3, figsize=(11, 2.8 * len(chosen)), layout="constrained", squeeze=False
    )
    masks = []
    for row, index in zip(axes, chosen, strict=True):
        image, target = test[index]
        prediction = segment(model, image).argmax(0)
        draw_image(row[0], image, test.names[index])
        draw_labels(row[1], target, test.labels, "annotated")
        draw_labels(row[2], prediction, test.labels, title)
        masks += [target, prediction]
    add_class_legend(figure, test.labels, masks, columns=6)
    figure.savefig(folder / "overlays.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    profile = Profile.load("cpu")
    train = open_dataset("camvid", "train", transforms=train_transforms(224, scale=(0.5, 1.5)))
    test = open_dataset("camvid", "test")
    changes = {"iterations": arguments.iterations, "seed": arguments.seed, "batch_size": 8, "workers": 1}
    settings = Settings.from_profile(profile, **changes)
    torch.manual_seed(arguments.seed)
    model = build_model("fcn8s", num_classes=train.labels.num_classes, **profile.model_options)
    history = fit(model, train, None, settings, name="camvid-fcn8s")
    print(history)
    scores = evaluate(model, test, batch_size=4, detailed=True)
    print({name: round(value, 3) for name, value in scores.items()})
    command = f"python experiments/camvid.py --iterations {arguments.iterations} --seed {arguments.seed}"
    measured = {**scores, "seconds": round(history.seconds, 1)}
    facts = {"seeds": [arguments.seed], "recipe": asdict(settings)}
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    save_result("camvid_tiny", command, profile, measured, **facts)
    draw_examples(model, test, Path("build/camvid"), "FCN-8s, tiny trunk")


if __name__ == "__main__":
    main()
