"""What a reader is to the protocols: something that answers questions about passages, given earlier turns.

Source: EvalConvQA (Li et al. 2022): any reader plugs in. A `BatchReader` answers many questions at once, which lets all
dialogs of a set advance together; a `TurnReader` has the paper's own two methods and is wrapped by `OneByOne`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.history import Turn
from reclaim.metrics.quac import NO_ANSWER


@dataclass(frozen=True)
class Request:
    """One question: its dialog (for the passage), its text as asked, and the turns before it, oldest first."""

    dialog: Dialog
    question: str
    history: tuple[Turn, ...]


class BatchReader(Protocol):
    """Answers requests: a span of the passage each, or CANNOTANSWER. An answer depends on its own request only."""

    def answer(self, requests: Sequence[Request]) -> list[str]: ...


class TurnReader(Protocol):
    """A reader with a state: `reset` before a passage, then one `ask` after the other."""

    def reset(self, dialog: Dialog) -> None: ...

    def ask(self, question: str, history: Sequence[Turn]) -> str: ...


class OneByOne:
    """A `TurnReader` as a `BatchReader`. Dialogs must come one after the other (`batch_dialogs=1` of the protocols)."""

    def __init__(self, reader: TurnReader):
        self.reader = reader
        self.current: Dialog | None = None

    def answer(self, requests: Sequence[Request]) -> list[str]:
        answers = []
        for request in requests:
            if request.dialog is not self.current or not request.history:
                self.reader.reset(request.dialog)
                self.current = request.dialog
            answers.append(self.reader.ask(request.question, request.history))
        return answers


class AlwaysUnanswerable:
    """The baseline that never answers."""

    def answer(self, requests: Sequence[Request]) -> list[str]:
        return [NO_ANSWER] * len(requests)
