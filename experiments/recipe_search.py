"""How the settings of the short runs were chosen: one setting at a time around a start, scored on validation scenes.

    python experiments/recipe_search.py [RUNS]      (about 20 minutes on one core; writes results/recipe_search.json)

Every arm trains for the same number of pictures. FCN-8s and FCN-32s are both searched, so that the recipe does not
favour one of the models it will compare. Test scenes, on which results are reported, are not looked at.
"""

import sys
import tempfile
from dataclasses import asdict, replace

import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.models import build_model
from deeplab_edu.profiles import Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, evaluate, fit

PICTURES = 300 * 16
START = Settings(iterations=300, batch_size=16, learning_rate=4e-3, warmup=50)
CHANGES = [
    {},
    {"learning_rate": 1e-3},
    {"learning_rate": 2e-3},
    {"learning_rate": 8e-3},
    {"learning_rate": 1.6e-2},
    {"batch_size": 8, "iterations": PICTURES // 8},
    {"batch_size": 32, "iterations": PICTURES // 32},
    {"bn_momentum": 0.02},
    {"bn_momentum": 0.0003},
    {"loss_stride": 2},
    {"warmup": 0},
    {"weight_decay": 1e-2},
    {"optimizer": "sgd", "learning_rate": 0.05},
    {"optimizer": "sgd", "learning_rate": 0.2},
    # what helped, together
    {"batch_size": 8, "iterations": PICTURES // 8, "learning_rate": 8e-3},
    {"batch_size": 8, "iterations": PICTURES // 8, "learning_rate": 2e-3},
    {"batch_size": 4, "iterations": PICTURES // 4},
]


def main() -> None:
    profile = Profile.load("cpu")
    train, val = SceneDataset("thin", "train", length=2000), SceneDataset("thin", "val", length=200)
    rows = []
    with tempfile.TemporaryDirectory() as fresh:
        runs = sys.argv[1] if len(sys.argv) > 1 else fresh
        for change in CHANGES:
            for name in ("fcn32s", "fcn8s"):
                torch.manual_seed(0)
                model = build_model(name, num_classes=12, **profile.model_options)
                settings = replace(START, precision=profile.precision, **change)
                history = fit(model, train, None, settings, runs=runs, quiet=True)
                scores = evaluate(model, val, detailed=True)
                rows.append(
                    {"model": name, "change": change, "scores": scores, "seconds": round(history.seconds, 1)}
                )
                print(
                    f"{name} {change or 'start'}: mIoU {scores['miou']:.3f}, {history.seconds:.0f} s",
                    flush=True,
                )
    command = "python experiments/recipe_search.py"
    save_result("recipe_search", command, profile, rows, seed=0, start=asdict(START))


if __name__ == "__main__":
    main()
