"""Everything that goes wrong with pictures and downloads, on purpose: for the tests, and for docs/bad-input.md.

python tools/bad_input.py        writes the tables: each fault beside what the reader is told
"""

import hashlib
import http.server
import json
import os
import re
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deeplab_edu.cli import main as command_line
from deeplab_edu.data import download
from deeplab_edu.models import build_model
from deeplab_edu.results import load_result
from deeplab_edu.training import save_weights

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bad-input.md"
CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()

# ---- pictures


def photo(height: int = 60, width: int = 80) -> Image.Image:
    """Noise laid over a slope: no two pixels alike, but a JPEG keeps most of it."""
    slope = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    return Image.fromarray((slope + np.random.default_rng(0).integers(0, 50, slope.shape)).astype(np.uint8))


def saved(path: Path, mode: str = "RGB", **options: Any) -> None:
    photo().convert(mode).save(path, **options)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(path, exif=exif)


def array(path: Path, kind: type) -> None:
    Image.fromarray(np.asarray(photo().convert("L")).astype(kind) * 257).save(path)


def animated(path: Path, **options: Any) -> None:
    photo().save(path, save_all=True, append_images=[photo().rotate(180)], **options)


def cut(path: Path, keep: float = 0.6) -> None:
    saved(path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def flipped_bit(path: Path) -> None:
    saved(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 3600 megapixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(9))),
    ]
    packed = (
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c))
        for k, c in [*chunks, (b"IEND", b"")]
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


HANDLED: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("turned by its EXIF data", "turned.jpg", turned, "turned upright, and so are its results"),
    ("grey", "grey.png", partial(saved, mode="L"), "as colour with three equal channels"),
    ("black and white, 1 bit", "bits.png", partial(saved, mode="1"), "likewise"),
    ("grey, 16 bits", "deep.png", partial(array, kind=np.uint16), "the upper 8 bits of each pixel"),
    ("with alpha", "alpha.png", partial(saved, mode="RGBA"), "alpha is dropped, colours stay"),
    ("palette", "palette.gif", partial(saved, mode="P"), "as the colours it stands for"),
    (
        "palette, partly transparent",
        "clear.png",
        partial(saved, mode="P", transparency=0),
        "likewise, alpha dropped",
    ),
    ("CMYK, for print", "print.jpg", partial(saved, mode="CMYK"), "converted without its colour profile"),
    ("animated", "moving.gif", animated, "the first frame"),
    ("several pages", "pages.tif", animated, "the first page"),
    ("two views, of a phone", "views.mpo", animated, "the first view"),
    (
        "ending that does not fit",
        "png.jpg",
        partial(saved, format="PNG"),
        "by its content, whatever its name",
    ),
    ("one pixel", "pixel.png", lambda path: photo(1, 1).save(path), "like any other"),
    (
        "6 megapixels",
        "large.jpg",
        lambda path: photo().resize((3000, 2000)).save(path),
        "seen at 1024 px (--long-side), labelled in full",
    ),
]
REFUSED: list[tuple[str, str, Callable[[Path], object]]] = [
    ("cut short", "short.jpg", cut),
    ("cut short", "short.png", cut),
    ("one bit turned over", "bit.png", flipped_bit),
    ("empty", "empty.jpg", Path.touch),
    ("not an image", "notes.jpg", lambda path: path.write_text("Dear diary,")),
    ("of an iPhone", "photo.heic", lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))),
    ("32 bits", "counts.tif", partial(array, kind=np.int32)),
    ("decimal fractions", "depth.tif", partial(array, kind=np.float32)),
    ("too many pixels", "bomb.png", bomb),
    ("not there", "gone.jpg", lambda path: None),
    ("a folder without pictures", "nothing", Path.mkdir),
]


def network(folder: Path, classes: int = 3) -> Path:
    """A run folder with a tiny network that nobody has trained; its answers vary from pixel to pixel."""
    options: dict[str, Any] = {"backbone": "tiny", "width": 4}
    torch.manual_seed(0)
    model = build_model("fcn8s", classes, **options)
    for name, parameter in model.named_parameters():
        if name.startswith("score"):  # zero, as they should be before training
            torch.nn.init.normal_(parameter, std=0.3)
    colors = [[40 * i, 255 - 40 * i, 20] for i in range(classes)]
    labels = {"names": [f"class {i}" for i in range(classes)], "colors": colors, "groups": {}}
    told = {"name": "fcn8s", "num_classes": classes, "options": options, "labels": labels}
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(told))
    save_weights(folder / "weights.safetensors", model)
    return folder


# ---- servers


class Server:
    """Serves CONTENT under every path; the path says how: /good, /stall, /truncate, ...; `log` keeps what was asked."""

    def __init__(self):
        self.log: list[tuple[str, str | None]] = []
        self.sent = 0
        self.done = threading.Event()
        handler = type("Handler", (Handler,), {"world": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{path}"

    def close(self):
        self.done.set()
        self.http.shutdown()
        self.http.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    world: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        asked = self.headers["Range"]
        self.world.log.append((self.path[1:], asked))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        getattr(self, self.path[1:].split("/")[0].replace("-", "_"))(start)

    def send(self, body: bytes, code: int = 200, kind: str = "application/x-tar", length=None, **headers):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.write(body)

    def write(self, body: bytes):
        self.world.sent += len(body)  # before: who has received it may ask at once
        self.wfile.write(body)
        self.wfile.flush()

    def part(self, start: int, body: bytes = CONTENT, stop: int | None = None):
        """The answer of a good server, perhaps broken off at byte `stop`."""
        stop = len(body) if stop is None else stop
        where = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        if start >= len(body):
            return self.send(b"", 416, Content_Range=f"bytes */{len(body)}")
        self.send(body[start:stop], 206 if start else 200, length=len(body) - start, **where)

    def good(self, start):
        self.part(start)

    def corrupt(self, start):
        self.part(start, b"\0" + CONTENT[1:])

    def truncate(self, start):
        self.part(start, stop=min(len(CONTENT), start + 100_000))

    def truncate_ignoring_ranges(self, start):
        self.send(CONTENT[:100_000], length=len(CONTENT))

    def stall(self, start):
        self.part(start, stop=start + 100_000)
        self.world.done.wait(20)

    def stall_for_good(self, start):
        self.part(start, stop=start or 100_000)
        self.world.done.wait(20)

    def silent(self, start):
        self.world.done.wait(20)

    def slow(self, start):
        self.part(start, stop=100_000)
        for begin in range(100_000, len(CONTENT), 1000):
            self.write(CONTENT[begin : begin + 1000])
            if self.world.done.wait(0.05):
                return

    def ignore_ranges(self, start):
        self.send(CONTENT)

    def refuse_ranges(self, start):
        self.send(b"", 416) if start else self.send(CONTENT)

    def wrong_range(self, start):
        self.send(CONTENT, 206, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")

    def page(self, start):
        self.send(b"<!DOCTYPE html><title>Log in</title>", kind="text/html; charset=utf-8")

    def missing(self, start):
        self.send(b"gone", 404, "text/html")

    def broken(self, start):
        self.send(b"oh", 500, "text/plain")

    def redirect(self, start):
        self.send(b"", 302, Location="/good")

    def circle(self, start):
        self.send(b"", 302, Location="/circle")

    def to_a_file(self, start):
        self.send(b"", 302, Location="file:///etc/hostname")

    def endless(self, start):
        self.send_response(200)
        self.end_headers()
        while not self.world.done.is_set():
            try:
                self.write(CONTENT)
            except OSError:
                return

    def nonsense(self, start):
        self.wfile.write(b"220 mail.example.org ESMTP\r\n\r\n")

    def hang_up(self, start):
        pass


BAD_SERVERS = {
    "knows no such file": ["missing"],
    "is broken itself": ["broken"],
    "shows a web page instead: a login, an error": ["page"],
    "sends another file, or damages it": ["corrupt"],
    "stalls, and again when asked for the rest": ["stall-for-good"],
    "does not answer at all": ["silent"],
    "breaks off each time": ["truncate-ignoring-ranges"],
    "never ends": ["endless"],
    "sends another part than was asked for": ["wrong-range"],
    "leads round in a circle": ["circle"],
    "leads to a file of one's own": ["to-a-file"],
    "speaks another language": ["nonsense"],
}
GOOD_ENDS = {
    "redirects": (["redirect"], "followed"),
    "stalls": (["stall"], "asked again after a while, from where it stopped"),
    "breaks off, and takes requests for the rest": (["truncate"], "asked again, from where it stopped"),
    "ignores such requests": (["ignore-ranges"], "the rest of what it sends is used"),
    "refuses such requests": (["refuse-ranges"], "asked for all of it"),
    "is bad, but the next mirror is not": (
        ["missing", "page", "truncate", "good"],
        "the next one goes on from there",
    ),
}


@contextmanager
def serving() -> Iterator["Server"]:
    """A server on this machine, for the length of a `with` block."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


def archive(*urls: str) -> download.Archive:
    return download.Archive("x.tar", len(CONTENT), f"md5:{MD5}", urls, {})


# ---- the tables


def picture_rows() -> Iterator[str]:
    """What `segment` does with each picture, as rows of a table; it has to be run in an empty folder."""
    kinds = [*HANDLED, *((*row, "") for row in REFUSED)]
    for _, name, make, _ in kinds:
        make(Path(name))
    run = network(Path("run"))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        status = command_line(
            ["segment", *(name for _, name, _, _ in kinds), "--run", str(run), "--out", "out"]
        )
    told = json.loads(Path("out/areas.json").read_text())
    assert status == 1 and set(told["refused"]) == {name for _, name, _ in REFUSED}
    for what, name, _, how in kinds:
        yield f"| {what} | `{name}` | {'labelled: ' + how if name in told['areas'] else told['refused'][name]} |"


def download_rows() -> Iterator[str]:
    """What is said of each bad server, as rows of a table; run in an empty folder, too."""
    timeout, download.TIMEOUT = download.TIMEOUT, 0.3
    try:
        for what, paths in BAD_SERVERS.items():
            with serving() as server:
                part = Path("x.tar.part")
                part.write_bytes(CONTENT[:1000]) if "range" in paths[0] else part.unlink(missing_ok=True)
                try:
                    download.fetch(archive(*map(server.url, paths)), Path())
                    raise AssertionError(f"{paths} should fail")
                except ConnectionError as error:
                    reason = re.search(r"127\.0\.0\.1:\d+/\S+ (.*?)\. Try again later", str(error), re.DOTALL)
                    assert reason
                    yield f"| {what} | {' '.join(reason[1].split())} |"
        for what, (paths, how) in GOOD_ENDS.items():
            with serving() as server:
                Path("x.tar").unlink(missing_ok=True)
                Path("x.tar.part").write_bytes(CONTENT[:1000])
                download.fetch(archive(*map(server.url, paths)), Path())
                yield f"| {what} | no error: {how} |"
    finally:
        download.TIMEOUT = timeout


def reliability_rows() -> Iterator[str]:
    """What `experiments/reliability.py` has recorded, as rows of a table."""
    for fault, told in load_result("reliability")["measured"].items():
        counts = (told[name] for name in ("tried", "recovered", "identical", "lost_epochs", "said"))
        yield f"| {fault} | {' | '.join(map(str, counts))} |"


TEXT = """# What happens with bad pictures, bad downloads and disturbed runs

Written by `python tools/bad_input.py`, which makes every picture and every server of these tables and copies down what
the package says; a test keeps it up to date. The last table is a record.

## Pictures given to `python -m deeplab_edu segment`

What is refused is refused alone: the others are labelled, and the exit status is 1.

| picture | file | what happens |
|---|---|---|
{pictures}

## Servers that a data set is downloaded from

Each mirror gets its reason, in a sentence that also names the file, its checksum, all addresses, and where to put it by
hand: *VOCtrainval_11-May-2012.tar could not be downloaded: https://... answered 404 (Not Found); https://... did not
answer (timed out). Try again later, which goes on where this broke off, or get VOCtrainval_11-May-2012.tar (2.0 GB, md5
6cd6...) in another way and put it at data/voc2012/VOCtrainval_11-May-2012.tar.*

| the server | what is said of it |
|---|---|
{downloads}

## Training that is disturbed

Real processes train by `python -m deeplab_edu train`, harm is done, and the same command is given again. *Recovered*:
it ran to the end. *Identical*: to the weights of a run that nothing happened to, bit for bit. *Epochs lost*: finished,
told to the reader, and trained again. *Said*: the sentence that was due came. Measured by
`python experiments/reliability.py`, kept in [results/reliability.json](../results/reliability.json).

| what happens | tried | recovered | identical | epochs lost | said |
|---|---|---|---|---|---|
{reliability}

On CPUs two processes each count batch statistics of their own, so a run that goes on with one ends with other weights.
"""


def page() -> str:
    """The text of docs/bad-input.md, from what really happens."""
    here = Path.cwd()
    parts = {}
    for name, rows in (("pictures", picture_rows), ("downloads", download_rows)):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                parts[name] = "\n".join(rows())
            finally:
                os.chdir(here)
    return TEXT.format(**parts, reliability="\n".join(reliability_rows()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
