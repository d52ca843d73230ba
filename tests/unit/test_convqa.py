"""Conversational QA: formats, scorer, coreference by rules, protocols, world and live user, annotations, chat."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from reclaim.convqa.chat import Session
from reclaim.convqa.coreference import CachedResolver, Document, decide, names
from reclaim.convqa.data import check_spec, load_dialogs, load_judgements, materialize
from reclaim.convqa.dialogs import check, from_hub, from_row, read_quac, to_row, write_quac
from reclaim.convqa.history import coref_text
from reclaim.convqa.human import run as run_human
from reclaim.convqa.judgements import aggregate, per_passage, read_annotations
from reclaim.convqa.live import converse
from reclaim.convqa.protocols import Validity, answers_of, run_protocol
from reclaim.convqa.readers import AlwaysUnanswerable, OneByOne
from reclaim.convqa.rules import RuleResolver
from reclaim.errors import InputError
from reclaim.metrics.conversation import agreement, kendall_tau, passage_agreement, slope
from reclaim.metrics.quac import NO_ANSWER, Question, corpus_scores, score_questions
from reclaim.world.conversations import LiveUser, World, generate_dialogs


@pytest.fixture(scope="module")
def dialogs():
    return generate_dialogs({"test": 12}, seed=5)["test"]


class Oracle:
    """Answers every question of the dialogs as the person did, and others not."""

    def __init__(self, dialogs, wrong=()):
        self.wrong, self.requests = set(wrong), []

    def answer(self, requests):
        self.requests += requests
        return [self._answer(each.dialog, len(each.history), each.question) for each in requests]

    def _answer(self, dialog, place, question):
        if place in self.wrong:
            return "no such thing"
        return next((turn.orig_answer for turn in dialog.turns[place:] if turn.question == question), NO_ANSWER)


class Echo:
    """Answers with its own last answer and a mark, so that the history shows in what it says."""

    def answer(self, requests):
        return [(each.history[-1][1] if each.history else "") + "x" for each in requests]


# ------------------------------------------------------------------------------------------------------------- formats


def test_quac_json_and_canonical_rows_go_both_ways(dialogs):
    document = json.loads(json.dumps(write_quac(dialogs)))
    back = list(read_quac(document, "here"))
    assert [replace(d, facts="", turns=tuple(replace(t, rewrite="") for t in d.turns)) for d in dialogs] == back
    assert [from_row(to_row(dialog)) for dialog in dialogs] == dialogs


def test_the_rows_of_the_hub_are_the_same_dialogs(dialogs):
    dialog = dialogs[0]
    row = {
        "dialogue_id": dialog.id, "wikipedia_page_title": dialog.title, "section_title": dialog.section_title,
        "background": dialog.background, "context": dialog.context, "turn_ids": [t.id for t in dialog.turns],
        "questions": [t.question for t in dialog.turns], "yesnos": [2] * 8, "followups": [2] * 8,
        "answers": {"texts": [list(t.answers) for t in dialog.turns],
                    "answer_starts": [list(t.answer_starts) for t in dialog.turns]},
        "orig_answers": {"texts": [t.orig_answer for t in dialog.turns],
                         "answer_starts": [t.orig_start for t in dialog.turns]},
    }  # fmt: skip
    assert write_quac([from_hub(row, "hub")]) == write_quac([dialog])
    with pytest.raises(InputError, match="a row of allenai/quac"):
        from_hub({key: value for key, value in row.items() if key != "answers"}, "hub")


def test_a_dialog_without_references_is_refused(dialogs):
    turns = (replace(dialogs[0].turns[0], answers=(), answer_starts=()),)
    with pytest.raises(InputError, match="no answer"):
        check(replace(dialogs[0], turns=turns), "here")


def test_data_sets_of_all_sources_hold_the_same_dialogs(tmp_path, dialogs):
    world = {
        "kind": "conversations",
        "source": "world",
        "generator": "conversations",
        "splits": {"test": 12},
        "seed": 5,
    }
    materialize(world, tmp_path / "world")
    (tmp_path / "quac.json").write_text(json.dumps(write_quac(dialogs)))
    canard = [{"QuAC_dialog_id": dialogs[0].id, "Question_no": 1, "Rewrite": "Who?"}]
    (tmp_path / "canard.json").write_text(json.dumps(canard))
    local = {"kind": "conversations", "source": "local", "files": {"test": str(tmp_path / "quac.json")},
             "rewrites": str(tmp_path / "canard.json")}  # fmt: skip
    materialize(local, tmp_path / "local")
    ours, theirs = (load_dialogs(tmp_path / name, "test") for name in ("world", "local"))
    assert ours == dialogs
    assert [d.context for d in theirs] == [d.context for d in ours]
    assert theirs[0].turns[0].rewrite == "Who?" and theirs[0].turns[1].rewrite == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [({"source": "moon"}, "source"), ({"generator": "x"}, "generator"), ({"extra": 1}, "unknown key"),
     ({"splits": {"all": 3}}, "unknown part")],
)  # fmt: skip
def test_a_wrong_data_entry_names_its_key(change, message):
    spec = {"kind": "conversations", "source": "world", "generator": "conversations", "splits": {"test": 2}} | change
    with pytest.raises(InputError, match=message):
        check_spec(spec, "data.x")


# -------------------------------------------------------------------------------------------------------------- scorer


def test_disagreement_is_left_out_but_a_missing_answer_counts():
    questions = [
        Question("a", "d", ("red car", "blue ship")),
        Question("b", "d", ("red",)),
        Question("c", "e", (NO_ANSWER,)),
    ]
    full = corpus_scores(score_questions(questions, {"a": "green", "b": "red", "c": NO_ANSWER}))
    assert full["f1"] == (1.0, 2) and full["heq_d"] == (1.0, 2) and full["unfiltered_f1"] == (2 / 3, 3)
    missing = corpus_scores(score_questions(questions, {"b": "red", "c": NO_ANSWER}))
    assert missing["f1"] == (2 / 3, 3) and missing["heq_d"] == (0.5, 2)


def test_a_set_without_unanswerable_questions_has_no_such_figure():
    scores = corpus_scores(score_questions([Question("a", "d", ("red",))], {"a": "red"}))
    assert scores["unanswerable_accuracy"] == (None, 0) and scores["f1"] == (1.0, 1)


def test_agreement_needs_values_of_both_sides_and_tau_counts_ties_as_neither():
    human = {"a": {"p": 1.0, "q": 0.5}, "b": {"p": 0.0, "q": 0.5}}
    metric = {"a": {"p": 0.9, "q": 0.2, "r": 1.0}, "b": {"p": 0.1, "q": 0.1, "r": 0.0}}
    assert agreement(human, metric)["a", "b"] == (0.5, 2)
    assert agreement(human, metric, "half")["a", "b"] == (0.75, 2)
    assert agreement(human, metric, "drop_human_ties")["a", "b"] == (1.0, 1)
    assert passage_agreement(human, metric) == {"p": 1.0, "q": 0.0}
    assert kendall_tau([1, 2, 2], [1, 2, 3]) == pytest.approx(2 / 3)
    assert slope([0, 2, 4], [0, 1, 2]) == pytest.approx(2.0)


# --------------------------------------------------------------------------------------------------------- coreference


def _document(turns, question, background="Velda Koss is a singer."):
    (document,) = RuleResolver().resolve([coref_text(turns, question, background)])
    return document


@pytest.mark.parametrize(
    ("turns", "question", "means"),
    [
        ([("What was her first album?", "Mirell")], "When was it released?", ["Mirell"]),
        ([("What was her first album?", "Mirell"), ("Which came next?", "Tavor")], "Who made it?", ["Tavor"]),
        ([("What was her first album?", "Mirell"), ("When was it released?", "1984")], "Who made it?", ["Mirell"]),
        ([("Who produced Mirell?", "Odo Finn")], "What was her next album?", ["Velda Koss"]),
        ([("What was her first album?", NO_ANSWER)], "When was it released?", []),
        ([("What was the name of the band?", "Osk Five")], "Did they tour?", ["Osk Five"]),
    ],
)
def test_pronouns_mean_the_newest_thing_person_or_group_that_fits(turns, question, means):
    document = _document(turns, question)
    assert names(document, skip_entity=True) == means


def test_a_changed_referent_makes_a_question_invalid_and_rewriting_puts_the_meant_one():
    gold = _document([("What was her first album?", "Mirell")], "When was it released?")
    predicted = _document([("What was her first album?", "Tavor")], "When was it released?")
    decision = decide(gold, predicted)
    assert decision.invalid_f1 and decision.rewritten == "When was Mirell released ?"
    assert not decide(gold, gold).invalid_f1


def test_strict_names_do_not_match_by_an_article():
    gold = Document.of("the red car < Q > is it new ?".split(), [[[0, 2], [7, 7]]])
    predicted = Document.of("the old ship < Q > is it new ?".split(), [[[0, 2], [7, 7]]])
    assert not decide(gold, predicted).invalid_f1
    assert decide(gold, predicted, strict_names=True).invalid_f1


def test_decisions_do_not_depend_on_the_hash_seed():
    code = (
        "from reclaim.convqa.coreference import *; d = Document.of('A b C d < Q > it x ?'.split(), [[[2, 2], [0, 0], [7, 7]]]);"
        "print(decide(d, d), names(d, skip_entity=False))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1 and outputs != {b""}


# ----------------------------------------------------------------------------------------------------------- protocols


def _validity():
    return Validity(CachedResolver(RuleResolver()))


def test_gold_history_holds_human_answers_and_predicted_history_the_readers_own(dialogs):
    gold = answers_of(run_protocol(dialogs, Echo(), "gold"))
    own = answers_of(run_protocol(dialogs, Echo(), "pred"))
    for dialog in dialogs:
        second, third = dialog.turns[1:3]
        assert gold[second.id] == dialog.turns[0].orig_answer + "x"
        assert (own[second.id], own[third.id]) == ("xx", "xxx")  # begins anew in each dialog


def test_a_right_reader_has_no_invalid_turn_and_needs_no_coreference(dialogs):
    validity = _validity()
    turns = run_protocol(dialogs, Oracle(dialogs), "rewrite", validity)
    assert not any(turn.invalid for turn in turns) and validity.resolver.calls == 0


def test_what_was_asked_is_what_is_remembered(dialogs):
    reader = Oracle(dialogs, wrong=(0,))
    turns = run_protocol(dialogs, reader, "rewrite", _validity())
    changed = [turn for turn in turns if turn.action == "rewritten"]
    assert changed and all(turn.asked != dialogs_question(dialogs, turn.question) for turn in changed)
    histories = [asked for request in reader.requests for asked, _ in request.history]
    later = [turn for turn in changed if turn.turn < 7]
    assert all(turn.asked in histories for turn in later)


def dialogs_question(dialogs, key):
    return next(turn.question for dialog in dialogs for turn in dialog.turns if turn.id == key)


def test_filtered_turns_are_neither_asked_nor_remembered_and_replaced_ones_are_self_contained(dialogs):
    filtered = run_protocol(dialogs, Oracle(dialogs, wrong=(0,)), "filter", _validity())
    gone = [turn for turn in filtered if turn.action == "filtered"]
    assert gone and all(turn.answer is None for turn in gone)
    replaced = run_protocol(dialogs, Oracle(dialogs, wrong=(0,)), "replace", _validity())
    rewrites = {turn.id: turn.rewrite for dialog in dialogs for turn in dialog.turns}
    assert all(turn.asked == rewrites[turn.question] for turn in replaced if turn.action == "replaced")
    every = run_protocol(dialogs, Oracle(dialogs), "rewrite_all", _validity())
    assert all(turn.action == "rewritten" for turn in every)


def test_dialogs_together_and_one_by_one_give_the_same(dialogs):
    class Turns:
        def reset(self, dialog):
            self.said = 0

        def ask(self, question, history):
            self.said += 1
            return f"{self.said} {len(history)}"

    together = run_protocol(dialogs, Echo(), "pred")
    assert together == run_protocol(dialogs, Echo(), "pred", batch_dialogs=1)
    turns = run_protocol(dialogs[:2], OneByOne(Turns()), "pred", batch_dialogs=1)
    assert [turn.answer for turn in turns] == [f"{n + 1} {n}" for n in range(8)] * 2


def test_protocols_refuse_what_they_do_not_know(dialogs):
    with pytest.raises(InputError, match="protocol"):
        run_protocol(dialogs, Echo(), "silver")
    with pytest.raises(InputError, match="coreference model"):
        run_protocol(dialogs, Echo(), "rewrite")


# --------------------------------------------------------------------------------------------------- the world, live user


def test_answers_stand_in_the_passage_and_truths_are_those_of_the_facts(dialogs):
    for dialog in dialogs:
        for turn in dialog.turns:
            for text, start in zip(turn.answers, turn.answer_starts, strict=True):
                assert dialog.context[start : start + len(text)] == text
        assert World(json.loads(dialog.facts)).facts["name"] == dialog.title
    shares = [turn.orig_answer == NO_ANSWER for d in generate_dialogs({"a": 200}, 1)["a"] for turn in d.turns]
    assert 0.12 < sum(shares) / len(shares) < 0.25


def test_the_world_is_a_function_of_its_seed():
    assert generate_dialogs({"a": 3, "b": 2}, 4) == generate_dialogs({"b": 2, "a": 3}, 4)
    assert generate_dialogs({"a": 3}, 4) != generate_dialogs({"a": 3}, 5)


def test_the_live_user_goes_on_from_what_the_reader_said(dialogs):
    dialog = next(d for d in dialogs if d.turns[0].orig_answer != NO_ANSWER)
    albums = [album["name"] for album in json.loads(dialog.facts)["albums"]]
    other = next(name for name in albums if name != dialog.turns[0].orig_answer)
    focus = {}
    for answer in (dialog.turns[0].orig_answer, other, NO_ANSWER):
        user = LiveUser(dialog, 0)
        assert user.ask() == dialog.turns[0].question
        turn = user.judge(answer)
        assert turn["correct"] == ("y" if answer == dialog.turns[0].orig_answer else "n")
        focus[answer] = user.person.focus
    assert focus == {dialog.turns[0].orig_answer: dialog.turns[0].orig_answer, other: other, NO_ANSWER: None}


def test_live_conversations_are_annotations_that_the_same_code_scores(dialogs):
    talks = converse(dialogs, AlwaysUnanswerable(), "never", 3, conversations=2, num_turns=5)
    figures = aggregate(read_annotations({"data": talks}, "live"))["never"]
    assert figures["conversations"] == (24.0, 24) and figures["questions"] == (120.0, 120)
    assert figures["accuracy_unanswerable"][0] == 1.0 and figures["accuracy_answerable"][0] == 0.0
    assert figures["accuracy"][0] == figures["unanswerable_share"][0]
    assert talks == converse(dialogs, AlwaysUnanswerable(), "never", 3, conversations=2, num_turns=5)


# ------------------------------------------------------------------------------------------------------------ judgements


def _annotations(correct="y"):
    def turn(number, **keys):
        base = {
            "turn_id": number,
            "question": "q",
            "answer": "a",
            "valid": "y",
            "answerable": "y",
            "correct": "y",
            "gold_anno": [],
        }
        return base | keys

    qas = [turn(0, correct=correct), turn(1, answerable="n", answer="Sorry I cannot answer the question."),
           turn(2, valid="n", answerable="", correct="")]  # fmt: skip
    return [
        {"model_name": model, "context": "c", "dialog_id": f"d{n}", "qas": qas}
        for model in ("r", "s")
        for n in range(4)
    ]


def test_invalid_turns_do_not_count_and_either_text_says_no_answer():
    figures = aggregate(_annotations())["r"]
    assert figures["valid"][0] == 8 and figures["accuracy"][0] == 1.0 and figures["accuracy_unanswerable"] == (1.0, 4)
    assert aggregate(_annotations("n"))["r"]["accuracy"][0] == 0.5
    assert aggregate(_annotations("n"), without_first=True)["r"]["accuracy"][0] == 1.0
    assert per_passage(_annotations("n"))["s"]["d2"] == 0.5


@pytest.mark.parametrize(("key", "value"), [("valid", "maybe"), ("correct", None), ("turn_id", "0"), ("answer", 3)])
def test_a_broken_annotation_names_its_turn(key, value):
    data = json.loads(json.dumps(_annotations()))
    data[1]["qas"][0][key] = value
    with pytest.raises(InputError, match=rf"data\[1\].*{key}"):
        read_annotations({"data": data}, "file")


def test_the_experiment_on_people_deals_passages_to_folds_and_reads_official_predictions(tmp_path, dialogs):
    talks = converse(dialogs, Oracle(dialogs), "good", 1) + converse(dialogs, AlwaysUnanswerable(), "never", 1)
    (tmp_path / "people.json").write_text(json.dumps({"data": talks}))
    (tmp_path / "quac.json").write_text(json.dumps(write_quac(dialogs)))
    files = {}
    for protocol in ("gold", "rewrite"):
        for name, reader in (("good", Oracle(dialogs)), ("never", AlwaysUnanswerable())):
            answers = answers_of(run_protocol(dialogs, reader, protocol, _validity()))
            path = tmp_path / f"{protocol}.{name}.json"
            path.write_text(json.dumps({"qid": list(answers), "best_span_str": list(answers.values())}) + "\n")
            files[f"{protocol}.{name}"] = str(path)
    entries = {
        "people": {"kind": "judgements", "source": "local", "files": {"all": str(tmp_path / "people.json")}},
        "said": {"kind": "quac_predictions", "source": "local", "files": files},
        "quac": {"kind": "conversations", "source": "local", "files": {"test": str(tmp_path / "quac.json")}},
    }
    for name, entry in entries.items():
        materialize(entry, tmp_path / name)
    assert aggregate(load_judgements(tmp_path / "people")) == aggregate(talks)
    spec = {"judgements": "people", "folds": 3, "predictions": "said", "quac": "quac"}
    folders = {name: tmp_path / name for name in entries}
    outcomes = [run_human(spec, fold, data=folders) for fold in range(3)]
    passages = [{item["item"] for item in outcome["items"] if item["metric"] == "accuracy"} for outcome in outcomes]
    assert sum(map(len, passages)) == len(set.union(*passages)) == 12
    taus = [row["value"] for row in outcomes[0]["metrics"] if row["metric"] == "kendall_tau"]
    assert taus == [1.0, 1.0]
    with pytest.raises(InputError, match="folds"):
        run_human(spec, 3, data=folders)
    wrong = {**entries["people"], "git_blob": "0" * 40}
    with pytest.raises(InputError, match="git blob"):
        materialize(wrong, tmp_path / "wrong")


# ------------------------------------------------------------------------------------------------------------------ chat


def _session(path, dialogs, lines, shown):
    lines = iter(lines)

    def read(prompt):
        shown.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return Session(Oracle(dialogs), "reader", dialogs, path, read, shown.append)


def test_a_chat_that_stops_in_the_middle_of_a_judgement_goes_on_without_a_loss(tmp_path, dialogs):
    path, shown = tmp_path / "judgements.json", []
    # First question: valid, answerable, right; then a question of one's own, and the session ends while it is judged.
    answerable = [d for d in dialogs if d.turns[0].orig_answer != NO_ANSWER]
    _session(path, answerable, ["y", "y", "y", "/help", answerable[0].turns[1].question, "perhaps", "y"], shown).run()
    document = json.loads(path.read_text())
    assert len(document["data"][0]["qas"]) == 1 and document["pending"]["question"] == answerable[0].turns[1].question
    assert any("1 valid turns" in text for text in shown)
    # Going on: the pending answer is judged first, then the person leaves with /quit.
    shown.clear()
    _session(path, answerable, ["y", "n", "/history", "/passage", "/results", "/quit"], shown).run()
    document = json.loads(path.read_text())
    assert [turn["answerable"] for turn in document["data"][0]["qas"]] == ["y", "n"] and "pending" not in document
    assert aggregate(read_annotations(document, "chat"))["reader"]["valid"][0] == 2


def test_a_wrong_answer_asks_for_the_right_span_and_new_begins_another_passage(tmp_path, dialogs):
    path, shown = tmp_path / "judgements.json", []
    wrong = [replace(d, turns=(replace(d.turns[0], orig_answer="no such thing"), *d.turns[1:])) for d in dialogs]
    name = json.loads(dialogs[0].facts)["albums"][0]["name"]
    lines = ["y", "y", "n", "not there at all", name, "/new", "n"]
    _session(path, wrong, lines, shown).run()
    data = json.loads(path.read_text())["data"]
    assert data[0]["qas"][0]["gold_anno"] == [name] and data[1]["dialog_id"] == dialogs[1].id
    assert data[1]["qas"][0]["valid"] == "n"
    assert any("not in the passage" in text for text in shown)


# ------------------------------------------------------------------------------------------------------ claims on people


def _people(accuracy, unanswerable_accuracy):
    """Annotations of four readers on 30 passages: the share of right answers is the reader's, passage by passage alike."""
    data = []
    for reader in accuracy:
        for passage in range(30):
            qas = []
            for number in range(20):
                answerable = number % 3 != 0
                share = accuracy[reader] if answerable else unanswerable_accuracy[reader]
                right = (number * 7 + passage * 3) % 20 < 20 * share
                qas.append({
                    "turn_id": number, "question": "q", "answer": "span" if answerable or not right else NO_ANSWER,
                    "valid": "y", "answerable": "y" if answerable else "n", "correct": "y" if right else "n", "gold_anno": [],
                })  # fmt: skip
            data.append({"model_name": reader, "context": "c", "dialog_id": f"d{passage}", "qas": qas})
    return data


def test_claims_on_people_follow_the_file_and_not_the_paper(tmp_path):
    from pathlib import Path

    from reclaim.claims import decide as decide_claims
    from reclaim.claims import load_claims
    from reclaim.outcome import read_outcomes, write_outcome

    root = Path(__file__).parents[2]
    claims = [
        claim for claim in load_claims(root / "claims.yaml", root / "schemas/claims.schema.json")
        if claim.paper == "convqa" and claim.claim.startswith("people_")
    ]  # fmt: skip
    accuracy = {"bert4quac": 0.6, "graphflow": 0.6, "ham": 0.85, "excord": 0.9}
    unanswerable = {"bert4quac": 0.95, "graphflow": 0.6, "ham": 0.9, "excord": 0.95}
    names = list(accuracy)
    verdicts = {}
    for label, renamed in (("paper", names), ("other", names[::-1])):
        data = _people(
            *(
                {new: values[old] for new, old in zip(renamed, names, strict=True)}
                for values in (accuracy, unanswerable)
            )
        )
        path = tmp_path / f"{label}.json"
        path.write_text(json.dumps({"data": data}))
        entry = {"kind": "judgements", "source": "local", "files": {"all": str(path)}}
        materialize(entry, tmp_path / label)
        folders = []
        for fold in range(5):
            folders.append(tmp_path / f"{label}-{fold}")
            outcome = run_human({"judgements": "people", "folds": 5}, fold, data={"people": tmp_path / label})
            write_outcome(outcome, folders[-1], paper="convqa", experiment="human", seed=fold, stage="s", job="j")
        tables = [read_outcomes(folders, kind) for kind in ("metrics", "items")]
        found = decide_claims(claims, *tables, seeds={("convqa", "human"): list(range(5))})
        verdicts[label] = dict(zip(found["claim"], found["verdict"], strict=True))
    assert verdicts["paper"] == {
        "people_order": "supported", "people_unanswerable": "supported", "people_separate_head": "supported",
        "people_agreement": "not_testable",
    }  # fmt: skip
    assert (
        verdicts["other"]["people_order"] == "contradicted" and verdicts["other"]["people_separate_head"] != "supported"
    )
