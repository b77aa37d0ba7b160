"""What becomes of a training run when things go wrong: real processes, real faults, figures.

    python experiments/reliability.py               (some minutes; --short: half a minute, fewer of each)

Each trial trains with the command line on a folder of small pictures, does harm, runs the same command again and
compares the final weights with those of a run that nothing happened to, bit for bit. Writes results/reliability.json.
"""

import argparse
import contextlib
import json
import multiprocessing as mp
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from deeplab_edu.checkpoints import read_tensors
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.profiles import Profile
from deeplab_edu.results import save_result

EPOCH = 4  # steps; each epoch ends with a checkpoint and a line in log.txt


def command(root: Path, run: Path, *more: str) -> list[str]:
    return [
        *(
            "train",
            "--profile",
            "ci",
            "--data",
            "folder",
            "--root",
            str(root),
            "--crop",
            "32",
            "--run",
            str(run),
        ),
        *("--option", "width=4", "--batch-size", "4", "--iterations", STEPS, "--warmup", "2", *more),
    ]


STEPS = "60"


def child(words: list[str], output: str, environment: dict[str, str], size_limit: int | None) -> None:
    """Runs in a process of its own: the command line, with everything it says in a file."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    if size_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, size_limit))
    from deeplab_edu.cli import main

    mp.set_start_method("fork", force=True)  # for what the command starts itself, as where it is typed in
    status = main(words)
    sys.stdout.flush()
    os._exit(status)


class Trial:
    """One run folder, and what was done to it."""

    def __init__(self, top: Path, name: str):
        self.folder, self.root = top / name / "run", top / "data"
        self.output = top / name / "output.txt"
        self.output.parent.mkdir(parents=True)

    def start(
        self, *more: str, size_limit: int | None = None, output: Path | None = None, **environment: str
    ):
        words = command(self.root, self.folder, *more)
        process = PROCESSES.Process(
            target=child, args=(words, str(output or self.output), environment, size_limit)
        )
        process.start()
        return process

    def run(self, *more: str, **how: Any) -> int:
        process = self.start(*more, **how)
        process.join()
        return process.exitcode

    def said(self, path: Path | None = None) -> str:
        return (path or self.output).read_text() if (path or self.output).exists() else ""

    def step(self) -> int:
        """The step of the newest readable checkpoint."""
        for name in ("checkpoint", "checkpoint-before"):
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                return read_tensors(self.folder / f"{name}.safetensors")[1]["step"]
        return 0

    def logged(self) -> int:
        """The last finished epoch that the reader was told of, in steps."""
        log = self.folder / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        steps = [
            int(line.split("step ")[1].split("/")[0])
            for line in lines
            if " step " in line and " left" in line
        ]
        return max((s for s in steps if s % EPOCH == 0), default=0)

    def killed_after(self, epochs: int, *more: str) -> None:
        process = self.start(*more)
        while self.step() < epochs * EPOCH and process.is_alive():
            time.sleep(0.01)
        process.kill()
        process.join()

    def outcome(self, reference: Path, before: int | None = None, **told: Any) -> dict[str, Any]:
        """Run the command again, to the end; compare."""
        status = self.run()
        weights = self.folder / "weights.safetensors"
        same = weights.exists() and same_tensors(weights, reference)
        return {"recovered": status == 0 and weights.exists(), "identical": same, **told}


def same_tensors(a: Path, b: Path) -> bool:
    one, other = read_tensors(a)[0], read_tensors(b)[0]
    return one.keys() == other.keys() and all(bool((one[k] == other[k]).all()) for k in one)


def write_pictures(root: Path) -> None:
    """Sixteen scenes to learn from and four to score, as a reader's own folder of photographs."""
    data = SceneDataset("shapes", size=48, length=20)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(20):
        image, mask = data[i]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / f"{i:02d}.png")
        Image.fromarray(mask.numpy()).save(root / "masks" / f"{i:02d}.png")
    for split, numbers in (("train", range(16)), ("val", range(16, 20))):
        (root / f"{split}.txt").write_text("\n".join(f"{i:02d}" for i in numbers))
    (root / "classes.txt").write_text("\n".join(data.labels.names))


def kill(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """SIGKILL at a moment drawn from the whole length of a run, then the same command again."""
    moments = random.Random(0)
    for number in range(count):
        trial = Trial(top, f"kill-{number}")
        process = trial.start()
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.join()
        logged, kept = trial.logged(), trial.step()
        finished = (trial.folder / "weights.safetensors").exists()
        lost = 0 if finished else max(0, logged - kept) // EPOCH
        yield trial.outcome(reference, killed_at_step=logged, lost_epochs=lost)


def damage(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The newest checkpoint is damaged, in one of four ways; the one before it must do."""
    begun = Trial(top, "damage")
    begun.killed_after(5)
    for number, harm in enumerate((one_bit, cut_short, zeros, empty)[: max(2, min(count, 4))]):
        trial = Trial(top, f"damage-{number}")
        shutil.copytree(begun.folder, trial.folder)
        harm(trial.folder / "checkpoint.safetensors")
        before = trial.step()
        told = trial.outcome(reference, lost_epochs=0 if before else 1)
        yield told | {"said": f"Going on after step {before}, from checkpoint-before" in trial.said()}


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_checkpoint_left(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Both checkpoints are damaged: the run begins again, and says so."""
    trial = Trial(top, "both")
    trial.killed_after(4)
    for path in trial.folder.glob("checkpoint*.safetensors"):
        cut_short(path)
    yield trial.outcome(reference) | {"said": "No readable checkpoint is left" in trial.said()}


def size_limit(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """A limit on the size of files is reached while a checkpoint is written."""
    trial = Trial(top, "limit")
    trial.killed_after(3)
    kept = trial.step()
    size = (trial.folder / "checkpoint.safetensors").stat().st_size
    refused = trial.run(size_limit=size // 2) == 2
    lost = max(0, kept - trial.step()) // EPOCH
    said = "could not be written" in trial.said() and "File too large" in trial.said()
    yield trial.outcome(reference, lost_epochs=lost) | {"said": refused and said}


def read_only(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The folder of a run becomes read-only (file modes do not stop root: for it the folder is made immutable)."""
    trial = Trial(top, "read-only")
    trial.killed_after(3)
    kept = trial.step()
    if os.geteuid() == 0:
        if subprocess.run(["chattr", "+i", str(trial.folder)], capture_output=True).returncode:
            return  # not tried: neither modes nor chattr work here
    else:
        trial.folder.chmod(0o555)
        (trial.folder / "lock").chmod(0o444)
    refused = trial.run() == 2
    if os.geteuid() == 0:
        subprocess.run(["chattr", "-i", str(trial.folder)], check=True)
    else:
        trial.folder.chmod(0o755)
        (trial.folder / "lock").chmod(0o644)
    lost = max(0, kept - trial.step()) // EPOCH
    yield trial.outcome(reference, lost_epochs=lost) | {
        "said": refused and "cannot be written" in trial.said()
    }


def two_at_once(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """A second process in the folder of a running one is refused; the first one's death frees the folder at once."""
    trial = Trial(top, "two")
    first = trial.start("--workers", "1")
    while trial.step() < EPOCH and first.is_alive():
        time.sleep(0.01)
    output = trial.output.with_name("second.txt")
    refused = trial.run(output=output) == 2
    said = f"is being trained by process {first.pid}" in trial.said(output)
    still = first.is_alive()
    first.kill()  # its worker, which it forked, lives on for some seconds
    first.join()
    yield trial.outcome(reference) | {"said": refused and said and still}


def changed(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The command is given again with another setting, option, or with a picture that has changed."""
    trial = Trial(top, "changed")
    trial.killed_after(3)
    picture = trial.root / "images" / "05.png"
    original = picture.read_bytes()
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(picture)
    another = trial.run() == 2 and "contents of the training data changed" in trial.said()
    picture.write_bytes(original)
    trial.output.unlink()
    rate = trial.run("--learning-rate", "0.5") == 2 and "learning_rate was 0.008, is 0.5" in trial.said()
    model = trial.run("--option", "width=6") == 2 and "architecture changed" in trial.said()
    yield trial.outcome(reference) | {"said": another and rate and model}


def asked_to_stop(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Ctrl-C, and the SIGTERM of a queue or a shutdown: the step is finished and kept."""
    for number in (signal.SIGINT, signal.SIGTERM):
        trial = Trial(top, number.name)
        process = trial.start()
        while trial.step() < 2 * EPOCH and process.is_alive():
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join()
        stopped = trial.said().split("Stopped after step ")
        kept = len(stopped) > 1 and int(stopped[1].split(";")[0]) == trial.step()
        yield trial.outcome(reference) | {"said": process.exitcode == 130 and kept}


def one_of_two(top: Path, reference: Path, count: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One of two processes that train together is killed; the run goes on with one. (Batch norm counts each process's
    own pictures on CPUs, so the weights are others: what is compared is that the run ends where it should.)"""
    for victim in (0, 1):
        trial = Trial(top, f"one-of-two-{victim}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        outputs = [trial.output.with_name(f"{i}.txt") for i in (0, 1)]
        same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pair = [trial.start(output=outputs[i], RANK=str(i), LOCAL_RANK=str(i), **same) for i in (0, 1)]
        while trial.step() < 3 * EPOCH and all(p.is_alive() for p in pair):
            time.sleep(0.01)
        kept = trial.step()
        pair[victim].kill()
        pair[1 - victim].join(60)
        ended = not pair[1 - victim].is_alive()
        pair[1 - victim].kill()
        lost = max(0, kept - trial.step()) // EPOCH
        said = "Another of the 2 processes of this run has ended" in trial.said(outputs[1 - victim])
        told = trial.outcome(reference, lost_epochs=lost) | {"said": ended and said}
        steps = json.loads(json.dumps(read_tensors(trial.folder / "weights.safetensors")[1]))["history"][
            "steps"
        ]
        yield told | {"identical": None, "recovered": told["recovered"] and steps[-1] == int(STEPS)}


Fault = Callable[[Path, Path, int, float], Iterator[dict[str, Any]]]
FAULTS: dict[str, Fault] = {
    "kill -9 at a random moment": kill,
    "newest checkpoint damaged": damage,
    "both checkpoints damaged": no_checkpoint_left,
    "file-size limit reached in a checkpoint": size_limit,
    "run folder read-only": read_only,
    "a second process in the folder": two_at_once,
    "a changed setting, model or picture": changed,
    "asked to stop: Ctrl-C, SIGTERM": asked_to_stop,
    "one of two processes killed": one_of_two,
}


def summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one fault: how often it was tried, what came of it, and the sentence that was due."""
    compared = [o["identical"] for o in outcomes if o["identical"] is not None]
    said = [o["said"] for o in outcomes if "said" in o]
    return {
        "tried": len(outcomes),
        "recovered": sum(o["recovered"] for o in outcomes),
        "identical": f"{sum(compared)} of {len(compared)}" if compared else "not compared",
        "lost_epochs": sum(o.get("lost_epochs", 0) for o in outcomes),
        "said": f"{sum(said)} of {len(said)}" if said else "nothing due",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two of the kills, shorter runs")
    parser.add_argument("--into", type=Path, help="folder of the result (default: results/)")
    arguments = parser.parse_args()
    global STEPS
    STEPS = "40" if arguments.short else "60"
    profile = Profile.load("ci")
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write_pictures(top / "data")
        whole = Trial(top, "whole")
        whole.run()  # the first process imports everything, for all
        whole = Trial(top, "whole-again")
        began = time.monotonic()
        if whole.run() != 0:
            sys.exit(whole.said())
        seconds = time.monotonic() - began
        reference = whole.folder / "weights.safetensors"
        print(f"An undisturbed run takes {seconds:.1f} s.")
        for name, fault in FAULTS.items():
            measured[name] = summary(list(fault(top, reference, 2 if arguments.short else 20, seconds)))
            print(f"{name:<42}", measured[name], flush=True)
    how = "python experiments/reliability.py" + (" --short" if arguments.short else "")
    save_result("reliability", how, profile, measured, folder=arguments.into, seeds=[0], steps=int(STEPS))


PROCESSES = mp.get_context("forkserver")
PROCESSES.set_forkserver_preload(["deeplab_edu.cli_train"])

if __name__ == "__main__":
    main()
