"""Bad input through the command line: one message that names the place, no traceback, and the results as they were.

These are what a person types; hundreds more go through the library (tests/unit/test_bad_input.py).
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from reclaim.tokenization import train_tokenizer

# Texts of two classes in a file of the user's, a model of the user's in a folder, one arm that fine-tunes it.
ROWS = [(f"the room was number {number} .", ("no", "yes")[number % 2]) for number in range(16)]
CONFIG: dict[str, Any] = {
    "overlay": "mine",
    "results": "results/mine",
    "jobs": "per_arm",
    "run": ["mlm_masking/mine"],
    "data": {
        "mine": {
            "source": "local",
            "kind": "classification",
            "format": "tsv",
            "files": {"all": "mine.tsv"},
            "split": {"test": 0.5, "seed": 0, "stratify": True},
            "columns": {"text": "text", "label": "label"},
            "label_names": ["no", "yes"],
        }
    },
    "models": {"mine": {"source": "local", "family": "masked", "path": "model"}},
    "recipes": {"few": {"num_train_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1.0e-3}},
    "tasks": {"mine": {"data": "mine", "few_shot": {"sampling": "per_class", "k": 2, "sets": 1}}},
    "experiments": {
        "mlm_masking": {
            "mine": {
                "seeds": [1],
                "checkpoints": [{"model": "mine"}],
                "arms": [{"method": "backprop", "task": "mine", "recipe": "few", "prompt": False}],
            }
        }
    },
}
EXPERIMENT = "experiments.mlm_masking.mine"
HUB = {"source": "hub", "id": "roberta-base", "family": "masked"}


def put(document: dict, path: str, value: Any) -> dict:
    """A copy of a document with the value at a dotted path."""
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return document


def snakemake(
    folder: Path, *arguments: str, overlay: str = "config/mine.yaml", preload: str = "0"
) -> subprocess.CompletedProcess:
    """Call `snakemake` as a person does; output and errors come back as one text. `preload` pays where jobs import torch."""
    return subprocess.run(
        [Path(sys.executable).with_name("snakemake"), "--cores", "1", *arguments, "--configfile", overlay],
        cwd=folder,
        env={**os.environ, "RECLAIM_PRELOAD": preload},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(folder: Path) -> dict[str, bytes]:
    """What the results hold beside logs and the time of the last run."""
    files = {path.relative_to(folder).as_posix(): path for path in (folder / "results").rglob("*") if path.is_file()}
    passing = ("results/mine/logs/", "results/mine/.state/started.json")
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(passing)}


def messages(output: str, *places: str) -> list[str]:
    """The lines that have the form of our messages, and one of the places in them."""
    found = [line for line in output.splitlines() if ": found " in line and "; expected " in line]
    return [line for line in found if any(place in line for place in places)]


@pytest.fixture(scope="module")
def folder(checkout, tmp_path_factory) -> Path:
    """A copy of the workflow with the overlay above and results of an earlier run."""
    folder = checkout(tmp_path_factory.mktemp("clone"))
    pd.DataFrame(ROWS, columns=["text", "label"]).to_csv(folder / "mine.tsv", sep="\t", index=False)
    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "results" / "mine").mkdir(parents=True)
    (folder / "results" / "mine" / "metrics.parquet").write_text("of an earlier run")
    return folder


# ------------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("surprise", 1, "config: surprise"),
        ("recipes.few.learning_rates", [1.0e-3], "config: recipes.few.learning_rates"),
        ("recipes.few.num_train_steps", "many", "config: recipes.few.num_train_steps"),
        ("recipes.few.learning_rate", 0, "config: recipes.few.learning_rate"),
        ("run", ["mlm_masking/absent"], "config: run"),
        ("run", "mlm_masking/mine", "config: run"),
        (f"{EXPERIMENT}.seeds", [], f"config: {EXPERIMENT}.seeds"),
        (f"{EXPERIMENT}.seeds", [1, 1], f"config: {EXPERIMENT}.seeds"),
        (f"{EXPERIMENT}.kind", "absent", f"config: {EXPERIMENT}.kind"),
        (f"{EXPERIMENT}.arms", [{"method": "mezo", "task": "mine", "recipe": "few"}], "config: tasks.mine.templates"),
        ("models.mine.family", "recurrent", "config: models.mine.family"),
        ("models.mine", HUB | {"revision": "main"}, "config: models.mine.revision"),
        ("models.small.architecture", "perceptron", "config: models.small.architecture"),
        ("data.mine.columns", {"words": "text"}, "config: data.mine.columns"),
        ("data.mine.files.all", "absent.tsv", "config: data.mine.files.all"),
        ("models.mine.path", "absent", "config: models.mine.path"),
        ("data.mine.files.all", "${RECLAIM_ABSENT}/mine.tsv", "config: data.mine.files.all"),
    ],
)  # fmt: skip
def test_a_faulty_configuration(folder, path, value, place):
    (folder / "config" / "bad.yaml").write_text(yaml.safe_dump(put(CONFIG, path, value)))
    refused(folder, place, "--dry-run", overlay="config/bad.yaml")


def refused(folder: Path, place: str, *arguments: str, **options: str) -> None:
    before = results(folder)
    done = snakemake(folder, *arguments, **options)
    assert done.returncode != 0
    assert len(messages(done.stdout, "")) == len(messages(done.stdout, place)) == 1, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert results(folder) == before


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda text: text.replace("mlm_masking:", "mlm_masking: [", 1), "claims.yaml"),
        (lambda text: text.replace("    margin: 0.02", "    marge: 0.02", 1), "claims.yaml: mlm_masking/T1a: marge"),
        (lambda text: text.replace("kind: not_inferior", "kind: better", 1), "claims.yaml: mlm_masking/T1a: kind"),
        (lambda text: text.replace("claim: T1b", "claim: T1a", 1), "claims.yaml: mlm_masking/T1a"),
    ],
    ids=["no YAML", "unknown key", "unknown kind", "one name twice"],
)
def test_a_faulty_claims_file(folder, change, place):
    path = folder / "claims.yaml"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    try:
        refused(folder, place, "--dry-run")
    finally:
        path.write_text(text)


# ---------------------------------------------------------------------------------------------------------------- files


TABLE = "text\tlabel\na b\tyes\nc d\tno\ne f\tyes\ng h\tno\n"
NUMBERS = {"format": "parquet", "kind": "regression", "split": {"test": 0.5, "seed": 0}}
NUMBERS |= {"columns": {"text": "text", "text_pair": "text", "label": "label"}}
# What stands in the file, keys of the data set, what the message names beside the file.
FILES: dict[str, tuple[bytes, dict, str]] = {
    "latin": (TABLE.replace("a b", "na\xefve").encode("latin-1"), {}, "line 2: found byte 0xef"),
    "column": (TABLE.replace("label", "mark").encode(), {}, "found no column 'label'"),
    "label": (TABLE.replace("no", "maybe", 1).encode(), {}, "line 3: found label 'maybe'"),
    "number": (TABLE.replace("yes", "0").replace("no", "7").encode(), {}, "line 3: found label '7'"),
    "fields": (TABLE.replace("c d", "c\td").encode(), {}, "line 3: found 3 fields"),
    "blank": (TABLE.replace("a b", " ").encode(), {}, "line 2: found an empty text"),
    "empty": (b"text\tlabel\n", {}, "found no rows"),
    "document": (b'[{"text": "a",\n"label": "no"}]', {"format": "jsonl"}, "line 1: found malformed JSON"),
    "nothing": (b"", {"format": "parquet"}, "found a file that cannot be read as Parquet"),
    "truncated": (b"", {"format": "parquet"}, "found a file that cannot be read as Parquet"),
    "nan": (b"", NUMBERS, "row 1: found label None"),
}  # fmt: skip


@pytest.fixture(scope="module")
def of_files(folder):
    """One run over all the files, each a data set of its own: its output, and what it left."""
    data = {}
    for name, (content, keys, _) in FILES.items():
        (folder / f"rows-{name}").write_bytes(content)
        data[name] = {**CONFIG["data"]["mine"], "files": {"all": f"rows-{name}"}, **keys}
    del data["nan"]["label_names"]
    pd.DataFrame({"text": ["a", "b", "c", "d"], "label": [1.0, float("nan"), 0.5, 2.0]}).to_parquet(folder / "rows-nan")
    pd.DataFrame(ROWS, columns=["text", "label"]).to_parquet(folder / "rows-whole")
    (folder / "rows-truncated").write_bytes((folder / "rows-whole").read_bytes()[:-20])
    (folder / "config" / "files.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {**CONFIG["data"], **data}}))
    before = results(folder)
    targets = [f"results/mine/data/{name}" for name in FILES]
    done = snakemake(folder, "--keep-going", *targets, overlay="config/files.yaml")
    return done, set(results(folder)) - set(before)


@pytest.mark.parametrize("name", FILES)
def test_a_faulty_file(of_files, name):
    done, left = of_files
    assert done.returncode != 0 and "Traceback" not in done.stdout
    (message,) = messages(done.stdout, f"rows-{name}", f"data.{name},")
    assert FILES[name][2] in message
    assert left == set()


# ---------------------------------------------------------------------------------------------------------- checkpoints


def other_architecture(folder: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = dict(hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8)
    OPTForCausalLM(OPTConfig(vocab_size=64, max_position_embeddings=20, **sizes)).save_pretrained(folder)


def other_tokenizer(folder: Path) -> None:
    train_tokenizer("roberta", [f"word-{number}" for number in range(200)], vocab_size=400).save_pretrained(folder)


def not_a_number(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["roberta.embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-50])


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "opt": (other_architecture, "found the architecture 'opt', which is causal"),
    "tokenizer": (other_tokenizer, "expected a tokenizer whose every id the model knows"),
    "nan": (not_a_number, "expected finite weights"),
    "truncated": (truncated, "expected the weights"),
}


@pytest.fixture(scope="module")
def of_checkpoints(folder):
    """One run over all the models, each with a job of its own: its output, and what it left."""
    import reclaim.torchvision_shim  # noqa: F401
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokenizer = train_tokenizer("roberta", [text for text, _ in ROWS])
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    whole = RobertaForMaskedLM(RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **sizes))
    models = {}
    for name, (damage, _) in CHECKPOINTS.items():
        whole.save_pretrained(folder / f"model-{name}")
        tokenizer.save_pretrained(folder / f"model-{name}")
        damage(folder / f"model-{name}")
        models[name] = {"source": "local", "family": "masked", "path": f"model-{name}"}
    config = put({**CONFIG, "models": models}, f"{EXPERIMENT}.checkpoints", [{"model": list(models)}])
    arms = [{"method": "backprop", "task": "mine", "recipe": "few", "prompt": False}]
    (folder / "config" / "models.yaml").write_text(yaml.safe_dump(put(config, f"{EXPERIMENT}.arms", arms)))
    before = results(folder)
    done = snakemake(folder, "--keep-going", "mlm_masking", overlay="config/models.yaml", preload="1")
    return done, set(results(folder)) - set(before)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_faulty_checkpoint(of_checkpoints, name):
    done, left = of_checkpoints
    assert done.returncode != 0 and "Traceback" not in done.stdout
    (message,) = messages(done.stdout, f"models/{name}", f"model-{name}")
    assert CHECKPOINTS[name][1] in message
    # What could be made of the good input is there: the data set, and copies of the folders that hold a model.
    assert {Path(path).parts[2] for path in left} <= {"data", "models", "costs", "seals", "benchmarks", ".state"}


# --------------------------------------------------------------------------------------- what Snakemake itself refuses


@pytest.mark.parametrize("text", ["run: [mlm_masking/mine", "- a list"], ids=["no YAML", "no mapping"])
def test_an_overlay_that_is_none(folder, text):
    (folder / "config" / "bad.yaml").write_text(text)
    done = snakemake(folder, "--dry-run", overlay="config/bad.yaml")
    assert done.returncode != 0 and "Config file" in done.stdout and "Traceback" not in done.stdout, done.stdout


def test_a_target_that_is_none(folder):
    done = snakemake(folder, "--dry-run", "mezzo")
    assert done.returncode != 0 and "mezzo" in done.stdout and "Traceback" not in done.stdout, done.stdout
