"""The student's side: runs a submission's cells and answers calls of its functions. Started by `sandbox`, alone.

Tests never come here. The grader, in another process, asks for a name, calls it with plain data and compares what
comes back itself, so nothing that happens in this process (patched comparisons, input transformers, a forged reply)
can do more than return a value. A message is one line of JSON; tensors and arrays travel as bytes in base64, and no
pickle is ever read. Whatever is not plain data stays here and travels as a reference.

This file must run where nothing else of the package can be seen, and imports torch only if the submission has.
"""

import ast
import base64
import json
import math
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

PLAIN = (bool, int, float, str, type(None))
MAX_MESSAGE = 16_000_000  # bytes; as JSON the grader may need forty times as much memory


# --- plain data to JSON and back: both sides use these -------------------------------------------


def encode(value: Any, refer: Callable[[Any], dict]) -> Any:
    """`value` as JSON data; what is not plain data becomes `refer(value)`."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if type(value) in PLAIN:
        return value
    if value is ...:  # what stands where nothing has been answered
        return {"kind": "ellipsis"}
    if isinstance(value, list | tuple):
        return {
            "kind": "tuple" if isinstance(value, tuple) else "list",
            "of": [encode(v, refer) for v in value],
        }
    if isinstance(value, Mapping):
        return {"kind": "dict", "of": [[encode(k, refer), encode(v, refer)] for k, v in value.items()]}
    if torch and isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        data = array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b""
        return _pack("tensor", str(array.dtype).removeprefix("torch."), array.shape, data)
    if torch and isinstance(value, torch.dtype):
        return {"kind": "dtype", "of": str(value).removeprefix("torch.")}
    if numpy and isinstance(value, numpy.generic):
        return encode(value.item(), refer)
    if numpy and isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf":
        return _pack("array", value.dtype.name, value.shape, value.tobytes())
    return refer(value)


def _pack(kind: str, dtype: str, shape: Any, data: bytes) -> dict:
    return {"kind": kind, "dtype": dtype, "shape": list(shape), "of": base64.b64encode(data).decode()}


def decode(data: Any, resolve: Callable[[dict], Any]) -> Any:
    """The value that `encode` wrote; references go through `resolve`.

    Raises ValueError for anything `encode` would not have written: the other side may be hostile.
    """
    if type(data) in PLAIN:
        return data
    try:
        kind = data["kind"]
        if kind in ("list", "tuple"):
            values = [decode(v, resolve) for v in data["of"]]
            return tuple(values) if kind == "tuple" else values
        if kind == "dict":
            return {decode(k, resolve): decode(v, resolve) for k, v in data["of"]}
        if kind in ("tensor", "array"):
            return _unpack(data)
        if kind == "dtype":
            return _dtype(data["of"])
        if kind == "ellipsis":
            return ...
        if kind == "reference":
            return resolve(data)
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"not a message: {error}") from None
    raise ValueError(f"not a message: kind {str(kind)[:40]!r}")


def _dtype(name: str) -> Any:
    import torch

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError("not a message: no dtype")
    return dtype


def _unpack(data: dict) -> Any:
    import torch

    dtype, raw = _dtype(data["dtype"]), bytearray(base64.b64decode(data["of"], validate=True))
    shape = [int(n) for n in data["shape"]]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError("not a message: shape and size differ")
    tensor = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
    return tensor if data["kind"] == "tensor" else tensor.numpy()


# --- the server ----------------------------------------------------------------------------------


class Worker:
    """The namespace of a submission, and the objects in it that the grader holds references to."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__", "display": lambda *_, **__: None}
        self.objects: list[Any] = []

    def answer(self, request: dict) -> dict:
        """The reply to one request: a value, or what was raised, as data."""
        try:
            return {"value": encode(getattr(self, "do_" + request["do"])(request), self._refer)}
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the next question goes on
            return {"raised": type(error).__name__, "text": str(error)[:2000], "where": _where(error)}

    def do_run(self, request: dict) -> None:
        exec(compile(_python(request["source"]), request["cell"], "exec"), self.names)

    def do_imports(self, request: dict) -> list[str]:
        return imports(request["source"])

    def do_get(self, request: dict) -> dict:
        return {name: self.names[name] for name in request["names"] if name in self.names}

    def do_attribute(self, request: dict) -> Any:
        return getattr(self.objects[request["of"]], request["name"])

    def do_call(self, request: dict) -> Any:
        args = decode(request["args"], self._resolve)
        return self.objects[request["of"]](*args, **decode(request["options"], self._resolve))

    def _refer(self, value: Any) -> dict:
        self.objects.append(value)
        return {"kind": "reference", "of": len(self.objects) - 1, "type": type(value).__name__}

    def _resolve(self, data: dict) -> Any:
        return self.objects[data["of"]]


def _python(source: str) -> str:
    """The cell without lines for IPython, such as `%matplotlib inline`, if it is no Python as it stands."""
    try:
        ast.parse(source)
    except SyntaxError:
        return re.sub(r"^[ \t]*[%!].*$", "", source, flags=re.M)
    return source


def imports(source: str) -> list[str]:
    """Modules, and names in modules, that a cell imports. Here, since a cell can be written to crash the parser."""
    found = []
    for node in ast.walk(ast.parse(_python(source))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _where(error: BaseException) -> str:
    """The last line of a submission's own cell on the way to the error: "cell q2_miou, line 3"."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("cell ")]
    if isinstance(error, SyntaxError) and str(error.filename).startswith("cell "):
        return f"{error.filename}, line {error.lineno}"
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def confine(limits: dict) -> None:
    """Give up rights for good: limits on resources, then (as root) another user id.

    Limits are hard ones, which only root can raise. The id is a real one, because the kernel counts no processes
    of root; without a user namespace it is nobody's, one that no account has.
    """
    import resource

    with open("/proc/self/oom_score_adj", "w") as score:  # if memory runs out after all, this goes first
        score.write("1000")
    names = {"memory": resource.RLIMIT_AS, "cpu": resource.RLIMIT_CPU, "file": resource.RLIMIT_FSIZE}
    names |= {"files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}
    for name, number in names.items():
        most = resource.getrlimit(number)[1]
        value = limits[name] if most == resource.RLIM_INFINITY else min(limits[name], most)
        resource.setrlimit(number, (value, value))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(*[limits["user"]] * 3)
        os.setresuid(*[limits["user"]] * 3)


def serve(channel: socket.socket) -> None:
    """Answer requests, one line each, until the grader hangs up."""
    worker = Worker()
    with channel, channel.makefile("rwb") as stream:
        stream.write(b'"ready"\n')
        stream.flush()
        for line in stream:
            reply = json.dumps(worker.answer(json.loads(line))).encode()
            if len(reply) > MAX_MESSAGE:
                reply = json.dumps(
                    {"raised": "ValueError", "text": "the answer is too large", "where": ""}
                ).encode()
            stream.write(reply + b"\n")
            stream.flush()


def main() -> None:
    """`worker.py FD PATH LIMITS`: serve on the socket FD, import from PATH too, under LIMITS (JSON; {} for none)."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = sys.argv[2]  # instead of this file's own folder
    if limits := json.loads(sys.argv[3]):
        confine(limits)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # what is printed goes nowhere, however much it is
        os.dup2(nothing, standard)
    serve(channel)


if __name__ == "__main__":
    main()
