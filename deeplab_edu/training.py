"""Training that can be stopped at any moment: fit or load, resume bit for bit, in one process or in many.

A run lives in a folder named by a hash of everything that decides its outcome: settings, architecture, initial weights
and data. Asking for a finished run loads it; asking for an interrupted one goes on from its last checkpoint.

Nothing random is carried from step to step. The pictures of step k, their augmentation and the dropout masks follow
from (seed, k) alone, so a checkpoint needs no generator state and a resumed run repeats the uninterrupted one exactly.
Several processes share the pictures of a step (`processes`), and their gradients are averaged to that of the whole.
"""

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from deeplab_edu.checkpoints import Run, load_weights, restore, save_weights, write_atomically
from deeplab_edu.data.augment import normalize
from deeplab_edu.data.labels import IGNORE_INDEX
from deeplab_edu.evaluation import autocast_dtype, evaluate, stack
from deeplab_edu.fingerprint import fingerprint_data, fingerprint_model
from deeplab_edu.processes import Processes, processes
from deeplab_edu.profiles import Profile, runs_folder

__all__ = [
    "History",
    "Settings",
    "differing_fields",
    "evaluate",
    "fit",
    "load_weights",
    "run_key",
    "save_weights",
    "seconds_a_step",
    "stack",
    "train_step",
    "write_atomically",
]

FORMAT = 2  # of a run folder; raise it when an old run must not be taken for a new one
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
    schedule: str = "poly"  # or "step", a tenth of the rate after each third: DeepLab v2, section 4.1.1
    power: float = 0.9  # of the poly schedule, (1 - step / iterations) ** power
    warmup: int = 50  # steps of linear warm-up
    bn_momentum: float | None = (
        None  # PyTorch's sense (0.0003 is the papers' decay 0.9997); None leaves it alone
    )
    loss_stride: int = 1  # 2: the loss looks at every second row and column only
    precision: str = "auto"  # "float32", "bfloat16", or bfloat16 where the hardware multiplies it
    workers: int = 0  # processes that prepare pictures; the result does not depend on it
    ignore_index: int = IGNORE_INDEX
    seed: int = 0
    draws: str = (
        "step"  # augmentation draws from one stream a step, or one a "picture": then processes share the work
    )
    ema: float = (
        0.0  # decay of the moving average that is scored and kept; 0 keeps the last weights themselves
    )
    compile: bool = False  # torch.compile: minutes at the start, then faster steps on a GPU; rounds otherwise

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "learning_rate", "loss_stride"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Settings.{name} is {getattr(self, name)}; it must be greater than zero.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"Settings.ema is {self.ema}; a decay lies from 0 (no average) to below 1.")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"Unknown optimizer {self.optimizer!r}; choose adamw or sgd.")
        if self.schedule not in ("poly", "step"):
            raise ValueError(f"Unknown schedule {self.schedule!r}; choose poly or step.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}.")
        if self.draws not in ("step", "picture"):
            raise ValueError(f"Unknown draws {self.draws!r}; choose step or picture.")

    @classmethod
    def from_profile(cls, profile: Profile, model: str = "", **changes: Any) -> "Settings":
        """The recipe of a profile, or what it has for `model`, with changes.

        `experiments/recipe_search.py` tells where it comes from, and `experiments/deeplab_v3plus.py` for v3+.
        """
        names = ("iterations", "batch_size", "learning_rate", "precision", "ema", "compile", "seed")
        usual = {n: getattr(profile, n) for n in names}
        return cls(**{**usual, **profile.recipe_of.get(model, {}), **changes})

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "step":
            return self.learning_rate * warm * 0.1 ** (3 * step // self.iterations)
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


def run_key(model: nn.Module, train: Dataset, val: Dataset | None, settings: Settings) -> str:
    """Ten hexadecimal digits that change with anything that changes the outcome of a run."""
    return _key(_decides(model, train, val, settings))


def _decides(model: nn.Module, train: Dataset, val: Dataset | None, settings: Settings) -> dict[str, Any]:
    """Everything that decides the outcome of a run, by name: a difference can be told."""
    decides = {k: v for k, v in asdict(settings).items() if k != "workers"}
    for later in ("ema", "compile"):  # runs from before these came keep their names
        if not decides[later]:
            del decides[later]
    decides["precision"] = str(autocast_dtype(settings.precision, next(model.parameters()).device.type))
    decides |= {"format": FORMAT, **fingerprint_model(model)}
    for name, data in (("training data", train), ("validation data", val)):
        decides[name], decides[f"contents of the {name}"] = fingerprint_data(data)
    return decides


def _key(decides: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()[:10]


class _Steps(Dataset):
    """Item k is this process's share of the batch of step k; it depends on (seed, k) alone, whoever makes it."""

    def __init__(self, data: Dataset, settings: Settings, index: int = 0, count: int = 1):
        self.data, self.settings, self.index, self.count = data, settings, index, count
        self.length: int = len(data)  # type: ignore[arg-type]
        self.images = min(settings.batch_size, self.length)  # of a step, over all processes
        self.per_epoch = max(1, self.length // settings.batch_size)
        if self.images < count:
            raise ValueError(
                f"A step has {self.images} picture(s), too few for {count} processes; raise batch_size or start fewer."
            )

    def indices(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        return order[position * self.settings.batch_size :][: self.settings.batch_size]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        whole, mine = self.indices(step), slice(self.index, None, self.count)
        seed = self.settings.seed * 1_000_003 + step
        with torch.random.fork_rng(devices=[]):
            if self.settings.draws == "picture":
                return self._drawn_apart(whole, mine, seed)
            torch.manual_seed(seed)
            if getattr(self.data, "transforms", self) is None:  # nothing is drawn
                return stack(self.data, whole[mine])
            images, masks = stack(self.data, whole)
            return images[mine], masks[mine]

    def _drawn_apart(self, whole: list[int], mine: slice, seed: int) -> tuple[Tensor, Tensor]:
        parts = []
        for place, index in list(enumerate(whole))[mine]:
            torch.manual_seed(seed * 4099 + place)
            parts.append(stack(self.data, [index]))
        images, masks = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(masks)


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
def _stop_between_steps(alone: bool = True) -> Iterator[Callable[[], bool]]:
    """Turn the first interrupt into a flag, so that a step is never cut in half; the second one stops at once.

    A launcher of several processes hands an interrupt on, so that each sees it twice: there the flag is all.
    """
    asked, mine = threading.Event(), os.getpid()

    def ask(number, frame):
        if os.getpid() != mine and number == signal.SIGTERM:  # a forked worker that is told to go
            os._exit(1)
        if asked.is_set() and alone:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield asked.is_set
        return
    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, masks: Tensor, settings: Settings
) -> Tensor:
    """One step on images (N, 3, H, W) uint8, masks (N, H, W) int64; returns the mean loss over counted pixels.

    Of a model that returns several logits the losses are summed. Each of several processes brings its share of the
    images; what it returns is its share of the loss, times the number of processes.
    """
    device = next(model.parameters()).device
    dtype = autocast_dtype(settings.precision, device.type)
    inputs = normalize(images.to(device)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        outputs = model(inputs)
    outputs = (
        [outputs] if isinstance(outputs, Tensor) else outputs
    )  # supervised alike: DeepLab v2, section 3.2
    loss = _loss(outputs, masks, settings)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _loss(outputs: Sequence[Tensor], masks: Tensor, settings: Settings) -> Tensor:
    """Cross-entropy, averaged over the counted pixels of the whole batch, whichever process holds them."""
    s, ignored, team = settings.loss_stride, settings.ignore_index, processes()
    targets = masks.to(outputs[0].device)[..., ::s, ::s]
    reduction = "mean" if team.count == 1 else "sum"
    losses = [
        F.cross_entropy(x[..., ::s, ::s].float(), targets, ignore_index=ignored, reduction=reduction)
        for x in outputs
    ]
    loss = torch.stack(losses).sum()
    if team.count == 1:
        return loss
    counted = team.sum((masks[..., ::s, ::s] != ignored).sum()).to(loss.device)
    return loss * (team.count / counted)  # gradients are averaged over processes, so their losses are, too


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset | None = None,
    settings: Settings | None = None,
    *,
    name: str | None = None,
    runs: str | Path | None = None,
    folder: str | Path | None = None,
    files: Mapping[str, Any] | None = None,
    quiet: bool = False,
    watch: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place, or load the run if it was finished before; the model is left in evaluation mode.

    Args:
        model: (N, 3, H, W) normalised float -> logits (N, num_classes, H, W), or in training a list of such.
        train, val: data sets of (image (3, H, W) uint8, mask (H, W)); `val` is scored at the end of each epoch.
        settings: see `Settings`.
        name: how the run's folder starts; default the model's class.
        runs: where runs are kept; default `profiles.runs_folder()`.
        folder: the folder of this run itself, in place of one in `runs` with a hash in its name.
        files: what else to keep there, as JSON: file name -> content.
        quiet: no progress bar.
        watch: called with the history whenever it grows, to draw a live curve.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
        KeyboardInterrupt: interrupted; the run is kept up to the last whole step.
        ValueError: an empty data set, pictures of different sizes, nothing to count in a mask, or a `folder` that
            holds another run. BlockingIOError: another process trains this run. OSError: a file cannot be written.
        ConnectionError: one of several processes has ended.
    """
    settings, team = settings or Settings(), processes()
    if len(train) == 0:  # type: ignore[arg-type]
        raise ValueError("The training data set is empty; nothing can be learned from it.")
    _set_bn_momentum(model, settings.bn_momentum)
    decides = _decides(model, train, val, settings)
    home = Path(runs or runs_folder()) / f"{name or type(model).__name__.lower()}-{_key(decides)}"
    run = Run(Path(folder) if folder else home)
    advice = f"the run is kept in {run.folder} up to its last checkpoint: run again to go on."
    with team.or_a_sentence(advice), ExitStack() as owned:
        if team.from_first(lambda: _begin(run, decides, files or {}, owned)):
            facts = load_weights(run.weights, model)
            model.eval()
            return History(run.folder, **facts["history"], loaded=True)
        with torch.random.fork_rng():
            history = _train(model, train, val, settings, run, team, quiet, watch)
    model.eval()
    return history


def _set_bn_momentum(model: nn.Module, momentum: float | None) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and momentum is not None:
            module.momentum = momentum


def _begin(run: Run, decides: dict[str, Any], files: Mapping[str, Any], owned: ExitStack) -> bool:
    """Whether the run is finished; if not, make its folder this process's own and say there what is trained."""
    run.check(decides)
    if run.weights.exists():
        return True
    told = {"key": _key(decides), "decides": decides}
    owned.enter_context(run.owned({**files, "settings.json": told}))
    return False


def _averaged(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of weights, and of batch norm's statistics with the same decay: they belong together.

    The decay rises from 0.1 to its value, min(decay, (1 + n) / (10 + n)) at step n, so that a short run is no average
    over its first steps (tf.train.ExponentialMovingAverage, `num_updates`).
    """

    def update(averaged, current, _):
        n = int(average.n_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


@dataclass
class _Learner:
    """What changes from step to step: the model, what its optimiser remembers, the average of its weights."""

    model: nn.Module
    settings: Settings
    team: Processes

    def __post_init__(self) -> None:
        self.model.to(memory_format=torch.channels_last)
        replica = self.team.wrap(
            self.model
        )  # before the optimiser, which holds on to parameters where they are
        # a wrapper that shares the parameters, so that what is saved knows nothing of it
        self.replica: nn.Module = torch.compile(replica) if self.settings.compile else replica  # type: ignore[assignment]
        self.optimizer = _optimizer(self.model, self.settings)
        self.average = _averaged(self.model, self.settings.ema) if self.settings.ema else None

    def step(self, number: int, images: Tensor, masks: Tensor) -> Tensor:
        self.replica.train()
        seed = self.settings.seed + self.team.index * 7919
        torch.manual_seed(seed * 1_000_003 + number)  # dropout of this step
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(number)
        loss = train_step(self.replica, self.optimizer, images, masks, self.settings)
        if self.average:
            self.average.update_parameters(self.model)
        return loss

    def keep(self, val: Dataset | None, run: Run, history: History) -> None:
        """Score what has been learned, and write the run's next checkpoint or its finished weights."""
        done, scored = history.steps[-1], self.average.module if self.average else self.model
        for net in dict.fromkeys((self.model, scored)):
            self.team.align(net)
        if val is not None:
            history.val_miou.append(evaluate(scored, val, batch_size=self.settings.batch_size)["miou"])
        facts = {"history": {k: v for k, v in asdict(history).items() if k not in ("folder", "loaded")}}
        if done == self.settings.iterations:
            if self.average:
                self.model.load_state_dict(scored.state_dict())
            self.team.from_first(lambda: run.finish(self.model, facts))
        else:
            told = {"step": done, **facts}
            self.team.from_first(lambda: run.save(self.model, self.optimizer, told, self.average))


def _train(model, train, val, settings: Settings, run: Run, team: Processes, quiet: bool, watch) -> History:
    batches = _Steps(train, settings, team.index, team.count)
    tensors, facts = team.from_first(run.load)
    learner = _Learner(model, settings, team)
    if tensors:
        restore(model, learner.optimizer, tensors, learner.average)
    start, history = facts.get("step", 0), History(run.folder, **facts.get("history", {}))
    todo = range(start, settings.iterations)
    loader = DataLoader(batches, batch_size=None, sampler=todo, num_workers=settings.workers)
    total, done = (batches.images * n for n in (settings.iterations, start))
    hidden = quiet or not team.first
    bar = tqdm(total=total, initial=done, disable=hidden, leave=False, unit="image", unit_scale=True)
    losses: list[Tensor] = []
    with _stop_between_steps(team.count == 1) as stopped, bar:
        began = time.perf_counter()
        for step, (images, masks) in enumerate(loader, start):
            losses.append(learner.step(step, images, masks))
            history.images += batches.images
            bar.update(batches.images)
            done = step + 1
            last, stop = done == settings.iterations, team.any(stopped())
            epoch = last or stop or done % batches.per_epoch == 0
            if epoch or done % max(1, settings.iterations // REPORTS) == 0:
                loss = (
                    team.sum(torch.stack(losses)) / team.count
                ).cpu()  # waits for a GPU, so that seconds are true
                history.seconds += time.perf_counter() - began
                _report(history, loss, done, settings)
                if epoch:
                    learner.keep(val, run, history)
                if watch and team.first:
                    watch(history)
                if stop and not last:
                    raise KeyboardInterrupt(
                        f"Stopped after step {done}; the run is kept in {run.folder}, run again to go on."
                    )
                losses, began = [], time.perf_counter()
                bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
    return history


def seconds_a_step(
    model: nn.Module, train: Dataset, settings: Settings, warm: int = 5, timed: int = 15
) -> float:
    """How long one of `fit`'s steps takes, its pictures included: the mean of `timed` ones after `warm` others.

    They are the steps that `fit` would begin with, and the model is trained by them.
    """
    batches, learner = _Steps(train, settings), _Learner(model, settings, processes())
    for step in range(warm + timed):
        if step == warm:
            _wait()
            began = time.perf_counter()
        learner.step(step, *batches[step])
    _wait()
    return (time.perf_counter() - began) / timed


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _report(history: History, losses: Tensor, done: int, settings: Settings) -> None:
    loss = float(losses.mean())
    if not math.isfinite(loss):
        first = done - len(losses) + next(i for i, x in enumerate(losses) if not torch.isfinite(x))
        raise FloatingPointError(
            f"The loss became {float(losses[-1])} at step {first + 1}; lower learning_rate "
            f"({settings.learning_rate:g}), lengthen the warm-up, or look for masks that are void everywhere. "
            f"The last checkpoint in {history.folder} is from before."
        )
    history.steps.append(done)
    history.loss.append(loss)
