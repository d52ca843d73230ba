"""Which rows a spec's entries stand for, and what each arm trains on.

An entry names a data set (`data`, `split`) and what of it: `label` (rows with that label only), `where` (column -> value),
`rows` of them drawn by the seed, after `skip` others in the same order, so that two entries on one data set can have
different rows. Data sets of pairs have prompts and replies; of single texts (labelled utterances) the last line is the reply
and the rest the prompt, as `utterances` has it, or, with `whole`, all of the text: what the project's models are provoked by.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.cringe.loss import NEGATIVE, POSITIVE, UNLABELLED
from reclaim.cringe.utterances import is_boring, split_utterance
from reclaim.data import load_info, load_split
from reclaim.errors import InputError
from reclaim.seeding import derive

POLARITY = {"positive": POSITIVE, "negative": NEGATIVE, "unlabelled": UNLABELLED}
GENERATED = ("both", "positives", "none")
Part = tuple[pd.DataFrame, float]
"""Rows (`text`, `text_pair`, `polarity`) and their weight in the mixture."""


def choose_rows(entry: Mapping[str, Any], name: str, data: Mapping[str, Path], seed: int) -> pd.DataFrame:
    """The rows of an entry, with their `polarity`: `entry["polarity"]`, else by `entry["label"]`, else unlabelled.

    Raises `InputError` for a label that the data set has not, and for more rows than there are.
    """
    folder, split = data[entry["data"]], entry.get("split", "train")
    frame, names = load_split(folder, split), load_info(folder).get("label_names") or []
    if "text_pair" not in frame:
        frame = _last_lines(frame, entry.get("one_line", "empty"), entry.get("whole", False))
    if "label" in entry and names:
        if entry["label"] not in names:
            raise InputError(f"{entry['data']}: label", repr(entry["label"]), f"one of {', '.join(names)}")
        frame = frame[frame["label"] == names.index(entry["label"])]
    for column, value in entry.get("where", {}).items():
        frame = frame[frame[column].astype(str) == str(value)]
    order = np.random.default_rng(derive(seed, "rows", entry["data"], split)).permutation(len(frame))
    skip = entry.get("skip", 0)
    count = entry.get("rows", len(frame) - skip)
    if count < 1 or skip + count > len(frame):
        found, wanted = f"{len(frame)} rows of {entry['data']}", f"at least {skip + max(1, count)}"
        raise InputError(f"{name}: rows", found, wanted)
    frame = frame.iloc[np.sort(order[skip : skip + count])].reset_index(drop=True)
    label = entry.get("polarity", entry.get("label", "unlabelled"))
    return frame.assign(polarity=POLARITY.get(label, UNLABELLED))


def judged_rows(entry: Mapping[str, Any], name: str, data: Mapping[str, Path], seed: int) -> pd.DataFrame:
    """Rows for training a judge, with `good` (1 or 0): whether their label is `good_label` (default positive)."""
    names = load_info(data[entry["data"]])["label_names"]
    frame = choose_rows(entry, name, data, seed)
    return frame.assign(good=(frame["label"] == names.index(entry.get("good_label", "positive"))).astype(int))


def require_held_out(
    entry: Mapping[str, Any],
    name: str,
    rows: pd.DataFrame,
    mixture: Mapping[str, Mapping[str, Any]],
    frames: Mapping[str, pd.DataFrame],
) -> None:
    """Raise `InputError` if `rows`, those of the test entry `name`, are among `frames`, the rows of the mixture."""
    for part, other in mixture.items():
        if (entry["data"], entry.get("split", "train")) != (other["data"], other.get("split", "train")):
            continue
        if shared := rows["id"].isin(frames[part]["id"]).sum():
            found = f"{shared} of {len(rows)} rows that mixture: {part} trains on"
            raise InputError(f"tests: {name}", found, "rows held out", "Take another split, or skip them with `skip`.")


def weighted_parts(mixture: Mapping[str, Mapping[str, Any]], rows: Mapping[str, pd.DataFrame]) -> dict[str, Part]:
    """The parts of a mixture with their weights: `weight`, or, with `by_rows`, a share of it.

    The share is that of the part's rows among those of all parts of the same data set: what a data set of several labels gets
    where its rows are drawn whatever their label, as in the project's own mixture.
    """
    sizes: dict[str, int] = {}
    for name, frame in rows.items():
        sizes[mixture[name]["data"]] = sizes.get(mixture[name]["data"], 0) + len(frame)
    share = {name: len(frame) / sizes[mixture[name]["data"]] for name, frame in rows.items()}
    return {
        name: (frame, mixture[name]["weight"] * (share[name] if mixture[name].get("by_rows") else 1))
        for name, frame in rows.items()
    }


def arm_parts(
    arm: Mapping[str, Any],
    parts: Mapping[str, Part],
    generated: pd.DataFrame | None,
    generated_weight: float,
    seed: int,
) -> dict[str, Part]:
    """What an arm trains on: of the mixture the `parts` that it names (all of them unless it does), and generated rows.

    `generated` (default `both`) says which of these: `both`, `positives` or `none`. `labels: shuffled` deals the labelled rows
    out to the labelled parts at random; `clean` leaves out unlabelled replies to provoking prompts.

    Raises `InputError` for another `generated`.
    """
    which = arm.get("generated", "both")
    if which not in GENERATED:
        raise InputError(f"arms: {arm['name']}: generated", repr(which), f"one of {', '.join(GENERATED)}")
    chosen = {name: part for name, part in parts.items() if name in arm.get("parts", parts)}
    if generated is not None and which != "none":
        new = generated.assign(polarity=np.where(generated["label"] == "pos", POSITIVE, NEGATIVE))
        new = new[new["polarity"] == POSITIVE] if which == "positives" else new
        if len(new):
            chosen["generated"] = (new, generated_weight)
    if arm.get("labels") == "shuffled":
        chosen = _shuffled(chosen, derive(seed, "shuffled"))
    if arm.get("clean"):
        frame, weight = chosen["unlabelled"]
        chosen["unlabelled"] = (frame[frame["prompt"] == "benign"], weight)
    return chosen


def row_polarity(frame: pd.DataFrame, per_token: bool) -> list[int | list[int]]:
    """One polarity a row; with `per_token` one a word of negative rows, where the data says which words are unwanted."""
    if not per_token or "word_labels" not in frame:
        return frame["polarity"].tolist()
    return [
        list(words) if sign == NEGATIVE and isinstance(words, np.ndarray | list) else sign
        for sign, words in zip(frame["polarity"], frame["word_labels"], strict=True)
    ]


def _last_lines(frame: pd.DataFrame, one_line: str, whole: bool) -> pd.DataFrame:
    """Labelled utterances as prompts and replies, without those that change the subject in the annotators' words."""
    rows = []
    for row in frame.to_dict("records"):
        found = None if is_boring(row["text"]) else split_utterance(row["text"], None, one_line)
        if found is not None:
            rows.append({**row, "text": row["text"] if whole else found.context, "text_pair": found.response})
    return pd.DataFrame(rows, columns=[*frame.columns, "text_pair"])


def _shuffled(parts: Mapping[str, Part], seed: int) -> dict[str, Part]:
    labelled = [name for name, (frame, _) in parts.items() if (frame["polarity"] != UNLABELLED).all()]
    pool = pd.concat([parts[name][0] for name in labelled], ignore_index=True)
    order = np.random.default_rng(seed).permutation(len(pool))
    dealt, start = dict(parts), 0
    for name in labelled:
        frame, weight = parts[name]
        rows = pool.iloc[order[start : start + len(frame)]].reset_index(drop=True)
        dealt[name] = rows.assign(polarity=frame["polarity"].to_numpy()), weight
        start += len(frame)
    return dealt
