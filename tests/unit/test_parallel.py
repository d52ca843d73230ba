"""One job on several devices, on the CPU with gloo: the same weights as one process, and what happens when one is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reclaim import parallel
from reclaim.errors import InputError

COMMON = """
import os, sys, time
from pathlib import Path
import torch
from reclaim import parallel
from reclaim.batches import epoch_batches
torch.set_num_threads(1)
folder = Path(sys.argv[1])
if parallel.launched():
    parallel.join()
X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long()
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
unused = torch.nn.Parameter(torch.ones(3))
net.register_parameter("unused", unused)

def loss(batch):
    return torch.nn.functional.cross_entropy(net(X[batch]), Y[batch], reduction="sum"), len(batch)

def end():
    torch.save(net.state_dict(), folder / f"weights.{parallel.rank()}.pt")
    if parallel.launched():
        parallel.report({"tokens": 1, "steps": 2, "peak_mem_bytes": 3})

def crawl(step):
    if step == 12:
        (folder / f"new.{parallel.rank()}").write_text(str(os.getpid()))
        (folder / f"new.{parallel.rank()}").rename(folder / f"pid.{parallel.rank()}")
    while step == 12 and (folder / "wait").exists():
        time.sleep(0.05)
"""
BACKPROP = """
from reclaim.train import Recipe, train
take = epoch_batches(64, 22, 3)  # parts of 6, 6, 5 and 5 rows
def batches(step):
    parts = [take(step)[1][i::4] for i in range(4)]
    for empty in ((), (3,), (2, 3), (1, 3))[step % 4]:  # the last of one process, of both, all of one
        parts[empty] = parts[empty][:0]
    return parallel.share(parts, "parts")
recipe = Recipe(
    num_train_steps=30, gradient_accumulation_steps=4, learning_rate=1e-2, max_grad_norm=1.0, weight_decay=0.1
)
train(net, batches, loss, recipe, seed=5, state_path=folder / "state.pt", save_seconds=0, after_step=crawl)
end()
"""
MEZO = """
from reclaim.optim import MeZO
from reclaim.optim.trajectory import record
take, part = epoch_batches(64, 22, 3), 1.0
join = (lambda own: parallel.sums([part * each for each in own], "cpu")) if parallel.world_size() > 1 else None
optimizer = MeZO(net, 1e-2, seed=7, join=join)
with record(optimizer, parallel.own_copy(folder / "run.mezo")) as done, torch.inference_mode():
    for step in range(done, 30):
        rows = take(step)[1]
        batch = parallel.share(rows, "rows")
        part = len(batch) / len(rows)
        optimizer.step(lambda: loss(batch)[0] / len(batch))
        crawl(step + 1)
end()
"""
LAUNCH = """
import json, sys
from reclaim.errors import InputError
from reclaim.parallel import launch
try:
    print(json.dumps(launch(sys.argv[1:], 2, "pretrain")))
except InputError as error:
    sys.exit(str(error))
"""


def _script(folder: Path, body: str) -> list[str]:
    folder.mkdir()
    path = folder / "script.py"
    path.write_text(COMMON + body)
    return [str(path), str(folder)]


def _environment() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _launch(command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", LAUNCH, *command], env=_environment(), text=True, **options)


def _single(folder: Path, body: str) -> dict[str, torch.Tensor]:
    subprocess.run([sys.executable, *_script(folder, body)], env=_environment(), check=True)
    return torch.load(folder / "weights.0.pt")


def _difference(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


@pytest.mark.parametrize("body", [BACKPROP, MEZO], ids=["backprop", "MeZO"])
def test_two_processes_equal_one_and_a_killed_one_stops_both_and_resumes(tmp_path, body):
    single = _single(tmp_path / "one", body)

    killed = tmp_path / "killed"
    command = _script(killed, body)
    (killed / "wait").touch()
    process = _launch(command, stderr=-1)
    pids = [killed / "pid.0", killed / "pid.1"]
    state = killed / ("state.pt" if body == BACKPROP else "run.mezo")
    while not all(path.exists() for path in pids):
        assert process.poll() is None
        time.sleep(0.05)
    assert state.exists()
    survivor, victim = (int(path.read_text()) for path in pids)
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "pretrain, process 1 of 2: found ended by SIGKILL" in errors and "goes on from it" in errors
    assert not Path(f"/proc/{survivor}").exists()
    (killed / "wait").unlink()
    process = _launch(command, stdout=-1, stderr=-1)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert shown.strip() == '{"peak_mem_bytes": 3, "steps": 2, "tokens": 1}'
    first, second = (torch.load(killed / f"weights.{rank}.pt") for rank in range(2))
    assert _difference(first, second) == 0
    assert 0 < _difference(first, single) < 1e-5
    if body == MEZO:
        assert (killed / "run.mezo").read_bytes() == (killed / "run.mezo.1").read_bytes()


def test_a_part_that_cannot_be_shared_is_bad_input(monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert parallel.share([1, 2, 3, 4], "recipes.*") == [2, 4]
    with pytest.raises(InputError, match="recipes.*: found 3; expected a multiple of the 2 GPUs"):
        parallel.share([1, 2, 3], "recipes.*")


def test_processes_end_with_the_one_that_launched_them(tmp_path):
    body = "\nfrom reclaim.job import _watching\nwith _watching():\n    crawl(12)\n    time.sleep(600)\n"
    folder = tmp_path / "orphans"
    process = _launch(_script(folder, body))
    pids = [folder / "pid.0", folder / "pid.1"]
    while not all(path.exists() for path in pids):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    end = time.monotonic() + 300
    while any(Path(f"/proc/{path.read_text()}").exists() for path in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
