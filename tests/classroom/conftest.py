import shutil
from pathlib import Path

import pytest

from course import write_source
from deeplab_edu.classroom.sandbox import NoSandbox, check_sandbox


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def sandbox() -> None:
    """For tests that need bubblewrap; CI takes their skip as a failure (required_in_ci)."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    try:
        check_sandbox()
    except NoSandbox as error:
        pytest.skip(str(error))
