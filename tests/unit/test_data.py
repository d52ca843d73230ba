"""reclaim.data: sources to canonical tables, and one clear error for each way in which they can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclaim import data, data_local
from reclaim.errors import InputError
from reclaim.world.generators import GENERATORS

REVISION = "0123456789abcdef0123456789abcdef01234567"


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def tsv(tmp_path, rows, header="sentence\tlabel\n", name="train.tsv"):
    return write(tmp_path / name, header + "".join(f"{text}\t{label}\n" for text, label in rows))


def sentences(tmp_path, **changes):
    """A classification set from TSV files with train and test; `changes` replace keys, None removes one."""
    spec = {
        "source": "local",
        "format": "tsv",
        "kind": "classification",
        "files": {
            "train": tsv(tmp_path, [("good film", 1), ("bad film", 0), ('"lone quote', 1), ("dull", 0)], name="a.tsv"),
            "test": tsv(tmp_path, [("fine", 1), ("poor", 0)], name="b.tsv"),
        },
        "columns": {"text": "sentence"},
        "label_names": ["negative", "positive"],
    } | changes
    return {key: value for key, value in spec.items() if value is not None}


def made(spec, tmp_path):
    data.materialize(spec, tmp_path / "out" / "set")
    return tmp_path / "out" / "set"


def refused(spec, tmp_path, *fragments):
    """The spec must end in one InputError whose message has all fragments, and leave nothing behind."""
    with pytest.raises(InputError) as caught:
        data.materialize(spec, tmp_path / "out" / "set")
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ------------------------------------------------------------------------------------------------ local files


def test_tsv_becomes_canonical_table(tmp_path):
    folder = made(sentences(tmp_path), tmp_path)
    frame = data.load_split(folder, "train")
    assert list(frame.columns) == ["id", "text", "label"]
    assert frame["id"].tolist() == ["train-0", "train-1", "train-2", "train-3"]
    assert frame["text"].tolist() == ["good film", "bad film", '"lone quote', "dull"]
    assert frame["label"].tolist() == [1, 0, 1, 0] and frame["label"].dtype == "int64"
    info = data.load_info(folder)
    assert info["kind"] == "classification" and info["label_names"] == ["negative", "positive"]
    assert info["rows"] == {"train": 4, "test": 2}
    assert info["label_counts"]["train"] == {"negative": 2, "positive": 2}
    assert info["sha256"]["train.parquet"] == data_local.sha256(folder / "train.parquet")
    assert info["source"]["files"][str(tmp_path / "b.tsv")] == data_local.sha256(tmp_path / "b.tsv")
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "test.parquet", "train.parquet"]
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_same_input_gives_same_bytes(tmp_path):
    spec = sentences(tmp_path, split={"dev": 0.5})
    data.materialize(spec, tmp_path / "a")
    data.materialize(spec, tmp_path / "b")
    for name in ("train.parquet", "dev.parquet", "test.parquet", "dataset.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_old_folder_is_replaced_or_kept_whole(tmp_path):
    folder = made(sentences(tmp_path), tmp_path)
    before = (folder / "train.parquet").read_bytes()
    with pytest.raises(InputError):
        data.materialize(sentences(tmp_path, label_names=["no", "yes"], drop_labels=["no", 0, 1]), folder)
    assert (folder / "train.parquet").read_bytes() == before
    data.materialize(sentences(tmp_path, limit={"train": 2}), folder)
    assert len(data.load_split(folder, "train")) == 2


def test_lines_end_at_line_feeds_only(tmp_path):
    # 0x85, 0x1c and U+2028 end a line for str.splitlines but not in a corpus.
    path = tmp_path / "x.all"
    path.write_bytes(b"0 so\x85 long\x85 \n1 a\x1cb\r\n0 caf\xe9\n")
    spec = {"source": "local", "format": "label_text", "kind": "classification", "files": {"train": str(path)}}
    frame = data.load_split(made(spec | {"encoding": "latin-1"}, tmp_path), "train")
    assert frame["text"].tolist() == ["so\x85 long\x85", "a\x1cb", "café"]
    assert frame["label"].tolist() == [0, 1, 0]
    frame = data.load_split(made(spec | {"encoding": "cp1252"}, tmp_path), "train")
    assert frame["text"][0] == "so… long…"


def test_wrong_encoding_names_offset_and_line(tmp_path):
    (tmp_path / "x.all").write_bytes(b"0 fine\n1 caf\xe9\n")
    spec = {
        "source": "local",
        "format": "label_text",
        "kind": "classification",
        "files": {"train": str(tmp_path / "x.all")},
    }
    refused(spec, tmp_path, "x.all, line 2", "byte 0xe9", "offset 12", "latin-1")
    refused(spec | {"encoding": "utf-16"}, tmp_path, "data.set.encoding", "utf-16")
    refused(spec | {"encoding": "klingon"}, tmp_path, "klingon")


def test_byte_order_mark_is_no_part_of_the_header(tmp_path):
    write(tmp_path / "train.tsv", "\ufeffsentence\tlabel\nx\t1\ny\t0\n")
    frame = data.load_split(made(sentences(tmp_path, files={"train": str(tmp_path / "train.tsv")}), tmp_path), "train")
    assert frame["text"].tolist() == ["x", "y"]


def test_carriage_returns_go_with_their_line_feeds(tmp_path):
    path = write(tmp_path / "x.tsv", "sentence\tlabel\tnote\r\nx\t1\tone\r\ny\t0\ttwo\r\n")
    spec = sentences(tmp_path, files={"train": path}, extra_columns={"note": "note"})
    assert data.load_split(made(spec, tmp_path), "train")["note"].tolist() == ["one", "two"]


def test_csv_with_quotes_and_line_feeds_inside(tmp_path):
    path = write(tmp_path / "x.csv", 'text,label\n"one, ""two""\nthree",pos\nplain,neg\n')
    spec = {"source": "local", "format": "csv", "kind": "classification", "files": {"train": path}}
    folder = made(spec, tmp_path)
    assert data.load_split(folder, "train")["text"].tolist() == ['one, "two"\nthree', "plain"]
    assert data.load_info(folder)["label_names"] == ["neg", "pos"]
    open_quote = write(tmp_path / "y.csv", 'text,label\nfine,pos\n"never closed,neg\n')
    (tmp_path / "second").mkdir()
    refused(spec | {"files": {"train": open_quote}}, tmp_path / "second", "y.csv, line 3", "quoting")


def test_headless_file_goes_by_position(tmp_path):
    path = tsv(tmp_path, [("text one", "Sci/Tech"), ("text two", "World")], header="")
    spec = sentences(tmp_path, files={"train": path}, header=False, columns={"text": 0, "label": 1}, label_names=None)
    folder = made(spec, tmp_path)
    assert data.load_info(folder)["label_names"] == ["Sci/Tech", "World"]
    assert data.load_split(folder, "train")["label"].tolist() == [0, 1]


def test_paths_expand_environment_variables(tmp_path, monkeypatch):
    tsv(tmp_path, [("x", 1), ("y", 0)])
    spec = sentences(tmp_path, files={"train": "${RECLAIM_TEST_ROOT}/train.tsv"})
    monkeypatch.delenv("RECLAIM_TEST_ROOT", raising=False)
    refused(spec, tmp_path, "data.set.files.train", "RECLAIM_TEST_ROOT is not set")
    monkeypatch.setenv("RECLAIM_TEST_ROOT", str(tmp_path))
    info = data.load_info(made(spec, tmp_path))
    assert list(info["source"]["files"]) == ["${RECLAIM_TEST_ROOT}/train.tsv"]


def test_text_lines_and_paragraphs(tmp_path):
    path = write(tmp_path / "wiki.txt", " \n = Title = \n \n first line \n second line \n \n = = Part = = \n third \n")
    spec = {"source": "local", "format": "text", "kind": "text", "files": {"train": path}}

    def texts(**options):
        return data.load_split(made(spec | options, tmp_path), "train")["text"].tolist()

    assert texts() == ["= Title =", "first line", "second line", "= = Part = =", "third"]
    assert texts(drop_headings=True) == ["first line", "second line", "third"]
    assert texts(unit="paragraph", drop_headings=True) == ["first line\nsecond line", "third"]


def test_paragraph_without_end_names_its_first_line(tmp_path, monkeypatch):
    path = write(tmp_path / "x.txt", "one\n\n" + "line\n" * 9)
    spec = {"source": "local", "format": "text", "kind": "text", "files": {"train": path}, "unit": "paragraph"}
    monkeypatch.setattr(data_local, "LONGEST_LINE", 12)
    refused(spec, tmp_path, "x.txt, line 3", "paragraph of more than 12", "unit: line")


def test_large_text_passes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "ROWS_PER_GROUP", 7)
    path = write(tmp_path / "x.txt", "".join(f"line {i}\n" for i in range(30)))
    spec = {"source": "local", "format": "text", "kind": "text", "files": {"train": path}}
    folder = made(spec, tmp_path)
    assert pq.ParquetFile(folder / "train.parquet").num_row_groups == 5
    frames = list(data.iter_split(folder, "train", batch_size=4))
    assert max(map(len, frames)) <= 4
    assert [text for frame in frames for text in frame["text"]] == [f"line {i}" for i in range(30)]
    monkeypatch.setattr(data_local, "LONGEST_LINE", 7)
    with pytest.raises(InputError, match="line 11.*more than 7"):
        data.materialize(spec, folder)


@pytest.mark.parametrize("first", [0, 3, 5, 7, 12, 13])
def test_reading_can_begin_at_any_row(tmp_path, monkeypatch, first):
    monkeypatch.setattr(data, "ROWS_PER_GROUP", 5)
    (tmp_path / "train.txt").write_text("".join(f"line {number}\n" for number in range(13)))
    spec = {"source": "local", "kind": "text", "format": "text", "files": {"train": str(tmp_path / "train.txt")}}
    folder = made(spec, tmp_path)
    texts = [text for frame in data.iter_split(folder, "train", 4, first) for text in frame["text"]]
    assert texts == [f"line {number}" for number in range(first, 13)]


def test_jsonl_with_nested_columns(tmp_path):
    rows = [
        {
            "id": "q1",
            "title": "T",
            "context": " in Paris, France",
            "question": " Where? ",
            "answers": {"text": ["Paris", "France"], "answer_start": [4, 11]},
        },
        {"id": "q2", "title": "", "context": "c", "question": "None?", "answers": {"text": [], "answer_start": []}},
        {
            "id": "q3",
            "title": "",
            "context": "in Rome",
            "question": "Where?",
            "answers": {"text": ["Rome"], "answer_start": [2]},
        },
    ]
    rows.append(rows[-1] | {"id": "q4", "question": "Where to?"})
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    columns = {"id": "id", "title": "title", "answers": "answers.text", "answer_starts": "answers.answer_start"}
    spec = {"source": "local", "format": "jsonl", "kind": "qa", "files": {"test": path}, "columns": columns}
    folder = made(spec, tmp_path)
    frame = data.load_split(folder, "test")
    assert frame["id"].tolist() == ["q1", "q2", "q3", "q4"]
    assert frame["context"][0] == " in Paris, France" and frame["question"][0] == "Where?"
    assert frame["answers"].tolist() == [["Paris", "France"], [], ["Rome"], ["Rome"]]
    assert frame["answer_starts"].tolist() == [[4, 11], [], [2], [2]]
    assert data.load_info(folder)["noted"] == {"test": {"answer not at its answer_start": 2}}
    frame = data.load_split(made(spec | {"columns": {"answers": "answers.text"}}, tmp_path), "test")
    assert frame["answer_starts"].tolist() == [[-1, -1], [], [-1], [-1]] and set(frame["title"]) == {""}
    assert frame["id"][0] == "test-0"


@pytest.mark.parametrize(
    ("lines", "fragments"),
    [
        (['{"text": "a", "label": 1}', '{"text": "b", "label": '], ["x.jsonl, line 2", "malformed JSON"]),
        (['{"text": "a", "label": 1}', '["b", 1]'], ["line 2", "list"]),
        (['{"text": "a", "label": 1}', '{"txt": "b", "label": 1}'], ["line 2", "no column 'text'", "txt"]),
        (['{"text": "a", "label": 1}', '{"text": null, "label": 1}'], ["line 2", "text None", "drop_empty"]),
        (['{"text": NaN, "label": 1}'], ["line 1", "text nan"]),
        (['{"text": " ", "label": 1}'], ["line 1", "empty text"]),
        (['{"text": "a", "label": null}'], ["line 1", "label None"]),
        (['{"text": "a", "label": [1]}'], ["line 1", "label [1]"]),
        (['{"text": "a", "label": 2}'], ["line 1", "label '2'", "'negative'"]),
        (['{"text": "a", "label": -1}'], ["line 1", "label '-1'", "drop_labels"]),
        (['{"text": "a", "label": 0.5}'], ["line 1", "label '0.5'"]),
        (['{"text": "\\ud800", "label": 1}'], ["line 1", "surrogate"]),
        ([], ["split train", "no rows"]),
    ],
)
def test_bad_json_rows(tmp_path, lines, fragments):
    path = write(tmp_path / "x.jsonl", "".join(line + "\n" for line in lines))
    refused(sentences(tmp_path, format="jsonl", columns=None, files={"train": path}), tmp_path, *fragments)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("sentence\tlabel\nx\t1\ny\tmaybe\n", ["train.tsv, line 3", "label 'maybe'", "'positive'"]),
        ("sentence\tlabel\nx\t1\n\t0\n", ["line 3", "empty text"]),
        ("sentence\tlabel\nx\t1\ty\n", ["line 2", "3 fields", "2 as in the first line"]),
        ("sentence\tclass\nx\t1\n", ["train.tsv", "no column 'label'", "'class'"]),
        ("label\tlabel\nx\t1\n", ["line 1", "repeats"]),
        ("sentence\tlabel\n", ["split train", "no rows"]),
        ("", ["split train", "no rows"]),
    ],
)
def test_bad_tsv(tmp_path, text, fragments):
    path = write(tmp_path / "train.tsv", text)
    refused(sentences(tmp_path, files={"train": path}), tmp_path, *fragments)


def test_missing_file_shows_neighbours(tmp_path):
    refused(sentences(tmp_path, files={"train": str(tmp_path / "trian.tsv")}), tmp_path, "trian.tsv", "a.tsv, b.tsv")
    refused(sentences(tmp_path, files={"train": str(tmp_path / "no/x.tsv")}), tmp_path, "no folder")


def test_parquet_source(tmp_path):
    frame = pd.DataFrame({"s1": ["a", "b"], "s2": ["c", "d"], "score": [2.5, 5.0], "other": [1, 2]})
    frame.to_parquet(tmp_path / "x.parquet")
    spec = {
        "source": "local",
        "format": "parquet",
        "kind": "regression",
        "files": {"train": str(tmp_path / "x.parquet")},
    }
    spec["columns"] = {"text": "s1", "text_pair": "s2", "label": "score"}
    folder = made(spec, tmp_path)
    table = data.load_split(folder, "train")
    assert table["label"].tolist() == [2.5, 5.0] and list(table.columns) == ["id", "text", "text_pair", "label"]
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="x.parquet: found a file that cannot be read as Parquet"):
        data.materialize(spec, folder)
    pd.DataFrame({"s1": ["a", "b"], "s2": ["c", "d"], "score": [2.5, float("nan")]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="row 1: found label"):
        data.materialize(spec, folder)
    assert len(data.load_split(folder, "train")) == 2


def test_multiple_choice_from_columns_and_from_a_list(tmp_path):
    rows = [
        {"premise": "it rained", "c1": "wet", "c2": "dry", "label": 0, "question": "effect"},
        {"premise": "sun", "c1": "wet", "c2": "dry", "label": 1, "question": "effect"},
    ]
    path = write(tmp_path / "copa.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "source": "local",
        "format": "jsonl",
        "kind": "multiple_choice",
        "files": {"train": path},
        "columns": {"text": "premise", "choices": ["c1", "c2"]},
        "extra_columns": {"question": "question"},
    }
    frame = data.load_split(made(spec, tmp_path), "train")
    assert frame["choices"].tolist() == [["wet", "dry"]] * 2 and frame["label"].tolist() == [0, 1]
    assert frame["question"].tolist() == ["effect", "effect"]
    rows = [{"text": "2+2", "options": {"text": ["3", "4", "5"]}, "key": "B", "label": 7}]
    path = write(tmp_path / "arc.jsonl", json.dumps(rows[0]) + "\n")
    spec |= {"files": {"train": path}, "columns": {"choices": "options.text", "label": "key"}, "extra_columns": {}}
    frame = data.load_split(made(spec | {"label_names": ["A", "B", "C"]}, tmp_path), "train")
    assert frame["choices"].tolist() == [["3", "4", "5"]] and frame["label"].tolist() == [1]
    (tmp_path / "second").mkdir()
    refused(spec, tmp_path / "second", "arc.jsonl, line 1", "label 'B'", "from 0")
    refused(spec | {"columns": {"choices": "options.text"}}, tmp_path / "second", "label 7 of 3 choices")


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("raw", "options", "names", "ids"),
    [
        (["1", "0", "1"], {"label_names": ["no", "yes"]}, ["no", "yes"], [1, 0, 1]),
        (["yes", "no", "yes"], {"label_names": ["no", "yes"]}, ["no", "yes"], [1, 0, 1]),
        (["10", "9", "10"], {"label_names": None}, ["9", "10"], [1, 0, 1]),
        (["b", "a", "b"], {"label_names": None}, ["a", "b"], [1, 0, 1]),
        # Names that look like numbers are names, never positions.
        (["1", "2", "1"], {"label_names": ["1", "2"]}, ["1", "2"], [0, 1, 0]),
        (
            ["entailment", "neutral", "no"],
            {"label_names": ["yes", "no"], "label_map": {"entailment": "yes", "neutral": "no"}},
            ["yes", "no"],
            [0, 1, 1],
        ),
        (["-", "a", "b"], {"label_names": None, "drop_labels": ["-"]}, ["a", "b"], [0, 1]),
    ],
)
def test_labels(tmp_path, raw, options, names, ids):
    path = tsv(tmp_path, [(f"text {i}", label) for i, label in enumerate(raw)])
    folder = made(sentences(tmp_path, files={"train": path}, **options), tmp_path)
    assert data.load_info(folder)["label_names"] == names
    assert data.load_split(folder, "train")["label"].tolist() == ids


def test_numbers_are_no_positions_beside_a_label_map(tmp_path):
    path = tsv(tmp_path, [("x", "good"), ("y", "0")])
    options = {"label_names": ["no", "yes"], "label_map": {"good": "yes"}}
    refused(sentences(tmp_path, files={"train": path}, **options), tmp_path, "line 3", "label '0'")


def test_a_text_column_is_not_taken_for_labels(tmp_path):
    path = tsv(tmp_path, [(f"text {i}", i) for i in range(1200)])
    spec = sentences(tmp_path, files={"train": path}, label_names=None)
    refused(spec, tmp_path, "more than 1000 different labels", "'label'")


# ------------------------------------------------------------------------------------------------ splits


def hundred(tmp_path, **changes):
    rows = [(f"sentence {i}", int(i % 10 == 0)) for i in range(100)]
    return sentences(tmp_path, **({"files": {"all": tsv(tmp_path, rows)}} | changes))


def test_split_covers_every_row_once_and_depends_on_its_seed(tmp_path):
    def ids(seed):
        folder = made(hundred(tmp_path, split={"dev": 0.1, "test": 0.25, "seed": seed}), tmp_path)
        return {split: data.load_split(folder, split)["id"].tolist() for split in ("train", "dev", "test")}

    first, again, other = ids(0), ids(0), ids(1)
    assert {split: len(rows) for split, rows in first.items()} == {"train": 65, "dev": 10, "test": 25}
    assert sorted(sum(first.values(), [])) == sorted(f"all-{i}" for i in range(100))
    assert first == again and first["test"] != other["test"]


def test_stratified_split_keeps_shares(tmp_path):
    folder = made(hundred(tmp_path, split={"test": 0.2, "dev": 0.1, "stratify": True}), tmp_path)
    counts = data.load_info(folder)["label_counts"]
    assert counts == {
        "test": {"negative": 18, "positive": 2},
        "dev": {"negative": 9, "positive": 1},
        "train": {"negative": 63, "positive": 7},
    }


def test_dev_from_train_and_limit(tmp_path):
    spec = hundred(tmp_path, split={"dev": 0.2}, limit={"train": 30, "test": 5})
    spec["files"]["train"] = spec["files"].pop("all")
    spec["files"]["test"] = tsv(tmp_path, [(f"other {i}", 1) for i in range(4)], name="test.tsv")
    folder = made(spec, tmp_path)
    assert data.load_info(folder)["rows"] == {"train": 30, "dev": 20, "test": 4}
    train = data.load_split(folder, "train")["id"].str.removeprefix("train-").astype(int)
    assert train.is_monotonic_increasing and train.max() > 40  # in order, and not simply the first rows
    assert not set(data.load_split(folder, "dev")["id"]) & set(data.load_split(folder, "train")["id"])


def test_shared_texts(tmp_path):
    files = {
        "train": tsv(tmp_path, [("Same  One", 1), ("unique", 0), ("twice", 0), ("twice", 0), ("in dev", 1)]),
        "dev": tsv(tmp_path, [("in dev", 1), ("in dev", 1), ("same one", 0)], name="dev.tsv"),
        "test": tsv(tmp_path, [("same one", 1), ("same one", 1)], name="test.tsv"),
    }
    folder = made(sentences(tmp_path, files=files), tmp_path)
    # Repeats inside a split stay; only what another split evaluates on goes.
    assert data.load_split(folder, "train")["text"].tolist() == ["unique", "twice", "twice"]
    assert data.load_split(folder, "dev")["text"].tolist() == ["in dev", "in dev"]
    assert len(data.load_split(folder, "test")) == 2
    assert data.load_info(folder)["shared_between_splits"] == {"train": 2, "dev": 1, "test": 0}
    folder = made(sentences(tmp_path, files=files, duplicates="keep"), tmp_path)
    assert data.load_info(folder)["rows"] == {"train": 5, "dev": 3, "test": 2}
    assert data.load_info(folder)["shared_between_splits"] == {"train": 2, "dev": 1, "test": 0}
    (tmp_path / "second").mkdir()
    refused(sentences(tmp_path, files=files, duplicates="refuse"), tmp_path / "second", "split dev", "'dev-2'")


def test_train_that_is_wholly_in_test_is_refused(tmp_path):
    path = tsv(tmp_path, [("x", 1), ("y", 0)])
    refused(sentences(tmp_path, files={"train": path, "test": path}), tmp_path, "split train", "another split': 2")


def test_drop_empty_counts(tmp_path):
    path = write(tmp_path / "train.tsv", "sentence\tlabel\nx\t1\n\t0\n \t0\ny\t0\n")
    folder = made(sentences(tmp_path, files={"train": path}, drop_empty=True), tmp_path)
    info = data.load_info(folder)
    assert info["rows"] == {"train": 2} and info["noted"] == {"train": {"empty text left out": 2}}


def test_duplicated_ids(tmp_path):
    path = write(tmp_path / "x.tsv", "key\tsentence\tlabel\na\tx\t1\nb\ty\t0\na\tz\t0\n")
    spec = sentences(tmp_path, files={"train": path}, columns={"text": "sentence", "id": "key"})
    refused(spec, tmp_path, "x.tsv, line 4", "id 'a'")


# ------------------------------------------------------------------------------------------------ the Hub's format


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A data set as it lies on the Hub: a card with configurations and features, and Parquet files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "glue"
    (folder / "sst2").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
        "  - {split: train, path: sst2/train-*}\n  - {split: validation, path: sst2/validation-*}\n"
        "  - {split: test, path: sst2/test-*}\n"
        "dataset_info:\n- config_name: sst2\n  features:\n  - {name: sentence, dtype: string}\n"
        "  - {name: label, dtype: {class_label: {names: {'0': negative, '1': positive}}}}\n"
        "  - {name: idx, dtype: int32}\n---\n# card\n"
    )
    for split, rows in {
        "train": [("good film ", 1), ("bad film", 0), ("dull", 0), ("great", 1)],
        "validation": [("fine", 1), ("poor", 0)],
        "test": [("hidden", -1)],
    }.items():
        pa_schema = pa.schema([("sentence", pa.string()), ("label", pa.int64()), ("idx", pa.int32())])
        table = pa.Table.from_pylist(
            [{"sentence": s, "label": v, "idx": i} for i, (s, v) in enumerate(rows)], pa_schema
        )
        pq.write_table(table, folder / "sst2" / f"{split}-00000-of-00001.parquet")
    return folder


def hub_spec(folder, **changes):
    spec = {
        "source": "hub",
        "path": str(folder),
        "name": "sst2",
        "kind": "classification",
        "columns": {"text": "sentence", "id": "idx"},
        "splits": {"train": "train", "test": "validation"},
    } | changes
    return {key: value for key, value in spec.items() if value is not None}


def test_hub_folder(hub_folder, tmp_path):
    folder = made(hub_spec(hub_folder), tmp_path)
    info = data.load_info(folder)
    assert info["label_names"] == ["negative", "positive"] and info["rows"] == {"train": 4, "test": 2}
    assert "sst2/train-00000-of-00001.parquet" in info["source"]["files"]
    train = data.load_split(folder, "train")
    assert train["text"].tolist() == ["good film", "bad film", "dull", "great"]
    assert train["id"].tolist() == ["0", "1", "2", "3"] and train["label"].tolist() == [1, 0, 0, 1]


def test_hub_splits_with_slices_and_shares(hub_folder, tmp_path):
    folder = made(hub_spec(hub_folder, splits={"train": "train[:50%]", "test": "train[50%:]"}), tmp_path)
    assert data.load_split(folder, "test")["text"].tolist() == ["dull", "great"]
    folder = made(hub_spec(hub_folder, splits={"all": "train"}, split={"test": 0.25}), tmp_path)
    assert data.load_info(folder)["rows"] == {"train": 3, "test": 1}


@pytest.mark.parametrize(
    ("names", "ids"),
    [(["terrible", "great"], [1, 0, 0, 1]), (["positive", "negative"], [0, 1, 1, 0])],
)
def test_hub_label_names(hub_folder, tmp_path, names, ids):
    # The set's own names in another order keep their meaning; entirely new names rename by position.
    folder = made(hub_spec(hub_folder, label_names=names), tmp_path)
    assert data.load_info(folder)["label_names"] == names
    assert data.load_split(folder, "train")["label"].tolist() == ids


def test_hub_faults(hub_folder, tmp_path):
    refused(hub_spec(hub_folder, label_names=["negative", "good"]), tmp_path, "label_names", "'positive'")
    refused(hub_spec(hub_folder, splits={"test": "test"}), tmp_path, "split test, row 0", "label '-1'", "hidden labels")
    refused(hub_spec(hub_folder, splits={"test": "dev"}), tmp_path, "data.set.splits.test", "dev")
    refused(hub_spec(hub_folder, name="sst3"), tmp_path, "sst3")
    refused(hub_spec(hub_folder, columns={"text": "text"}), tmp_path, "data.set.columns", "'text'", "sentence")
    refused(hub_spec(hub_folder, path=str(tmp_path / "none")), tmp_path, "data.set.path", "no folder")


def test_hub_id_goes_to_load_dataset_at_its_revision(hub_folder, tmp_path, monkeypatch):
    import datasets

    real, calls = datasets.load_dataset, []

    def load_dataset(path, name=None, **options):
        calls.append((path, name, options))
        return real(str(hub_folder), name, split=options["split"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    spec = hub_spec(hub_folder, path=None, id="nyu-mll/glue", revision=REVISION)
    folder = made(spec, tmp_path)
    assert calls[0] == ("nyu-mll/glue", "sst2", {"split": "train", "revision": REVISION})
    assert data.load_info(folder)["source"] == {"spec": spec, "files": {}}
    # A folder of the same name in the working directory would be read in place of the Hub.
    (tmp_path / "nyu-mll" / "glue").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    refused(spec, tmp_path / "second", "data.set.id", "instead of the Hub")


def test_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused(hub_spec(None, path=None, id="a/b", revision=REVISION), tmp_path, "a/b@0123", "no route", "`path`")


# ------------------------------------------------------------------------------------------------ the world


@pytest.fixture
def generators(monkeypatch):
    """A stand-in for reclaim.world.generators with one generator."""
    module = types.ModuleType("reclaim.world.generators")
    module.frames, module.GENERATORS = {}, {"g": None}
    module.info = lambda name: {"kind": "classification", "label_names": ["a", "b"]}

    def generate(name, split_sizes, seed, **parameters):
        module.asked = (name, split_sizes, seed, parameters)
        return module.frames

    module.generate = generate
    package = types.ModuleType("reclaim.world")
    package.generators = module
    monkeypatch.setitem(sys.modules, "reclaim.world", package)
    monkeypatch.setitem(sys.modules, "reclaim.world.generators", module)
    return module


def world_frame(prefix, n):
    return pd.DataFrame(
        {
            "id": [f"{prefix}{i}" for i in range(n)],
            "text": [f"{prefix} text {i}" for i in range(n)],
            "label": [i % 2 for i in range(n)],
            "polarity": [0.5 * i for i in range(n)],
            "topics": [[prefix, "x"] for _ in range(n)],
        }
    )


def test_world(generators, tmp_path):
    generators.frames = {"train": world_frame("t", 6), "test": world_frame("e", 3)}
    spec = {
        "source": "world",
        "generator": "g",
        "seed": 5,
        "splits": {"train": 6, "test": 3},
        "parameters": {"rate": 1},
    }
    folder = made(spec, tmp_path)
    assert generators.asked == ("g", {"train": 6, "test": 3}, 5, {"rate": 1})
    frame = data.load_split(folder, "train")
    pd.testing.assert_frame_equal(frame, generators.frames["train"])
    assert data.load_info(folder)["label_counts"]["train"] == {"a": 3, "b": 3}


def test_world_tables_are_checked(generators, tmp_path):
    generators.frames = {"train": world_frame("t", 4).assign(label=[0, 1, 2, 0])}
    spec = {"source": "world", "generator": "g", "splits": {"train": 4}}
    refused(spec, tmp_path, "generator g", "split train, row 2", "label 2")


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_of_the_world(name, tmp_path):
    splits = {"train": 30} if name == "passages" else {"train": 30, "test": 10}
    spec = {"source": "world", "generator": name, "splits": splits}
    folder = made(spec, tmp_path)
    info, frame = data.load_info(folder), data.load_split(folder, "train")
    assert info["rows"] == splits
    if info["kind"] != "text":
        assert info["shared_between_splits"] == {"train": 0, "test": 0}
    data.validate_table(frame, info["kind"], info["label_names"], name)


def test_unknown_generator():
    with pytest.raises(InputError, match="data.x.generator: found 'moon'.*polarity_corpus"):
        data.check_spec({"source": "world", "generator": "moon", "splits": {"train": 3}}, "data.x")


# ------------------------------------------------------------------------------------------------ validate_table


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"label": [0, 2]}, "row 1: found label 2"),
        ({"label": [0, -1]}, "row 1: found label -1"),
        ({"label": [0.0, 1.0]}, "float64"),
        ({"text": ["x", None]}, "row 1: found text"),
        ({"text": ["x", "  "]}, "row 1: found an empty text"),
        ({"id": ["a", "a"]}, "the id 'a' twice"),
        ({"id": [1, 2]}, "id 1"),
    ],
)
def test_validate_table(change, fragment):
    frame = pd.DataFrame({"id": ["a", "b"], "text": ["x", "y"], "label": [0, 1]})
    data.validate_table(frame, "classification", ["n", "p"], "here")
    with pytest.raises(InputError) as caught:
        data.validate_table(frame.assign(**change), "classification", ["n", "p"], "here")
    assert str(caught.value).startswith("here") and fragment in str(caught.value)


def test_validate_table_columns_and_emptiness():
    frame = pd.DataFrame({"id": ["a"], "text": ["x"]})
    with pytest.raises(InputError, match="text_pair"):
        data.validate_table(frame, "pair_classification", ["n", "p"], "here")
    with pytest.raises(InputError, match="no rows"):
        data.validate_table(frame[:0], "text", [], "here")
    with pytest.raises(InputError, match="kind 'image'"):
        data.validate_table(frame, "image", [], "here")


def test_validate_table_lists():
    frame = pd.DataFrame({"id": ["a"], "title": [""], "context": ["abc"], "question": ["q"]})
    frame["answers"], frame["answer_starts"] = [["b"]], [[1]]
    data.validate_table(frame, "qa", [], "here")
    for starts in ([[3]], [[1, 1]], [[None]]):
        with pytest.raises(InputError, match="answer_start"):
            data.validate_table(frame.assign(answer_starts=starts), "qa", [], "here")
    frame = pd.DataFrame({"id": ["a"], "text": ["x"], "choices": [["one"]], "label": [0]})
    with pytest.raises(InputError, match="label 0 of 1 choices"):
        data.validate_table(frame, "multiple_choice", [], "here")


# ------------------------------------------------------------------------------------------------ loading


def test_load_faults(tmp_path):
    folder = made(sentences(tmp_path), tmp_path)
    with pytest.raises(InputError, match="no split 'dev'.*test.*train"):
        data.load_split(folder, "dev")
    with pytest.raises(InputError, match="no such file"):
        data.load_info(tmp_path)
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(content[:-20])
    with pytest.raises(InputError, match="train.parquet.*no readable Parquet"):
        data.load_split(folder, "train")
    os.replace(folder / "test.parquet", folder / "train.parquet")
    with pytest.raises(InputError, match="2 rows; expected 4"):
        data.load_split(folder, "train")


# ------------------------------------------------------------------------------------------------ the spec


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"source": "web"}, ["data.x.source", "'web'", "world (generated), hub"]),
        ({"colums": {}}, ["data.x", "colums", "columns"]),
        ({"files": None}, ["data.x", "'files' is a required property"]),
        ({"files": {}}, ["data.x.files", "train, dev, test"]),
        ({"files": {"valid": "x"}}, ["data.x.files", "valid"]),
        ({"kind": "tagging"}, ["data.x.kind", "'tagging'", "multiple_choice"]),
        ({"format": "xlsx"}, ["data.x.format", "label_text"]),
        ({"columns": {"sentence": "text"}}, ["data.x.columns", "'sentence'", "extra_columns"]),
        ({"extra_columns": {"text": "t"}}, ["data.x.extra_columns", "'text'"]),
        ({"header": False}, ["data.x.columns", "no position of 'label'"]),
        ({"columns": {"text": 0}}, ["data.x.columns.text", "a column's name"]),
        ({"unit": "line"}, ["data.x.unit", "format tsv"]),
        ({"label_names": ["a", True]}, ["data.x.label_names.1", "True", "quote"]),
        ({"label_names": ["a", "a"]}, ["data.x.label_names"]),
        ({"label_map": {"good": "fine"}}, ["data.x.label_map", "'fine'", "positive"]),
        ({"label_map": {1: "positive"}}, ["data.x.label_map", "the key 1", "quotation marks"]),
        ({"split": {"dev": 1.5}}, ["data.x.split.dev", "1.5", "between 0 and 1"]),
        ({"split": {"seed": 1}}, ["data.x.split", "shares"]),
        ({"split": {"test": 0.1}}, ["data.x.split.test", "no own test"]),
        ({"files": {"all": "x"}}, ["`all`", "`split`"]),
        ({"files": {"all": "x", "test": "y"}, "split": {"dev": 0.1}}, ["`all` alone"]),
        ({"files": {"all": "x"}, "split": {"dev": 0.5, "test": 0.5}}, ["data.x.split", "leave something"]),
        ({"limit": {"dev": 5}}, ["data.x.limit", "'dev'", "train"]),
        ({"limit": 5}, ["data.x.limit", "5"]),
        ({"duplicates": "ignore"}, ["data.x.duplicates", "refuse"]),
        ({"format": "text", "columns": None, "label_names": None}, ["data.x.kind", "text"]),
        ({"kind": "regression"}, ["data.x.label_names", "regression"]),
    ],
)
def test_check_spec(tmp_path, change, fragments):
    data.check_spec(sentences(tmp_path), "data.x")
    with pytest.raises(InputError) as caught:
        data.check_spec(sentences(tmp_path, **change), "data.x")
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"revision": "main"}, ["data.x.revision", "'main'", "commit hash"]),
        ({"revision": None}, ["data.x", "`id` with `revision`"]),
        ({"path": "x"}, ["data.x", "`id` with `revision`"]),
        ({"id": "../data"}, ["data.x.id", "id on the Hub"]),
        ({"trust_remote_code": True}, ["trust_remote_code"]),
    ],
)
def test_check_hub_spec(change, fragments):
    spec = hub_spec(None, path=None, id="nyu-mll/glue", revision=REVISION)
    data.check_spec(spec, "data.x")
    with pytest.raises(InputError) as caught:
        spec = {key: value for key, value in (spec | change).items() if value is not None}
        data.check_spec(spec, "data.x")
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_schema_can_stand_inside_a_larger_one(tmp_path):
    import jsonschema

    schema = {"type": "object", "properties": {"data": {"additionalProperties": data.spec_schema()}}}
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors({"data": {"x": sentences(tmp_path)}}))
    assert list(validator.iter_errors({"data": {"x": sentences(tmp_path, kind="tagging")}}))


def test_import_is_light():
    code = (
        "import sys, reclaim.data; "
        "print(sorted({'torch', 'transformers', 'datasets', 'jsonschema', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
