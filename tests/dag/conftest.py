"""A copy of the workflow in which every job of the smoke overlay has run, without computing anything.

`sitecustomize` in the jobs' interpreter makes a job's outputs and ends it before its script begins, so that Snakemake records
the very parameters, inputs and code fingerprints of a real run in seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = (
    "Snakefile",
    "pyproject.toml",
    "config.yaml",
    "claims.yaml",
    "config",
    "rules",
    "scripts",
    "lib",
    "schemas",
    "envs",
    "profiles",
    "report",
)

SITECUSTOMIZE = """
import os, sys

path = next((a for a in getattr(sys, "orig_argv", []) if "/.snakemake/scripts/" in a), None)
if path:
    source = open(path, encoding="utf-8").read().split("######## snakemake preamble end")[0]
    space = {"__file__": path}
    exec(compile(source, path, "exec"), space)
    snakemake = space["snakemake"]
    folders = ("data", "tokenizer", "model", "tables", "trajectories", "state", "index")
    for name, output in snakemake.output.items():
        if name in folders:
            os.makedirs(output, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(output), exist_ok=True)
            open(output, "w").close()
    os._exit(0)
"""


@dataclass
class Workflow:
    """A copy of the workflow and how to call Snakemake in it."""

    folder: Path

    def run(self, *arguments: str, overlay: str | None = "smoke", **environment: str) -> subprocess.CompletedProcess:
        """Call `snakemake` with an overlay; output and errors come back as one text in `stdout`."""
        command = [sys.executable, "-m", "snakemake", "--cores", "8", "--nolock", *arguments]
        if overlay:
            command += ["--configfile", f"config/{overlay}.yaml"]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder / "stand-in"), "RECLAIM_PRELOAD": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def planned(self, *arguments: str, **options: str) -> dict[str, set[str]]:
        """What a dry run would do: rule -> first outputs."""
        result = self.run("--dry-run", *arguments, **options)
        assert result.returncode == 0, result.stdout
        jobs: dict[str, set[str]] = {}
        rule = ""
        for line in result.stdout.splitlines():
            if match := re.match(r"(?:local)?rule (\w+):", line):
                rule = match[1]
                jobs.setdefault(rule, set())
            elif match := re.match(r"    output: ([^,]+)", line):
                jobs[rule].add(match[1])
        assert jobs or "Nothing to be done" in result.stdout, result.stdout
        return jobs


def _copy_checkout(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def checkout() -> Callable[[Path], Path]:
    """Copies what the workflow is made of into a folder, and gives the folder."""
    return _copy_checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workflow:
    """The copy in which all of the smoke overlay is made; tests work on copies of it."""
    folder = _copy_checkout(tmp_path_factory.mktemp("workflow"))
    (folder / "stand-in").mkdir()
    (folder / "stand-in" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    workflow = Workflow(folder)
    result = workflow.run("--quiet")
    assert result.returncode == 0, result.stdout
    return workflow


@pytest.fixture
def workflow(finished, tmp_path) -> Workflow:
    """A finished copy that a test may change."""
    copy = tmp_path / "workflow"
    shutil.copytree(finished.folder, copy, symlinks=True)
    return Workflow(copy)


@pytest.fixture
def edit(workflow) -> Callable[[str, Callable[[str], str]], None]:
    """Rewrite a file of the copy."""

    def edit(name: str, change: Callable[[str], str]) -> None:
        path = workflow.folder / name
        text = path.read_text()
        changed = change(text)
        assert changed != text
        path.write_text(changed)

    return edit
