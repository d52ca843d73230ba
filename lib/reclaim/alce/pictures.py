"""A picture of answers with their citations, coloured by support."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from reclaim.alce.systems import Answered, Desk
from reclaim.metrics.citations import first_line, score_citations

SHOWN = ("vanilla", "rerank", "post_hoc")
QUESTIONS = 2
WIDTH = 96
SUPPORTED, UNSUPPORTED, UNCITED = "#1a7f37", "#b3261e", "#5f6368"


def answers_picture(answered: Sequence[Answered], desk: Desk) -> bytes:
    """PNG of the answers of some systems to the first questions whose answers differ in support.

    A statement is green where what it cites supports it (by the exact judge where there is one), red where not, grey without
    a citation. Below each question stand the passages that the first system's answer cites.
    """
    chosen = [next((each for each in answered if each.arm.system == name), None) for name in SHOWN]
    lines = _lines([each for each in chosen if each is not None] or answered[:1], desk)
    return _draw(lines)


def _lines(chosen: Sequence[Answered], desk: Desk) -> list[tuple[str, str, str]]:
    """Text, colour and weight of each line."""
    judge = desk.exact or desk.judge
    scored = []
    for each in chosen:
        flat = [
            {**item, "output": first_line(outputs[0])} for item, outputs in zip(each.items, each.outputs, strict=True)
        ]
        scored.append(score_citations(flat, judge, desk.split, lists=desk.lists))
    spread = [len({answers[row].recall or 0.0 for answers in scored}) for row in range(len(desk.items))]
    rows = sorted(range(len(desk.items)), key=lambda row: -spread[row])[:QUESTIONS]
    lines: list[tuple[str, str, str]] = []
    for row in rows:
        lines.append((desk.items[row]["question"], "black", "bold"))
        for number in sorted({n for s in scored[0][row].statements for n in s.kept if s.in_range}):
            document = chosen[0].items[row]["docs"][number]
            lines += [
                (text, "black", "normal")
                for text in _wrapped(f"[{number + 1}] {document['title']}: {document['text']}")
            ]
        for each, answers in zip(chosen, scored, strict=True):
            lines.append((each.arm.system.replace("_", " ") + ":", "black", "bold"))
            for statement in answers[row].statements:
                colour = UNCITED if not statement.cited else SUPPORTED if statement.supported else UNSUPPORTED
                lines += [(text, colour, "normal") for text in _wrapped(statement.text)]
        lines.append(("", "black", "normal"))
    return lines


def _wrapped(text: str) -> list[str]:
    return ["   " + line for line in textwrap.wrap(text, WIDTH)]


def _draw(lines: Sequence[tuple[str, str, str]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.2 * (len(lines) + 1)), dpi=110)
    FigureCanvasAgg(figure)
    for number, (text, colour, weight) in enumerate(lines):
        y = 1 - (number + 1) / (len(lines) + 1)
        figure.text(0.01, y, text, color=colour, weight=weight, fontsize=8.5, family="DejaVu Sans", parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
