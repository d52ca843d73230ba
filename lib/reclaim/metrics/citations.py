"""Citation recall and precision of answers that cite passages as `[1][2]`.

Source: Gao et al. 2023 (ALCE), section 3, and the official `eval.py`. A statement is supported (recall) if the passages that
it cites, joined, entail it. A citation is irrelevant (precision) if its passage does not entail the statement alone although
the other cited ones together do: a passage that is needed beside another ("partial support") counts, and so does one that
suffices. In a statement without support no citation counts.

Two modes. `legacy` is the official script, quirks included; `strict` mends them:

| | legacy | strict |
|---|---|---|
| answer without statements | left out of both means | 0 in both |
| `[0]` | the last passage | out of range |
| statement with a citation out of range | no support, and missing from precision's denominator | no support, all counted |
| `[1, 2]` | passage 1, and the text keeps `, 2` | passages 1 and 2 |
| every `]` and ` |` of the text, `[3` | deleted from the statement | only whole brackets of numbers are |
| empty entry of a list | a statement without citation | none |

The judge is asked in three waves, each one call for all statements of all answers: the joint premises; of supported statements
with several citations each passage alone; and for those that do not suffice the others together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reclaim.errors import InputError

Pair = tuple[str, str]
"""Premise and hypothesis."""
AskJudge = Callable[[Sequence[Pair]], Sequence[bool]]
"""Pairs -> whether each premise entails its hypothesis."""

MODES = ("legacy", "strict")
MOST_DIGITS = 1000
"""Digits of a number that are read: Python refuses to read thousands, and no answer has that many passages."""

_OPEN = re.compile(r"\[\d+")
_BRACKET = re.compile(r"\[\s*(\d+(?:\s*[,;]\s*\d+)*)\s*\]")


# ------------------------------------------------------------------------------------------------------------- the text


def check_mode(mode: str) -> None:
    """Raise InputError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise InputError("mode", repr(mode), " or ".join(MODES))


def first_line(output: str) -> str:
    """The answer that is scored: the first line of the stripped output, without end-of-turn marks."""
    return output.strip().split("\n")[0].replace("<|im_end|>", "")


def remove_citations(text: str, mode: str = "legacy") -> str:
    """The text without its citations. `legacy` deletes ` [1`, `[1`, ` |` and every `]`, in this order."""
    if mode == "legacy":
        return re.sub(r"\[\d+", "", re.sub(r" \[\d+", "", text)).replace(" |", "").replace("]", "")
    return re.sub(r"\s*" + _BRACKET.pattern, "", text)


def citation_numbers(text: str, mode: str = "legacy") -> list[int]:
    """Zero-based passages that a text cites, in its order, repetitions kept; `[0]` gives -1."""
    if mode == "legacy":
        numbers = [found[1:] for found in _OPEN.findall(text)]
    else:
        numbers = [number.strip() for group in _BRACKET.findall(text) for number in re.split(r"[,;]", group)]
    return [int(number[:MOST_DIGITS]) - 1 for number in numbers]


def list_entries(output: str) -> list[str]:
    """Entries of a comma list, stripped, empty ones too, without one trailing run of full stops and then of commas."""
    return [entry.strip() for entry in output.rstrip().rstrip(".").rstrip(",").split(",")]


def statements_of(
    output: str, question: str, split: Callable[[str], list[str]], lists: bool, mode: str = "legacy"
) -> list[str]:
    """The units that are judged: sentences, or, of a comma list, each entry behind the question."""
    if not lists:
        return split(output)
    if mode == "strict":
        # A comma inside a bracket separates citations, not entries.
        output = _BRACKET.sub(lambda found: re.sub(r"\s*[,;]\s*", "][", found.group()), output)
    entries = list_entries(output)
    return [f"{question} {entry}" for entry in entries if entry or mode == "legacy"]


def document_text(document: Mapping[str, Any]) -> str:
    """A passage as the judge reads it: `Title: ...`, then on a new line its `sent` or else its `text`."""
    return f"Title: {document['title']}\n{document['sent'] if 'sent' in document else document['text']}"


def premise(documents: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> str:
    """The cited passages joined by newlines, in the order of their citation."""
    return "\n".join(document_text(documents[number]) for number in numbers)


# -------------------------------------------------------------------------------------------------------------- the scores


@dataclass
class Statement:
    """One statement and what was found about it.

    text: as written; hypothesis: without citations; cited: zero-based passages in the order written; kept: those that count,
    the first `at_most_citations`; in_range: whether all of `cited` exist; supported: whether the kept ones, joined, entail
    it; relevant: for each kept one whether it counts for precision; asked: the questions put to the judge, in the order of
    the official script, and its answers.
    """

    text: str
    hypothesis: str
    cited: list[int]
    kept: list[int]
    in_range: bool
    supported: bool = False
    relevant: list[bool] = field(default_factory=list)
    asked: list[tuple[str, str, bool]] = field(default_factory=list)


@dataclass
class CitedAnswer:
    """The statements of an answer, and its recall and precision as fractions (None: left out, `legacy` without statements)."""

    statements: list[Statement]
    recall: float | None
    precision: float | None


def score_citations(
    items: Sequence[Mapping[str, Any]],
    judge: AskJudge,
    split: Callable[[str], list[str]],
    *,
    mode: str = "legacy",
    lists: bool = False,
    at_most_citations: int | None = 3,
) -> list[CitedAnswer]:
    """Score the citations of `items`, each with `question`, `output` (one line, see `first_line`) and `docs`.

    `lists`: outputs are comma lists (QAMPARI). `at_most_citations`: how many citations of a statement count, None for all.
    Raises InputError for an unknown mode, and in `legacy` for `[0]` where there are no passages (the official script stops
    with an IndexError).
    """
    check_mode(mode)
    answers: list[list[Statement]] = []
    waiting: list[tuple[Generator[list[Pair], list[bool], None], list[Pair]]] = []
    for number, item in enumerate(items):
        answers.append([])
        for text in statements_of(item["output"], item["question"], split, lists, mode):
            statement = _statement(text, item["docs"], mode, at_most_citations)
            answers[-1].append(statement)
            if statement.in_range and statement.kept:
                if not item["docs"]:
                    raise InputError(f"item {number}: docs", "no passage", "the passages that the output cites")
                questions = _questions(statement, item["docs"])
                waiting.append((questions, next(questions)))
    while waiting:
        verdicts = iter(judge([pair for _, pairs in waiting for pair in pairs]))
        going_on = []
        for questions, pairs in waiting:
            try:
                going_on.append((questions, questions.send([bool(next(verdicts)) for _ in pairs])))
            except StopIteration:
                continue
        waiting = going_on
    return [_answer(statements, mode) for statements in answers]


def _statement(text: str, documents: Sequence[Any], mode: str, at_most: int | None) -> Statement:
    cited = citation_numbers(text, mode)
    lowest = 0 if mode == "strict" else -1
    in_range = all(lowest <= number < len(documents) for number in cited)
    kept = cited[:at_most] if in_range else []
    return Statement(text, remove_citations(text, mode).strip(), cited, kept, in_range, relevant=[False] * len(kept))


def _questions(statement: Statement, documents: Sequence[Any]) -> Generator[list[Pair], list[bool], None]:
    """Ask about one statement and fill it in: yields the pairs of each wave, is sent their verdicts."""
    kept, hypothesis = statement.kept, statement.hypothesis
    joint = premise(documents, kept)
    (statement.supported,) = yield [(joint, hypothesis)]
    statement.asked.append((joint, hypothesis, statement.supported))
    if not statement.supported:
        return
    if len(kept) == 1:
        statement.relevant = [True]
        return
    alone = [premise(documents, [number]) for number in kept]
    sufficient = yield [(text, hypothesis) for text in alone]
    rest = {place: _without(kept, number) for place, number in enumerate(kept) if not sufficient[place]}
    others = {place: premise(documents, numbers) for place, numbers in rest.items()}
    found = iter((yield [(text, hypothesis) for text in others.values()]) if others else [])
    for place, text in enumerate(alone):
        statement.asked.append((text, hypothesis, sufficient[place]))
        dispensable = False
        if place in others:
            dispensable = next(found)
            statement.asked.append((others[place], hypothesis, dispensable))
        statement.relevant[place] = not dispensable


def _without(numbers: Sequence[int], number: int) -> list[int]:
    """The numbers without the first occurrence of one."""
    place = numbers.index(number)
    return [*numbers[:place], *numbers[place + 1 :]]


def _answer(statements: list[Statement], mode: str) -> CitedAnswer:
    if not statements:
        nothing = None if mode == "legacy" else 0.0
        return CitedAnswer(statements, nothing, nothing)
    recall = sum(statement.supported for statement in statements) / len(statements)
    counted = sum(len(_denominator(statement, mode)) for statement in statements)
    good = sum(sum(statement.relevant) for statement in statements)
    return CitedAnswer(statements, recall, good / counted if counted else 0.0)


def _denominator(statement: Statement, mode: str) -> list[int]:
    """The citations that precision is a share of."""
    return statement.kept if statement.in_range or mode == "legacy" else statement.cited


def multiple_citations(answers: Sequence[CitedAnswer]) -> dict[str, float]:
    """The three shares that the official script prints, as fractions; those without a denominator are left out.

    multi_cite: statements with more than one citation (of those in range only the kept ones count); multi_cite_supported:
    how many of these are supported; over_cite: irrelevant citations for each supported one (can exceed 1).
    """
    statements = [statement for answer in answers for statement in answer.statements]
    several = [s for s in statements if len(s.kept if s.in_range else s.cited) > 1]
    supported = [s for s in several if s.supported]
    shares = {}
    if statements:
        shares["multi_cite"] = len(several) / len(statements)
    if several:
        shares["multi_cite_supported"] = len(supported) / len(several)
    if supported:
        shares["over_cite"] = sum(len(s.relevant) - sum(s.relevant) for s in supported) / len(supported)
    return shares


def counts(answers: Sequence[CitedAnswer]) -> dict[str, int]:
    """What the means do not show: numbers of empty answers, and of statements and citations of each kind.

    empty: answers without statements; statements; uncited: statements without a citation; out_of_range: statements that
    cite a passage that is not there; zero: citations `[0]`; dropped: citations beyond the limit; questions: what the judge
    was asked, repetitions included.
    """
    statements = [statement for answer in answers for statement in answer.statements]
    return {
        "empty": sum(not answer.statements for answer in answers),
        "statements": len(statements),
        "uncited": sum(not statement.cited for statement in statements),
        "out_of_range": sum(not statement.in_range for statement in statements),
        "zero": sum(statement.cited.count(-1) for statement in statements),
        "dropped": sum(len(s.cited) - len(s.kept) for s in statements if s.in_range),
        "questions": sum(len(statement.asked) for statement in statements),
    }
