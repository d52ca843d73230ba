"""Recovered beside true sentences, with the words marked that both have in the same order (section of FILM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from reclaim.report.figures import COLOURS, INK, MUTED, STYLE, WIDTH, Exhibit, to_svg
from reclaim.report.system import Record

KEY = "film"
STAGES = {"public": "before the client trains", "early": "early in its training", "memorised": "text known by heart"}
SEARCHES = {"official": "official search", "per_start": "beam per start token"}
LINE = 66  # characters of a line in the picture
SHOWN = (1, 4, 16)  # batch sizes in the picture

Words = list[tuple[str, bool]]


def stage_place(stage: str) -> int:
    """Where a stage stands in the order of training; others come last."""
    return [*STAGES, stage].index(stage)


def examples(records: Sequence[Record]) -> Exhibit:
    """Recovered beside true sentences of the first seed; words in their place are marked."""
    title = "Recovered beside true sentences"
    if not records:
        return Exhibit("examples", title, missing="not in this run")
    seed = min(record.seed for record in records)
    chosen = sorted(
        (record for record in records if record.seed == seed),
        key=lambda record: (
            record.keys["tied"], stage_place(record.keys["stage"]), record.keys["batch_size"], record.keys["search"]
        ),
    )  # fmt: skip
    chosen = [record for record in chosen if record.keys["search"] in SEARCHES]
    drawn = [r for r in chosen if r.keys["search"] == "official" and r.keys["batch_size"] in SHOWN]
    rows = []
    for record in chosen:
        keys = record.keys
        head = (keys["model"], keys["stage"], str(keys["batch_size"]), SEARCHES[keys["search"]])
        rows.append((*head, *_pair(record), f"{record.value:.2f}"))
    return Exhibit(
        key="examples",
        title=title,
        caption=(
            "One batch of each size at the first seed: the first answer of the official search below the sentence of "
            "the batch that it matches best. Words that both have in the same order are bold and coloured; in the "
            "table they stand in «quotes»."
        ),
        svg=_examples_plot(drawn) if drawn else "",
        alt="; ".join(f"{_head(record)}: {' recovered as '.join(_pair(record))}" for record in drawn),
        columns=("model", "stage", "batch size", "search", "true", "recovered", "ROUGE-L"),
        rows=rows,
    )


def _compared(true: str, found: str) -> tuple[Words, Words]:
    """The words of both with whether they belong to a longest common subsequence."""
    left, right = true.split(), found.split()
    best = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            same = left[i] == right[j]
            best[i][j] = best[i + 1][j + 1] + 1 if same else max(best[i + 1][j], best[i][j + 1])
    matched: tuple[set[int], set[int]] = set(), set()
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] == right[j]:
            matched[0].add(i)
            matched[1].add(j)
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    marked_left, marked_right = (
        [(word, n in places) for n, word in enumerate(side)]
        for side, places in zip((left, right), matched, strict=True)
    )
    return marked_left, marked_right


def _head(record: Record) -> str:
    keys = record.keys
    stage = STAGES.get(keys["stage"], keys["stage"])
    return f"{keys['model']}, {stage}, batch of {keys['batch_size']}: ROUGE-L {record.value:.2f}"


def _pair(record: Record) -> list[str]:
    """The true and the recovered sentence, marked."""
    return [_marked(words) for words in _compared(record.keys["true"], record.keys["recovered"])]


def _marked(words: Words) -> str:
    return " ".join(f"«{word}»" if match else word for word, match in words) or "–"


def _wrapped(words: Words) -> list[Words]:
    lines: list[Words] = [[]]
    for word, match in words:
        if lines[-1] and sum(len(each) + 1 for each, _ in lines[-1]) + len(word) > LINE:
            lines.append([])
        lines[-1].append((word, match))
    return lines


def _examples_plot(records: Sequence[Record]) -> str:
    """Lines of words in a fixed-width type."""
    lines: list[tuple[str, Words, bool]] = []
    for record in records:
        keys = record.keys
        lines.append(("", [(_head(record), False)], True))
        for label, words in zip(("true", "found"), _compared(keys["true"], keys["recovered"]), strict=True):
            lines += [(label if n == 0 else "", line, False) for n, line in enumerate(_wrapped(words))]
    with matplotlib.rc_context(STYLE):
        height = 13 * len(lines) + 10
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, LINE + 8)
        axes.set_ylim(len(lines) + 0.5, -0.5)
        for place, (label, words, is_head) in enumerate(lines):
            font: dict[str, Any] = {"fontsize": 7.2, "va": "center"}
            font["family"] = "DejaVu Sans" if is_head else "DejaVu Sans Mono"
            axes.text(0, place, label, color=MUTED, **font)
            column = 0 if is_head else 6
            for word, match in words:
                colour = INK if is_head else COLOURS[0] if match else MUTED
                axes.text(column, place, word, color=colour, fontweight="bold" if match else "normal", **font)
                column += len(word) + 1
        return to_svg(figure, f"{KEY}-examples")
