"""Real runs of a few jobs: killed and taken up again, served from a cache between clones, equal from one run to the next."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SEED = 501
RATES = f"idioms.medium.long.uniform-0.4.s{SEED}"
POLARITY = f"polarity.polarity.polarity.uniform-0.3.s{SEED}"
# One seed of the smallest chain whose training jobs last long enough to be killed in the middle.
CONFIG = {
    "overlay": "test",
    "results": "results/test",
    "run": ["mlm_masking/rates", "mezo/methods"],
    "data": {
        "idioms": {"splits": {"train": 400}},
        "topics": {"splits": {"train": 100, "test": 50}},
        "polarity": {"splits": {"train": 400}},
        "last": {"splits": {"train": 200, "test": 50}},
    },
    "recipes": {
        "long": {"num_train_steps": 150},
        "polarity": {"num_train_steps": 20, "warmup_steps": 2},
        "finetune-topics": {"num_train_steps": 8},
        "mezo-last": {"num_train_steps": 250, "eval_steps": 50, "learning_rate": [1.0e-3]},
    },
    "tasks": {
        "topics": {"few_shot": {"size": 32, "sets": 2}},
        "last": {"few_shot": {"k": 16, "dev": 16}},
    },
    "experiments": {
        "mlm_masking": {
            "rates": {
                "seeds": [SEED],
                "checkpoints": [
                    {
                        "model": "medium",
                        "data": "idioms",
                        "recipe": "long",
                        "masking": [{"scheme": "uniform", "corruption": 0.4}],
                    }
                ],
            }
        },
        "mezo": {
            "methods": {
                "seeds": [SEED],
                "arms": [{"method": "mezo", "task": "last", "recipe": "mezo-last", "checkpoints": ["polarity"]}],
            }
        },
    },
}
PRETRAINED = f"results/test/checkpoints/{RATES}"
FINETUNED = f"results/test/runs/mezo/methods/mezo.s{SEED}/predictions.parquet"
LOG = f"results/test/.state/finetune/mezo.methods.mezo.s{SEED}/arm-0/set-0.rate-0/run.mezo"
STATE = f"results/test/.state/pretrain/{RATES}.pt"


@pytest.fixture
def clone(checkout, tmp_path_factory):
    """Makes copies of the workflow with the configuration above as `config/test.yaml`."""

    def make() -> Path:
        folder = checkout(tmp_path_factory.mktemp("clone"))
        (folder / "config" / "test.yaml").write_text(yaml.safe_dump(CONFIG))
        return folder

    return make


def command(*targets: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", *targets, "--configfile", "config/test.yaml"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "RECLAIM_PRELOAD": "0", "RECLAIM_SAVE_SECONDS": "0.2", **more}


def run(folder: Path, *targets: str, **more: str) -> str:
    result = subprocess.run(
        command(*targets),
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def digests(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name != ".snakemake_timestamp"
    }


def kill_in_the_middle(folder: Path, target: str, sign) -> None:
    """Start a run and kill it with all its processes (SIGKILL) as soon as `sign` holds."""
    process = subprocess.Popen(
        command(target), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while not sign():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / target).exists()


@pytest.mark.parametrize(
    ("target", "state", "size"),
    [(PRETRAINED, STATE, 1), (FINETUNED, LOG, 1500)],
    ids=["pre-training", "MeZO"],
)
def test_a_killed_job_ends_with_the_same_bits(clone, target, state, size):
    folder = clone()
    whole = run(folder, target)
    assert "100%" in whole
    expected = digests(folder / target)
    (folder / "results/test").rename(folder / "results/whole")
    kill_in_the_middle(folder, target, lambda: (folder / state).exists() and (folder / state).stat().st_size >= size)
    assert (folder / state).exists()
    subprocess.run([*command(), "--unlock"], cwd=folder, env=environment(), check=True, capture_output=True)
    run(folder, target)
    logs = "".join(path.read_text() for path in (folder / "results/test/logs").rglob("*.log"))
    assert "resumed" in logs
    assert digests(folder / target) == expected
    assert not (folder / state).exists()


def test_two_runs_give_the_same_tables(clone):
    tables = []
    for _ in range(2):
        folder = clone()
        run(folder, RECLAIM_PRELOAD="1")
        tables.append([digests(folder / "results/test" / f"{name}.parquet") for name in ("metrics", "items", "curves")])
    assert tables[0] == tables[1]
    run(folder, "--report", "all.html")
    assert (folder / "all.html").stat().st_size > 100_000


def test_a_second_clone_takes_pre_training_from_the_cache(clone, tmp_path):
    cache = {"SNAKEMAKE_OUTPUT_CACHE": str(tmp_path / "cache")}
    first, second = clone(), clone()
    run(first, PRETRAINED, "--cache", **cache)
    expected = digests((first / PRETRAINED).resolve())
    output = run(second, PRETRAINED, "--cache", **cache)
    # Snakemake makes the log files; a job that ran would have written into them.
    assert not any(path.stat().st_size for path in (second / "results/test/logs").rglob("*.log")), output
    assert digests(second / PRETRAINED) == expected


def test_a_damaged_cache_entry_is_made_again(clone, tmp_path):
    cache = {"SNAKEMAKE_OUTPUT_CACHE": str(tmp_path / "cache")}
    first, second = clone(), clone()
    run(first, PRETRAINED, "--cache", **cache)
    expected = digests((first / PRETRAINED).resolve())
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    output = run(second, PRETRAINED, "--cache", **cache)
    assert "damaged" in output
    assert digests((second / PRETRAINED).resolve()) == expected
