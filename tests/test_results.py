"""Results: what is written can be read, says where it comes from, and notices that the code has changed."""

import ast
import json
import shutil
import sys
from datetime import date
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab_edu import results
from deeplab_edu.models import MODELS
from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import (
    code_digest,
    load_result,
    machine,
    meaning,
    replace_arms,
    save_result,
    show_full_size,
    spread,
)

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


def test_arms_measured_anew_replace_their_own_and_leave_the_others(tmp_path):
    recorded = {"a": [0.1, 0.2], "b": [0.3]}
    save_result("arms", "python x.py", CI, recorded, folder=tmp_path, seeds=[0, 1], recipe={"rates": (1, 2)})
    before = load_result("arms", folder=tmp_path)
    same = {
        "seeds": [0, 1],
        "recipe": {"rates": (1, 2), "came later": 1},
    }  # a tuple, where the file has a list
    replace_arms("arms", "python x.py --arms b", {"b": [0.4, 0.5]}, same=same, folder=tmp_path)
    after = load_result("arms", folder=tmp_path)
    assert after["measured"] == {"a": [0.1, 0.2], "b": [0.4, 0.5]}
    assert set(after["again"]) == {"b"}
    assert after["again"]["b"]["command"] == "python x.py --arms b"
    assert after["again"]["b"]["code"] == code_digest()
    assert {k: v for k, v in after.items() if k not in ("again", "measured")} == {
        k: v for k, v in before.items() if k != "measured"
    }


def test_arms_of_another_recipe_are_not_mixed(tmp_path):
    was = {"seeds": [0], "recipe": {"rates": 3}}
    path = save_result("arms", "", CI, {"a": [0.1]}, folder=tmp_path, **was)
    before = path.read_bytes()
    for key, now in (("seeds", [0, 1]), ("recipe", {"rates": 4}), ("recipe", {})):
        with pytest.raises(
            ValueError, match=f"The recorded arms of 'arms' have another '{key}'; measure all"
        ):
            replace_arms("arms", "", {"a": [0.2]}, same=was | {key: now}, folder=tmp_path)
    assert path.read_bytes() == before


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


def test_the_digest_knows_of_the_crf_where_the_crf_was_used(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "deeplab_edu.crf", ModuleType("crf"))
    with_it = code_digest()
    (package / "crf.py").write_text("changed = True\n")
    assert code_digest() != with_it
    changed = code_digest(results.DECIDES)
    monkeypatch.delitem(sys.modules, "deeplab_edu.crf")
    for name in ("cost", "receptive_field"):
        monkeypatch.delitem(sys.modules, f"deeplab_edu.{name}", raising=False)
    assert code_digest() == changed


@pytest.mark.parametrize("file", ["figures.py", "explorers.py", "results.py"])
def test_the_digest_leaves_out_what_only_shows_numbers(package, file):
    before = code_digest()
    (package / file).write_text("changed = True\n")
    assert code_digest() == before


def test_code_means_the_same_to_a_newer_python(monkeypatch):
    """Python 3.12 gives each function and class a list of its type parameters; older ones have none."""
    source = "def f(x):\n    return x\n\n\nclass A:\n    def g(self): ...\n"
    before, parse, kinds = meaning(source), ast.parse, (ast.FunctionDef, ast.ClassDef)

    def newer(text: str) -> ast.Module:
        tree = parse(text)
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                node.type_params = []
        return tree

    with monkeypatch.context() as patch:  # left before anything is asserted: pytest reads code by ast, too
        for kind in kinds:
            patch.setattr(kind, "_fields", tuple(dict.fromkeys((*kind._fields, "type_params"))))
        patch.setattr(ast, "parse", newer)
        dumped, after = ast.dump(newer(source)), meaning(source)
    assert "type_params" in dumped
    assert after == before


def test_spread_by_hand():
    assert spread([0.164, 0.173, 0.176]) == "17.1 (16.4 to 17.6)"
    assert spread([0.5]) == "50.0"
    assert spread(value for value in (1.0, 0.0)) == "50.0 (0.0 to 100.0)"


def made_up(folder, name="deeplab_v3.resnet50", **changes):
    """A file as `experiments/full_size.py` writes it, with numbers that are easy to follow."""
    model, backbone = name.split(".")
    facts = {
        "model": model,
        "backbone": backbone,
        "image_size": 513,
        "parameters": 39_638_868,
        "seeds": [0, 2],
    }
    facts |= {"devices": ["GPU A", "GPU A"], "test_scenes": 500, "recipe": {"batch_size": 24}}
    scores = {"miou": [0.5, 0.6], "thin": [0.1, 0.3]}
    costs = {
        "minutes": [7.26, 7.5],
        "steps": [2000, 2000],
        "images_per_second": [150.4, 148.6],
        "peak_gib": [31.2, 31.2],
    }
    return save_result(
        f"full_size_{name}", "python x.py", CI, scores | costs, folder=folder, **facts | changes
    )


def test_what_a_gpu_recorded_is_told_in_full(tmp_path, capsys):
    made_up(tmp_path)
    show_full_size("deeplab_v3", folder=tmp_path)
    printed = capsys.readouterr().out
    first, second, *rows = printed.splitlines()
    assert first == f"deeplab_v3 on resnet50: 39.6 M parameters, scenes of 513 px, profile ci, {date.today()}"
    assert second == (
        "GPU A; 2 seeds (0, 2): 7.26 to 7.5 min, 2000 steps of 24 scenes, 149 to 150 images/s, 31.2 GiB at the peak"
    )
    assert rows[0] == "IoU on 500 test scenes, points, mean (range over seeds):"
    assert [row.split(maxsplit=1) for row in rows[1:3]] == [
        ["mIoU", "55.0 (50.0 to 60.0)"],
        ["thin", "20.0 (10.0 to 30.0)"],
    ]
    assert rows[3:] == ["made by: python x.py"]


def test_each_backbone_is_shown_and_no_other_model(tmp_path, capsys):
    for name in ("deeplab_v3.resnet101", "deeplab_v3.resnet50", "deeplab_v3plus.xception65"):
        made_up(tmp_path, name)
    show_full_size("deeplab_v3", folder=tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("deeplab_v3 on resnet") == 2 and "v3plus" not in printed


def test_one_seed_and_no_memory(tmp_path, capsys):
    made_up(tmp_path, seeds=[1], devices=["GPU B"])
    path = tmp_path / "full_size_deeplab_v3.resnet50.json"
    result = json.loads(path.read_text())
    del result["measured"]["peak_gib"]
    path.write_text(json.dumps(result))
    show_full_size("deeplab_v3", folder=tmp_path)
    assert "GPU B; seed 1: " in (printed := capsys.readouterr().out) and "memory not measured" in printed


def test_the_picture_beside_a_result_is_shown(tmp_path, monkeypatch):
    shown: list = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    made_up(tmp_path)
    show_full_size("deeplab_v3", folder=tmp_path)
    assert not shown
    Image.new("RGB", (4, 4), "red").save(tmp_path / "full_size_deeplab_v3.resnet50.png")
    show_full_size("deeplab_v3", folder=tmp_path)
    (picture,) = shown
    assert picture.data == (tmp_path / "full_size_deeplab_v3.resnet50.png").read_bytes()
    assert "deeplab_v3" in picture.alt


@pytest.mark.parametrize("model", MODELS)
def test_where_nothing_is_recorded_it_says_so_and_how(model, tmp_path, capsys):
    show_full_size(model, folder=tmp_path)
    sentence, command = capsys.readouterr().out.splitlines()
    assert sentence.startswith(f"No run of {model} at full size is recorded yet.")
    assert command == f"python experiments/full_size.py --model {model} --seed 0 --minutes 8"


def test_full_size_of_no_model():
    with pytest.raises(
        ValueError, match=r"No model is called 'fcn4s'; choose from fcn32s, .*deeplab_v3plus\."
    ):
        show_full_size("fcn4s")
