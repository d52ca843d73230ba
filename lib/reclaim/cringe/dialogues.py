"""Dialogue data sets in the formats that they are released in, as prompts with labelled replies (kind `dialogues`).

Sources: the data of the CRINGE project (ParlAI): BlendedSkillTalk (Hub), bot-adversarial dialogue, build-it-break-it safety
data, DECODE, Dialogue NLI, ConvAI2 and FITS (archives, unpacked). The canonical folder is that of `pair_classification` with
the labels negative, positive and unlabelled: `text` is the prompt (turns on lines of their own), `text_pair` the reply.

    format               a row                                                      label
    turns (Hub)          every turn of the listed speakers, after those before it   unlabelled
    parlai               tab-separated key:value lines, `labels:__notok__`          by label; the last line is the reply
    build_it_break_it    JSON, split -> round -> good or bad -> texts               by label; the last line is the reply
    multi_turn_safety    JSON, split -> texts with labels                           by label; the last line is the reply
    decode               JSON lines, `turns` and `is_contradiction`                 whether the last turn contradicts
    dnli                 a JSON list: `sentence1`, `sentence2`, `label`             negative where the two contradict
    fits                 JSON lines, `dialog` with each bot turn's `improve_bucket` positive where that is perfect
    convai2              numbered lines: persona, or message and reply (tab)        unlabelled

Difference from ParlAI's reader of FITS: texts lose the mark of unsafe messages and line breaks, and are else as released.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reclaim.cringe.utterances import LABELS, Reply, is_boring, split_utterance, without_mark
from reclaim.data_local import expand_path
from reclaim.data_spec import check_keys
from reclaim.errors import InputError
from reclaim.io import atomic_path, sha256, write_json, write_parquet

KIND = "dialogues"
NAMES = ("negative", "positive", "unlabelled")
NUMBERS = {"neg": 0, "pos": 1, None: 2}
SPLITS = ("train", "dev", "test")
SOURCES = {
    "hub": ({"splits", "speakers"}, {"id", "revision", "path", "name", "first", "history_turns"}),
    "local": ({"format", "files"}, {"task", "round", "one_line"}),
}
FORMATS = ("parlai", "build_it_break_it", "multi_turn_safety", "decode", "dnli", "fits", "convai2")
HUMANS = ("YOU", "Speaker 1")
"""Who is a person in FITS; everybody else is the bot."""
OFFICIAL_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` whose kind is `dialogues` without touching a file; raises InputError."""
    check_keys(spec, place, SOURCES)
    source = spec["source"]
    splits = spec.get("splits" if source == "hub" else "files")
    if not isinstance(splits, Mapping) or not splits or not set(splits) <= set(SPLITS):
        raise InputError(f"{place}.splits or files", repr(splits), "some of train, dev and test")
    if source == "hub" and not spec.get("speakers"):
        raise InputError(f"{place}.speakers", repr(spec.get("speakers")), "columns whose lists of turns alternate")
    if source == "local" and spec.get("format") not in FORMATS:
        raise InputError(f"{place}.format", repr(spec.get("format")), f"one of {', '.join(FORMATS)}")


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the canonical folder; raises InputError for a wrong spec and for files that are not of the format."""
    out_dir = Path(out_dir)
    place = f"data.{out_dir.name}"
    check_spec(spec, place)
    files = {path: sha256(Path(path)) for path in source_files(spec, place)}
    with atomic_path(out_dir, directory=True) as folder:
        rows, counts = {}, {}
        for split, replies in (_hub if spec["source"] == "hub" else _local)(spec, place):
            kept = [reply for reply in replies if reply.response.strip()]
            if not kept:
                raise InputError(f"{place}, split {split}", "no reply", "at least one")
            frame = pd.DataFrame({
                "id": [f"{split}-{i}" for i in range(len(kept))],
                "text": [reply.context for reply in kept],
                "text_pair": [reply.response for reply in kept],
                "label": [NUMBERS[reply.label] for reply in kept],
            })  # fmt: skip
            write_parquet(frame, folder / f"{split}.parquet")
            rows[split] = len(frame)
            counts[split] = {NAMES[label]: int(count) for label, count in frame["label"].value_counts().items()}
        info = {
            "kind": KIND,
            "label_names": list(NAMES),
            "source": {"spec": dict(spec), "files": files},
            "rows": rows,
            "label_counts": counts,
            "sha256": {f"{split}.parquet": sha256(folder / f"{split}.parquet") for split in rows},
        }
        write_json(info, folder / "dataset.json")


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """Paths of the user's own files ([] for the Hub); raises InputError for one that is not there."""
    if spec["source"] != "local":
        return []
    paths = {split: expand_path(text, f"{place}.files.{split}") for split, text in spec["files"].items()}
    for split, path in paths.items():
        if not path.is_file():
            raise InputError(f"{place}.files.{split}", f"no file {path}", "the unpacked file of the release")
    return list(dict.fromkeys(map(str, paths.values())))


def _hub(spec: Mapping[str, Any], place: str) -> Iterator[tuple[str, list[Reply]]]:
    from reclaim.data_hub import HubSource

    columns = [*spec["speakers"], *([spec["first"]] if "first" in spec else [])]
    source = HubSource(dict(spec), place, columns, None)
    for split in spec["splits"]:
        yield split, [reply for _, row in source.rows(split) for reply in turn_replies(row, spec)]


def turn_replies(row: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Reply]:
    """Every turn of a dialogue with the turns before it (the last `history_turns` of them, default all).

    `spec["first"]` names the column of turns that open the dialogue, `spec["speakers"]` those whose lists alternate.
    """
    before = list(row[spec["first"]]) if "first" in spec else []
    lists = [list(row[name]) for name in spec["speakers"]]
    for number in range(max(map(len, lists))):
        for turns in lists:
            if number < len(turns):
                kept = before[max(0, len(before) - spec.get("history_turns", len(before))) :]
                yield Reply("\n".join(kept), turns[number], None)
                before.append(turns[number])


def _local(spec: Mapping[str, Any], place: str) -> Iterator[tuple[str, list[Reply]]]:
    for split, text in spec["files"].items():
        path = expand_path(text, f"{place}.files.{split}")
        try:
            yield split, list(_replies(spec, split, path))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise InputError(str(path), found, f"a file of the format {spec['format']}") from None


def _replies(spec: Mapping[str, Any], split: str, path: Path) -> Iterator[Reply]:
    content = path.read_text(encoding="utf-8")
    if spec["format"] == "convai2":
        yield from _numbered_lines(content)
        return
    if spec["format"] in ("decode", "dnli", "fits"):
        for row in _json_rows(content):
            if spec["format"] == "fits":
                yield from _judged_turns(row["dialog"])
            elif spec["format"] == "dnli":
                yield Reply(row["sentence1"], row["sentence2"], "neg" if row["label"] == "negative" else "pos")
            else:
                turns = [turn["text"] if isinstance(turn, Mapping) else turn for turn in row["turns"]]
                yield Reply("\n".join(turns[:-1]), turns[-1], "neg" if row["is_contradiction"] else "pos")
        return
    for text, label in _utterances(spec, split, path):
        found = None if is_boring(text) else split_utterance(text, label, spec.get("one_line", "empty"))
        if found is not None:
            yield found


def _json_rows(content: str) -> list[Mapping[str, Any]]:
    """The objects of JSON lines, or of one list, which Dialogue NLI's `.jsonl` files are."""
    if content.lstrip().startswith("["):
        return json.loads(content)
    return [json.loads(line) for line in _lines(content)]


def _lines(content: str) -> list[str]:
    """The lines with something on them. A text may have other characters at which `str.splitlines` breaks (U+2028)."""
    return [line for line in content.split("\n") if line.strip()]


def _numbered_lines(content: str) -> Iterator[Reply]:
    """ConvAI2: a dialogue begins at line 1; lines without a tab are the persona, others a message, the reply, candidates."""
    before: list[str] = []
    for line in _lines(content):
        number, _, rest = line.partition(" ")
        if int(number) == 1:
            before = []
        message, *reply = rest.split("\t")
        before.append(message)
        if reply:
            yield Reply("\n".join(before), reply[0], None)
            before.append(reply[0])


def _judged_turns(dialog: Sequence[Mapping[str, Any]]) -> Iterator[Reply]:
    """FITS: after a person's message the bot tries until its turn is perfect, or the dialogue ends.

    Attempts before are unwanted replies to that message, each text once; what is said between them is feedback, and only the
    last attempt is part of what comes later.
    """
    before: list[str] = []
    message, tried = None, set[str]()
    for number, turn in enumerate(dialog):
        text = " ".join(without_mark(turn["text"]).split())
        if turn["id"] in HUMANS:
            message = text if message is None else message
            continue
        context = [*before, *([message] if message is not None else [])]
        if turn.get("improve_bucket", "perfect") == "perfect" or number == len(dialog) - 1:
            yield Reply("\n".join(context), text, "pos")
            before = [*context, text]
            message, tried = None, set()
        elif text not in tried:
            tried.add(text)
            yield Reply("\n".join(context), text, "neg")


def _utterances(spec: Mapping[str, Any], split: str, path: Path) -> Iterator[tuple[str, str]]:
    if spec["format"] == "parlai":
        for line in _lines(path.read_text(encoding="utf-8")):
            fields = dict(part.split(":", 1) for part in line.split("\t") if ":" in part)
            if fields:
                yield fields["text"].replace("\\n", "\n"), LABELS[fields["labels"]]
        return
    dump = json.loads(path.read_text(encoding="utf-8"))
    official = OFFICIAL_SPLITS[split]
    if spec["format"] == "multi_turn_safety":
        for row in dump[official]:
            yield row["text"], _class(row["labels"])
        return
    rounds = dump[spec.get("task", "standard")][official][str(spec.get("round", 1))]
    for label, name in (("pos", "good"), ("neg", "bad")):
        for row in rounds[name]:
            yield row["text"], label


def _class(labels: Any) -> str:
    return LABELS[labels[0] if isinstance(labels, list) else labels]
