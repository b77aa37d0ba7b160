"""What a network costs on images of a given size, counted on the graph that torch records, not from a formula."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeplab_edu.receptive_field import pair_of, to_meta


class Cost(NamedTuple):
    """Of one image."""

    flops: int  # of a forward pass; a multiplication and an addition are two
    kept_bytes: int  # what training keeps of the forward pass until the backward pass has used it


def cost(model: nn.Module, input_size: tuple[int, int], channels: int = 3) -> Cost:
    """FLOPs of a forward pass over an image (rows, columns), and the bytes that its backward pass needs.

    The model runs in training mode on torch's meta device, where tensors have shapes and no values, so that the
    largest network takes a fraction of a second. Each storage that autograd saves counts once; weights do not count.
    Raises ValueError if the model does not take such images.
    """
    rows, columns = pair_of(input_size, "input_size is (rows, columns) of the image", low=1)
    memo = {id(t): to_meta(t) for t in [*model.parameters(), *model.buffers()]}
    model = copy.deepcopy(model, memo).train().requires_grad_()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    images = torch.empty(
        2, channels, rows, columns, dtype=dtype, device="meta"
    )  # one would be too few for BatchNorm
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    counter: Any = FlopCounterMode(display=False)
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            counter,
        ):
            model(images)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the model takes no images of {rows} x {columns} with {channels} channels: {error}"
        ) from error
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers(), images]}
    kept = sum(t.untyped_storage().nbytes() for storage, t in saved.items() if storage not in own)
    return Cost(counter.get_total_flops() // 2, kept // 2)
