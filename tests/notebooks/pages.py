"""Cells for notebooks that tests make on the spot."""

from typing import Any

from nbformat.v4 import new_code_cell, new_output


def code(source: str, *tags: str, count: int | None = None, stdout: str = "", error: str = "") -> Any:
    """A code cell; `stdout` and `error` ("Name: value") are its stored outputs."""
    outputs = [new_output("stream", name="stdout", text=stdout)] if stdout else []
    if error:
        name, value = error.split(": ")
        outputs.append(new_output("error", ename=name, evalue=value, traceback=[error]))
    metadata = {"tags": list(tags)} if tags else {}
    return new_code_cell(source, metadata=metadata, execution_count=count, outputs=outputs)
