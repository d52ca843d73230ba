"""Kill a run at random moments, again and again, and see that it ends with the tables of an undisturbed one.

    python tests/faults/run.py [--kills 20] [--seed 0]

The chain of tests/chain.yaml runs in a copy of the workflow. Each kill (SIGKILL) takes Snakemake alone, Snakemake with
all its processes, or one process of a job; then Snakemake is started again. A chain that ends before the last kill is
compared and begun anew. Before that, the chain runs on a small tmpfs until that is full, and goes on when it has room
(skipped, with the reason, without the right to mount one).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = "Snakefile pyproject.toml config.yaml claims.yaml config rules scripts lib schemas envs profiles report".split()
TABLES = [f"results/chain/{name}.parquet" for name in ("metrics", "items", "curves")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reclaim-faults-") as name:
        folder = Path(name) / "workflow"
        checkout(folder)
        started = time.monotonic()
        run(folder)
        usual = time.monotonic() - started
        expected = tables(folder)
        print(f"undisturbed: {usual:.0f} s, {len(expected)} tables", flush=True)
        full_disk(folder, expected)
        kill(folder, expected, arguments.kills, usual, random.Random(arguments.seed))
    print(f"faults: {arguments.kills} kills, every table as in the undisturbed run")
    return 0


def checkout(folder: Path) -> None:
    """Copy what the workflow is made of."""
    folder.mkdir()
    for name in PARTS:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    shutil.copy2(ROOT / "tests" / "chain.yaml", folder / "config" / "chain.yaml")


def start(folder: Path, *more: str) -> subprocess.Popen:
    """Start Snakemake in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *TABLES, *more]
    command += ["--configfile", "config/smoke.yaml", "config/chain.yaml"]
    with open(folder / "snakemake.log", "ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "RECLAIM_SAVE_SECONDS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def run(folder: Path) -> None:
    """Run the chain to its end."""
    if start(folder).wait():
        raise SystemExit((folder / "snakemake.log").read_text(errors="replace")[-5000:])


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def compare(folder: Path, expected: dict[str, bytes]) -> None:
    differing = [name for name, content in tables(folder).items() if content != expected[name]]
    left = [path for path in (folder / "results/chain").rglob(".*.*") if path.is_dir() and path.name != ".state"]
    if differing:
        raise SystemExit(f"other bytes than in the undisturbed run: {differing}")
    print(f"  equal tables; folders half written that a kill left: {len(left)}", flush=True)


def kill(folder: Path, expected: dict[str, bytes], kills: int, usual: float, chance: random.Random) -> None:
    """Kill and restart until `kills` have hit, then let the chain end."""
    shutil.rmtree(folder / "results")
    done = 0
    while done < kills:
        process = start(folder)
        end = time.monotonic() + chance.uniform(0.1, 0.7) * usual
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            if process.returncode:
                raise SystemExit((folder / "snakemake.log").read_text(errors="replace")[-5000:])
            compare(folder, expected)
            shutil.rmtree(folder / "results")
            continue
        how = chance.choice(["Snakemake", "Snakemake and its processes", "a job"])
        victims = jobs_of(folder)
        if how == "a job" and not victims:
            how = "Snakemake"
        if how == "Snakemake":
            process.kill()
        elif how == "a job":
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(chance.choice(victims), signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        # After the death of a job Snakemake ends by itself, when its other jobs have.
        process.wait()
        done += 1
        print(f"kill {done}: {how}, with {len(victims)} processes of jobs at work", flush=True)
        start(folder, "--unlock").wait()
    run(folder)
    compare(folder, expected)


def jobs_of(folder: Path) -> list[int]:
    """Processes of the chain's jobs: those at work in its folder, but for Snakemake's own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                Path(os.readlink(entry / "cwd")) == folder
                and b"snakemake\0--cores" not in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def full_disk(folder: Path, expected: dict[str, bytes]) -> None:
    """A disk that is full: one clear message, and the rest of the work after some of it is freed."""
    place = folder / "results"
    kept = place.rename(folder / "undisturbed")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        print(f"full disk: skipped, no tmpfs could be mounted ({mounted.stderr.strip()})")
        place.rmdir()
        kept.rename(place)
        return
    try:
        before = (folder / "snakemake.log").stat().st_size
        status = start(folder).wait()
        text = (folder / "snakemake.log").read_bytes()[before:].decode(errors="replace")
        if status == 0 or "no space left on the disk" not in text or "Traceback" in text:
            raise SystemExit(f"full disk: status {status}, and this was said:\n{text[-5000:]}")
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        run(folder)
        compare(folder, expected)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    place.rmdir()
    kept.rename(place)
    print("full disk: stopped with a clear error, went on after there was room", flush=True)


if __name__ == "__main__":
    sys.exit(main())
