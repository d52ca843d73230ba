"""Figures of AutoSeq from rows like those of a run."""

import pandas as pd
import pytest

from reclaim.outcome import CURVES
from reclaim.report.figures_autoseq import exhibits
from reclaim.report.system import SystemTables
from reclaim.tables import COLUMNS, variant_json

SEARCH = {
    "contrast": "sum", "pooling": "logits", "terminator": "sentinel", "beam": 20, "max_length": 12, "deduplicate": False,
}  # fmt: skip


def variant(method, split, **keys):
    found = {"task": "t", "split": split, "k": 16, "method": method, "trained": "none", "labels": "true"}
    if method in ("autoseq", "autoword"):
        found |= {"selection": "first", **SEARCH, **({"beam": 80} if method == "autoword" else {})}
    return found | keys


def rows():
    """Two seeds with two splits each, and an experiment of a user with two tasks that name their classes alike."""
    found = []

    def add(experiment, seed, keys, metric, value, unit="fraction"):
        found.append(("autoseq", experiment, variant_json(keys), seed, metric, value, 10, unit))

    for seed in (1, 2):
        add("phrases", seed, {"task": "t", "check": "language"}, "least_phrase_probability", 0.17)
        add("phrases", seed, {"task": "t", "check": "language"}, "phrase_ratio", 9.0)
        add("phrases", seed, {"corpus": "c"}, "pretrain_loss", 0.5, "nats")
        for split in (0, 1):
            for method, value in (("autoseq", 0.9), ("autoword", 0.5), ("manual", 0.55)):
                keys = variant(method, split, **({"prompt": "manual"} if method == "manual" else {}))
                add("phrases", seed, keys, "accuracy", value + split / 50)
                add("phrases", seed, {**keys, "class": "positive", "text": f"{method} & text"}, "label_used", 1.0)
                if method != "manual":
                    for metric, amount in (("candidates", 40), ("encoder_passes", 2), ("decoder_passes", 19)):
                        add("phrases", seed, keys, metric, amount)
                    for metric, amount in (("candidate_words", 2.5), ("one_word_candidates", 0.3)):
                        add("phrases", seed, keys, metric, amount)
                    listed = {**keys, "class": "positive", "text": "Never skip it .", "rank": 0}
                    for metric, amount in (("own", 0.2), ("others", 0.02), ("score", 0.18)):
                        add("phrases", seed, listed, f"candidate_{metric}", amount)
            none = variant("autoseq", split, contrast="none")
            add("phrases", seed, none, "accuracy", 0.5)
            for selection, dev, test in (("first", 0.6, 0.55), ("dev", 0.9, 0.6)):
                keys = variant("autoseq", split, trained="full", recipe="few", steps=30, selection=selection)
                add("reranking", seed, keys, "accuracy", test)
                add("reranking", seed, keys, "dev_accuracy", dev)
    for task, metric in (("one", "accuracy"), ("two", "f1")):
        own = {**variant("autoseq", 0), "task": task}
        add("mine", 1, own, metric, 0.7)
        add("mine", 1, {**own, "trained": "full", "recipe": "all", "epochs": 64}, metric, 0.8)
        for name in ("own", "others", "score"):
            add("mine", 1, {**own, "class": "0", "text": f"of {task}", "rank": 0}, f"candidate_{name}", 0.1)
    return pd.DataFrame(found, columns=list(COLUMNS["metrics"]))


def system_tables(metrics):
    name = variant_json(variant("autoseq", 0))
    cost = ("autoseq", "phrases", name, 1, "measure", "measured", "search_cpu_s", 0.2, "s")
    return SystemTables(
        claims=pd.DataFrame(),
        metrics=metrics,
        costs=pd.DataFrame([cost], columns=list(COLUMNS["costs"])),
        curves=pd.DataFrame(columns=list(CURVES)),
    )


@pytest.fixture(scope="module")
def shown():
    return {exhibit.key: exhibit for exhibit in exhibits(system_tables(rows()))}


def test_arms_are_told_apart_by_what_differs(shown):
    arms = {row[0]: row[1] for row in shown["accuracy-phrases-t"].rows}
    assert set(arms) == {
        "AutoSeq, zero-shot", "AutoWord, zero-shot", "manual prompt, zero-shot", "AutoSeq, contrast: none, zero-shot",
    }  # fmt: skip
    assert arms["AutoSeq, zero-shot"].startswith("91.0")


def test_labels_stand_with_their_scores_beside_those_by_hand(shown):
    """One row a rank, whatever the number of seeds; what leads in the splits of all seeds is counted."""
    table = shown["labels"]
    assert table.columns[3:8] == ("AutoSeq", "own", "others", "score", "first")
    ours = [row for row in table.rows if row[0] == "t"]
    assert len(ours) == 4 and ours[0][:3] == ("t", "positive", "manual & text")
    assert ours[0][3:] == ("Never skip it .", "0.200", "0.0200", "0.180", "4 of 4", "Never skip it .", "0.180")
    assert set(ours[1][2:]) == {""}


def test_experiments_and_tasks_of_a_user_are_shown_apart(shown):
    assert {"accuracy-mine-one", "f1-mine-two"} <= set(shown) and "accuracy-mine-two" not in shown
    assert "F1" in shown["f1-mine-two"].title
    assert "AutoSeq, all, all weights, 64 epochs" in {row[0] for row in shown["accuracy-mine-one"].rows}
    texts = {row[0]: row[3] for row in shown["labels"].rows if row[3]}
    assert (texts["one"], texts["two"]) == ("of one", "of two")


def test_the_gain_is_shown_on_both_kinds_of_rows(shown):
    (row,) = shown["gain"].rows
    assert row[0] == "AutoSeq" and row[1].startswith("30.0") and row[2].startswith("5.0")


def test_gates_and_costs(shown):
    assert [row[:3] for row in shown["language"].rows] == [("phrases", "1", "0.170"), ("phrases", "2", "0.170")]
    methods = {row[1]: row for row in shown["cost"].rows}
    assert methods["AutoSeq"][2].startswith("40.00") and methods["AutoSeq"][3].startswith("2.00")


def test_a_run_without_the_system_says_so():
    missing = exhibits(system_tables(rows().iloc[:0]))
    assert missing and all(exhibit.missing for exhibit in missing)
