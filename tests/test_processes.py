"""Two real processes against one: the same weights, each picture counted once, one that writes."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deeplab_edu.models import build_model
from deeplab_edu.processes import Processes, processes
from deeplab_edu.training import Settings, _Steps, evaluate

TOP = Path(__file__).resolve().parent.parent
SHARED = runpy.run_path(str(TOP / "tests" / "two_processes.py"))
TOLERANCE = 1e-5


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def furthest(one: Path, other: Path) -> float:
    """The largest difference between two runs' weights."""
    a, b = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def start_two(*words: str) -> None:
    """Run tests/two_processes.py twice at once, as a launcher does, until both have ended well."""
    command = [sys.executable, str(TOP / "tests" / "two_processes.py"), *words]
    same = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    numbers = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in (0, 1)]
    pair = [subprocess.Popen(command, env={**os.environ, **same, **n}, cwd=TOP) for n in numbers]
    assert [process.wait(timeout=300) for process in pair] == [0, 0]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder of what two processes trained, and what each of them told."""
    folder = tmp_path_factory.mktemp("together")
    start_two(str(folder))
    return folder, [json.loads((folder / f"told-{i}.json").read_text()) for i in (0, 1)]


@pytest.mark.parametrize("name", SHARED["SCENARIOS"])
def test_two_processes_end_with_the_weights_of_one(together, tmp_path, name):
    folder, told = together
    _, history = SHARED["train"](name, tmp_path)
    assert furthest(folder / name, tmp_path / name) < TOLERANCE
    assert told[0]["miou"][name] == told[1]["miou"][name] == pytest.approx(history.val_miou, abs=1e-3)
    if name == "uneven void":
        assert told[0]["loss"] == told[1]["loss"] == pytest.approx(history.loss, abs=TOLERANCE)


def test_scores_count_each_picture_once(together):
    scores = evaluate(SHARED["guesser"](), SHARED["val"](), batch_size=2, detailed=True)
    assert len({round(v, 3) for v in scores.values()}) > 3  # the network answers with several classes
    for told in together[1]:
        assert told["scores"] == pytest.approx(scores, abs=1e-6) and told["sum"] == 3 and told["count"] == 2


def test_what_goes_wrong_in_the_first_ends_the_others_in_silence(together):
    first, second = together[1]
    assert first["first"] == "ValueError: only the first process looked"
    assert second["first"] == "SystemExit: 2"


def test_sentences_that_all_processes_raise_together(together):
    for told in together[1]:
        assert told["small"].startswith(
            "ValueError: A step has 1 picture(s), too few for 2 processes; raise batch_size"
        )
        assert told["stopped"].startswith(
            "KeyboardInterrupt: Stopped after step 6;"
        )  # one was asked, after the fifth
        assert told["nan"].startswith("FloatingPointError: The loss became")


def test_a_run_of_two_goes_on_with_one(together, tmp_path):
    stopped = together[0] / "stopped"
    assert (stopped / "group norm" / "checkpoint.safetensors").exists()
    SHARED["train"]("group norm", stopped)
    SHARED["train"]("group norm", tmp_path)
    assert furthest(stopped / "group norm", tmp_path / "group norm") < TOLERANCE


def test_shares_of_a_step_are_the_whole_step():
    data, settings = SHARED["scenes"](), Settings(batch_size=7, iterations=4)
    whole = _Steps(data, settings)
    parts = [_Steps(data, settings, index, 3) for index in range(3)]
    for step in (0, 3):
        images = whole[step][0]
        shares = [part[step][0] for part in parts]
        assert [len(s) for s in shares] == [3, 2, 2]
        assert all(torch.equal(share, images[i::3]) for i, share in enumerate(shares))


def test_pictures_that_are_drawn_apart_do_not_depend_on_who_draws():
    data = SHARED["scenes"](transforms=SHARED["train_transforms"](24))
    settings = Settings(batch_size=4, iterations=4, draws="picture")
    whole = _Steps(data, settings)[1]
    parts = [_Steps(data, settings, index, 2)[1] for index in (0, 1)]
    for k in (0, 1):
        assert all(torch.equal(part[k], whole[k][i::2]) for i, part in enumerate(parts))
    once = _Steps(data, Settings(batch_size=4, iterations=4))[1]
    assert not torch.equal(once[0], whole[0])


def test_batch_statistics_are_shared_between_gpus():
    accelerator = SimpleNamespace(device=torch.device("cuda"), prepare_model=lambda model: model)
    net = Processes(2, 0, accelerator).wrap(build_model("fcn8s", num_classes=3, backbone="tiny", width=4))
    kinds = [type(m) for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds and set(kinds) == {nn.SyncBatchNorm}


@pytest.mark.gpu
def test_two_processes_on_one_gpu_share_batch_statistics(tmp_path):
    """Each counting its own half of a batch would end elsewhere, with the first one's running statistics."""
    start_two(str(tmp_path / "two"), "cuda")
    SHARED["train_batch_norm"]("cuda", tmp_path / "one")
    assert furthest(tmp_path / "two", tmp_path / "one") < 1e-4


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = processes()
    value, model = torch.tensor(3), nn.Conv2d(3, 2, 1)
    assert (alone.count, alone.first, alone.any(True), alone.any(False)) == (1, True, True, False)
    assert alone.sum(value) is value and alone.wrap(model) is model and alone.from_first(lambda: 5) == 5


def test_the_loss_of_a_process_reaches_its_reader_unchanged():
    with pytest.raises(RuntimeError, match="shapes"), Processes().or_a_sentence("run again"):
        raise RuntimeError("shapes do not fit; gloo")
    with pytest.raises(RuntimeError, match="shapes"), Processes(count=2).or_a_sentence("run again"):
        raise RuntimeError("shapes do not fit")
    sentence = "Another of the 2 processes of this run has ended; run again"
    with pytest.raises(ConnectionError, match=sentence), Processes(count=2).or_a_sentence("run again"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")


@pytest.mark.slow
def test_accelerate_launch_and_a_killed_worker(tmp_path):
    """The documented command; a worker is killed, the other one says so, and one process alone goes on."""
    run = tmp_path / "run"
    train = ["-m", "deeplab_edu", "train", "--profile", "ci", "--iterations", "360", "--run", str(run)]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    output = tmp_path / "output.txt"
    with open(output, "w") as file:
        launcher = subprocess.Popen([sys.executable, *launch, *train], stdout=file, stderr=file, cwd=TOP)
    limit = time.monotonic() + 300
    while "step 120/360" not in output.read_text():
        assert launcher.poll() is None and time.monotonic() < limit, output.read_text()
        time.sleep(0.2)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    assert launcher.wait(timeout=120) != 0
    said = output.read_text()
    assert "Another of the 2 processes of this run has ended; the run is kept in" in said
    assert said.count("step 120/360") == 1 and "processes: 2" in said  # one of them speaks
    done = subprocess.run([sys.executable, *train], capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0 and "step 360/360" in done.stdout and "step 120/360" not in done.stdout
