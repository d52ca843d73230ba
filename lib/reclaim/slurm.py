"""Jobs that a Snakemake which was killed left in SLURM's queue: they are cancelled before the next one runs the same jobs.

A Snakemake that is interrupted cancels its jobs; one that is killed, or whose login node goes down, cannot, and the next
one knows nothing of them: both would write the same files. What a cancelled job had done stays, in its saved state.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from reclaim.errors import InputError

LOGS = Path(".snakemake") / "slurm_logs"
LOCKS = Path(".snakemake") / "locks"


def cancel_left_over(folder: Path, seconds: float = 600.0) -> list[str]:
    """Cancel what is left in the queue of jobs that Snakemake started in `folder`; wait for their end; give their ids.

    Nothing is done where SLURM has not been used, or where this Snakemake is not the only one that holds a lock on the
    folder (then the jobs may be the other one's). Raises `InputError` where SLURM does not answer, and where jobs have not
    ended after so many seconds.
    """
    alone = len(list((folder / LOCKS).glob("*.output.lock"))) == 1
    if not alone or not (folder / LOGS).exists() or shutil.which("squeue") is None:
        return []
    jobs = _queued(folder)
    if jobs:
        subprocess.run(["scancel", *jobs], check=True)
    end = time.monotonic() + seconds
    while left := _queued(folder):
        if time.monotonic() > end:
            raise InputError(
                f"SLURM's jobs {' '.join(left)}", "still there, although cancelled", "none", "Look at them with squeue."
            )
        time.sleep(1.0)
    return jobs


def _queued(folder: Path) -> list[str]:
    """Ids of the user's pending and running jobs whose working directory is `folder` and that Snakemake named."""
    command = ["squeue", "--me", "--noheader", "--format=%A|%Z|%k"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise InputError(
            "squeue",
            answer.stderr.strip(),
            "the jobs that an earlier run may have left",
            "Run again when SLURM answers.",
        )
    fields = [line.split("|") for line in answer.stdout.splitlines()]
    return sorted({job for job, place, comment in fields if comment.startswith("rule_") and Path(place) == folder})
