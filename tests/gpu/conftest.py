"""What tests on a GPU share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 that is float32: TF32 has ten bits of mantissa."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value
