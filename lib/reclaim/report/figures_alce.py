"""Figures of the study of answers with citations (Gao et al., "Enabling Large Language Models to Generate Text with
Citations", EMNLP 2023). The paper's figures are those of ChatGPT.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

from reclaim.report.accuracy import HOW, arms_exhibit, mean_text
from reclaim.report.figures import Exhibit, Panel, Series, fixed, line_plot, mean_interval
from reclaim.report.system import Record, System, SystemTables, by_seed, group, seeds_text, where

KEY = "alce"
EXPERIMENTS = ("asqa", "systems", "qampari", "eli_five")
"""Those of the small world, which come first; other overlays have others."""
TASKS = {"asqa": "ASQA", "qampari": "QAMPARI", "eli5": "ELI5"}
CORRECTNESS = {"asqa": "str_em", "qampari": "qampari_recall_5", "eli5": "claim_recall"}
SCORES = {"str_em": "EM recall", "qampari_recall_5": "recall-5", "claim_recall": "claim recall"}
NAMES = {
    "vanilla": "answer from passages",
    "rerank": "reranked",
    "rerank_official": "reranked, official score",
    "rerank_exact": "reranked by the truth",
    "random_pick": "random pick (control)",
    "shuffled": "other passages cited (control)",
    "summary": "summaries",
    "snippet": "snippets",
    "interact": "summaries, checked in full",
    "interact_snippet": "snippets, checked in full",
    "inline_search": "search while writing",
    "post_hoc": "closed book, cited afterwards",
    "vanilla_post_hoc": "from passages, cited afterwards",
    "top_passage": "first passage as the answer",
    "top_sentences": "its first sentence",
}
FURTHER = {"asqa": "", "systems": " (further systems)", "qampari": "", "eli_five": ""}
# ChatGPT in the paper, per cent: (task, system, retriever) -> correctness, citation recall. The dense retriever is GTR there;
# the lexical one is DPR for ASQA, BM25 for ELI5. Passages that come with the questions (`given`) are GTR's, for ELI5 BM25's.
PAPER = {
    ("asqa", "vanilla", "bm25"): (36.1, 65.0),
    ("asqa", "vanilla", "dense"): (40.4, 73.6),
    ("asqa", "vanilla", "oracle"): (48.9, 74.5),
    ("asqa", "rerank", "dense"): (40.2, 84.8),
    ("asqa", "post_hoc", "dense"): (38.3, 26.7),
    ("asqa", "top_passage", "dense"): (35.1, 99.4),
    ("asqa", "top_sentences", "dense"): (18.9, 98.7),
    ("asqa", "summary", "dense"): (43.3, 68.9),
    ("asqa", "snippet", "dense"): (41.4, 65.3),
    ("asqa", "interact", "dense"): (39.1, 73.4),
    ("asqa", "inline_search", "dense"): (32.4, 58.3),
    ("qampari", "vanilla", "dense"): (20.8, 20.5),
    ("qampari", "vanilla", "oracle"): (37.0, math.nan),
    ("qampari", "rerank", "dense"): (math.nan, 21.2),
    ("qampari", "post_hoc", "dense"): (32.9, 10.0),
    ("qampari", "summary", "dense"): (23.6, 23.6),
    ("qampari", "snippet", "dense"): (24.5, 22.9),
    ("qampari", "inline_search", "dense"): (17.2, 14.9),
    ("eli5", "vanilla", "bm25"): (12.0, 51.1),
    ("eli5", "vanilla", "oracle"): (21.3, 57.8),
}


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    experiments = _experiments(tables)
    if not experiments:
        return [Exhibit("systems", "Systems", missing="no experiment of this study was chosen")]
    shown = [exhibit for name in experiments for exhibit in _systems(tables, name)]
    return [*shown, _passages(tables), _retrieval(tables), _judges(tables), _values(tables), _answers(tables)]


def _experiments(tables: SystemTables) -> list[str]:
    """Experiments that the run has, the small world's first."""
    names = [] if tables.metrics.empty else sorted(set(tables.metrics["experiment"]))
    ordered = [*EXPERIMENTS, *(name for name in names if name not in EXPERIMENTS)]
    return [name for name in ordered if tables.metric(name, "citation_recall")]


def _arms(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Rows of a plot: system and what else tells it from others."""
    return group(records, _label)


def _label(record: Record) -> str:
    keys = record.keys
    name = NAMES.get(keys["system"], keys["system"])
    details = [keys["retriever"], f"{keys['ndoc']} passages"]
    details += [f"{keys['shot']} demonstrations"] if keys["shot"] else []
    details += ["light instruction"] if keys["prompt"] != "default" else []
    details += [keys["generator"]] if "generator" in keys else []
    return f"{name} ({', '.join(details)})"


def _systems(tables: SystemTables, experiment: str) -> list[Exhibit]:
    """Citation recall and correctness of every system of an experiment."""
    cited = where(tables.metric(experiment, "citation_recall"), scoring="legacy")
    exact = where(cited, judge="exact") or where(cited, judge="model")
    task = exact[0].keys["task"]
    metric = CORRECTNESS[task]
    right = where(tables.metric(experiment, metric), scoring="legacy", judge="model")
    judged = "the truth of the world" if exact[0].keys["judge"] == "exact" else "the automatic judge"
    shown = []
    for place, (key, records, score, title) in enumerate(
        (
            ("citations", exact, "citation recall", "Citation recall"),
            ("correctness", right, SCORES[metric], "Correctness"),
        )
    ):
        if not records:
            continue
        column = 1 - place
        shown.append(
            arms_exhibit(
                KEY,
                f"{key}-{experiment}",
                f"{title}: {TASKS[task]}" + FURTHER.get(experiment, f" ({experiment})"),
                _arms(records),
                f"Statements whose citations support them, by {judged}." if not place else "Answers found in the text.",
                score=score,
                colour=lambda record: 2 if record.keys["system"] in ("random_pick", "shuffled") else 0,
                paper=partial(_paper, column=column),
                paper_label="paper (ChatGPT)",
            )
        )
    return shown


def _paper(record: Record, column: int) -> float:
    keys = record.keys
    if keys["ndoc"] not in (5, 10) or keys["prompt"] != "default":
        return math.nan
    given = "bm25" if keys["task"] == "eli5" else "dense"
    retriever = {"given": given, "gtr": "dense", "dpr": "bm25"}.get(keys["retriever"], keys["retriever"])
    return PAPER.get((keys["task"], keys["system"], retriever), (math.nan, math.nan))[column]


def _passages(tables: SystemTables) -> Exhibit:
    """Correctness and citations against the number of passages in the prompt."""
    title = "More passages in the prompt"
    lines: dict[str, dict[float, dict[int, float]]] = {}
    own = bool(tables.metric("asqa", "str_em"))
    experiment = "asqa" if own else "asqa_llama_two_chat"
    keys: dict[str, Any] = {"retriever": "dense", "shot": 0} if own else {"retriever": "given", "shot": 2}
    for metric, label, judge in (
        ("str_em", "EM recall", "model"),
        ("citation_recall", "citation recall", "exact" if own else "model"),
    ):
        found = where(
            tables.metric(experiment, metric), system="vanilla", scoring="legacy", prompt="default", judge=judge
        )
        records = where(found, **keys)
        by_number = group(records, lambda record: float(record.keys["ndoc"]))
        if len(by_number) > 1:
            lines[label] = {x: by_seed(by_number[x], 100) for x in sorted(by_number)}
    if not lines:
        return Exhibit("passages", title, missing="no two numbers of passages were chosen")
    panel = Panel(
        f"answer from passages, {'dense retriever' if own else 'GTR'}",
        "per cent",
        [Series(*line) for line in lines.items()],
    )
    numbers = sorted({x for values in lines.values() for x in values})
    rows = [
        (label, f"{x:g}", mean_text(values.values()), str(len(values)))
        for label, line in lines.items()
        for x, values in line.items()
    ]
    return Exhibit(
        key="passages",
        title=title,
        caption=f"{HOW} ASQA, whose questions have answers in different passages. The paper's ChatGPT has EM recall "
        "38.4, 39.6, 40.4 and citation recall 56.0, 72.8, 73.6 with 1, 3 and 5 passages.",
        svg=line_plot(f"{KEY}-passages", [panel], "passages", xticks=numbers),
        alt="; ".join(f"{row[0]} with {row[1]} passages: {row[2]}" for row in rows) + ".",
        columns=("score", "passages", "per cent [95 % interval]", "seeds"),
        rows=rows,
    )


def _retrieval(tables: SystemTables) -> Exhibit:
    """Which share of the answers the first k passages of each retriever have."""
    title = "Retrieval quality"
    panels: list[Panel] = []
    rows: list[tuple[str, ...]] = []
    drawn = set()
    for experiment in _experiments(tables):
        lines: dict[str, dict[float, dict[int, float]]] = {}
        for k in (1, 3, 5, 20, 100):
            for name, records in group(
                tables.metric(experiment, f"answer_recall_at_{k}"), lambda record: record.keys["retriever"]
            ).items():
                task = TASKS[records[0].keys["task"]]
                if (task, name, k) in drawn:  # the same passages before another generator
                    continue
                drawn.add((task, name, k))
                lines.setdefault(name, {})[float(k)] = by_seed(records, 100)
                rows.append((task, name, str(k), mean_text(by_seed(records, 100).values()), seeds_text(records)))
        if lines:
            panels.append(Panel(rows[-1][0], "answers found (%)", [Series(*line) for line in lines.items()]))
    if not panels:
        return Exhibit("retrieval", title, missing="nothing was retrieved")
    return Exhibit(
        key="retrieval",
        title=title,
        caption=f"{HOW} Share of the gold answers that the first k passages have, an upper bound for correctness. In the paper "
        "DPR has 51.5 at 5 on ASQA, GTR 56.8, the oracle 78.4.",
        svg=line_plot(f"{KEY}-retrieval", panels, "passages (k)", xticks=[1, 5, 20, 100]),
        alt="; ".join(f"{row[0]}, {row[1]}, first {row[2]}: {row[3]}" for row in rows) + ".",
        columns=("task", "retriever", "k", "answers found (%) [95 % interval]", "seeds"),
        rows=rows,
    )


def _judges(tables: SystemTables) -> Exhibit:
    """How the automatic judge agrees with the exact one on what the systems wrote."""
    title = "The automatic judge against the truth"
    rows = []
    for experiment in _experiments(tables):
        accuracy = where(tables.metric(experiment, "agreement_recall_accuracy"), scoring="legacy")
        kappa = _arms(where(tables.metric(experiment, "agreement_recall_kappa"), scoring="legacy"))
        for label, records in _arms(accuracy).items():
            texts = mean_text(by_seed(records, 100).values()), _mean(kappa.get(label, []), 2, 1.0)
            rows.append((TASKS[records[0].keys["task"]], label, *texts, seeds_text(records)))
    if not rows:
        return Exhibit("judges", title, missing="there is no exact judge for questions that are not of the world")
    return Exhibit(
        key="judges",
        title=title,
        caption="Verdicts on the statements that each system wrote. Kappa is low where nearly all statements are supported, or "
        "none. In the paper the judge agrees with people on 85.1 % (kappa 0.698) of the statements.",
        columns=("task", "system", "accuracy (%) [95 % interval]", "kappa", "seeds"),
        rows=rows,
    )


def _values(tables: SystemTables) -> Exhibit:
    """Every system with all scores, as the official script counts and with its quirks mended."""
    metrics = ("citation_recall", "citation_precision", "str_em", "qampari_f1_5", "claim_recall", "rouge_lsum", "mauve")
    rows = []
    for experiment in _experiments(tables):
        found = {metric: group(tables.metric(experiment, metric), _cell) for metric in (*metrics, "length")}
        for cell, records in found["citation_recall"].items():
            task, label, judge, scoring = cell
            values = [_mean(found[metric].get(cell, []), 1, 100) for metric in metrics]
            length = _mean(found["length"].get(cell, []), 1, 1.0)
            rows.append((TASKS[task], label, judge, scoring, *values, length, seeds_text(records)))
    return Exhibit(
        key="values",
        title="All scores",
        caption="Means over seeds, in per cent (length in words). Scores that do not depend on a judge stand with the "
        "automatic one. `strict`: empty answers count 0, citations out of range count in precision, and `[1, 2]` "
        "cites two passages.",
        columns=(
            "task",
            "system",
            "judge",
            "scoring",
            "citation recall",
            "citation precision",
            "EM recall",
            "F1-5",
            "claim recall",
            "ROUGE-L",
            "MAUVE",
            "length",
            "seeds",
        ),
        rows=rows,
    )


def _cell(record: Record) -> tuple[str, str, str, str]:
    keys = record.keys
    return keys["task"], _label(record), keys["judge"], keys["scoring"]


def _mean(records: Sequence[Record], places: int, scale: float) -> str:
    return fixed(mean_interval(by_seed(records, scale).values())[0], places) if records else "–"


def _answers(tables: SystemTables) -> Exhibit:
    """Answers with their citations, coloured by support."""
    title = "Answers with their citations"
    pictures = [data for name, data in sorted(tables.pictures.items()) if name.endswith("answers-asqa.png")]
    if not pictures:
        return Exhibit("answers", title, missing="the run kept no pictures")
    width, height = struct.unpack(">II", pictures[0][16:24])
    encoded = base64.b64encode(pictures[0]).decode()
    return Exhibit(
        key="answers",
        title=title,
        caption="Two questions of the first seed on whose answers the systems differ most. Green: what a statement cites "
        "supports it; red: it does not; grey: no citation. Numbers refer to the passages that the system saw; those that the "
        "first answer cites stand below the question.",
        svg=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="plot">'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{encoded}"/></svg>',
        alt="Answers of three systems to two questions, each statement coloured by whether its citations support it.",
        columns=("colour", "meaning"),
        rows=[("green", "supported"), ("red", "not supported"), ("grey", "without citation")],
    )


SYSTEM = System(
    key=KEY,
    title="ALCE: answers that cite their sources",
    citation="Gao, Yen, Yu, Chen: Enabling Large Language Models to Generate Text with Citations. EMNLP 2023.",
    url="https://arxiv.org/abs/2305.14627",
    about=(
        "A question, passages that a retriever found, and an answer whose every statement names the passages that it rests on. "
        "Answers are scored for correctness, for fluency, and for whether the cited passages support the statements, which an "
        "entailment model judges. The small world has things that share a name, passages that each state two facts of one "
        "thing, and an exact judge. Each seed has a world, a retriever, a generator and a judge of its own; the trained ones "
        "never saw its facts, but for the closed-book model, which has them in its weights. All systems answer the same "
        "questions."
    ),
    limits=(
        "The generator of embedded runs points at facts; the form of its answers is built in, and only what it points at, "
        "cites and leaves out is learned. It cannot follow instructions, so prompts make no difference to it.",
        "The exact judge stands for people; nothing is said about how people judge real text.",
        "Summaries and snippets of the world are exact but for a share that is called irrelevant by mistake.",
        "ChatGPT's figures cannot be had again: its versions changed. `config/paper.yaml` and an endpoint give other models'.",
    ),
    exhibits=exhibits,
)
