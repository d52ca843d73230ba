"""reclaim.data on real public files, in the folder that the environment variable RECLAIM_DATA names."""

import os
from pathlib import Path

import pytest

from reclaim import data
from reclaim.errors import InputError

SENTENCES = "${RECLAIM_DATA}/sentence-classification"
LABEL_TEXT = {"source": "local", "format": "label_text", "kind": "classification"}
CARVED = {"dev": 0.1, "test": 0.2, "stratify": True}


@pytest.fixture
def made(tmp_path):
    """Materialize a set, or skip where its files are absent; gives the folder and its dataset.json."""

    def make(spec):
        if "RECLAIM_DATA" not in os.environ:
            pytest.skip("RECLAIM_DATA is not set: no real data here")
        for text in spec["files"].values():
            path = Path(os.path.expandvars(text))
            if not path.is_file():
                pytest.skip(f"no file {path}")
        data.materialize(spec, tmp_path / "set")
        return tmp_path / "set", data.load_info(tmp_path / "set")

    return make


def totals(info):
    """Rows per label over all splits."""
    counts = info["label_counts"].values()
    return {name: sum(split.get(name, 0) for split in counts) for name in info["label_names"]}


def test_sst2(made):
    splits = ("train", "dev", "test")
    folder, info = made(
        {
            "source": "local",
            "format": "tsv",
            "kind": "classification",
            "files": {split: f"${{RECLAIM_DATA}}/sst2/{split}.tsv" for split in splits},
            "columns": {"text": "sentence"},
            "label_names": ["negative", "positive"],
        }
    )
    shared = info["shared_between_splits"]
    assert info["rows"] == {"train": 60614 - shared["train"], "dev": 6735 - shared["dev"], "test": 872}
    assert info["label_counts"]["test"] == {"negative": 428, "positive": 444}
    texts = {
        split: {" ".join(text.casefold().split()) for text in data.load_split(folder, split)["text"]}
        for split in splits
    }
    assert shared["train"] > 0 and not texts["train"] & (texts["dev"] | texts["test"])


def test_sst5(made):
    files = {split: f"{SENTENCES}/stsa.fine.{split}" for split in ("train", "dev", "test")}
    names = ["terrible", "bad", "okay", "good", "great"]
    _, info = made(LABEL_TEXT | {"files": files, "label_names": names, "duplicates": "keep"})
    assert info["rows"] == {"train": 8544, "dev": 1101, "test": 2210}
    assert info["label_counts"]["test"] == dict(zip(names, [279, 633, 389, 510, 399], strict=True))


@pytest.mark.parametrize(
    ("name", "options", "counts", "empty"),
    [
        ("rt-polarity", {"encoding": "latin-1"}, {"0": 5331, "1": 5331}, 0),
        ("custrev", {"drop_empty": True}, {"0": 1366, "1": 2405}, 4),
        ("mpqa", {"drop_empty": True}, {"0": 7292, "1": 3311}, 3),
        ("subj", {"encoding": "cp1252"}, {"0": 5000, "1": 5000}, 0),
    ],
)
def test_one_file_sets(made, name, options, counts, empty):
    spec = LABEL_TEXT | {"files": {"all": f"{SENTENCES}/{name}.all"}, "split": CARVED, "duplicates": "keep"} | options
    folder, info = made(spec)
    assert totals(info) == counts
    assert info["noted"].get("all", {}).get("empty text left out", 0) == empty
    total = sum(counts.values())
    assert info["rows"]["test"] == pytest.approx(0.2 * total, abs=1) and sum(info["rows"].values()) == total
    ids = [i for split in ("train", "dev", "test") for i in data.load_split(folder, split)["id"]]
    assert len(set(ids)) == total


def test_trec(made):
    files = {split: f"{SENTENCES}/TREC.{split}.all" for split in ("train", "test")}
    names = ["Description", "Entity", "Expression", "Human", "Location", "Number"]
    folder, info = made(LABEL_TEXT | {"files": files, "encoding": "latin-1", "label_names": names})
    assert info["rows"] == {"train": 5452 - info["shared_between_splits"]["train"], "test": 500}
    assert info["label_counts"]["test"] == dict(zip(names, [138, 94, 9, 65, 81, 113], strict=True))
    first = data.load_split(folder, "test").iloc[0]
    assert (first["text"], names[first["label"]]) == ("How far is it from Denver to Aspen ?", "Number")


def test_agnews(made):
    spec = {
        "source": "local",
        "format": "tsv",
        "header": False,
        "kind": "classification",
        "files": {"test": "${RECLAIM_DATA}/agnews/test.tsv"},
        "columns": {"text": 0, "label": 1},
    }
    _, info = made(spec)
    assert info["label_counts"]["test"] == dict.fromkeys(["Business", "Sci/Tech", "Sports", "World"], 1900)


@pytest.mark.parametrize(("drop_headings", "rows"), [(False, (2461, 2891)), (True, (1841, 2185))])
def test_wikitext2(made, drop_headings, rows):
    files = {"dev": "${RECLAIM_DATA}/wikitext-2/valid.txt", "test": "${RECLAIM_DATA}/wikitext-2/test.txt"}
    spec = {"source": "local", "format": "text", "kind": "text", "files": files, "duplicates": "keep"}
    folder, info = made(spec | {"drop_headings": drop_headings})
    assert (info["rows"]["dev"], info["rows"]["test"]) == rows
    first = data.load_split(folder, "dev")["text"][0]
    assert first.startswith("Homarus gammarus , known" if drop_headings else "= Homarus gammarus =")


@pytest.mark.parametrize(
    ("file", "place", "found"),
    [
        ("rt-polarity.all", "line 32", "byte 0xe9 at byte offset 3841, which is not utf-8"),
        ("custrev.all", "line 769", "an empty text"),
    ],
)
def test_files_read_the_wrong_way(made, tmp_path, file, place, found):
    with pytest.raises(InputError) as caught:
        made(LABEL_TEXT | {"files": {"train": f"{SENTENCES}/{file}"}})
    assert f"{file}, {place}: found {found}" in str(caught.value)
    assert not list(tmp_path.iterdir())
