"""Figures of AutoSeq (Yu et al., "Automatic Label Sequence Generation for Prompting Sequence-to-sequence Models", COLING 2022).

The paper's tables of test scores were not at hand. Its figures here were computed from the development scores that its
repository has released, of the very rows that select: they overstate, and only their differences are quoted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from reclaim.report.accuracy import arms_exhibit, mean_text
from reclaim.report.figures import Exhibit, fixed, number
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "autoseq"
# The rest are those of a user.
EXPERIMENTS = {
    "phrases": "classes that a phrase carries",
    "words": "control: classes that one word carries",
    "reranking": "re-ranking by development scores",
    "ablations": "variants of the search",
    "grids": "learning rates chosen on development rows",
    "shots": "numbers of examples",
    "tasks": "tasks of the paper",
    "mpqa": "MPQA",
    "full_data": "all rows",
    "real": "trial on real text",
}
METHODS = {
    "autoseq": "AutoSeq",
    "autoword": "AutoWord",
    "manual": "manual prompt",
    "random_words": "random words",
    "fine_tuning": "standard fine-tuning",
}
SEARCHED = ("autoseq", "autoword")
TRAINED = {"none": "zero-shot", "full": "all weights", "prompt": "soft prompt", "lora": "adapters (LoRA)"}
# An arm's name has what differs from the usual setting.
USUAL = (
    ("contrast", "sum", "contrast: {}"),
    ("pooling", "logits", "pooled {}"),
    ("selection", "first", "re-ranked by {}"),
    ("prompt", "manual", "{}"),
    ("labels", "true", "{} labels"),
    ("deduplicate", False, "de-duplicated"),
    ("distinct", False, "distinct"),
    ("max_shared", None, "at most {} share a sequence"),
)
# Those whose usual value is what most arms of the run have.
VARIED = (
    ("terminator", "terminator: {}"),
    ("max_length", "length limit {}"),
    ("num_combinations", "{} combinations"),
    ("per_class", "{} candidates a class"),
    ("beam", "beam {}"),
)
HINTS = {
    "phrases": (
        "Each word of a comment is as likely in both classes, so no single label word can tell them apart. In the released "
        "development scores of the paper's 20 tasks the first combination of sequences is 4.4 points ahead of that of words. "
        "Curated: the words of one who knows how people comment. The shuffled labels are the null control."
    ),
    "words": "Sequences and words must come out equal here: an advantage would be an artefact of the search.",
    "reranking": (
        "The released development scores gain 8.9 points (sequences) and 10.6 (words) from the first to the best of 20 "
        "combinations, on the rows that select; here the rows are fresh."
    ),
    "grids": "Every arm has a grid of the same size, and its development rows choose.",
    "real": "A small model trained for a minute knows little of real text: this shows that the chain runs on it, no more.",
}
VARIANTS = ("reranking", "ablations", "grids", "shots")  # of the experiment `phrases`
LABEL_ROWS = 4  # of each class in the table of labels
# What tasks are judged by; a model of a task is chosen by one of these on development rows.
METRICS = {
    "accuracy": "accuracy",
    "mcc": "Matthews correlation",
    "f1": "F1",
    "em": "exact match",
    "pearson": "Pearson correlation",
}


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    shown = [
        exhibit
        for experiment in _experiments(tables, METRICS)
        for metric, score in METRICS.items()
        for exhibit in _arms(tables, experiment, metric, score)
    ]
    if not shown:
        shown = [Exhibit("accuracy", "Test accuracy by arm", missing="no experiment of this system was chosen")]
    return [*shown, _labels(tables), _gain(tables), _language(tables), _cost(tables)]


def _experiments(tables: SystemTables, metrics: Collection[str], without: Collection[str] = ()) -> list[str]:
    """The experiments of the run that have one of the metrics, this project's first, then a user's."""
    rows = tables.metrics[tables.metrics["metric"].isin(list(metrics))]
    names = set(rows["experiment"]) - set(without)
    return sorted(names, key=lambda name: ([*EXPERIMENTS, name].index(name), name))


def _arms(tables: SystemTables, experiment: str, metric: str, score: str) -> list[Exhibit]:
    """A plot of the arms for each task, and for each further test set of one."""
    records = tables.metric(experiment, metric)
    shown = []
    for test, found in group(records, lambda record: record.keys.get("test", record.keys["task"])).items():
        arms = group(found, partial(_arm, others=found))
        shown.append(
            arms_exhibit(
                KEY,
                f"{metric}-{experiment}-{test}",
                f"Test {score} by arm ({EXPERIMENTS.get(experiment, experiment)}; {test})",
                dict(sorted(arms.items(), key=lambda arm: _place(arm[1][0]))),
                f"A seed's value is the mean over its few-shot splits. {HINTS.get(experiment, '')}".strip(),
                score=score,
                colour=lambda record: {"autoseq": 0, "autoword": 1}.get(record.keys["method"], 2),
            )
        )
    return shown


def _arm(record: Record, others: Sequence[Record]) -> str:
    keys = record.keys
    parts = [METHODS.get(keys["method"], str(keys["method"]))]
    parts += [words.format(keys[key]) for key, usual, words in USUAL if keys.get(key, usual) != usual]
    same = [other.keys for other in others if other.keys["method"] == keys["method"]]
    for key, words in VARIED:
        values = [other[key] for other in same if key in other]
        if key in keys and len(set(values)) > 1 and keys[key] != max(set(values), key=values.count):
            parts.append(words.format(keys[key]))
    # What is cut off in a narrow plot stands at the end: the number of steps is that of the other arms.
    parts += [str(keys["recipe"])] if "recipe" in keys else []
    parts.append(TRAINED.get(keys["trained"], str(keys["trained"])))
    if "recipe" in keys:
        parts.append(f"{keys['steps']} steps" if "steps" in keys else f"{keys['epochs']} epochs")
    return ", ".join(parts)


def _place(record: Record) -> tuple:
    keys, methods = record.keys, list(METHODS)
    trained = list(TRAINED).index(keys["trained"]) if keys["trained"] in TRAINED else len(TRAINED)
    method = methods.index(keys["method"]) if keys["method"] in methods else len(methods)
    return (
        min(trained, 1),
        str(keys.get("recipe", "")) if trained == 1 else "~",
        method,
        trained,
        sum(keys.get(key, usual) != usual for key, usual, _ in USUAL),
        str(sorted(keys.items())),
    )


def _labels(tables: SystemTables) -> Exhibit:
    """Candidates of one split with their scores, AutoSeq's and AutoWord's side by side, and what was written by hand."""
    title = "Label sequences found, single words found, and those written by hand"
    rows: list[tuple[str, ...]] = []
    for experiment in _experiments(tables, ["candidate_score"], without=VARIANTS):
        values = {
            name: {_identity(record): record.value for record in tables.metric(experiment, f"candidate_{name}")}
            for name in ("own", "others", "score")
        }
        searched = [record for record in tables.metric(experiment, "candidate_score") if _usual_search(record)]
        by_hand = where(tables.metric(experiment, "label_used"), method="manual", trained="none", split=0)
        for (task, label), found in group(searched, lambda record: (record.keys["task"], record.keys["class"])).items():
            written = [
                record.keys["text"] + ("" if record.keys["prompt"] == "manual" else f" ({record.keys['prompt']})")
                for record in where(by_hand, task=task, **{"class": label})
                if record.seed == by_hand[0].seed
            ]
            for rank in range(LABEL_ROWS):
                sequence, word = (_candidate(where(found, method=method), rank, values) for method in SEARCHED)
                text, _, _, score, _ = word
                rows.append((task, label, written[rank] if rank < len(written) else "", *sequence, text, score))
    if not rows:
        return Exhibit("labels", title, missing="no experiment with a search was chosen")
    return Exhibit(
        key="labels",
        title=title,
        caption=(
            f"The first {LABEL_ROWS} candidates of each class, best first, in the first split of the first seed. Own: the "
            "probability under the class's own examples; others: the sum under the other classes'; score: own minus others, "
            "which ranks them. First: in how many splits, of all seeds, the candidate leads its class. Prompts written by hand "
            "have no score. In the paper's repository the raw list of both classes of SST-2 is led by `Thank you.`, the "
            "re-ranked lists by `Highly recommended.` and `Not good.`"
        ),
        columns=("task", "class", "by hand", "AutoSeq", "own", "others", "score", "first", "AutoWord", "score"),
        rows=rows,
    )


def _candidate(found: Sequence[Record], rank: int, values: Mapping[str, Mapping]) -> tuple[str, ...]:
    """Text, own, others, score and lead of one class's candidate; empty where the search gave fewer."""
    found = [record for record in found if _settings(record) == _settings(found[0])]
    first = min((record.seed for record in found), default=0)
    shown = [record for record in where(found, split=0, rank=rank) if record.seed == first]
    if not shown:
        return ("",) * 5
    text = shown[0].keys["text"]
    leading = [record.keys["text"] for record in where(found, rank=0)]
    figures = [number(values[name][_identity(shown[0])]) for name in ("own", "others", "score")]
    return (text or "(empty)", *figures, f"{leading.count(text)} of {len(leading)}")


def _identity(record: Record) -> tuple:
    return record.seed, str(sorted(record.keys.items()))


def _settings(record: Record) -> dict:
    """The search that a candidate is of, whatever the split."""
    return {key: value for key, value in record.keys.items() if key not in ("split", "class", "text", "rank")}


def _usual_search(record: Record) -> bool:
    return record.keys.get("contrast") == "sum" and record.keys.get("labels") == "true"


def _gain(tables: SystemTables) -> Exhibit:
    """What choosing by development scores gains on the rows that choose and on fresh ones."""
    title = "What re-ranking by development scores gains"
    rows = []
    found = {metric: _trained(tables, metric) for metric in METRICS}
    selecting = {metric: _trained(tables, f"dev_{metric}") for metric in found}
    chosen_by = {(metric, record.keys["task"]) for metric, own in selecting.items() for record in own}
    for method in SEARCHED:
        gains = []
        for side in (selecting, found):
            records = [
                record
                for metric, own in side.items()
                for record in where(own, method=method)
                if (metric, record.keys["task"]) in chosen_by
            ]
            chosen, first = (by_seed(where(records, selection=name), 100) for name in ("dev", "first"))
            gains.append([chosen[seed] - first[seed] for seed in chosen if seed in first])
        if gains[1]:
            rows.append((METHODS[method], *map(mean_text, gains)))
    if not rows:
        return Exhibit("gain", title, missing="the experiment `reranking` was not chosen")
    return Exhibit(
        key="gain",
        title=title,
        caption="Best minus first combination, in points. On the rows that select the gain is optimistic by construction.",
        columns=("method", "on the rows that select [95 % interval]", "on test rows [95 % interval]"),
        rows=rows,
    )


def _trained(tables: SystemTables, metric: str) -> list[Record]:
    """Values of fine-tuned arms that re-ranking may be compared with: with contrast, and of the recipe it was done with."""
    names = _experiments(tables, [metric], without={*VARIANTS} - {"reranking"})
    records = [record for name in names for record in tables.metric(name, metric)]
    records = where(records, trained="full", labels="true", contrast="sum", test=None)
    kinds = {(record.keys["task"], record.keys["recipe"]) for record in where(records, selection="dev")}
    return [record for record in records if (record.keys["task"], record.keys["recipe"]) in kinds]


def _language(tables: SystemTables) -> Exhibit:
    """Whether the model has learnt its language: the gate of the claims."""
    title = "Does the model know the language?"
    rows = []
    for experiment in _experiments(tables, ["least_phrase_probability"]):
        least = by_seed(tables.metric(experiment, "least_phrase_probability"))
        ratio, loss = (
            by_seed(tables.metric(experiment, "phrase_ratio")),
            by_seed(tables.metric(experiment, "pretrain_loss")),
        )
        rows += [
            (experiment, str(seed), fixed(least[seed], 3), number(ratio.get(seed, float("nan"))), fixed(loss[seed], 3))
            for seed in least
            if seed in loss
        ]
    if not rows:
        return Exhibit("language", title, missing="no task of this run has comments that its model must know")
    return Exhibit(
        key="language",
        title=title,
        caption=(
            "The model's own probability of a comment that belongs to one class, given sentences of that class: the least of "
            "such comments (required: 0.1), and the ratio of the mean over them to that given the other class (required: 4). "
            "A run below says nothing about the search."
        ),
        columns=("experiment", "seed", "least probability", "ratio of own to other class", "pre-training loss (nats)"),
        rows=rows,
    )


def _cost(tables: SystemTables) -> Exhibit:
    """Forward passes and time of a search, with what was found."""
    title = "What a search costs and finds"
    rows = []
    for experiment in _experiments(tables, ["candidates"]):
        for method in SEARCHED:
            found = {}
            for name in ("candidates", "encoder_passes", "decoder_passes", "candidate_words", "one_word_candidates"):
                records = [
                    r for r in tables.metric(experiment, name) if _usual_search(r) and r.keys["method"] == method
                ]
                found[name] = by_seed(records).values()
            seconds = where(tables.cost(experiment, "search_cpu_s"), method=method, contrast="sum", labels="true")
            if found["candidates"]:
                figures = [mean_text(values, places=2) for values in found.values()]
                rows.append((experiment, METHODS[method], *figures, mean_text(by_seed(seconds).values(), places=3)))
    if not rows:
        return Exhibit("cost", title, missing="no experiment with a search was chosen")
    return Exhibit(
        key="cost",
        title=title,
        caption=(
            "All classes of a split together, mean over splits and seeds. The original runs the encoder again for every "
            "hypothesis and step. Of the released candidates 32 % are a single word, and their mean length is 2.4 words."
        ),
        columns=("experiment", "method", "candidates", "encoder passes", "decoder passes", "words per candidate",
                 "share of single words", "CPU seconds"),
        rows=rows,
    )  # fmt: skip


SYSTEM = System(
    key=KEY,
    title="AutoSeq: label sequences found automatically",
    citation="Yu, Gao, Zhang, Lin, Liu, Sun, Zhou: Automatic Label Sequence Generation for Prompting "
    "Sequence-to-sequence Models. COLING 2022.",
    url="https://arxiv.org/abs/2209.09401",
    about=(
        "A sequence-to-sequence model fills the blank of a prompt, and each class has a phrase that it may fill it with. The "
        "phrases are found by a beam search for what all training examples of a class agree on, ranked by how badly they fit "
        "the other classes, and combined. They are compared with single words found in the same way, with prompts written by "
        "hand, with soft prompts and with adapters, from 16 examples a class. Seeds are those of pre-training; arms are "
        "compared within a seed and a few-shot split."
    ),
    limits=(
        "The paper's scores on its 20 tasks, which need its T5 models; its tables of test scores were not at hand.",
        "Adapter tuning as the paper did it: its code was not released, and LoRA stands for it here.",
    ),
    exhibits=exhibits,
)
