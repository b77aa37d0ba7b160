"""Makes nbval 0.11 stricter where it lets a broken notebook pass, and quicker where it only waits.

nbval left alone ...                                                 with this file
passes a cell that fails without an error message (unknown magic)    the kernel's reply decides
passes a cell tagged raises-exception that raises nothing            fails
checks nothing if a cell tagged nbval-check-output stores nothing    fails before the cell runs
waits the whole cell timeout for a kernel that has died              fails after a second
gives up on outputs 5 s after the reply                              waits 30 s
goes on after a failure, so that one error becomes many              skips the rest of the notebook

It also keeps what a notebook shows, where `make gpu-course` asks for it.
It leans on nbval's internals, hence the pinned nbval; tests/notebooks/test_rig.py plants each defect.
"""

import base64
import os
import time
from pathlib import Path
from queue import Empty

import nbval.plugin
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, NbCellError

OUTPUT_TIMEOUT = 30  # seconds
POLL = 1  # seconds between two looks at whether the kernel is alive


class KernelDied(Exception):
    """The kernel's process ended while a cell was running."""


class WatchedKernel(RunningKernel):
    """A kernel that keeps its last reply and notices its own death."""

    def get_message(self, stream, timeout=None):
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            try:
                message = super().get_message(stream, timeout=max(0, min(POLL, deadline - time.monotonic())))
            except Empty:
                if not self.is_alive():
                    raise KernelDied from None
                if time.monotonic() >= deadline:
                    raise
            else:
                if stream == "shell" and message["msg_type"] == "execute_reply":
                    self.last_reply = message["content"]
                return message


nbval.plugin.RunningKernel = WatchedKernel


def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = OUTPUT_TIMEOUT


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if failed := getattr(item.parent, "failed_cell", None):
        pytest.skip(f"not run, because {failed} failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not isinstance(item, IPyNbCell):
        return (yield)
    try:
        _refuse_empty_reference(item)
        try:
            result = yield
        finally:
            _keep_shown(item)
        _compare_with_reply(item)
        return result
    except KernelDied:
        item.parent.failed_cell = item.name
        item.parent.kernel.stop()
        raise _error(item, "The kernel died (out of memory?)") from None
    except pytest.skip.Exception:
        raise
    except BaseException:
        item.parent.failed_cell = item.name
        raise


def _keep_shown(item):
    """Write what the cell printed and drew into the folder that `tools/notebooks.py gpu` names."""
    if folder := os.environ.get("DEEPLAB_EDU_SHOWN_INTO"):
        for number, output in enumerate(item.test_outputs or ()):
            name = Path(folder) / f"{item.cell_num:03d}"
            if output.output_type == "stream" and output.name == "stdout":
                name.with_suffix(".txt").write_text(output.text)
            elif png := output.get("data", {}).get("image/png"):
                Path(f"{name}.{number}.png").write_bytes(base64.b64decode(png))


def _refuse_empty_reference(item):
    if item.options["check"] and (item.cell.execution_count is None or not item.cell.outputs):
        raise _error(item, "The output is to be checked, but none is stored; execute the notebook")


def _compare_with_reply(item):
    reply, may_raise = item.parent.kernel.last_reply, item.options["check_exception"]
    if reply["status"] == "error" and not may_raise:
        raise _error(item, f"{reply['ename']}: {reply['evalue']}")
    if reply["status"] == "ok" and may_raise:
        raise _error(item, "The cell is tagged raises-exception but did not raise")


def _error(item, message):
    return NbCellError(item.cell_num, message, item.cell.source)
