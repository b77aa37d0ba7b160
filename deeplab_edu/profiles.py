"""What differs between a check in CI, a run on a laptop and a run on a GPU: one frozen record, chosen by one variable.

`DEEPLAB_EDU_PROFILE=ci|cpu|gpu` (default `cpu`). Notebooks never ask which profile is active; they use its values.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from deeplab_edu.expectations import ACCEPT, MINUTES

VARIABLE = "DEEPLAB_EDU_PROFILE"
THREADS = "DEEPLAB_EDU_THREADS"
SEED = "DEEPLAB_EDU_SEED"


def runs_folder() -> Path:
    """Where finished and interrupted runs are kept: `DEEPLAB_EDU_RUNS`, or `runs/` at the top of the repository."""
    top = Path(__file__).resolve().parent.parent
    here = top if (top / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("DEEPLAB_EDU_RUNS") or here / "runs")


def bf16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); elsewhere autocast only costs time."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True)
class Profile:
    """One value for everything that depends on the machine and the patience at hand."""

    name: str
    device: str  # "cpu" or "cuda"
    precision: str  # "float32", or "auto": bfloat16 where the hardware multiplies it
    threads: int  # torch threads; more than one is slower on a machine with other work to do
    image_size: int  # side of a scene, px
    train_scenes: int
    val_scenes: int
    batch_size: int
    iterations: int  # of one training run
    model_options: Mapping[str, Any]  # what `build_model` gets besides the name and the number of classes
    learning_rate: float
    quiet: bool  # no progress bar, no live curve
    options_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # that differ for one model
    recipe_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings that one model needs
    image_size_of: Mapping[str, int] = field(default_factory=dict)  # where one model is trained alone (`of`)
    ema: float = 0.0  # decay of the average of weights that is kept
    compile: bool = False  # torch.compile
    seed: int = 0  # of a notebook's runs: initial weights and order of the pictures
    minutes: Mapping[str, float] = field(default_factory=dict)  # expected minutes of each notebook, measured
    accept: Mapping[str, float] = field(default_factory=dict)  # what a notebook's training must reach

    @staticmethod
    def load(name: str | None = None) -> "Profile":
        """The profile called `name`, or the one `DEEPLAB_EDU_PROFILE` names; sets torch's number of threads.

        `DEEPLAB_EDU_SEED` gives another seed than 0.

        Raises:
            ValueError: an unknown name, a `DEEPLAB_EDU_THREADS` that is not a positive number, a `DEEPLAB_EDU_SEED`
                that is not a whole number, or no CUDA device for profile gpu.
        """
        name = name or os.environ.get(VARIABLE) or "cpu"
        if name not in PROFILES:
            raise ValueError(f"Unknown profile {name!r}; set {VARIABLE} to one of {', '.join(PROFILES)}.")
        profile = PROFILES[name]
        threads = os.environ.get(THREADS) or str(profile.threads)
        if not threads.isdigit() or int(threads) < 1:
            raise ValueError(
                f"{THREADS} is {threads!r}; set it to a positive number of threads, or leave it unset."
            )
        if profile.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "Profile 'gpu' needs a CUDA device and torch sees none; set DEEPLAB_EDU_PROFILE=cpu "
                "(or give --profile cpu)."
            )
        seed = os.environ.get(SEED) or "0"
        if not seed.isdigit():
            raise ValueError(f"{SEED} is {seed!r}; set it to a whole number from 0 up, or leave it unset.")
        torch.set_num_threads(int(threads))  # last: a refused profile changes nothing
        return replace(profile, seed=int(seed)) if int(seed) else profile

    def of(self, model: str, backbone: str | None = None) -> "Profile":
        """The recipe of `model` when it is trained alone (as `experiments/full_size.py` does), on another backbone if
        one is named."""
        options = {"backbone": backbone} if backbone else {}
        return replace(
            self,
            model_options=MappingProxyType({**self.options(model), **options}),
            options_of=MappingProxyType({}),
            image_size=self.image_size_of.get(model, self.image_size),
        )

    def options(self, model: str) -> dict[str, Any]:
        """What `build_model(model, ...)` gets besides the number of classes: backbone, width."""
        return {**self.model_options, **self.options_of.get(model, {})}

    def banner(self, notebook: str) -> str:
        """One line for the top of a notebook: profile, device, precision, expected minutes."""
        threads = torch.get_num_threads()
        device = (
            torch.cuda.get_device_name()
            if self.device == "cuda"
            else f"CPU, {threads} thread{'s'[: threads > 1]}"
        )
        minutes = self.minutes.get(notebook)
        time = f"about {minutes:g} min" if minutes else "a time not measured yet"
        return f"Profile {self.name}: {device}, {self.dtype_name}; this notebook takes {time}."

    @property
    def dtype_name(self) -> str:
        fast = self.precision == "auto" and (self.device == "cuda" or bf16_is_fast())
        return "bfloat16" if fast else "float32"


def _profile(**values: Any) -> Profile:
    return Profile(**{k: MappingProxyType(v) if isinstance(v, dict) else v for k, v in values.items()})  # type: ignore[arg-type]


PROFILES: dict[str, Profile] = {
    "ci": _profile(
        name="ci",
        device="cpu",
        precision="float32",
        threads=1,
        image_size=64,
        train_scenes=960,
        val_scenes=48,
        batch_size=8,
        iterations=240,
        model_options={"backbone": "tiny", "width": 12},
        learning_rate=8e-3,
        quiet=True,
        minutes=MINUTES["ci"],
        accept=ACCEPT["ci"],
    ),
    "cpu": _profile(
        name="cpu",
        device="cpu",
        precision="auto",
        threads=1,
        image_size=128,
        train_scenes=3000,
        val_scenes=200,
        batch_size=8,
        iterations=1200,
        model_options={"backbone": "tiny", "width": 16},
        learning_rate=8e-3,
        recipe_of={"deeplab_v3plus": {"learning_rate": 1e-3}},  # from random weights: notebook 08
        quiet=False,
        minutes=MINUTES["cpu"],
        accept=ACCEPT["cpu"],
    ),
    "gpu": _profile(
        name="gpu",
        device="cuda",
        precision="auto",
        threads=4,
        image_size=321,  # DeepLab v1's and v2's crop
        train_scenes=20000,
        val_scenes=500,
        batch_size=32,
        iterations=4000,  # at most: experiments/full_size.py measures first, and takes what fits its minutes
        # Runs start from random weights, from which plain VGG-16 hardly learns (its authors began with a shallower
        # net): hence batch norm for FCN and v1.
        model_options={"backbone": "vgg16_bn"},
        options_of={
            "deeplab_v2": {"backbone": "resnet101"},
            "deeplab_v3": {"backbone": "resnet50"},
            "deeplab_v3plus": {"backbone": "xception65"},
        },
        ema=0.999,
        image_size_of={"deeplab_v3": 513, "deeplab_v3plus": 513},  # their crop
        learning_rate=1e-3,
        quiet=False,
        minutes=MINUTES["gpu"],
        accept=ACCEPT["gpu"],
    ),
}
