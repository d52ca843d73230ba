"""Jobs that a killed Snakemake left in the queue, with stand-ins for SLURM's commands; tests/slurm has the real ones."""

import os

import pytest

from reclaim.errors import InputError
from reclaim.slurm import cancel_left_over

SQUEUE = """#!/bin/sh
test -e {place}/away && {{ echo "Unable to contact slurm controller" >&2; exit 1; }}
cat {place}/queue
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {place}/cancelled
test -e {place}/stubborn || sed -i '/rule_pretrain/d' {place}/queue
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which SLURM has been used and this Snakemake is alone, with jobs of it and of others in the queue."""
    for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text.format(place=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "work"
    (folder / ".snakemake/slurm_logs").mkdir(parents=True)
    (folder / ".snakemake/locks").mkdir()
    (folder / ".snakemake/locks/0.output.lock").touch()
    jobs = (f"7|{folder}|rule_pretrain_wildcards_a", f"8|{folder}|(null)", f"9|{tmp_path}|rule_measure")
    (tmp_path / "queue").write_text("".join(f"{job}\n" for job in jobs))
    return folder


def test_jobs_of_the_folder_are_cancelled_and_no_others(folder):
    assert cancel_left_over(folder) == ["7"]
    assert (folder.parent / "cancelled").read_text() == "7\n"
    assert cancel_left_over(folder) == []


def test_nothing_is_cancelled_beside_another_snakemake(folder):
    (folder / ".snakemake/locks/1.output.lock").touch()
    assert cancel_left_over(folder) == [] and not (folder.parent / "cancelled").exists()


def test_a_queue_that_cannot_be_seen_is_not_taken_for_an_empty_one(folder):
    (folder.parent / "away").touch()
    with pytest.raises(InputError, match="squeue: found Unable to contact"):
        cancel_left_over(folder)


def test_jobs_that_do_not_end_stop_the_run(folder):
    (folder.parent / "stubborn").touch()
    with pytest.raises(InputError, match="SLURM's jobs 7: found still there"):
        cancel_left_over(folder, seconds=0)
