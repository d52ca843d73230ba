"""The doctor names what is missing and what follows, and no broken check hides the others."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from reclaim import doctor
from reclaim.doctor import Finding, examine, report


def found(findings, what):
    return [finding for finding in findings if finding.what == what]


def test_this_machine_can_run_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = examine(offline=True)
    assert [finding for finding in findings if finding.state == "fault"] == []
    assert {"Python", "packages", "machine", "results", "SLURM"} <= {finding.what for finding in findings}
    assert report(findings).endswith("The default run can work here.")


def test_a_missing_package_is_a_fault_and_another_version_a_limit(monkeypatch):
    known = importlib.metadata.version

    def version(name):
        if name == "datasets":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "pandas" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    fault, limit = found(examine(offline=True), "packages")
    assert (fault.state, limit.state) == ("fault", "limit")
    assert "datasets" in fault.found and "make setup" in fault.then
    assert "pandas 0.0.1 (pinned " in limit.found


def test_a_full_disk_and_a_folder_without_rights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "cache"))
    usage = type("Usage", (), {"free": 100 << 20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    findings = examine(offline=True)
    assert {f.what for f in findings if f.state == "fault"} == {"results", "temporary files", "shared cache"}
    assert "0.1 GiB free" in found(findings, "results")[0].found
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert all("no right to write" in found(examine(offline=True), what)[0].found for what in ("results", "Hub cache"))


def test_the_hub_that_does_not_answer_and_a_token(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub, token = doctor._hub()
    assert hub.state == "limit" and "does not answer" in hub.found
    assert token == Finding("well", "Hub token", "found")


def test_programs_that_are_not_these_or_do_not_work(tmp_path, monkeypatch):
    for name, text in {
        "snakemake": "exit 0",
        "sbatch": "echo no cluster here >&2; exit 1",
        "nvidia-smi": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    findings = examine(offline=True)
    assert found(findings, "snakemake")[0].found == str(tmp_path / "snakemake")
    assert "no cluster here" in found(findings, "SLURM")[0].found
    assert "nvidia-smi is here" in found(findings, "GPU")[0].then


def test_a_check_that_breaks_is_named_and_the_others_are_made(monkeypatch):
    def _broken():
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_torch", _broken)
    findings = examine(offline=True)
    assert found(findings, "broken")[0].found == "OSError: no such thing" and found(findings, "SLURM")
    assert "1 to mend" in report(findings)


@pytest.mark.parametrize(("arguments", "status"), [(["doctor", "--offline"], 0), (["nonsense"], 2)])
def test_the_command(arguments, status):
    done = subprocess.run([sys.executable, "-m", "reclaim", *arguments], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
