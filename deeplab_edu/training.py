"""Training that can be stopped at any moment: fit or load, resume bit for bit, evaluate.

A run lives in a folder named by a hash of everything that decides its outcome: settings, architecture, initial weights
and data. Asking for a finished run loads it; asking for an interrupted one goes on from its last checkpoint.

Nothing random is carried from step to step. The pictures of step k, their augmentation and the dropout masks follow
from (seed, k) alone, so a checkpoint needs no generator state and a resumed run repeats the uninterrupted one exactly.
"""

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from deeplab_edu.data.augment import normalize
from deeplab_edu.data.labels import IGNORE_INDEX
from deeplab_edu.metrics import ConfusionMatrix, trimap
from deeplab_edu.profiles import Profile, bf16_is_fast, runs_folder

FORMAT = 1  # of a run folder; raise it when an old run must not be taken for a new one
REPORTS = 30  # entries of a run's loss curve, about
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How a model is trained. Two arms of a comparison differ in one of these at most (`differing_fields`)."""

    iterations: int = 600
    batch_size: int = 16
    learning_rate: float = 4e-3  # at the end of the warm-up
    optimizer: str = "adamw"  # or "sgd"
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # on weights of two or more axes; not on biases and batch norm
    power: float = 0.9  # of the poly schedule, (1 - step / iterations) ** power: DeepLab v2, section 4.1
    warmup: int = 50  # steps of linear warm-up
    bn_momentum: float | None = (
        None  # PyTorch's sense (0.0003 is the papers' decay 0.9997); None leaves it alone
    )
    loss_stride: int = 1  # 2: the loss looks at every second row and column only
    precision: str = "auto"  # "float32", "bfloat16", or bfloat16 where the hardware multiplies it
    workers: int = 0  # processes that prepare pictures; the result does not depend on it
    ignore_index: int = IGNORE_INDEX
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "learning_rate", "loss_stride"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Settings.{name} is {getattr(self, name)}; it must be greater than zero.")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"Unknown optimizer {self.optimizer!r}; choose adamw or sgd.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}.")

    @classmethod
    def from_profile(cls, profile: Profile, **changes: Any) -> "Settings":
        """The recipe of a profile, with changes (`experiments/recipe_search.py` tells where it comes from)."""
        names = ("iterations", "batch_size", "learning_rate", "precision")
        return cls(**{n: getattr(profile, n) for n in names} | changes)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.learning_rate * warm * (1 - step / self.iterations) ** self.power


@dataclass
class History:
    """What happened: the loss some thirty times a run, validation once an epoch, and where the run is kept."""

    folder: Path
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)  # mean training loss since the entry before
    val_miou: list[float] = field(default_factory=list)  # an entry an epoch; empty without validation data
    seconds: float = 0.0  # of training, over all sittings
    images: int = 0
    loaded: bool = False  # True when the finished run was on disk and nothing was trained

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else math.nan

    def __str__(self) -> str:
        miou = f", validation mIoU {self.val_miou[-1]:.3f}" if self.val_miou else ""
        done = f"{self.steps[-1]} steps in {self.seconds:.0f} s ({self.images_per_second:.0f} images/s)"
        how = "loaded a finished run of" if self.loaded else "trained"
        return (
            f"{how} {done}, loss {self.loss[0]:.2f} -> {self.loss[-1]:.2f}{miou}; kept in {self.folder.name}"
        )


def differing_fields(*records: Any) -> set[str]:
    """Names of the fields in which dataclass records or dicts differ: an honest comparison has exactly one."""
    dicts = [r if isinstance(r, dict) else asdict(r) for r in records]
    names = set().union(*dicts)
    return {n for n in names if any(d.get(n) != dicts[0].get(n) for d in dicts)}


def _fingerprint_model(model: nn.Module) -> list[str]:
    """Architecture, initial weights and the code of every forward that does not come from torch."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    kinds = {type(m) for m in model.modules()}
    seen: set[FunctionType] = set()
    code = sorted(repr(_code(k.forward, seen)) for k in sorted(kinds, key=lambda k: k.__qualname__))
    return [str(model), digest.hexdigest(), *frozen, *code]


def _code(function: Any, seen: set[FunctionType]) -> list[Any]:
    """What a Python function does: its instructions and constants, and those of the functions it calls by name."""
    if isinstance(function, bool | int | float | str | tuple):  # a global constant that a function reads
        return [repr(function)]
    if (
        not isinstance(function, FunctionType)
        or function in seen
        or str(function.__module__).startswith("torch")
    ):
        return []
    seen.add(function)
    described: list[Any] = [function.__qualname__]
    codes = [function.__code__]
    for code in codes:  # grows: comprehensions and inner functions are constants of the outer one
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
        plain = [c for c in code.co_consts if not isinstance(c, CodeType)]
        plain = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in plain]  # sets have no order
        described += [code.co_code, plain, code.co_names]
        described += [_code(function.__globals__.get(name), seen) for name in code.co_names]
    return described


def _fingerprint_data(data: Dataset | None) -> list[str]:
    """A data set by its description and three of its items, so that changed files or scenes are noticed."""
    if data is None:
        return []
    length = len(data)  # type: ignore[arg-type]
    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        for index in {0, length // 2, length - 1}:
            torch.manual_seed(0)
            for tensor in data[index]:
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return [type(data).__name__, str(length), repr(getattr(data, "transforms", None)), digest.hexdigest()]


def run_key(model: nn.Module, train: Dataset, val: Dataset | None, settings: Settings) -> str:
    """Ten hexadecimal digits that change with anything that changes the outcome of a run."""
    decides = {k: v for k, v in asdict(settings).items() if k != "workers"}
    decides["precision"] = str(_autocast_dtype(settings, next(model.parameters()).device.type))
    parts = [FORMAT, decides, _fingerprint_model(model), _fingerprint_data(train), _fingerprint_data(val)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:10]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour, then put it in place: readers see the old file or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: str | Path, model: nn.Module, **facts: Any) -> None:
    """Weights as safetensors, with JSON facts in the header; the file appears whole or not at all."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    write_atomically(Path(path), lambda p: save_file(tensors, p, metadata={"facts": json.dumps(facts)}))


def load_weights(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Load what `save_weights` wrote into `model`; returns the facts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or weights of another architecture.
    """
    tensors, facts = _read(Path(path))
    model.load_state_dict(tensors)
    return facts


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); delete it to train again."
        ) from error


class _Run:
    """The folder of one run: settings.json, checkpoints while it lasts, weights.safetensors when it is finished."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.weights = folder / "weights.safetensors"
        self.newest, self.before = folder / "checkpoint.safetensors", folder / "checkpoint-before.safetensors"

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        if self.newest.exists():
            os.replace(self.newest, self.before)
        write_atomically(self.newest, lambda p: save_file(tensors, p, metadata={"facts": json.dumps(facts)}))

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Load the newest readable checkpoint; no facts where there is none."""
        damaged = False
        for path in (self.newest, self.before):
            try:
                tensors, facts = _read(path)
            except FileNotFoundError:
                continue
            except ValueError as error:
                print(f"{error} Looking for the checkpoint before it.")
                damaged = True
                continue
            model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith("optimizer."):
                    _, number, name = key.split(".", 2)
                    like = parameters[int(number)]
                    if (
                        value.shape == like.shape
                    ):  # fused optimisers expect the memory layout of the parameter
                        value = torch.empty_like(like).copy_(value)
                    state.setdefault(int(number), {})[name] = value
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
            return facts
        if damaged:
            print(f"No readable checkpoint is left in {self.folder}; training begins at the first step.")
        return {}

    def finish(self, model: nn.Module, facts: dict[str, Any]) -> None:
        save_weights(self.weights, model, **facts)
        for path in (self.newest, self.before):
            path.unlink(missing_ok=True)


class _Steps(Dataset):
    """Item k is the batch of step k; it depends on (seed, k) alone, whichever process makes it."""

    def __init__(self, data: Dataset, settings: Settings):
        self.data, self.settings = data, settings
        self.length: int = len(data)  # type: ignore[arg-type]
        self.per_epoch = max(1, self.length // settings.batch_size)

    def indices(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        return order[position * self.settings.batch_size :][: self.settings.batch_size]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed * 1_000_003 + step)
            return stack(self.data, self.indices(step))


def stack(data: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Items of a data set as one batch: images (N, 3, H, W) uint8, masks (N, H, W) int64."""
    fetch = getattr(data, "__getitems__", None)
    items = fetch(list(indices)) if fetch else [data[i] for i in indices]
    images, masks = zip(*items, strict=True)
    try:
        return torch.stack([i.as_subclass(Tensor) for i in images]), torch.stack(
            [m.as_subclass(Tensor) for m in masks]
        ).long()
    except RuntimeError as error:
        sizes = sorted({tuple(m.shape) for m in masks})
        raise ValueError(
            f"Pictures of one batch differ in size {sizes}; crop them with train_transforms(size)."
        ) from error


def _autocast_dtype(settings: Settings, device: str) -> torch.dtype:
    fast = device == "cuda" or bf16_is_fast()
    wanted = settings.precision == "bfloat16" or (settings.precision == "auto" and fast)
    return torch.bfloat16 if wanted else torch.float32


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


@contextmanager
def _stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Turn the first interrupt into a flag, so that a step is never cut in half; the second one stops at once."""
    asked = threading.Event()

    def ask(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield asked.is_set
        return
    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, masks: Tensor, settings: Settings
) -> Tensor:
    """One step on images (N, 3, H, W) uint8, masks (N, H, W) int64; returns the mean loss over counted pixels."""
    s, device = settings.loss_stride, next(model.parameters()).device
    dtype = _autocast_dtype(settings, device.type)
    inputs = normalize(images.to(device)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        outputs = model(inputs)
    outputs = (
        [outputs] if isinstance(outputs, Tensor) else outputs
    )  # several are supervised alike: DeepLab v2, §3.2
    targets = masks.to(device)[..., ::s, ::s]
    losses = [
        F.cross_entropy(logits[..., ::s, ::s].float(), targets, ignore_index=settings.ignore_index)
        for logits in outputs
    ]
    loss = torch.stack(losses).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset | None = None,
    settings: Settings | None = None,
    *,
    name: str | None = None,
    runs: str | Path | None = None,
    quiet: bool = False,
    watch: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place, or load the run if it was finished before; the model is left in evaluation mode.

    Args:
        model: (N, 3, H, W) normalised float -> logits (N, num_classes, H, W).
        train, val: data sets of (image (3, H, W) uint8, mask (H, W)); `val` is scored at the end of each epoch.
        settings: see `Settings`.
        name: how the run's folder starts; default the model's class.
        runs: where runs are kept; default `profiles.runs_folder()`.
        quiet: no progress bar.
        watch: called with the history whenever it grows, to draw a live curve.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
        KeyboardInterrupt: interrupted; the run is kept up to the last whole step.
        ValueError: an empty data set, pictures of different sizes, or nothing to count in a mask.
    """
    settings = settings or Settings()
    if len(train) == 0:  # type: ignore[arg-type]
        raise ValueError("The training data set is empty; nothing can be learned from it.")
    if settings.bn_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = settings.bn_momentum
    key = run_key(model, train, val, settings)
    run = _Run(Path(runs or runs_folder()) / f"{name or type(model).__name__.lower()}-{key}")
    if run.weights.exists():
        facts = load_weights(run.weights, model)
        model.eval()
        return History(run.folder, **facts["history"], loaded=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"settings": asdict(settings), "train": repr(train), "val": repr(val)}, indent=1)
    write_atomically(run.folder / "settings.json", lambda p: p.write_text(described))
    with torch.random.fork_rng():
        history = _train(model, train, val, settings, run, quiet, watch)
    model.eval()
    return history


def _train(model, train, val, settings: Settings, run: _Run, quiet: bool, watch) -> History:
    model.to(memory_format=torch.channels_last)
    optimizer, batches = _optimizer(model, settings), _Steps(train, settings)
    facts = run.resume(model, optimizer)
    start, history = facts.get("step", 0), History(run.folder, **facts.get("history", {}))
    loader = DataLoader(
        batches, batch_size=None, sampler=range(start, settings.iterations), num_workers=settings.workers
    )
    bar = tqdm(total=settings.iterations, initial=start, disable=quiet, leave=False, unit="step")
    losses: list[Tensor] = []
    with _stop_between_steps() as stopped, bar:
        began = time.perf_counter()
        for step, (images, masks) in enumerate(loader, start):
            model.train()
            torch.manual_seed(settings.seed * 1_000_003 + step)  # dropout of this step
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            losses.append(train_step(model, optimizer, images, masks, settings))
            history.images += len(images)
            bar.update()
            done = step + 1
            last, stop = done == settings.iterations, stopped()
            epoch = last or stop or done % batches.per_epoch == 0
            if epoch or done % max(1, settings.iterations // REPORTS) == 0:
                history.seconds += time.perf_counter() - began
                _report(history, losses, done, settings)
                if epoch:
                    _keep(model, optimizer, val, settings, run, history)
                if watch:
                    watch(history)
                if stop and not last:
                    raise KeyboardInterrupt(
                        f"Stopped after step {done}; the run is kept in {run.folder}, run again to go on."
                    )
                losses, began = [], time.perf_counter()
                bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
    return history


def _report(history: History, losses: list[Tensor], done: int, settings: Settings) -> None:
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        first = done - len(losses) + next(i for i, x in enumerate(losses) if not torch.isfinite(x))
        raise FloatingPointError(
            f"The loss became {float(losses[-1])} at step {first + 1}; lower learning_rate "
            f"({settings.learning_rate:g}), lengthen the warm-up, or look for masks that are void everywhere. "
            f"The last checkpoint in {history.folder} is from before."
        )
    history.steps.append(done)
    history.loss.append(loss)


def _keep(model, optimizer, val, settings: Settings, run: _Run, history: History) -> None:
    done = history.steps[-1]
    if val is not None:
        history.val_miou.append(evaluate(model, val, batch_size=settings.batch_size)["miou"])
    facts = {"history": {k: v for k, v in asdict(history).items() if k not in ("folder", "loaded")}}
    if done == settings.iterations:
        run.finish(model, facts)
    else:
        run.save(model, optimizer, {"step": done, **facts})


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Dataset, *, batch_size: int = 16, detailed: bool = False, precision: str = "auto"
) -> dict[str, float]:
    """Score a model on a whole data set with one confusion matrix (never a mean over batches).

    Returns:
        `miou` and `pixel_accuracy`; if `detailed` also `trimap1`, `trimap3` (mIoU within 1 and 3 px of a label
        boundary, over the classes that occur there), `inner` (the same more than 5 px from one), the mean IoU of
        each class group of `data.labels`
        (`thin`, ...), and that of the shapes of each size bin (`small`, `mid`, `big`: counted on the pixels of
        these shapes only); what does not occur in the data is left out.
    """
    labels, device, was_training = data.labels, next(model.parameters()).device, model.training  # type: ignore[attr-defined]
    dtype = _autocast_dtype(Settings(precision=precision), device.type)
    matrices = _Matrices(labels.num_classes, detailed)
    model.eval()
    try:
        for begin in range(0, len(data), batch_size):  # type: ignore[arg-type]
            indices = range(begin, min(begin + batch_size, len(data)))  # type: ignore[arg-type]
            images, masks = stack(data, indices)
            inputs = normalize(images.to(device)).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                predictions = model(inputs).float().argmax(1)
            size_map = getattr(data, "size_map", None)
            sizes = torch.stack([size_map(i) for i in indices]).to(device) if detailed and size_map else None
            matrices.update(predictions, masks.to(device), sizes)
    finally:
        model.train(was_training)
    return matrices.scores(labels.groups)


class _Matrices:
    """One confusion matrix for each region of the picture that is reported on."""

    def __init__(self, num_classes: int, detailed: bool):
        regions = ["all", "trimap1", "trimap3", "inner", "small", "mid", "big"] if detailed else ["all"]
        self.of = {region: ConfusionMatrix(num_classes) for region in regions}

    def update(self, predictions: Tensor, masks: Tensor, sizes: Tensor | None) -> None:
        self.of["all"].update(predictions, masks)
        if "inner" not in self.of:
            return
        where = {f"trimap{k}": trimap(masks, k) for k in (1, 3)} | {"inner": ~trimap(masks, 5)}
        if sizes is not None:
            where |= {name: sizes == number for number, name in enumerate(("small", "mid", "big"), 1)}
        for region, pixels in where.items():
            self.of[region].update(predictions, masks, where=pixels)

    def scores(self, groups) -> dict[str, float]:
        everything = self.of["all"]
        scores = {"miou": everything.miou, "pixel_accuracy": everything.pixel_accuracy}
        counted = {region for region, matrix in self.of.items() if matrix.matrix.sum() > 0}
        for region in ("trimap1", "trimap3", "inner"):
            if region in counted:  # a class that only occurs outside the region would count as a zero
                inside = self.of[region].matrix.sum(1).nonzero().flatten().tolist()
                scores[region] = self.of[region].mean_iou_of(inside)
        if "inner" in self.of:
            scores |= {group: everything.mean_iou_of(classes) for group, classes in groups.items()}
        scores |= {
            s: self.of[s].mean_iou_of(groups["shapes"]) for s in ("small", "mid", "big") if s in counted
        }
        return {name: float(value) for name, value in scores.items() if not math.isnan(value)}
