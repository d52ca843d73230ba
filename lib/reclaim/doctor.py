"""What a machine can run: Python, packages, torch and GPUs, memory, disk, caches, the Hub, SLURM.

Each check gives one finding. A `fault` keeps the default run from working; a `limit` takes something away that other
overlays need, and says what.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """`state` is `well`, `limit` or `fault`; `what` was looked at; `found` is what is there; `then` what follows from it."""

    state: str
    what: str
    found: str
    then: str = ""


def examine(offline: bool = False) -> list[Finding]:
    """Run every check. None raises: a check that breaks is a fault of its own."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _torch, _machine, _folders, _programs]
    if not offline:
        checks.append(_hub)
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # a check must not hide what the others found
            name = check.__name__.strip("_")
            findings.append(Finding("fault", name, f"{type(error).__name__}: {error}", "This check could not be made."))
    return findings


def report(findings: list[Finding]) -> str:
    """The findings as lines of text, and a last line with the sum."""
    signs = {"well": "ok   ", "limit": "limit", "fault": "FAULT"}
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{signs[finding.state]}  {finding.what:<{width}}  {finding.found}")
        if finding.then:
            lines.append(f"{'':7}{'':{width}}  {finding.then}")
    faults = sum(finding.state == "fault" for finding in findings)
    lines.append(f"{faults} to mend before the default run works." if faults else "The default run can work here.")
    return "\n".join(lines)


def _python() -> Iterator[Finding]:
    yield Finding("well", "Python", f"{sys.version.split()[0]}, {sys.executable}")
    own, on_path = Path(sys.executable).with_name("snakemake"), shutil.which("snakemake")
    if on_path is None or not own.exists() or not os.path.samefile(own, on_path):
        then = f"Plain commands need this Python's: source {own.with_name('activate')}"
        yield Finding("limit", "snakemake", on_path or "not on the PATH", then)


def _packages() -> Iterator[Finding]:
    """The installed versions against those that the package pins."""
    missing, other = [], []
    for requirement in importlib.metadata.requires("reclaim") or []:
        name, _, pinned = requirement.partition("==")
        if ";" in requirement:  # of an extra
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version.partition("+")[0] != pinned:
            other.append(f"{name} {version} (pinned {pinned})")
    if missing:
        yield Finding("fault", "packages", f"missing: {', '.join(missing)}", "Install the pins: make setup")
    if other:
        then = "Results may differ from those of the pinned versions, and cached ones are not reused."
        yield Finding("limit", "packages", f"other versions: {', '.join(other)}", then)
    if not missing and not other:
        yield Finding("well", "packages", "all at the pinned versions")


def _torch() -> Iterator[Finding]:
    import torch

    try:
        import reclaim.torchvision_shim  # noqa: F401
        import timm  # noqa: F401  (it imports torchvision, which breaks where its build is not torch's)
    except (ImportError, RuntimeError) as error:
        yield Finding("fault", "torchvision", str(error)[:120], "Install the pins: make setup")
    if not torch.cuda.is_available():
        then = "The default, smoke and overnight runs need none; config/paper.yaml does."
        if shutil.which("nvidia-smi"):
            built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
            then += f" nvidia-smi is here: this torch {built}; the driver must be new enough for its CUDA."
        yield Finding("limit", "GPU", f"none that torch {torch.__version__} can use", then)
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found = f"{index}: {device.name}, {device.total_memory / GIB:.0f} GiB"
        if torch.cuda.is_bf16_supported():
            yield Finding("well", "GPU", found)
        else:
            yield Finding("limit", "GPU", found, "It has no bfloat16: set dtype float16 or float32 for its models.")


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{cores} cores, {memory / GIB:.0f} GiB of memory"
    if memory < 4 * GIB:
        yield Finding("limit", "machine", found, "Jobs declare up to 3 GiB each: run with --resources mem_mb=3000.")
    else:
        yield Finding("well", "machine", found)


def _folders() -> Iterator[Finding]:
    """The folders that a run writes to: the results, temporary files, the shared cache, the Hub's cache."""
    folders = {"results": (Path("results"), 2, "fault"), "temporary files": (Path(tempfile.gettempdir()), 1, "fault")}
    if location := os.environ.get("SNAKEMAKE_OUTPUT_CACHE"):
        folders["shared cache"] = (Path(location), 2, "fault")
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    folders["Hub cache"] = (hub, 50, "limit")
    for what, (folder, needed, state) in folders.items():
        place = folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / GIB
        if not os.access(place, os.W_OK):
            yield Finding(state, what, f"{folder}: no right to write", "Give the right, or name another folder.")
        elif free < needed:
            then = f"About {needed} GiB are needed{' for the models of config/paper.yaml' if needed > 2 else ''}."
            yield Finding(state, what, f"{folder}: {free:.1f} GiB free", then)
        else:
            yield Finding("well", what, f"{folder}: {free:.0f} GiB free")


def _programs() -> Iterator[Finding]:
    if sbatch := shutil.which("sbatch"):
        done = subprocess.run([sbatch, "--version"], capture_output=True, text=True, timeout=20)
        try:
            plugin = importlib.metadata.version("snakemake-executor-plugin-slurm")
            if done.returncode == 0:
                yield Finding("well", "SLURM", f"{done.stdout.strip()}, plugin {plugin}")
            else:
                reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
                then = "Only --workflow-profile profiles/slurm needs it."
                yield Finding("limit", "SLURM", f"{sbatch} does not work: {reason}"[:160], then)
        except importlib.metadata.PackageNotFoundError:
            then = "For --workflow-profile profiles/slurm: make setup, or pip install -c constraints.txt '.[slurm]'"
            yield Finding("limit", "SLURM", f"{done.stdout.strip()}, but no snakemake-executor-plugin-slurm", then)
    else:
        then = "--workflow-profile profiles/slurm works where jobs are submitted, on a cluster's login node."
        yield Finding("limit", "SLURM", "no sbatch here", then)
    if not shutil.which("git"):
        then = "ALCE's official prompts (config/paper.yaml) are fetched by it; a copy of them does as well."
        yield Finding("limit", "Git", "none", then)
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        yield Finding("limit", "Chromium", "none", "Only tests/browser needs it, and skips without.")


def _hub() -> Iterator[Finding]:
    """Whether the Hub answers, and whether there is a token for gated models."""
    from huggingface_hub import constants, get_token

    needs = "config/paper.yaml fetches models and data there; the default run needs no network."
    if constants.HF_HUB_OFFLINE:
        yield Finding("limit", "Hub", "HF_HUB_OFFLINE is set", needs)
    else:
        try:
            with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=5):
                yield Finding("well", "Hub", f"{constants.ENDPOINT} answers")
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            yield Finding("limit", "Hub", f"{constants.ENDPOINT} does not answer ({reason})"[:160], needs)
    if get_token() is None:
        then = "Gated models (LLaMA) need one: `hf auth login`, or HF_TOKEN."
        yield Finding("limit", "Hub token", "none", then)
    else:
        yield Finding("well", "Hub token", "found")
