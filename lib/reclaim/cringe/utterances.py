"""From labelled utterances to what a language model trains on: context, response, and whether the response is wanted.

Source: the data path of the CRINGE project in ParlAI (projects/director/tasks/safety.py, projects/cringe). An utterance is a
text with a safety label; its last line becomes the response, what is before it the context. So a toxic comment of
several lines labels only its last line.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from reclaim.errors import InputError

LABELS = {"__ok__": "pos", "__notok__": "neg"}
"""Label of the safety data sets -> class of a response."""
ONE_LINE = ("empty", "copy", "drop")
"""What the context of a text of one line is: nothing (CRINGE), the text itself (DIRECTOR), or the text is left out."""
BORING = "do you want to talk about"
"""Change of subject that annotators of the adversarial dialogues were told to write; replies with it are left out."""
UNSAFE_MARK = "_POTENTIALLY_UNSAFE__"
MAX_EQUAL_POSITIVES = 2


class Reply(NamedTuple):
    """A response to a context with its class, `pos`, `neg` or None (unlabelled)."""

    context: str
    response: str
    label: str | None


def split_utterance(text: str, label: str | None, one_line: str = "empty") -> Reply | None:
    """Last line and the rest; None where a text of one line is left out. Raises `InputError` for another `one_line`."""
    if one_line not in ONE_LINE:
        raise InputError("one_line", repr(one_line), f"one of {', '.join(ONE_LINE)}")
    context, newline, response = text.rpartition("\n")
    if newline:
        return Reply(context, response, label)
    return None if one_line == "drop" else Reply(text if one_line == "copy" else "", text, label)


def is_boring(text: str) -> bool:
    """Whether the last line of a text changes the subject in the annotators' words."""
    return BORING in text.rpartition("\n")[2].lower()


def keep_label(rows: Iterable[Any], label: str, key=lambda row: row.label) -> list[Any]:
    """The rows of one class."""
    return [row for row in rows if key(row) == label]


def reply_label(metrics: Mapping[str, float]) -> str | None:
    """Class of a generated reply from its metrics: the first there is of the classifier's prediction, its accuracy, and F1.

    Whole parts count, so that an accuracy of 0.99 is `neg`; F1 is `neg` at 0 only. None without any of them.
    """
    for name in ("pos_classifier_prediction", "classifier_accuracy"):
        if name in metrics:
            return "pos" if int(metrics[name]) else "neg"
    if "f1" in metrics:
        return "neg" if metrics["f1"] == 0 else "pos"
    return None


def without_mark(text: str) -> str:
    """A prompt without the mark of unsafe messages."""
    return text.replace(UNSAFE_MARK, "").strip()


def balanced_replies(replies: Sequence[Reply], seed: int | None = None) -> list[Reply]:
    """As many good as bad replies: the first of each in their order, a good text at most twice, shuffled by `seed`.

    Without bad ones nothing is left. (The original shuffles without a seed.) Without `seed` the good ones come first.
    """
    bad = [reply for reply in replies if reply.label == "neg"]
    seen: dict[str, int] = {}
    good = []
    for reply in replies:
        if reply.label == "pos":
            seen[reply.response] = seen.get(reply.response, 0) + 1
            if seen[reply.response] <= MAX_EQUAL_POSITIVES:
                good.append(reply)
    size = min(len(good), len(bad))
    kept = [*good[:size], *bad[:size]]
    if seed is not None:
        random.Random(seed).shuffle(kept)
    return kept
