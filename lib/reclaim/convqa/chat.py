"""Question a trained reader about a passage in a terminal, and judge its answers: `python -m reclaim.convqa.chat --help`.

Source: the human evaluation of EvalConvQA (Li et al. 2022) and its guideline, for anyone to run. The first question comes from
the dialog; then you ask. Each answer is judged as there: is it a question; can one span of the passage answer it, read
against the READER's earlier answers even where they are wrong; if so, is the answer right; if not, what is.

Every judgement is in the file before the next question is asked, in the annotation format, so that a session can stop at any
point (/quit, Ctrl-D, Ctrl-C) and go on later. An answer that was not judged yet is kept as `pending` and shown again.

Difference from the paper: one person asks and judges, and sees the passage while asking.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reclaim.convqa.data import load_dialogs
from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.judgements import aggregate, read_annotations
from reclaim.convqa.readers import BatchReader, Request
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json
from reclaim.metrics.quac import NO_ANSWER

HELP = (
    "/passage shows the passage, /history the turns so far, /new begins the next passage, /results your figures, /quit ends. "
    "Anything else is a question."
)
SHOWN = "Sorry I cannot answer the question."
"""What annotators saw for no answer; the file has CANNOTANSWER."""


class Quit(Exception):
    """The person wants to stop; all judgements are saved."""


class Session:
    """One person's conversations with one reader, in one annotation file.

    `read(prompt)` gives a line (EOFError ends the session), `write(text)` shows one.
    """

    def __init__(
        self,
        reader: BatchReader,
        name: str,
        dialogs: Sequence[Dialog],
        path: str | Path,
        read: Callable[[str], str],
        write: Callable[[str], None],
    ):
        if not dialogs:
            raise InputError("dialogs", "none", "at least one dialog to talk about")
        self.reader, self.name, self.path, self._read, self.write = reader, name, Path(path), read, write
        self.dialogs = {dialog.id: dialog for dialog in dialogs}
        document = read_json(self.path) if self.path.exists() else {"data": []}
        self.data = [dict(conversation) for conversation in read_annotations(document, str(self.path))]
        self.pending: dict[str, Any] | None = document.get("pending")

    def run(self) -> None:
        """Talk until the person stops, then show the figures."""
        try:
            while True:
                self._converse(self._current())
        except (Quit, EOFError, KeyboardInterrupt):
            self.save()
            self.write(f"\nSaved {sum(len(own['qas']) for own in self.data)} judgements in {self.path}.")
            self._results()

    def save(self) -> None:
        """Write the annotation file, atomically."""
        document = {"data": self.data} | ({"pending": self.pending} if self.pending else {})
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    # ------------------------------------------------------------------------------------------------------ conversations

    def _current(self) -> dict[str, Any]:
        """The conversation to go on with: the last one of this reader, else one on the first passage."""
        own = [
            record for record in self.data if record["model_name"] == self.name and record["dialog_id"] in self.dialogs
        ]
        return own[-1] if own else self._begin()

    def _begin(self) -> dict[str, Any]:
        """Begin a conversation on the passage with the fewest so far."""
        counts = dict.fromkeys(self.dialogs, 0)
        for record in self.data:
            if record["model_name"] == self.name and record["dialog_id"] in counts:
                counts[record["dialog_id"]] += 1
        key = min(counts, key=lambda name: counts[name])
        record = {"model_name": self.name, "context": self.dialogs[key].context, "dialog_id": key, "qas": []}
        self.data.append(record)
        return record

    def _converse(self, record: dict[str, Any]) -> None:
        dialog = self.dialogs[record["dialog_id"]]
        self._introduce(dialog, record)
        while True:
            if self.pending is None:
                question = self._question(dialog, record)
                if question is None:
                    self._begin()
                    return
                self.pending = {
                    "turn_id": len(record["qas"]),
                    "question": question,
                    "answer": self._answer(dialog, record, question),
                }
                self.save()
            self._judge(dialog, record, self.pending)

    def _question(self, dialog: Dialog, record: Mapping[str, Any]) -> str | None:
        """The next question; None begins another passage."""
        if not record["qas"]:
            self.write(f"First question (from the dialog): {dialog.turns[0].question}")
            return dialog.turns[0].question
        while True:
            text = self._line("question> ")
            if text == "/new":
                return None
            if text == "/passage":
                self.write(dialog.context.removesuffix(NO_ANSWER).strip())
            elif text == "/history":
                self._history(record)
            elif text == "/results":
                self._results()
            elif text.startswith("/") or not text:
                self.write(HELP)
            else:
                return text

    def _answer(self, dialog: Dialog, record: Mapping[str, Any], question: str) -> str:
        history = tuple((turn["question"], turn["answer"]) for turn in record["qas"])
        (answer,) = self.reader.answer([Request(dialog, question, history)])
        return answer

    def _judge(self, dialog: Dialog, record: dict[str, Any], turn: dict[str, Any]) -> None:
        """Ask for the judgement of the pending answer, and save the turn."""
        self.write(f"Q: {turn['question']}")
        self.write(f"A: {SHOWN if turn['answer'] == NO_ANSWER else turn['answer']}")
        turn["valid"] = self._yes_or_no("Is this a question that makes sense here?")
        turn["answerable"] = turn["correct"] = "n"
        turn["gold_anno"] = []
        if turn["valid"] == "y":
            turn["answerable"] = self._yes_or_no("Can one span of the passage answer it?")
        if turn["answerable"] == "n":
            turn["correct"] = "y" if turn["answer"] == NO_ANSWER else "n"
        elif turn["answer"] != NO_ANSWER:
            turn["correct"] = self._yes_or_no("Is the answer right?")
        if turn["answerable"] == "y" and turn["correct"] == "n":
            turn["gold_anno"] = [self._span(dialog)]
        record["qas"].append(turn)
        self.pending = None
        self.save()

    def _span(self, dialog: Dialog) -> str:
        while True:
            text = self._line("the right span> ")
            if text and text in dialog.context:
                return text
            self.write("That text is not in the passage; copy it letter by letter.")

    # --------------------------------------------------------------------------------------------------------- the terminal

    def _introduce(self, dialog: Dialog, record: Mapping[str, Any]) -> None:
        self.write(f"\n{dialog.title} — {dialog.section_title}. {dialog.background}")
        self.write(dialog.context.removesuffix(NO_ANSWER).strip())
        self.write(HELP)
        if record["qas"]:
            self.write("Going on after:")
            self._history(record)

    def _history(self, record: Mapping[str, Any]) -> None:
        for turn in record["qas"]:
            mark = "not valid" if turn["valid"] != "y" else "right" if turn["correct"] == "y" else "wrong"
            self.write(f"  Q: {turn['question']}   A: {turn['answer']}   ({mark})")

    def _results(self) -> None:
        for model, figures in aggregate(self.data).items():
            shown = [
                f"{name.replace('_', ' ')} {100 * value:.1f} % of {n}"
                for name, (value, n) in figures.items()
                if value is not None and name not in ("conversations", "questions", "valid")
            ]
            self.write(f"{model}: {int(figures['valid'][0] or 0)} valid turns; " + ", ".join(shown))

    def _line(self, prompt: str) -> str:
        text = self._read(prompt).strip()
        if text == "/quit":
            raise Quit
        return text

    def _yes_or_no(self, question: str) -> str:
        while True:
            text = self._line(f"{question} [y/n] ").lower()
            if text in ("y", "yes", "n", "no"):
                return text[0]
            self.write("Please answer y or n (or /quit).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chat from the command line."""
    parser = argparse.ArgumentParser(prog="python -m reclaim.convqa.chat", description=__doc__.partition("\n\n")[0])
    parser.add_argument("reader", type=Path, help="folder of a trained reader: results/iterations/convqa/.../READER")
    parser.add_argument("data", type=Path, help="folder of a data set of conversations: results/data/conversations")
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument(
        "--dialog", help="id of the dialog whose passage to talk about (default: all, one after the other)"
    )
    parser.add_argument(
        "--save", type=Path, default=Path("judgements.json"), help="annotation file (default: judgements.json)"
    )
    parser.add_argument("--name", help="name of the reader in the file (default: its folder's)")
    options = parser.parse_args(arguments)
    read, write = _terminal()
    try:
        dialogs = load_dialogs(options.data, options.split)
        if options.dialog is not None:
            dialogs = [dialog for dialog in dialogs if dialog.id == options.dialog]
        from reclaim.convqa.experiment import load_reader

        reader = load_reader(options.reader)
        Session(reader, options.name or options.reader.name, dialogs, options.save, read, write).run()
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _terminal() -> tuple[Callable[[str], str], Callable[[str], None]]:
    """Reading with line editing and history, and writing in colour where the terminal has it."""
    try:
        import readline  # noqa: F401  (line editing and history of input())
    except ImportError:
        pass
    from rich.console import Console

    console = Console(highlight=False)
    # What a reader or a file says is text, and never markup.
    return (lambda prompt: console.input(f"[bold cyan]{_escape(prompt)}[/]")), (
        lambda text: console.print(text, markup=False)
    )


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    sys.exit(main())
