"""Templates, prompts and the checks that stop a run of the in-context study."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reclaim.errors import InputError
from reclaim.icl.prepare import Cell, PromptWriter, prepare
from reclaim.icl.prompts import (
    append_period,
    clean_answer,
    define_sets,
    join_official,
    join_prompt,
    load_sets,
    set_names,
    shorten,
)
from reclaim.tokenization import train_tokenizer
from reclaim.world.lexicon import MADE_UP_LABELS, MADE_UP_TASK, NATURAL_TASKS

SENTENCES = [
    f"{word} {verb}" for word in "rain snow wind sun fog hail".split() for verb in "falls stops starts".split()
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [*SENTENCES, "The sentiment is negative positive", "Label: @ # $ % ^ * { } \\ Sentence: no impact mixed"]
    return train_tokenizer("opt", texts * 3, vocab_size=400)


def sentiment(name: str = "sst2", repeats: bool = False):
    rows = [{"id": f"train-{i}", "text": text, "label": i % 2} for i, text in enumerate(SENTENCES[:12])]
    test = [{"id": f"test-{i}", "text": text, "label": i % 2} for i, text in enumerate(SENTENCES[12:])]
    (definition,) = define_sets(name).values()
    return replace(definition, pool=rows, test=test, repeats=repeats)


def test_every_data_set_of_the_study_has_three_templates_of_each_kind():
    studied = "sst2 financial_phrasebank tweet_eval_emotion poem trec tweet_eval_atheism tweet_eval_feminist "
    studied += "tweet_eval_hate ethos_race ethos_gender ethos_religion ethos_national_origin sick snli wnli mrpc"
    assert set(studied.split()) <= set(set_names())
    for name in studied.split():
        (definition,) = define_sets(name).values()
        assert len(definition.natural) == len(definition.minimal) == 3
        assert len(set(definition.label_words)) == len(definition.label_words) >= 2
        assert "{about}" not in "".join(template.prompt for template in definition.natural)


def test_minimal_templates_do_not_name_the_task():
    for name in set_names():
        for definition in define_sets(name).values():
            row = {"text": "x", "text_pair": "y", "task": "T"}
            filled = " ".join(template.fill(row) for template in definition.minimal)
            assert not any(
                word in filled for word in ("sentiment", "hate", "topic", "True", "T", *definition.label_words)
            )


def test_the_world_s_templates_and_labels_are_those_of_its_lexicon():
    sets = define_sets("episodes")
    assert {task: list(definition.label_words) for task, definition in sets.items()} == {
        task: list(topics) for task, topics in NATURAL_TASKS.items()
    }
    kind = sets["kind"]
    row = {"text": "dog oak", "task": "kind"}
    filled = kind.template("natural", 1).fill(row)
    # Both forms of a prompt are the same here.
    for prompt in (
        join_prompt(" ", [(filled, "animal")], filled),
        join_official(" ", [(filled, "animal")], filled).strip(),
    ):
        assert prompt == "kind dog oak animal kind dog oak"
    assert kind.template("minimal", 1).fill(row).strip() == f"{MADE_UP_TASK} dog oak"
    assert set(kind.made_up["letter"]) == {label for label in MADE_UP_LABELS if label.isalpha()}


def test_the_default_mends_slips_and_official_keeps_them():
    (wnli,) = define_sets("wnli").values()
    row = {"text": "A", "text_pair": "B"}
    assert "\\Do" in wnli.natural[1].fill(row, official=True)
    assert wnli.natural[1].fill(row).startswith("Premise: A\nHypothesis: B\nDo")


def test_full_stops_of_a_set_and_of_templates():
    assert [append_period(text) for text in ("a", "a ", "a!", "é")] == ["a.", "a.", "a!", "é."]
    frame = pd.DataFrame({"id": ["0"], "text": ["a man"], "text_pair": ["a dog!"], "label": [2]})
    (sick,) = load_sets("sick", frame, frame)
    assert (sick.pool[0]["text"], sick.pool[0]["text_pair"]) == ("a man.", "a dog!")


def test_demonstrations_and_query_have_one_form_by_default():
    shown, query = [("Is it?\n", "Yes"), ("It is:  ", "No")], "Well?\n"
    assert join_prompt("|", shown, query) == "Is it? Yes|It is: No|Well?"
    assert join_official("|", shown, query) == "Is it?\nYes|It is:  No|Well?\n"
    assert clean_answer("  No \n\nMore") == "No"


def test_shortening_draws_a_fresh_subset_each_time():
    kept = shorten(6, lambda subset: len(subset) <= 2, random.Random(0))
    assert len(kept) == 2 and kept == sorted(kept)
    rng = random.Random(0)
    for size in (6, 5, 4, 3):
        rng.sample(range(6), size)
    assert kept == sorted(rng.sample(range(6), 2))
    with pytest.raises(InputError, match="too long"):
        shorten(2, lambda subset: False, random.Random(0))


def test_unknown_names_and_rows_are_refused():
    frame = pd.DataFrame({"id": ["0"], "text": ["a"], "label": [1]})
    with pytest.raises(InputError, match="data set"):
        define_sets("sst3")
    with pytest.raises(InputError, match="'task'"):
        load_sets("episodes", frame, frame)
    with pytest.raises(InputError, match="class 7"):
        load_sets("sst2", frame, frame.assign(label=7))
    with pytest.raises(InputError, match="template"):
        define_sets("sst2")[""].template("natural", 4)
    with pytest.raises(InputError, match="text_pair"):
        define_sets("snli")[""].natural[0].fill({"text": "a"})
    with pytest.raises(InputError, match="label space"):
        Cell("abstract", 4)
    with pytest.raises(InputError, match="label space"):
        Cell("gold", 4, "letter")
    with pytest.raises(InputError, match="draws"):
        Cell("gold", 4, draws="lucky")


# ------------------------------------------------------------------------------------------------------------------ prepare


def test_settings_see_the_same_demonstrations_and_differ_in_labels(tokenizer):
    cells = [Cell("gold", 4), Cell("random", 4), Cell("abstract", 4, "letter"), Cell("gold", 2), Cell("gold", 0)]
    table = prepare(tokenizer, sentiment(), cells, seed=3).table.set_index(["setting", "num_demonstrations"])
    for row in table["row"].unique():
        found = table[table["row"] == row]
        demonstrations = found["demonstrations"]
        assert demonstrations["gold", 4] == demonstrations["random", 4] == demonstrations["abstract", 4]
        assert demonstrations["gold", 2] == demonstrations["gold", 4][:2] and demonstrations["gold", 0] == []
        words = found.loc[("abstract", 4), "label_words"]
        gold = found.loc[("gold", 4), "demonstration_labels"]
        mapped = [words[["negative", "positive"].index(label)] for label in gold]
        assert found.loc[("abstract", 4), "demonstration_labels"] == mapped
        # The target is the row's own class in every setting.
        assert found.loc[("random", 4), "target"] == found.loc[("gold", 4), "target"]
        assert found.loc[("abstract", 4), "target"] == words[found.loc[("gold", 4), "label"]]


def test_a_row_depends_on_seed_data_set_and_row_only(tokenizer):
    cells = [Cell("random", 4), Cell("abstract", 4, "symbol")]
    dataset = sentiment()
    table = prepare(tokenizer, dataset, cells, seed=1).table
    some = prepare(tokenizer, dataset, cells[::-1], seed=1, rows=[4, 2]).table
    merged = some.merge(table, on=["row", "setting"], suffixes=("", "_all"))
    assert len(merged) == 4
    for column in ("demonstrations", "demonstration_labels", "label_words"):
        assert merged[column].tolist() == merged[f"{column}_all"].tolist()
    other = prepare(tokenizer, dataset, cells, seed=2).table
    assert other["demonstrations"].tolist() != table["demonstrations"].tolist()
    assert other["label_words"].tolist() != table["label_words"].tolist()


def test_maps_are_redrawn_for_each_row_unless_fixed(tokenizer):
    dataset = replace(sentiment(), test=[{"id": f"t{i}", "text": f"storm {i}", "label": 0} for i in range(30)])
    fresh = prepare(tokenizer, dataset, [Cell("abstract", 2, "letter")], seed=0).table["label_words"]
    fixed = prepare(tokenizer, dataset, [Cell("abstract", 2, "letter", fixed_map=True)], seed=0).table["label_words"]
    assert len(set(map(tuple, fresh))) > 15 and len(set(map(tuple, fixed))) == 1


def test_independent_draws_have_other_demonstrations(tokenizer):
    cells = [Cell("random", 4), Cell("random", 4, draws="independent")]
    table = prepare(tokenizer, sentiment(), cells, seed=0).table
    pairs = zip(*(part["demonstrations"] for _, part in table.groupby("draws")), strict=True)
    assert sum(a != b for a, b in pairs) >= 5


def test_raw_draws_are_nested_and_not_balanced(tokenizer):
    skewed = [{**row, "label": int(i >= 10)} for i, row in enumerate(sentiment().pool)]
    dataset = replace(sentiment(), pool=skewed)
    cells = [Cell(setting, k, draws="raw") for setting in ("gold", "random") for k in (2, 6)]
    table = prepare(tokenizer, dataset, cells, seed=0).table.set_index(["setting", "num_demonstrations", "row"])
    for row in ("test-0", "test-3"):
        many = table.loc[("gold", 6, row), "demonstrations"]
        assert table.loc[("gold", 2, row), "demonstrations"] == many[:2]
        assert table.loc[("random", 6, row), "demonstrations"] == many
    # Two of twelve rows are of the second class: four of six draws of two have none of it, where a balanced draw has one.
    lacking = table.loc[("gold", 2)]["degenerate"] == "missing class"
    assert lacking.any() and (prepare(tokenizer, dataset, [Cell("gold", 2)], seed=0).table["degenerate"] == "").all()
    with pytest.raises(InputError, match="demonstrations"):
        prepare(tokenizer, dataset, [Cell("gold", 13, draws="raw")], seed=0)


def test_reordered_draws_are_the_paired_ones_with_their_labels_in_another_order(tokenizer):
    cells = [Cell("abstract", 6, "letter"), Cell("abstract", 6, "letter", draws="reordered")]
    usual, other = (part for _, part in prepare(tokenizer, sentiment(), cells, seed=0).table.groupby("draws"))
    moved = 0
    for a, b in zip(usual.itertuples(), other.itertuples(), strict=True):
        assert a.label_words == b.label_words
        pairs = [list(zip(row.demonstrations, row.demonstration_labels, strict=True)) for row in (a, b)]
        assert sorted(pairs[0]) == sorted(pairs[1])
        moved += pairs[0] != pairs[1]
    assert moved >= 4


def test_a_content_free_prompt_differs_in_the_query_alone(tokenizer):
    prepared = prepare(tokenizer, sentiment(), [Cell("gold", 2), Cell("gold", 0)], seed=0, content_free=True)
    query = tokenizer(sentiment().test[0]["text"], add_special_tokens=False)["input_ids"]
    texts = [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in (prepared.contexts[0], prepared.content_free[0])
    ]
    assert query and texts[0].replace(sentiment().test[0]["text"], "N/A") == texts[1]
    assert tokenizer.decode(prepared.content_free[-1], skip_special_tokens=True) == "N/A\nThe sentiment is"
    assert prepare(tokenizer, sentiment(), [Cell("gold", 2)], seed=0).content_free == []


def test_the_prompt_is_what_a_reader_would_write(tokenizer):
    dataset = replace(sentiment(), test=[{"id": "q", "text": "storm starts", "label": 0}])
    prepared = prepare(tokenizer, dataset, [Cell("gold", 1)], seed=0)
    row = prepared.table.iloc[0]
    shown = dict(zip([r["id"] for r in dataset.pool], dataset.pool, strict=True))[row["demonstrations"][0]]
    text = f"{shown['text']}\nThe sentiment is {row['demonstration_labels'][0]}\n\n\nstorm starts\nThe sentiment is"
    assert prepared.contexts[0] == tokenizer(text)["input_ids"]
    assert row["num_tokens"] == len(prepared.contexts[0])
    zero = prepare(tokenizer, dataset, [Cell("gold", 0)], seed=0)
    assert zero.contexts[0] == tokenizer("storm starts\nThe sentiment is")["input_ids"]


def test_a_query_among_its_demonstrations_stops_the_run(tokenizer):
    dataset = sentiment()
    leaking = replace(dataset, test=dataset.pool)
    with pytest.raises(InputError, match="the query itself"):
        prepare(tokenizer, leaking, [Cell("gold", 12)], seed=0)
    same_text = replace(dataset, test=[{"id": "other", "text": dataset.pool[0]["text"], "label": 0}])
    with pytest.raises(InputError, match="the query itself"):
        prepare(tokenizer, same_text, [Cell("gold", 12)], seed=0)
    # Where texts recur by chance only the row itself counts.
    prepare(tokenizer, replace(same_text, repeats=True), [Cell("gold", 12)], seed=0)
    with pytest.raises(InputError, match="the query itself"):
        prepare(tokenizer, replace(leaking, repeats=True), [Cell("gold", 12)], seed=0)


def test_too_many_demonstrations_stop_the_run(tokenizer):
    with pytest.raises(InputError, match="demonstrations"):
        prepare(tokenizer, sentiment(), [Cell("gold", 13)], seed=0)


def test_a_prompt_that_is_too_long_stops_the_run_or_keeps_the_first(tokenizer):
    cells = [Cell("gold", 12)]
    with pytest.raises(InputError, match="too long"):
        prepare(tokenizer, sentiment(), cells, seed=0, max_length=60)
    table = prepare(tokenizer, sentiment(), cells, seed=0, max_length=60, degenerate="note").table
    whole = prepare(tokenizer, sentiment(), cells, seed=0).table
    assert (table["num_tokens"] <= 60).all() and (table["num_kept"] < 12).all()
    assert (table["degenerate"] == "dropped demonstrations").all()
    assert all(a == b[: len(a)] for a, b in zip(table["demonstrations"], whole["demonstrations"], strict=True))
    official = prepare(tokenizer, sentiment(), [Cell("gold", 12, draws="official")], seed=0, max_length=60).table
    assert (official["num_tokens"] <= 60).all() and (official["num_kept"] < 12).all()
    with pytest.raises(InputError, match="query"):
        prepare(tokenizer, sentiment(), cells, seed=0, max_length=3, degenerate="note")


def test_labels_that_the_scorer_cannot_tell_apart_stop_the_run(tokenizer):
    dataset = replace(sentiment(), label_words=("no impact", "impact"))
    prepare(tokenizer, dataset, [Cell("gold", 2)], seed=0)
    with pytest.raises(InputError, match="told apart"):
        prepare(tokenizer, dataset, [Cell("gold", 2)], seed=0, scorer="official_last")
    with pytest.raises(InputError, match="same label"):
        prepare(tokenizer, replace(dataset, label_words=("impact", "impact")), [Cell("gold", 2)], seed=0)


def test_official_draws_go_on_with_a_duplicate_symbol_and_say_so(tokenizer):
    words = [f"w{i}" for i in range(6)]
    rows = [{"id": str(i), "text": f"rain {i}", "label": i % 6} for i in range(60)]
    test = [{"id": str(i), "text": f"snow {i}", "label": i % 6} for i in range(60)]
    dataset = replace(sentiment(), label_words=tuple(words), pool=rows, test=test)
    noted = prepare(tokenizer, dataset, [Cell("abstract", 12, "symbol", draws="official")], seed=0).table["degenerate"]
    assert 0.1 < np.mean(["duplicate labels" in text for text in noted]) < 0.6
    paired = prepare(tokenizer, dataset, [Cell("abstract", 4, "symbol")], seed=0).table["degenerate"]
    assert set(paired) == {"missing class"}


def test_label_words_have_their_space_and_no_piece_of_their_own_for_it(tokenizer):
    writer = PromptWriter(tokenizer)
    context = tokenizer("The sentiment is")["input_ids"]
    for word in ("positive", "no impact", "@", "{"):
        assert [*context, *writer.label(word)] == tokenizer(f"The sentiment is {word}")["input_ids"]
    t5 = PromptWriter(train_tokenizer("t5", [*SENTENCES, "positive negative"], words=["positive", "negative"]))
    assert len(t5.label("positive")) == 1 and t5.tokenizer.decode(list(t5.label("positive"))).strip() == "positive"
    gpt2 = train_tokenizer("gpt2", [*SENTENCES, "Label: 0 1"], vocab_size=300)
    assert PromptWriter(gpt2).encode(["rain falls"]) == [gpt2.encode("rain falls")]
