"""Results: what is written can be read, says where it comes from, and notices that the code has changed."""

import json
import shutil
from datetime import date
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from deeplab_edu import results
from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import code_digest, load_result, machine, save_result, spread

CI = PROFILES["ci"]


def test_a_saved_result_is_loaded_again(tmp_path):
    measured = {"fcn8s": [0.25, 0.5], "params": 12}
    path = save_result("ladder", "python x.py", CI, measured, folder=tmp_path, seeds=[0, 1])
    assert path == tmp_path / "ladder.json"
    loaded = load_result("ladder", folder=tmp_path)
    assert loaded["measured"] == measured
    assert loaded["seeds"] == [0, 1]
    assert (loaded["command"], loaded["profile"]) == ("python x.py", "ci")
    assert loaded["date"] == date.today().isoformat()
    assert loaded["code"] == code_digest()
    assert loaded["machine"] == machine()


def test_tensors_arrays_and_mappings_become_plain_numbers(tmp_path):
    measured = {
        "a": torch.tensor(0.5),
        "b": np.float32(2),
        "c": MappingProxyType({"width": 8}),
        "d": Path("x"),
    }
    save_result("plain", "", CI, measured, folder=tmp_path)
    assert load_result("plain", folder=tmp_path)["measured"] == {
        "a": 0.5,
        "b": 2.0,
        "c": {"width": 8},
        "d": "x",
    }


def test_the_folder_is_made_and_the_file_ends_with_a_newline(tmp_path):
    path = save_result("first", "", CI, 1, folder=tmp_path / "new" / "results")
    assert path.read_text().endswith("}\n")


def test_a_missing_result_lists_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no result 'fcn' in .*/; recorded are: none\."):
        load_result("fcn", folder=tmp_path)
    for name in ("b", "a"):
        save_result(name, "", CI, 0, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"recorded are: a, b\."):
        load_result("fcn", folder=tmp_path)


def test_machine_says_what_a_repetition_needs():
    facts = machine()
    assert torch.__version__.startswith(facts["versions"]["torch"].split("+")[0])
    assert facts["threads"] == torch.get_num_threads()
    json.dumps(facts)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package that `code_digest` reads instead."""
    copy = tmp_path / "deeplab_edu"
    shutil.copytree(Path(results.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(results, "__file__", str(copy / "results.py"))
    return copy


def test_the_digest_is_that_of_the_content(package, monkeypatch):
    copied = code_digest()
    monkeypatch.undo()
    assert copied == code_digest()
    assert len(copied) == 10 and int(copied, 16) >= 0


@pytest.mark.parametrize(
    "file", ["metrics.py", "training.py", "profiles.py", "models/fcn.py", "data/scenes.py"]
)
def test_the_digest_changes_with_code_that_decides_numbers(package, file):
    before = code_digest()
    text = (package / file).read_text()
    (package / file).write_text(text + "# a comment\n")
    assert code_digest() == before
    (package / file).write_text(text + "CHANGED = 1\n")
    assert code_digest() != before


def test_docstrings_do_not_count(package):
    before, file = code_digest(), package / "metrics.py"
    first, rest = file.read_text().split('"""\n', 1)
    file.write_text(f'{first} and more."""\n{rest}')
    assert code_digest() == before


def test_the_digest_changes_when_a_file_appears_or_is_renamed(package):
    seen = {code_digest()}
    (package / "models" / "deeplab_v9.py").touch()
    seen.add(code_digest())
    (package / "models" / "deeplab_v9.py").rename(package / "models" / "other.py")
    seen.add(code_digest())
    assert len(seen) == 3


@pytest.mark.parametrize("file", ["figures.py", "explorers.py", "results.py"])
def test_the_digest_leaves_out_what_only_shows_numbers(package, file):
    before = code_digest()
    (package / file).write_text("changed = True\n")
    assert code_digest() == before


def test_spread_by_hand():
    assert spread([0.164, 0.173, 0.176]) == "17.1 (16.4 to 17.6)"
    assert spread([0.5]) == "50.0 (50.0 to 50.0)"
    assert spread(value for value in (1.0, 0.0)) == "50.0 (0.0 to 100.0)"
