"""The four arms of notebook 01 with several seeds: no downsampling, pooling, dilation, several scales as inputs.

    python experiments/dense_prediction.py --profile cpu --seeds 0 1 2

The arms are those that the notebook defines, read from its cells. A seed changes initial weights, the order of the
pictures and the training scenes; scores are on test scenes. Writes results/dense_prediction.<profile>.json.
"""

import argparse
import ast
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.profiles import PROFILES, Profile
from deeplab_edu.results import save_result
from deeplab_edu.training import Settings, differing_fields, evaluate, fit

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "01_dense_prediction.ipynb"


def from_notebook(*names: str, path: Path = NOTEBOOK, **given: Any) -> dict[str, Any]:
    """What the notebook's cells call `names`: runs its imports and the cells that define them, and nothing else.

    `given` are names that those cells need from others, e.g. `profile`.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    space: dict[str, Any] = {"__name__": "notebook", **given}
    for tree in (ast.parse("".join(c["source"])) for c in cells if c["cell_type"] == "code"):
        imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        wanted = [n for n in tree.body if _defines(n) & set(names)]
        exec(compile(ast.Module(imports + wanted, []), path.name, "exec"), space)
    return {name: space[name] for name in names}


def _defines(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {t.id for t in targets if isinstance(t, ast.Name)}


def train_arm(
    arm: torch.nn.Module, seed: int, profile: Profile, notebook: dict[str, Any], runs: str | Path
) -> tuple[Settings, dict[str, float]]:
    """Train one arm; its settings, and its scores on the test scenes."""
    size = notebook["ARM_SIZE"]
    train = SceneDataset("shapes", "train", size=size, length=profile.train_scenes, seed=seed)
    test = SceneDataset("shapes", "test", size=size, length=2 * profile.val_scenes)
    settings = Settings.from_profile(profile, iterations=notebook["ARM_STEPS"], seed=seed)
    history = fit(arm, train, None, settings, runs=runs, quiet=True)
    scores = evaluate(arm, test, detailed=True, precision=profile.precision)
    return settings, {**scores, "seconds": round(history.seconds, 1)}


def run(
    profile: Profile, seeds: list[int], runs: str | Path
) -> tuple[dict[str, dict[str, list[float]]], Settings]:
    """Scores of every arm, arm -> metric -> one value a seed; and the settings of the last seed."""
    notebook = from_notebook("Arm", "ARMS", "ARM_SIZE", "ARM_STEPS", profile=profile)
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in notebook["ARMS"]}
    for seed in seeds:
        recipes = []
        for name, options in notebook["ARMS"].items():
            torch.manual_seed(seed)
            arm = notebook["Arm"](**options).to(profile.device)
            settings, measured = train_arm(arm, seed, profile, notebook, runs)
            recipes.append(settings)
            for metric, value in measured.items():
                scores[name].setdefault(metric, []).append(value)
            print(
                f"{name}, seed {seed}: test mIoU {measured['miou']:.3f}, big {measured['big']:.3f}",
                flush=True,
            )
        assert not differing_fields(*recipes), "the arms of a comparison are trained in the same way"
    return scores, recipes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    profile = Profile.load(arguments.profile)
    with tempfile.TemporaryDirectory() as runs:
        scores, settings = run(profile, arguments.seeds, runs)
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python experiments/dense_prediction.py --profile {profile.name} --seeds {seeds}"
    facts = {"seeds": arguments.seeds, "settings": asdict(settings)}
    save_result(f"dense_prediction.{profile.name}", command, profile, scores, **facts)


if __name__ == "__main__":
    main()
