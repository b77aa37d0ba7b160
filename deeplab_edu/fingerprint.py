"""What decides the outcome of a training run, as text and digests: model, weights, code and data."""

import hashlib
import re
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset


def fingerprint_model(model: nn.Module) -> dict[str, Any]:
    """Architecture, initial weights, frozen parameters, and the code of every forward that is not torch's."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    kinds = {type(m) for m in model.modules()}
    seen: set[FunctionType] = set()
    code = sorted(repr(_code(k.forward, seen)) for k in sorted(kinds, key=lambda k: k.__qualname__))
    return {
        "architecture": _short(str(model)),
        "initial weights": digest.hexdigest()[:16],
        "frozen parameters": [name for name, p in model.named_parameters() if not p.requires_grad],
        "code": _short(repr(code)),
    }


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def fingerprint_data(data: Dataset | None) -> tuple[str, str]:
    """A data set by its own description; a digest of three of its items and, of files, all names, sizes, endings."""
    if data is None:
        return "none", ""
    length = len(data)  # type: ignore[arg-type]
    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        for index in sorted({0, length // 2, length - 1}):
            torch.manual_seed(0)
            for tensor in data[index]:
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    for path in chain.from_iterable(getattr(data, "pairs", ())):
        if isinstance(path, Path):
            digest.update(_ending(path))
    described = re.sub(r" at 0x[0-9a-f]+", "", repr(data))  # an address says nothing, and changes
    transforms = re.sub(r" at 0x[0-9a-f]+", "", repr(getattr(data, "transforms", None)))
    if transforms not in described:
        described += f" with {transforms}"
    return f"{described}, {length} items", digest.hexdigest()[:16]


def _ending(path: Path, size: int = 256) -> bytes:
    """Name, size and last bytes of a file: in a PNG these hold a checksum of all its pixels.

    An edit changes the size of other compressed files, or their end; those that are not compressed are read whole.
    """
    with open(path, "rb") as file:
        length = file.seek(0, 2)
        file.seek(0 if path.suffix.lower() in (".bmp", ".tif", ".tiff") else max(0, length - size))
        return f"{path.parent.name}/{path.name} {length} ".encode() + file.read()
