"""Files of a run: damage of any kind is noticed, one process owns the folder, a difference is named."""

import errno
import os

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from deeplab_edu.checkpoints import (
    Run,
    load_weights,
    read_tensors,
    save_weights,
    write_atomically,
    write_json,
)
from deeplab_edu.data import open_dataset
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.fingerprint import fingerprint_data


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.99])
def test_one_flipped_bit_is_noticed_wherever_it_is(tmp_path, place):
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Conv2d(3, 8, 3), step=3)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_tensors(path)


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    tensors, facts = read_tensors(tmp_path / "plain.safetensors")
    assert facts == {} and torch.equal(tensors["weight"], torch.ones(2))


def test_weights_of_another_model_are_refused(tmp_path):
    save_weights(tmp_path / "w.safetensors", nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match="holds the weights of another model"):
        load_weights(tmp_path / "w.safetensors", nn.Conv2d(3, 9, 3))


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_are_as_readable_as_any_other_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "w.safetensors", nn.Conv2d(3, 8, 3))
        write_json(tmp_path / "told.json", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_failed_write_leaves_both_old_files(tmp_path):
    path, before = tmp_path / "file", tmp_path / "before"
    path.write_text("newest")
    before.write_text("older")

    def fail(temporary):
        temporary.write_text("half")
        raise SafetensorError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail, keep=before)
    assert (path.read_text(), before.read_text()) == ("newest", "older")
    write_atomically(path, lambda p: p.write_text("new"), keep=before)
    assert (path.read_text(), before.read_text()) == ("new", "newest")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before", "file"]


def refusal_of_another_process(folder) -> str:
    """What a process of its own is told when it wants to own the folder."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with Run(folder).owned({"settings.json": {"of": "the other"}}):
                os.write(writing, b"owned")
        except BlockingIOError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return os.read(reading, 1000).decode()


@pytest.mark.skipif(os.name != "posix", reason="no locks of POSIX")
def test_a_second_owner_is_refused_and_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    with Run(folder).owned({"settings.json": {"of": "the first"}}):
        said = refusal_of_another_process(folder)
        assert f"{folder} is being trained by process {os.getpid()} on " in said
        assert "wait for it, stop it, or choose another folder" in said
    assert "the first" in (folder / "settings.json").read_text()
    assert refusal_of_another_process(folder) == "owned"


def test_an_owner_sweeps_what_a_killed_one_left(tmp_path):
    (tmp_path / ".checkpoint.safetensors.4711").write_text("half")
    with Run(tmp_path).owned({}):
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        OSError, match=r"The run folder .*run cannot be written \(Not a directory\); choose another"
    ):
        with Run(tmp_path / "file" / "run").owned({}):
            pass

    def read_only(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("deeplab_edu.checkpoints.os.replace", read_only)
    with pytest.raises(OSError, match=r"cannot be written \(Read-only file system\)"):
        with Run(tmp_path / "run").owned({"settings.json": {}}):
            pass


def test_another_run_is_refused_with_the_difference(tmp_path):
    run = Run(tmp_path)
    decides = {"learning_rate": 0.1, "seed": 0, "architecture": "ab", "contents of the training data": "cd"}
    run.check(decides)  # nothing is there yet
    write_json(tmp_path / "settings.json", {"decides": decides})
    run.check(dict(decides))
    other = {**decides, "learning_rate": 0.2, "architecture": "x", "contents of the training data": "y"}
    expected = (
        "holds another run: learning_rate was 0.1, is 0.2; architecture changed; contents of the training data "
        r"changed\. Choose another folder, or the same settings to go on with this one\."
    )
    with pytest.raises(ValueError, match=expected):
        run.check(other)
    write_json(tmp_path / "settings.json", {"settings": "of an older version"})
    run.check(other)


@pytest.fixture
def pictures(tmp_path):
    """Nine pictures in BMP, whose size does not depend on what they show; the key looks at three of them."""
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / kind).mkdir()
        for i in range(9):
            end = "bmp" if kind == "images" else "png"
            Image.new(mode, (32, 32)).save(tmp_path / kind / f"{i}.{end}")
    return tmp_path


@pytest.mark.parametrize("kind, file", [("images", "2.bmp"), ("masks", "6.png")])
def test_a_changed_picture_is_noticed_though_size_and_name_stay(pictures, kind, file):
    def key():
        return fingerprint_data(open_dataset("folder", "all", root=pictures, classes=["a", "b", "c"]))

    before, path = key(), pictures / kind / file
    assert key() == before
    size, changed = path.stat().st_size, Image.open(path)
    changed.putpixel((15, 12), 1 if kind == "masks" else (9, 9, 9))
    changed.save(path)
    if kind == "images":
        assert path.stat().st_size == size
    assert (after := key()) != before
    os.utime(path, (0, 0))
    assert key() == after


class Anonymous(SceneDataset):
    __repr__ = object.__repr__


def test_an_address_does_not_count():
    one, other = (Anonymous("shapes", size=16, length=4, transforms=lambda *item: item) for _ in range(2))
    assert repr(one) != repr(other) and fingerprint_data(one) == fingerprint_data(other)
    assert "shapes" in fingerprint_data(SceneDataset("shapes", size=16, length=4))[0]
    assert fingerprint_data(None) == ("none", "")
