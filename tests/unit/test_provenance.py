"""Fingerprints see what a job's code is and nothing else; a damaged cache entry is found and made again."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import reclaim.seals
from reclaim.errors import InputError
from reclaim.io import read_json
from reclaim.provenance import LIB, MACHINERY, fingerprint, run_manifest
from reclaim.seals import seal, verify_cache

SCRIPTS = sorted(path.name for path in (LIB.parent / "scripts").glob("[!_]*.py"))

PROJECT = {
    "scripts/one.py": "from _helper import x\nfrom reclaim.job import job\nwith job(1):\n    from reclaim.a import f\n",
    "scripts/two.py": "import reclaim.preload\nfrom reclaim.pack.inner import g\n",
    "scripts/three.py": "from reclaim.pack import late\nimport importlib\nimportlib.import_module('reclaim.named')\n",
    "scripts/_helper.py": "x = 1\n",
    "lib/reclaim/__init__.py": "",
    "lib/reclaim/job.py": "def job(x): ...\n",
    "lib/reclaim/preload.py": "",
    "lib/reclaim/named.py": "",
    "lib/reclaim/a.py": 'import json\nfrom . import b\n\n\ndef f(x=1):\n    """Doc."""\n    return x  # comment\n',
    "lib/reclaim/b.py": "def late():\n    import reclaim.c\n    return reclaim.c\n",
    "lib/reclaim/c.py": "VALUE = 3\n",
    "lib/reclaim/alone.py": "VALUE = 4\n",
    "lib/reclaim/pack/__init__.py": "from reclaim.pack.heavy import late\n",
    "lib/reclaim/pack/heavy.py": "late = 1\n",
    "lib/reclaim/pack/inner.py": (
        "from pathlib import Path\nfrom ..c import VALUE\nWORDS = Path(__file__).parent / 'words'\nROWS = 'rows.yaml'\n"
    ),
    "lib/reclaim/pack/words/en.txt": "one\n",
    "lib/reclaim/pack/rows.yaml": "a: 1\n",
    "lib/reclaim/pack/other.yaml": "a: 1\n",
}


@pytest.fixture
def project(tmp_path):
    for name, text in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def _fingerprints(project: Path, names=("one", "two", "three")) -> dict[str, str]:
    return {name: fingerprint(f"scripts/{name}.py", lib=project / "lib") for name in names}


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("scripts/one.py", {"one"}),
        ("scripts/_helper.py", {"one"}),
        ("lib/reclaim/__init__.py", {"one", "two", "three"}),
        ("lib/reclaim/a.py", {"one"}),
        ("lib/reclaim/b.py", {"one"}),
        ("lib/reclaim/c.py", {"one", "two"}),
        ("lib/reclaim/alone.py", set()),
        ("lib/reclaim/named.py", {"three"}),
        ("lib/reclaim/pack/__init__.py", {"two", "three"}),
        ("lib/reclaim/pack/heavy.py", {"three"}),
        ("lib/reclaim/pack/inner.py", {"two"}),
        ("lib/reclaim/pack/words/en.txt", {"two"}),
        ("lib/reclaim/pack/rows.yaml", {"two"}),
        ("lib/reclaim/pack/other.yaml", set()),
        ("lib/reclaim/job.py", set()),
        ("lib/reclaim/preload.py", set()),
    ],
)
def test_an_edit_changes_the_fingerprints_of_what_imports_it(project, edited, changed):
    before = _fingerprints(project)
    path = project / edited
    path.write_text(path.read_text() + ("EDITED = 1\n" if path.suffix == ".py" else "b: 2\n"))
    after = _fingerprints(project)
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# comment", "# another", True),
        ("Doc.", "Other words.", True),
        ('    """Doc."""\n', "", True),
        ("\n\n\ndef", "\n# new\n\n\n\ndef", True),
        ("return x  # comment", "return (\n        x\n    )", True),
        ("import json\n", "import json\nNAME = 1\n'''About NAME.'''\n", False),
        ("x=1", "x=2", False),
        ("return x", "return -x", False),
        ("def f", "def g", False),
        ("import json", "import json as j", False),
    ],
)
def test_only_what_runs_counts(project, old, new, same):
    path = project / "lib/reclaim/a.py"
    before = fingerprint("reclaim.a", lib=project / "lib")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (fingerprint("reclaim.a", lib=project / "lib") == before) == same


def test_names_that_are_not_there_are_refused(project):
    for name in ("reclaim.absent", "scripts/absent.py", "json"):
        with pytest.raises(InputError, match=name.split("/")[-1]):
            fingerprint(name, lib=project / "lib")
    (project / "lib/reclaim/c.py").write_text("def")
    with pytest.raises(InputError, match=r"c\.py.*syntax error"):
        fingerprint("reclaim.c", lib=project / "lib")


def test_this_project(tmp_path):
    """On the real tree: comments and docstrings change nothing, an edit of MeZO reaches what imports it."""
    shutil.copytree(LIB / "reclaim", tmp_path / "lib/reclaim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(LIB.parent / "scripts", tmp_path / "scripts")
    lib = tmp_path / "lib"
    before = {name: fingerprint(f"scripts/{name}", lib=lib) for name in SCRIPTS}
    assert before == {name: fingerprint(f"scripts/{name}") for name in SCRIPTS}
    for path in [*lib.rglob("*.py"), *(tmp_path / "scripts").glob("*.py")]:
        text = path.read_text()
        documented = ast.get_docstring(ast.parse(text)) is not None
        path.write_text(text + ("\n# the end\n" if documented else ""))
        if not documented:
            position = text.find("\nfrom __future__") + 1 if "\nfrom __future__" in text else 0
            path.write_text(f'{text[:position]}"""New docstring."""\n{text[position:]}')
    assert before == {name: fingerprint(f"scripts/{name}", lib=lib) for name in SCRIPTS}
    mezo = lib / "reclaim/optim/mezo.py"
    mezo.write_text(mezo.read_text() + "\nEDITED = True\n")
    changed = {name for name in SCRIPTS if fingerprint(f"scripts/{name}", lib=lib) != before[name]}
    assert "finetune_mezo.py" in changed
    assert not changed & {"make_data.py", "train_tokenizer.py", "pretrain.py", "finetune_backprop.py", "evaluate.py"}
    assert all((LIB / f"{name.replace('.', '/')}.py").exists() for name in MACHINERY if "." in name)


def test_the_manifest_describes_the_run():
    import yaml

    config = {"b": 1, "a": ["ü"]}
    code = f"import json, sys; from reclaim.provenance import run_manifest; m = run_manifest({config!r}); "
    code += "print(json.dumps(m), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.rstrip().endswith("False"), "torch is not imported for it"
    manifest = run_manifest(config)
    assert yaml.safe_load(manifest["config"]) == config
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "snakemake", "transformers"} <= set(manifest["versions"]) and "pytest" not in manifest["versions"]
    assert manifest["machine"]["cores"] >= 1 and manifest["machine"]["ram_bytes"] > 1 << 28
    commit = manifest["git_commit"]
    assert commit is None or len(commit) == 40


# --- Seals ------------------------------------------------------------------------------------------------------------

KEY = "a" * 64


def _store(cache: Path, key: str = KEY, age: float = 60.0) -> dict[str, Path]:
    """Put a job's outputs into the cache as Snakemake does, sealed."""
    work = cache.parent / "work"
    model = work / "model"
    (model / "sub").mkdir(parents=True)
    (model / "weights.bin").write_bytes(os.urandom(1000))
    (model / "sub" / "config.json").write_text("{}")
    (work / "cost.json").write_text("[]")
    seal({"model": model, "cost": work / "cost.json"}, work / "x.seal.json")
    (model / ".snakemake_timestamp").touch()
    cache.mkdir(exist_ok=True)
    entries = {"model": cache / f"{key}_model", "cost": cache / f"{key}_cost.json", "seal": cache / f"{key}_seal.json"}
    shutil.move(model, entries["model"])
    shutil.move(work / "cost.json", entries["cost"])
    shutil.move(work / "x.seal.json", entries["seal"])
    shutil.rmtree(work)
    return entries


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("reclaim.seals._STORING_SECONDS", 0.0)
    folder = tmp_path / "cache"
    assert verify_cache(folder, tmp_path / "results") == []
    return folder


def test_whole_entries_stay_and_are_hashed_once(cache, tmp_path, monkeypatch):
    entries = _store(cache)
    hashed = []
    original = reclaim.seals.sha256
    monkeypatch.setattr("reclaim.seals.sha256", lambda path: hashed.append(path.name) or original(path))
    for expected in (3, 0):
        hashed.clear()
        assert verify_cache(cache, tmp_path / "results") == []
        assert len(hashed) == expected
    monkeypatch.setenv("RECLAIM_VERIFY_CACHE", "full")
    assert verify_cache(cache, tmp_path / "results") == [] and len(hashed) == 3
    assert all(path.exists() for path in entries.values())


def _flip(path: Path) -> None:
    """Change one byte, and put size and time of modification back."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("seen_before", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda e: _flip(e["model"] / "weights.bin"),
        lambda e: _flip(e["cost"]),
        lambda e: _flip(e["seal"]),
        lambda e: (e["model"] / "weights.bin").write_bytes(b""),
        lambda e: (e["model"] / "weights.bin").unlink(),
        lambda e: (e["model"] / "more.txt").touch(),
        lambda e: shutil.rmtree(e["model"]),
        lambda e: (shutil.rmtree(e["model"]), e["model"].touch()),
        lambda e: e["cost"].unlink(),
        lambda e: e["seal"].unlink(),
        lambda e: (e["model"].unlink if e["model"].is_file() else e["seal"].unlink)(),
        lambda e: e["seal"].write_text("{"),
        lambda e: e["seal"].write_text("[]"),
    ],
)
def test_a_damaged_entry_is_removed_with_all_that_belongs_to_it(cache, tmp_path, damage, seen_before):
    other = _store(cache, "b" * 64)
    entries = _store(cache)
    if seen_before:
        assert verify_cache(cache, tmp_path / "results") == []
    damage(entries)
    left = sorted(path.name for path in entries.values() if path.exists())
    assert sorted(verify_cache(cache, tmp_path / "results")) == left
    assert not any(path.exists() for path in entries.values())
    assert all(path.exists() for path in other.values())
    assert verify_cache(cache, tmp_path / "results") == []


def test_results_that_rest_on_removed_entries_go_too(cache, tmp_path):
    good, bad = _store(cache, "b" * 64), _store(cache)
    results = tmp_path / "results"
    (results / "checkpoints").mkdir(parents=True)
    for name, entries in (("good", good), ("bad", bad)):
        (results / f"{name}.json").symlink_to(entries["cost"])  # as stored, or fetched as a file
        (results / f"stored_{name}").symlink_to(entries["model"])  # a folder as stored
        fetched = results / "checkpoints" / name  # a folder as fetched
        fetched.mkdir()
        for path in entries["model"].iterdir():
            (fetched / path.name).symlink_to(path)
    (results / "own_dead_link").symlink_to(tmp_path / "nowhere")
    _flip(bad["model"] / "weights.bin")
    verify_cache(cache, results)
    assert sorted(path.name for path in results.iterdir()) == [
        "checkpoints",
        "good.json",
        "own_dead_link",
        "stored_good",
    ]
    assert [path.name for path in (results / "checkpoints").iterdir()] == ["good"]


def test_an_entry_that_is_being_stored_is_waited_for(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("reclaim.seals._STORING_SECONDS", 300.0)
    entries = _store(cache)
    moved = tmp_path / "moved.json"
    shutil.move(entries["seal"], moved)
    mover = subprocess.Popen(
        [sys.executable, "-c", f"import time, os; time.sleep(0.8); os.rename({str(moved)!r}, {str(entries['seal'])!r})"]
    )
    assert verify_cache(cache, tmp_path / "results") == []
    mover.wait()
    assert all(path.exists() for path in entries.values())


def test_the_cache_of_another_workflow_is_left_alone(tmp_path):
    foreign = tmp_path / "cache" / f"{KEY}.txt"
    foreign.parent.mkdir()
    foreign.write_text("not ours")
    with pytest.raises(InputError, match="entries that this workflow did not make"):
        verify_cache(foreign.parent, tmp_path / "results")
    assert foreign.exists()
    with pytest.raises(InputError, match="a relative path"):
        verify_cache("cache", tmp_path / "results")


def test_the_seal_names_outputs_as_the_cache_does(cache):
    assert set(read_json(_store(cache)["seal"])) == {"_model", "_cost.json"}


SNAKEFILE = """
import os, sys
from reclaim.seals import verify_cache
if workflow.is_main_process:
    print("removed", verify_cache(os.environ["SNAKEMAKE_OUTPUT_CACHE"], "results"), file=sys.stderr)

rule all:
    input: "results/final.txt"

rule made:
    output:
        model=directory("results/model"),
        table="results/table.txt",
        seal="results/seal.json",
    cache: True
    script: "made.py"

rule final:
    input: "results/model", "results/table.txt"
    output: "results/final.txt"
    shell: "cat results/model/weights.txt results/table.txt > {output}"
"""
SCRIPT = """
import pathlib
from reclaim.seals import seal
with open("runs.txt", "a") as runs:
    runs.write("x")
output = snakemake.output
pathlib.Path(output.model).mkdir(exist_ok=True)
pathlib.Path(output.model, "weights.txt").write_text("weights")
pathlib.Path(output.table).write_text("table")
seal({"model": output.model, "table": output.table}, output.seal)
"""


def test_snakemake_makes_a_damaged_entry_again(tmp_path, monkeypatch):
    """Two workflows share a cache; its entry is damaged under what one stored and under what the other fetched."""
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "cache"))
    projects = [tmp_path / name for name in ("first", "second")]

    def run(project: Path) -> str:
        command = [sys.executable, "-m", "snakemake", "-c1", "--cache", "--quiet", "all", "--directory", str(project)]
        result = subprocess.run(
            [*command, "--snakefile", str(project / "Snakefile")], capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, result.stderr
        assert (project / "results/final.txt").read_text() == "weightstable"
        return result.stderr

    def runs() -> list[int]:
        return [len(path.read_text()) if (path := project / "runs.txt").exists() else 0 for project in projects]

    for project in projects:
        project.mkdir()
        (project / "Snakefile").write_text(SNAKEFILE)
        (project / "made.py").write_text(SCRIPT)
        run(project)
    assert runs() == [1, 0], "the second workflow is served from the cache"
    for turn, project in enumerate(reversed(projects)):
        _flip(next((tmp_path / "cache").glob("*_model/weights.txt")))
        (project / "results/final.txt").unlink()
        assert "_model" in run(project)
        assert sum(runs()) == turn + 2, "made again, not used"
