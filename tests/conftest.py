"""What holds for every test: one torch thread, where real data lies, what may not be skipped in CI.

Put `pytest.importorskip` into a test or fixture, not at the top of a module: CI takes a module that skips
itself as a failure, because nobody would notice the tests that are gone.
"""

import os
from pathlib import Path

import pytest

# Two torch threads on a busy machine with two cores can be ten times slower than one. Set before torch is
# imported, so that tests that do not need torch do not pay for it; kernels and child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
if "DEEPLAB_EDU_DATA" not in os.environ and SHARED_DATA.is_dir():
    os.environ["DEEPLAB_EDU_DATA"] = str(SHARED_DATA)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_collection_modifyitems(items):
    wanting_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if wanting_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in wanting_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if in_ci() and report.skipped and call.excinfo and item.get_closest_marker("required_in_ci"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must run in CI but was skipped: {call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skips itself as a whole; skip in a test or fixture instead"
    return report
