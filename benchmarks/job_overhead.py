"""What a job costs before it computes anything: small `script:` jobs with and without the preloaded parent.

Each job imports torch and transformers, builds a model of a few weights and writes one number; the numbers of both ways
must be equal. CPU seconds per job count everything that is spent for it except Snakemake's own process and the start of
the one parent: the process that Snakemake starts (with its shell), the fork, and the parent's part in it. Ends with
status 1 if that is more than the bound for preloaded jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SNAKEFILE = """
N = {jobs}

rule all:
    input: "results/last.json"

rule small:
    output: "results/{{index}}.json"
    script: "small.py"

# Reads the parent's accounts while Snakemake is still running.
rule last:
    input: expand("results/{{index}}.json", index=range(N))
    output: "results/last.json"
    script: "small.py"
"""

SCRIPT = """
import reclaim.preload  # noqa: F401
import json
import os
from pathlib import Path

def seconds(first, last):
    fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[first:last])) / os.sysconf("SC_CLK_TCK")

before = seconds(11, 13)
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import BertConfig, BertForMaskedLM

torch.manual_seed(1)
model = BertForMaskedLM(
    BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
).eval()
value = model(torch.arange(8)[None]).logits.sum().item()
report = {"value": value.hex(), "own": before, "children": seconds(13, 15)}
Path(snakemake.output[0]).write_text(json.dumps(report))
"""

# Runs Snakemake in its own process and reports, as the last line, what that process and its children used.
RUN = """
import json, resource, sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code
used = {}
for name in ("SELF", "CHILDREN"):
    usage = resource.getrusage(getattr(resource, f"RUSAGE_{name}"))
    used[name] = usage.ru_utime + usage.ru_stime
print(json.dumps(used))
sys.exit(status)
"""


def run(jobs: int, cores: int, preload: bool) -> dict:
    """Run the workflow in a new folder; gives wall and CPU seconds and the jobs' reports."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Snakefile").write_text(SNAKEFILE.format(jobs=jobs))
        Path(folder, "small.py").write_text(SCRIPT)
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", RUN, "--cores", str(cores), "--quiet", "all"],
            cwd=folder,
            env={**os.environ, "RECLAIM_PRELOAD": str(int(preload)), "XDG_RUNTIME_DIR": folder},
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - start
        if result.returncode:
            sys.exit(f"Snakemake failed:\n{result.stderr}")
        used = json.loads(result.stdout.splitlines()[-1])
        names = [*map(str, range(jobs)), "last"]
        reports = {name: json.loads(Path(folder, f"results/{name}.json").read_text()) for name in names}
    own = [report["own"] for report in reports.values()]
    last = reports["last"]
    return {
        "wall": wall,
        "snakemake": used["SELF"],
        "clients": used["CHILDREN"] / (jobs + 1),
        "start": min(own) if preload else 0.0,
        "forks": (last["children"] + max(own) - min(own)) / jobs if preload else 0.0,
        "values": {report["value"] for report in reports.values()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--bound", type=float, default=0.6, help="CPU seconds per preloaded job (default %(default)s)")
    args = parser.parse_args()
    plain, forked = run(args.jobs, args.cores, preload=False), run(args.jobs, args.cores, preload=True)
    if len(plain["values"] | forked["values"]) != 1:
        sys.exit(f"the jobs' numbers differ: {plain['values']} without, {forked['values']} with the parent")
    columns = ["jobs", "CPU s a job", "of it: client", "fork", "parent's start", "Snakemake", "wall s"]
    print(f"{args.jobs} jobs on {args.cores} cores; CPU seconds")
    print("".join(f"{column:>16}" for column in columns))
    for name, row in (("plain", plain), ("preloaded", forked)):
        figures = [
            row["clients"] + row["forks"],
            row["clients"],
            row["forks"],
            row["start"],
            row["snakemake"],
            row["wall"],
        ]
        print(f"{name:>16}" + "".join(f"{figure:16.3f}" for figure in figures))
    cost = forked["clients"] + forked["forks"]
    met = cost <= args.bound
    print(f"ratio plain / preloaded: {plain['clients'] / cost:.1f}")
    print(f"bound of {args.bound} CPU s a job: {'met' if met else 'NOT met'} ({cost:.3f})")
    sys.exit(not met)


if __name__ == "__main__":
    main()
