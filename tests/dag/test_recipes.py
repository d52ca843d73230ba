"""The recipes of docs/ can be followed as they are printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def sections(page: str) -> dict[str, str]:
    """Heading -> the commands below it."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    commands = ["".join(re.findall(r"^```bash\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)) for part in parts[2::2]]
    return {heading.partition(" (")[0]: text for heading, text in zip(parts[1::2], commands, strict=True) if text}


@pytest.fixture
def clone(checkout, tmp_path) -> Path:
    folder = checkout(tmp_path)
    shutil.copytree(ROOT / "docs" / "example", folder / "docs" / "example")
    (folder / "tests" / "unit").mkdir(parents=True)
    return folder


def follow(folder: Path, commands: str) -> str:
    """Type the commands in a shell that ends at the first that fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder / "lib")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_data_set(clone):
    follow(clone, sections("extending.md")["A data set"])
    tables = [pd.read_parquet(clone / "results/reviews/data" / name / "train.parquet") for name in ("cafes", "shouts")]
    assert [len(table) for table in tables] == [2, 40]


@pytest.mark.parametrize(("recipes", "rule"), [(["A model"], "model"), (["A baseline", "A method"], "prompt")])
def test_what_trains_is_planned(clone, recipes, rule):
    """Without running it: that takes minutes. The model that the tutorial leaves is there."""
    left = clone / "results/reviews/checkpoints/reviews-text.reviews.reviews-pretraining.uniform-0.4.s1/config.json"
    left.parent.mkdir(parents=True)
    left.touch()
    commands = "".join(sections("extending.md")[recipe] for recipe in recipes)
    commands = re.sub(
        r"^(snakemake -n .*|python -c .*|python - <<'EOF'\n(.*\n)*?EOF)\n", "", commands, flags=re.MULTILINE
    )
    planned = follow(clone, commands.replace("snakemake --cores", "snakemake --dry-run --cores"))
    assert re.search(rf"^{rule} +[0-9]+$", planned, flags=re.MULTILINE)


def test_a_system(clone):
    follow(clone, "".join(sections("new-system.md").values()))
    claims = pd.read_parquet(clone / "results/cues/claims.parquet")
    assert claims[claims.paper == "dataset_cues"].verdict.tolist() == ["supported"]
    assert "Cues of a data set" in (clone / "results/cues/report.html").read_text()
