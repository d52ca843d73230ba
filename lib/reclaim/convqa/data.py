"""Data sets of conversations and of judgements: QuAC files, the Hub's QuAC, the world, annotations, official predictions.

    kind: conversations
    source: world, generator: conversations, splits, seed, parameters
    source: local, files: {train: train_v0.2.json, test: val_v0.2.json}, rewrites: CANARD's JSON (optional)
    source: hub, id: allenai/quac, revision | path, name, splits: {train: train, test: validation}, rewrites

    kind: judgements
    source: local, files: {all: human_annotation_data.json}, git_blob: SHA-1 that `git hash-object` prints (optional)

    kind: quac_predictions
    source: local, files: {gold.bert4quac: predictions_bert_filter_skipent_0_100.json, ...}: PROTOCOL.READER -> JSON lines

A canonical folder of conversations has one `<split>.parquet` with the rows of `reclaim.convqa.dialogs` and `dataset.json`;
of judgements `all.parquet`, one turn a row; of predictions `all.parquet` with protocol, reader, question and answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reclaim.convqa.dialogs import Dialog, canard_rewrites, from_hub, from_row, read_quac, to_row, with_rewrites
from reclaim.convqa.judgements import Conversation, read_annotations
from reclaim.convqa.protocols import PROTOCOLS, read_predictions
from reclaim.data_local import expand_path, sha256
from reclaim.data_spec import check_keys
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json, write_parquet

KINDS = ("conversations", "judgements", "quac_predictions")
# Keys that each source needs, and those it may have, beside kind and source.
SOURCES: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "conversations": {
        "world": ({"generator", "splits"}, {"seed", "parameters"}),
        "local": ({"files"}, {"rewrites", "limit"}),
        "hub": ({"splits"}, {"id", "revision", "path", "name", "rewrites", "limit"}),
    },
    "judgements": {"local": ({"files"}, {"git_blob"})},
    "quac_predictions": {"local": ({"files"}, set())},
}
HUB_COLUMNS = (
    "dialogue_id", "wikipedia_page_title", "background", "section_title", "context", "turn_ids", "questions",
    "followups", "yesnos", "answers", "orig_answers",
)  # fmt: skip


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` of these kinds without touching a file; raises InputError that names the key."""
    if spec.get("kind") not in KINDS:
        raise InputError(f"{place}.kind", repr(spec.get("kind")), f"one of {', '.join(KINDS)}")
    check_keys(spec, place, SOURCES[spec["kind"]])
    if spec["source"] == "world" and spec["generator"] != "conversations":
        raise InputError(f"{place}.generator", repr(spec["generator"]), "conversations")
    parts = spec.get("files", spec.get("splits"))
    if not isinstance(parts, Mapping) or not parts:
        raise InputError(f"{place}.files or splits", repr(parts), "a mapping with at least one entry")
    allowed = {"conversations": {"train", "dev", "test"}, "judgements": {"all"}}.get(spec["kind"])
    for name in parts:
        protocol, _, reader = str(name).partition(".")
        if allowed is not None and name not in allowed:
            raise InputError(f"{place}.{name}", "an unknown part", f"one of {', '.join(sorted(allowed))}")
        if allowed is None and (protocol not in PROTOCOLS or not reader):
            raise InputError(f"{place}.files.{name}", "the name", f"PROTOCOL.READER, PROTOCOL one of {PROTOCOLS}")


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """Paths of the user's own files behind a data set; raises InputError for a missing one."""
    named = {f"{place}.files.{name}": text for name, text in spec.get("files", {}).items()}
    if "rewrites" in spec:
        named[f"{place}.rewrites"] = spec["rewrites"]
    paths = {key: expand_path(text, key) for key, text in named.items()}
    for key, path in paths.items():
        if not path.is_file():
            raise InputError(key, f"no file {path}", "a file", "Correct the path.")
    return list(map(str, paths.values()))


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the canonical folder; raises InputError for what is wrong in the spec or the files, `out_dir` then as before."""
    place = f"data.{Path(out_dir).name}"
    check_spec(spec, place)
    files = {path: sha256(Path(path)) for path in source_files(spec, place)}
    tables = {"conversations": _conversations, "judgements": _judgements, "quac_predictions": _predictions}
    with atomic_path(out_dir, directory=True) as folder:
        rows = {}
        for split, table in tables[spec["kind"]](spec, place):
            write_parquet(table, folder / f"{split}.parquet")
            rows[split] = len(table)
        info = {
            "kind": spec["kind"],
            "label_names": [],
            "source": {"spec": dict(spec), "files": files},
            "rows": rows,
            "sha256": {f"{split}.parquet": sha256(folder / f"{split}.parquet") for split in rows},
        }
        write_json(info, folder / "dataset.json")


def load_dialogs(folder: str | Path, split: str) -> list[Dialog]:
    """The dialogs of a split of a canonical folder."""
    path = Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise InputError(str(folder), f"no split {split!r}", "a data set of conversations with this split")
    return [from_row(row) for row in pd.read_parquet(path).to_dict("records")]


def load_judgements(folder: str | Path) -> list[Conversation]:
    """The conversations of a canonical folder of judgements, as the annotation format has them."""
    frame = pd.read_parquet(Path(folder) / "all.parquet")
    conversations: list[Conversation] = []
    for (_, model, dialog), rows in frame.groupby(["conversation", "model_name", "dialog_id"], sort=True):
        turns = [
            {**row, "gold_anno": list(row["gold_anno"])}
            for row in rows.drop(columns=["conversation", "model_name", "dialog_id", "context"]).to_dict("records")
        ]
        conversations.append(
            {"model_name": model, "dialog_id": dialog, "context": rows["context"].iloc[0], "qas": turns}
        )  # fmt: skip
    return conversations


def load_predictions(folder: str | Path) -> pd.DataFrame:
    """Columns protocol, reader, question (id) and answer."""
    return pd.read_parquet(Path(folder) / "all.parquet")


def _conversations(spec: Mapping[str, Any], place: str) -> Iterator[tuple[str, pd.DataFrame]]:
    rewrites: dict[str, str] = {}
    if "rewrites" in spec:
        path = expand_path(spec["rewrites"], f"{place}.rewrites")
        rewrites = canard_rewrites(_json(path), str(path))
    for split, dialogs in _dialogs(spec, place):
        limit = spec.get("limit", {}).get(split)
        table = [to_row(with_rewrites(dialog, rewrites)) for dialog in list(dialogs)[:limit]]
        yield split, pd.DataFrame(table)


def _dialogs(spec: Mapping[str, Any], place: str) -> Iterator[tuple[str, Sequence[Dialog]]]:
    if spec["source"] == "world":
        from reclaim.world.conversations import generate_dialogs

        yield from generate_dialogs(spec["splits"], spec.get("seed", 0), **spec.get("parameters", {})).items()
    elif spec["source"] == "local":
        for split, text in spec["files"].items():
            path = expand_path(text, f"{place}.files.{split}")
            yield split, list(read_quac(_json(path), str(path)))
    else:
        from reclaim.data_hub import HubSource

        source = HubSource(dict(spec), place, list(HUB_COLUMNS), None)
        for split in spec["splits"]:
            yield split, [from_hub(row, source.place(split, number)) for number, row in source.rows(split)]


def _judgements(spec: Mapping[str, Any], place: str) -> Iterator[tuple[str, pd.DataFrame]]:
    path = expand_path(spec["files"]["all"], f"{place}.files.all")
    wanted = spec.get("git_blob")
    content = path.read_bytes()
    found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if wanted and found != wanted:
        raise InputError(str(path), f"the git blob {found}", f"{wanted}", "Fetch the file of the named commit again.")
    rows = []
    for number, conversation in enumerate(read_annotations(_json(path), str(path))):
        own = {key: conversation[key] for key in ("model_name", "context", "dialog_id")}
        for turn in conversation["qas"]:
            labels = {key: turn.get(key, "") for key in ("valid", "answerable", "correct")}
            said = {key: turn[key] for key in ("turn_id", "question", "answer")}
            anno = turn.get("gold_anno") or []
            rows.append({"conversation": number, **own, **said, **labels, "gold_anno": [str(text) for text in anno]})
    yield "all", pd.DataFrame(rows)


def _predictions(spec: Mapping[str, Any], place: str) -> Iterator[tuple[str, pd.DataFrame]]:
    rows = []
    for name, text in spec["files"].items():
        path = expand_path(text, f"{place}.files.{name}")
        protocol, _, reader = name.partition(".")
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        for question, answer in read_predictions(lines, str(path)).items():
            rows.append({"protocol": protocol, "reader": reader, "question": question, "answer": answer})
    yield "all", pd.DataFrame(rows, columns=["protocol", "reader", "question", "answer"])


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"no readable JSON ({error})", "a JSON document in UTF-8") from None
