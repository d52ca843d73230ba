"""Earlier turns as text: what the coreference model reads, and what the paper's readers read.

Source: EvalConvQA (Li et al. 2022), its official code, to the blank. A history is a list of (question as asked, answer),
oldest first.

Difference from the official code: `bert_history` gives the order of training (oldest first, a separator after each
turn) by default; the official code does so in training only and hands the newest turn first, without separators, when it
tests (`official_test_order`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Turn = tuple[str, str]
COREF_WINDOW = 2
"""Turns that the coreference model sees; fixed in the official code whatever the reader's history is."""


@dataclass(frozen=True)
class CorefText:
    """What a coreference model reads, in its parts; `str()` gives the official text."""

    background: str | None
    turns: tuple[Turn, ...]
    question: str

    def __str__(self) -> str:
        parts = [] if self.background is None else [self.background]
        parts += [text for turn in self.turns for text in turn]
        return " ".join([*parts, f"<Q> {self.question}"])


def coref_text(
    history: Sequence[Turn], question: str, background: str | None = None, window: int | None = COREF_WINDOW
) -> CorefText:
    """`background q1 a1 q2 a2 <Q> question` with the last `window` turns (None: all); no background where it is None."""
    shown = history if window is None else history[max(0, len(history) - window) :]
    return CorefText(background, tuple((asked, answer) for asked, answer in shown), question)


def roberta_history(history: Sequence[Turn], question: str, max_history: int = 1, double: bool = True) -> str:
    """ExCorD's input: the question, then the last turns, oldest first, each part after a separator.

    The last `max_history` entries count an answered question as one. `double` writes `</s></s>` (RoBERTa), else `</s>`.
    """
    separator = "</s></s>" if double else "</s>"
    shown = list(history)[max(0, len(history) - max_history) :]
    return separator.join([question, *(text for turn in shown for text in turn)])


def bert_history(
    history: Sequence[Turn],
    question: str,
    history_len: int = 2,
    *,
    tag: bool = False,
    separator: str = "[SEP]",
    official_test_order: bool = False,
) -> list[str]:
    """BERT's input as the list of its turns, the question last. `tag` marks questions and answers with <Q> and <A>."""
    shown = list(history)[max(0, len(history) - history_len) :]
    question_mark, answer_mark = ("<Q> ", "<A> ") if tag else ("", "")
    if official_test_order:
        # Two blanks before the answer, as the original has them.
        turns = [f"{question_mark}{asked}  {answer_mark}{answer}" for asked, answer in shown[::-1]]
    else:
        turns = [f"{question_mark}{asked} {answer_mark}{answer} {separator}" for asked, answer in shown]
    return [*turns, f"{question_mark}{question}"]
