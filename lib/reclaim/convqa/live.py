"""Live conversations of readers with an oracle user, in the annotation format of the human evaluation.

In the place of the human evaluation of EvalConvQA (Li et al. 2022). The user is given the first question of a dialog, asks
on from the reader's own answers, and judges each (`reclaim.world.conversations.LiveUser`). All conversations advance
together, so that the reader gets batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.readers import BatchReader, Request
from reclaim.world.conversations import LiveUser


def converse(
    dialogs: Sequence[Dialog], reader: BatchReader, name: str, seed: int, *, conversations: int = 3, num_turns: int = 8
) -> list[dict[str, Any]]:
    """Let the user talk `conversations` times with a reader about each passage; gives annotated conversations.

    The user's choices depend on the seed, the passage and the conversation's number, and on the answers.
    """
    talks = [(dialog, LiveUser(dialog, seed, number)) for number in range(conversations) for dialog in dialogs]
    records: list[dict[str, Any]] = [
        {"model_name": name, "context": dialog.context, "dialog_id": dialog.id, "qas": []} for dialog, _ in talks
    ]
    histories: list[list[tuple[str, str]]] = [[] for _ in talks]
    for _ in range(num_turns):
        questions = [user.ask() for _, user in talks]
        requests = [
            Request(dialog, question, tuple(history))
            for (dialog, _), question, history in zip(talks, questions, histories, strict=True)
        ]
        answers = reader.answer(requests)
        for (_, user), record, history, question, answer in zip(
            talks, records, histories, questions, answers, strict=True
        ):
            record["qas"].append(user.judge(answer))
            history.append((question, answer))
    return records
