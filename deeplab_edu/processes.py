"""Several processes that train one model. One is the usual case: then every function here does nothing.

`accelerate launch -m deeplab_edu train ...` starts them (docs/many-gpus.md); accelerate tells each process its number
and its device, and lets torch average the gradients. Whatever is decided from a number (stop? what is the score?) is
decided from one sum over all processes, so that none of them waits for a step that another does not take.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPI


@dataclass(frozen=True)
class Processes:
    """What one process knows of all: how many there are, which one it is (0 writes the files), its device."""

    count: int = 1
    index: int = 0
    accelerator: Any = None
    group: Any = (
        None  # gloo: numbers that are on the CPU stay there, also where gradients travel between GPUs
    )

    @property
    def first(self) -> bool:
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of each process's tensor, on the CPU (of one process: the tensor itself)."""
        if self.count == 1:
            return tensor
        tensor = tensor.detach().cpu().clone()
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def any(self, flag: bool) -> bool:
        return flag if self.count == 1 else bool(self.sum(torch.tensor(int(flag))) > 0)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all; if it fails, the others leave without a word of their own."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.group)
        if box[1] is not None:
            raise box[1] if self.first else SystemExit(2)
        return box[0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on this process's device, with gradients averaged over all, and batch statistics on GPUs too."""
        if self.count == 1:
            return model
        if self.accelerator.device.type == "cuda":  # torch has no such layer for CPUs
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return self.accelerator.prepare_model(model)

    def align(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: each has counted batch statistics of its own since."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def or_a_sentence(self, advice: str) -> Iterator[None]:
        """Turn what the backends say when a process is gone into a sentence.

        Raises:
            ConnectionError: another process ended.
        """
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            text = str(error).lower()
            lost = isinstance(error, dist.DistError) or "gloo" in text or "connection" in text
            if self.count == 1 or not lost:
                raise
            raise ConnectionError(
                f"Another of the {self.count} processes of this run has ended; {advice}"
            ) from error


_several: Processes | None = None


def processes(cpu: bool = False) -> Processes:
    """The processes that were launched together with this one; `cpu` keeps all of them on CPUs."""
    global _several
    if _several is None:
        if not dist.is_initialized() and all(int(os.environ.get(name) or 1) == 1 for name in COUNTS):
            return Processes()
        from accelerate import Accelerator

        # `mixed_precision` of a launcher's configuration is not asked: `Settings.precision` says it
        accelerator = Accelerator(cpu=cpu or not torch.cuda.is_available(), mixed_precision="no")
        if accelerator.num_processes == 1:
            return Processes()
        group = dist.new_group(backend="gloo")
        _several = Processes(accelerator.num_processes, accelerator.process_index, accelerator, group)
    return _several


def leave() -> None:
    """Say good-bye to the other processes, at the end of a program."""
    global _several
    if _several is not None:
        _several = None
        dist.destroy_process_group()
