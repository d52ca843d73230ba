"""How long it takes to plan: dry runs of the default and of each overlay, from nothing, beside a bare `snakemake --version`.

Run from a checkout; nothing is made. The ratio is to the start of Snakemake, which no plan can be without. The paper overlay
is to be planned within 30 s.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time

OVERLAYS = {"default": [], **{name: [f"config/{name}.yaml"] for name in ("smoke", "overnight", "paper")}}


def timed(*arguments: str) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and output of a Snakemake command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "snakemake", *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu, done.stdout + done.stderr


def main() -> None:
    bare, _, _ = timed("--version")
    print(f"{'bare start':12s} {bare:6.1f} s")
    for name, files in OVERLAYS.items():
        wall, cpu, said = timed("-n", "--forceall", "--quiet", "rules", *(["--configfile", *files] if files else []))
        jobs = re.search(r"total +(\d+)", said)
        print(
            f"{name:12s} {wall:6.1f} s, {cpu:.1f} CPU s, {jobs[1] if jobs else '?'} jobs, {wall / bare:.1f} x a bare start"
        )


if __name__ == "__main__":
    main()
