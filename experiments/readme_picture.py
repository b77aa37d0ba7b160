"""The picture at the top of the README: test scenes, their labels, and what the three FCNs make of them.

python experiments/readme_picture.py [RUNS]     (trains the ladder's first seed, or loads it from RUNS)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from fcn_ladder import ARMS, train_arm

from deeplab_edu.data.augment import normalize
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.figures import add_class_legend, draw_image, draw_labels, use_style
from deeplab_edu.profiles import Profile, runs_folder

SCENES = (3, 11, 14)
TITLES = {"fcn32s": "FCN-32s", "fcn16s": "FCN-16s", "fcn8s": "FCN-8s"}


def main() -> None:
    profile = Profile.load("cpu")
    runs = sys.argv[1] if len(sys.argv) > 1 else runs_folder()
    models = {name: train_arm(name, 0, profile, runs)[0] for name in ARMS}
    test = SceneDataset("thin", "test", size=profile.image_size, length=max(SCENES) + 1)
    use_style()
    figure, axes = plt.subplots(len(SCENES), 5, figsize=(10, 6.4), layout="constrained")
    masks = []
    for number, (row, index) in enumerate(zip(axes, SCENES, strict=True)):
        image, target = test[index]
        with torch.inference_mode():
            found = {TITLES[n]: m(normalize(image)[None])[0].argmax(0) for n, m in models.items()}
        draw_image(row[0], image, "" if number else "picture")
        for ax, (title, mask) in zip(row[1:], {**found, "truth": target}.items(), strict=True):
            draw_labels(ax, mask, test.labels, "" if number else title)
            masks.append(mask)
    add_class_legend(figure, test.labels, masks, columns=8)
    path = Path(__file__).resolve().parent.parent / "docs" / "ladder.png"
    figure.savefig(path, dpi=100)
    print("wrote", path.name)


if __name__ == "__main__":
    main()
