"""Figures of the re-evaluation of conversational QA (Li et al., "Ditch the Gold Standard", ACL 2022).

The paper's figures were measured on the charts of the authors' talk (errors of about 0.1 points for F1 and accuracy, 0.2 for
shares and agreement). They stand beside ours and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reclaim.report.accuracy import HOW, arms_exhibit, mean_text
from reclaim.report.figures import Exhibit, Row, fixed, mean_interval, row_plot
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "convqa"
EXPERIMENT = "protocols"
PROTOCOLS = {
    "gold": "Auto-Gold",
    "pred": "Auto-Pred",
    "replace": "Auto-Replace",
    "rewrite": "Auto-Rewrite",
    "live": "live",
}
FAMILIES = {
    "markers": "two turns, answers marked",
    "own": "the same, trained on own answers",
    "separate": "the same, separate no-answer head",
    "text": "two turns, text only",
    "rewritten": "one turn, self-contained questions",
    "no_history": "no history",
    "bert": "BERT, two turns",
    "bert-one-turn": "BERT, one turn",
    "bert-no-history": "BERT, no history",
    "always_unanswerable": "never answers",
}
# Mean over the paper's four readers, in per cent: F1 by protocol, accuracy of the human evaluation.
PAPER_F1 = {"gold": 65.3, "pred": 55.6, "rewrite": 55.425}
PAPER_AGREEMENT = {"gold": 48.2, "rewrite": 56.3}
PAPER_READERS = (
    # reader, Auto-Gold, Auto-Pred, Auto-Rewrite F1, human accuracy, unanswerable ones, unanswerable asked live
    ("BERT", 63.2, 54.6, 54.5, 82.6, 95.1, 34.6),
    ("GraphFlow", 64.9, 49.6, 48.1, 81.0, 72.5, 20.6),
    ("HAM", 65.4, 57.1, 57.2, 87.8, 93.7, 34.0),
    ("ExCorD", 67.7, 61.1, 61.9, 87.9, 93.3, 33.2),
)


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    if not tables.metrics.empty:  # BERT on QuAC, in the paper overlay, stands where the small readers do
        tables = replace(tables, metrics=tables.metrics.replace({"experiment": {"quac": EXPERIMENT}}))
    f1 = [record for record in tables.metric(EXPERIMENT, "f1") if record.keys["family"] != "always_unanswerable"]
    if not f1:
        missing = "no experiment of this study was chosen"
        return [Exhibit("protocols", "F1 under the protocols", missing=missing), *_people(tables)]
    return [
        _protocols(f1),
        _conversation(tables),
        _flagged(tables),
        _agreement(tables),
        _rankings(tables),
        _shift(tables),
        _readers(tables),
        *_ablations(tables),
        *_people(tables),
    ]


def _protocols(f1: Sequence[Record]) -> Exhibit:
    """Mean F1 of the readers with history under each protocol."""
    found = group(where(f1, history=True), lambda record: record.keys["protocol"])
    arms = {PROTOCOLS.get(name, name): found[name] for name in PROTOCOLS if name in found}
    return arms_exhibit(
        KEY,
        "protocols",
        "F1 under the protocols",
        arms,
        "Mean over readers that see history. The paper's value is the mean of its four readers.",
        score="F1",
        paper=lambda record: PAPER_F1.get(record.keys["protocol"], float("nan")),
        paper_label="the paper (mean of BERT, GraphFlow, HAM, ExCorD)",
    )


def _conversation(tables: SystemTables) -> Exhibit:
    """One conversation, side by side."""
    title = "A conversation under the protocols"
    shown = tables.metric(EXPERIMENT, "shown_turn")
    if not shown:
        return Exhibit("conversation", title, missing="no conversation was kept")
    first = min(record.seed for record in shown)
    shown = [record for record in shown if record.seed == first]
    names = [name for name in PROTOCOLS if any(record.keys["protocol"] == name for record in shown)]
    turns = group(shown, lambda record: (record.keys["turn"], record.keys["protocol"]))
    rows = []
    for number in sorted({record.keys["turn"] for record in shown}):
        cells = [_turn(turns[number, name][0]) if (number, name) in turns else "" for name in names]
        gold = turns.get((number, "gold"))
        rows.append((str(number + 1), gold[0].keys["truth"] if gold else "", *cells))
    return Exhibit(
        key="conversation",
        title=title,
        caption="The conversation of the first seed with the most questions that became invalid, put to one reader. A check "
        "mark says that the answer was accepted; a question in brackets was rewritten. The live user goes on from the "
        "reader's own answers, so that its questions are others.",
        columns=("turn", "human answer", *(PROTOCOLS[name] for name in names)),
        rows=rows,
    )


def _turn(record: Record) -> str:
    keys = record.keys
    asked = f"[{keys['asked']}]" if keys["action"] in ("rewritten", "replaced") else keys["asked"]
    return f"{asked} — {keys['answer']} {'✓' if record.value else '✗'}"


def _flagged(tables: SystemTables) -> Exhibit:
    """F1 on the turns that Auto-Rewrite judged invalid."""
    found = group(
        where(tables.metric(EXPERIMENT, "flagged_f1"), history=True), lambda record: record.keys["protocol"]
    )  # fmt: skip
    arms = {PROTOCOLS[name]: found[name] for name in PROTOCOLS if name in found}
    if not arms:
        return Exhibit("flagged", "F1 on invalid questions", missing="no question was invalid")
    return arms_exhibit(
        KEY,
        "flagged",
        "F1 on invalid questions",
        arms,
        "Only the turns that Auto-Rewrite judged invalid for the reader. What rewriting cannot mend is the history itself, "
        "which still holds the reader's wrong answers.",
        score="F1",
    )


def _agreement(tables: SystemTables) -> Exhibit:
    """How often pairs of readers are ordered alike, passage by passage."""
    found = group(
        where(tables.metric(EXPERIMENT, "passage_agreement"), ties="strict"), lambda record: record.keys["protocol"]
    )  # fmt: skip
    arms = {PROTOCOLS[name]: found[name] for name in PROTOCOLS if name in found}
    if not arms:
        return Exhibit("agreement", "Agreement with the live user", missing="there were no live conversations")
    return arms_exhibit(
        KEY,
        "agreement",
        "Passages on which a pair of readers is ordered as the live user orders it",
        arms,
        "All pairs of readers; a tie agrees only with a tie. The paper's headline is that Auto-Rewrite agrees more with people "
        "than Auto-Gold. While the small protocol was made the order came out the other way round; with an oracle who judges "
        "a follow-up by the reader's last answer this does not speak about people.",
        score="agreement",
        paper=lambda record: PAPER_AGREEMENT.get(record.keys["protocol"], float("nan")),
        paper_label="the paper (people; mean of six pairs)",
    )


def _rankings(tables: SystemTables) -> Exhibit:
    """Tau and slope, and the null control."""
    rows = []
    for name in (*PROTOCOLS, "live_again"):
        cells = [where(tables.metric(EXPERIMENT, metric), protocol=name) for metric in
                 ("kendall_tau", "tau_with_half", "slope_on_live")]  # fmt: skip
        if any(cells):
            label = "live, other conversations" if name == "live_again" else PROTOCOLS[name]
            rows.append((label, *(mean_text(by_seed(cell).values(), 2) if cell else "–" for cell in cells)))
    ties = where(tables.metric(EXPERIMENT, "tie_share"), protocol="gold")
    if not ties:
        return Exhibit("rankings", "Order of the readers", missing="there were no live conversations")
    share = {side: mean_interval(by_seed(where(ties, side=side), 100).values())[0] for side in ("live", "metric")}
    return Exhibit(
        key="rankings",
        title="Order of the readers",
        caption="Kendall's tau-a of a protocol's F1 with live accuracy over all readers; the same with half of the "
        "conversations, beside the other half as the null control; slope of F1 on live accuracy, above 1 where a protocol "
        "exaggerates differences. Means over seeds with 95 % intervals. The paper has tau 0.67 for Auto-Gold, 1 for Auto-Pred "
        f"and Auto-Rewrite, over four readers. Pairs and passages with a tie: {fixed(share['live'], 1)} % live, "
        f"{fixed(share['metric'], 1)} % by Auto-Gold.",
        columns=("protocol", "tau with live accuracy", "tau with half of the conversations", "slope on live accuracy"),
        rows=rows,
    )


def _shift(tables: SystemTables) -> Exhibit:
    """Unanswerable questions and abstentions, static against live."""
    rows, table = [], []
    for metric, label in (("unanswerable_share", "unanswerable questions"), ("predicted_unanswerable", "no-answers")):
        for protocol, where_ in (("gold", "collected"), ("live", "live")):
            found = [
                record
                for record in where(tables.metric(EXPERIMENT, metric), protocol=protocol)
                if record.keys["family"] != "always_unanswerable"
            ]
            if not found:
                continue
            points = list(by_seed(found, 100).values())
            rows.append(Row(f"{label}, {where_}", *mean_interval(points), points=points, colour=protocol == "live"))
            table.append((rows[-1].label, mean_text(points), str(len(points))))
    return Exhibit(
        key="shift",
        title="Live questions are others",
        caption=f"{HOW} Shares of turns, mean over readers. In the paper live users asked 20.6 to 34.6 % unanswerable "
        "questions (about 20 % in QuAC).",
        svg=row_plot(f"{KEY}-shift", rows, "share of turns (%)", texts=[line[1] for line in table]),
        alt="; ".join(f"{line[0]}: {line[1]} %" for line in table) + ".",
        columns=("share", "mean (%) [95 % interval]", "seeds"),
        rows=table,
    )


def _readers(tables: SystemTables) -> Exhibit:
    """Every reader under every protocol, and the paper's."""
    shown = (("f1", "gold"), ("f1", "pred"), ("f1", "rewrite"), ("accuracy", "live"), ("accuracy_unanswerable", "live"),
             ("unanswerable_share", "live"))  # fmt: skip
    found = {
        key: group(where(tables.metric(EXPERIMENT, key[0]), protocol=key[1]), lambda record: record.keys["reader"])
        for key in shown
    }
    rows = []
    for reader, records in found[shown[0]].items():
        keys = records[0].keys
        label = FAMILIES.get(keys["family"], keys["family"])
        steps = f", {keys['snapshot']} steps" if keys["snapshot"] else ""
        cells = [mean_text(by_seed(found[key].get(reader, []), 100).values()) if found[key].get(reader) else "–"
                 for key in shown]  # fmt: skip
        rows.append((f"{label}{steps}", *cells))
    rows += [(f"the paper: {name}", *(fixed(value, 1) for value in values)) for name, *values in PAPER_READERS]
    return Exhibit(
        key="readers",
        title="All readers",
        caption="Per cent, means over seeds with 95 % intervals. Yes/no and follow-up labels are constants in this system and "
        "not shown. The paper's accuracies are people's judgements.",
        columns=(
            "reader",
            "F1 Auto-Gold",
            "F1 Auto-Pred",
            "F1 Auto-Rewrite",
            "accuracy live",
            "on unanswerable questions",
            "unanswerable asked live",
        ),  # fmt: skip
        rows=rows,
    )


def _ablations(tables: SystemTables) -> list[Exhibit]:
    """Options of the validity test and of rewriting, where the run has them."""
    experiment = "ablations" if tables.metric("ablations", "f1") else EXPERIMENT
    f1 = where(tables.metric(experiment, "f1"), history=True)
    if all(record.keys["protocol"] in PROTOCOLS for record in f1):
        return []
    rows = []
    for name, records in group(f1, lambda record: record.keys["protocol"]).items():
        others = [where(tables.metric(experiment, metric), history=True, protocol=name)
                  for metric in ("invalid_share", "changed_questions", "flagged_f1")]  # fmt: skip
        cells = [mean_text(by_seed(cell, 100).values()) if cell else "–" for cell in (records, *others)]
        rows.append((name, *cells))
    return [
        Exhibit(
            key="ablations",
            title="Options of the protocols",
            caption="Per cent, mean over readers with history. em: resolved questions are compared as texts; entities: names "
            "in the question are not left out; window: turns that the coreference model sees; strict: articles and punctuation "
            "do not make names match.",
            columns=("protocol", "F1", "invalid questions", "changed questions", "F1 on invalid questions"),
            rows=rows,
        )
    ]


def _people(tables: SystemTables) -> list[Exhibit]:
    """Figures of an annotation file, where the run has one."""
    found = where(tables.metric("human", "accuracy"), passages="all")
    if not found:
        return []
    names = ("accuracy", "accuracy_answerable", "accuracy_unanswerable", "unanswerable_share", "predicted_unanswerable")
    rows = []
    for (reader, first), _ in group(found, lambda record: (record.keys["reader"], record.keys["first_turn"])).items():
        cells = [where(tables.metric("human", name), passages="all", reader=reader, first_turn=first) for name in names]
        said = "with the first turn" if first == "counted" else "without the first turn"
        rows.append((reader, said, *(fixed(100 * cell[0].value, 1) if cell else "–" for cell in cells)))
    return [
        Exhibit(
            key="people",
            title="Judgements of people",
            caption="Per cent of valid turns, from the annotation file that was supplied. Whether the paper counts the first "
            "turn, which comes from QuAC, is not known. The paper has accuracies of 82.6 (BERT), 81.0 (GraphFlow), 87.8 (HAM) "
            "and 87.9 (ExCorD).",
            columns=("reader", "turns", "accuracy", "answerable", "unanswerable", "unanswerable asked", "no-answers"),
            rows=rows,
        )
    ]


SYSTEM = System(
    key=KEY,
    title="Conversational question answering without gold history",
    citation="Li, Gao, Goenka, Chen: Ditch the Gold Standard: Re-evaluating Conversational Question Answering. ACL 2022.",
    url="https://arxiv.org/abs/2112.08812",
    about=(
        "Readers answer questions about a passage turn by turn. Benchmarks give them the human answers of earlier turns "
        "(Auto-Gold); in use they have their own (Auto-Pred), under which a question may lose its meaning. Auto-Rewrite finds "
        "such questions with a coreference model and puts what was meant into them. Twelve small readers, six families at two "
        "stages of training, are put to the protocols and to a live user, an oracle of the generated world who reacts to "
        "what the reader answers."
    ),
    limits=(
        "The oracle stands for people and is none: it judges a follow-up by the reader's last answer, never misreads one "
        "and accepts an answer at token F1 of at least one half. Claims about people need their annotations "
        "(config/people.yaml).",
        "The coreference model sees pronouns and names, by rules that partly know the world's grammar.",
        "Rankings are over small readers of one kind of network, which differ less than BERT, GraphFlow, HAM and ExCorD do.",
    ),
    exhibits=exhibits,
)
