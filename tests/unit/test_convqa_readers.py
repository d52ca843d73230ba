"""Readers of conversational QA, and the experiment that trains them and compares their rankings."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import BertConfig, BertTokenizerFast

from reclaim.convqa.bert import BertForQuac
from reclaim.convqa.bert_reader import Settings, Windows
from reclaim.convqa.data import materialize
from reclaim.convqa.experiment import _protocols, load_reader, run, vocabulary_of
from reclaim.convqa.history import coref_text
from reclaim.convqa.protocols import answers_of, run_protocol
from reclaim.convqa.readers import Request
from reclaim.convqa.resolvers import begin_by_post_init, build_resolver, build_rewriter
from reclaim.convqa.small_reader import Encoder, SmallAnswerer, SmallReaderConfig, build_reader, find_span, span_text
from reclaim.convqa.training import THRESHOLDS, Family, answer_positions, best_threshold, train_family
from reclaim.convqa.words import NAME, NUMBER, YEAR, WordClasses, find_words, make_vocabulary
from reclaim.errors import InputError
from reclaim.metrics.quac import NO_ANSWER, corpus_scores, score_questions
from reclaim.models import build
from reclaim.outcome import read_outcomes, write_outcome
from reclaim.report.figures_convqa import SYSTEM
from reclaim.report.system import SystemTables
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe
from reclaim.world.conversations import generate_dialogs


@pytest.fixture(scope="module")
def splits():
    return generate_dialogs({"train": 30, "dev": 4, "test": 6}, seed=8)


def _recipe(steps, **options):
    return Recipe(num_train_steps=steps, per_device_train_batch_size=16, learning_rate=5e-3, **options)


def test_words_keep_their_places_and_names_years_and_numbers_have_one_class_each():
    text = "Mirell sold 39,000 copies in 1984; it's well-known."
    words = find_words(text)
    assert all(text[first:last] == word for word, first, last in words)
    vocabulary = make_vocabulary(["When was it sold in Mirell?"] * 5 + ["it was sold in Mirell."] * 5)
    classes = WordClasses(vocabulary)
    assert [classes(word) for word in ("Mirell", "1984", "39,000")] == [NAME, YEAR, NUMBER]
    assert "when" in vocabulary and "mirell" not in vocabulary


def test_an_answers_offset_and_its_words_go_both_ways(splits):
    for dialog in splits["train"]:
        for turn in dialog.turns:
            first, last = answer_positions(dialog.context, turn)
            assert span_text(dialog.context, first, last) == turn.orig_answer


def test_flags_say_what_stands_in_question_and_history():
    encoder = Encoder(SmallReaderConfig(vocabulary=make_vocabulary([]), history_turns=2, markers=True))
    encoded = encoder(
        "Red ships sail. Blue ships sink.", "Do ships sail?", [("What sinks?", NO_ANSWER), ("Which?", "Blue ships")]
    )
    flags = encoded.flags.astype(bool)
    assert [np.flatnonzero(flags[:, column]).tolist() for column in range(7)] == [
        [1, 2, 5],
        [],
        [1, 4, 5],
        [4, 5],
        [],
        [],
        [],
    ]
    numbers = np.array([5, 6, 5, 7])
    assert find_span(numbers, np.array([5, 7])) == (2, 4) and find_span(numbers, np.array([8])) == (0, 0)


def test_a_reader_is_saved_and_loaded_and_batches_change_nothing(splits, tmp_path):
    model = build_reader(0, vocabulary=vocabulary_of(splits["train"]))
    model.save_pretrained(tmp_path)
    requests = [
        Request(dialog, turn.question, (("Which album?", dialog.turns[0].orig_answer),))
        for dialog in splits["test"] for turn in dialog.turns
    ]  # fmt: skip
    answers = SmallAnswerer(model).answer(requests)
    assert answers == SmallAnswerer(model, batch_size=5).answer(requests) == load_reader(tmp_path).answer(requests)
    assert all(
        answer == NO_ANSWER or answer in each.dialog.context for answer, each in zip(answers, requests, strict=True)
    )


def test_training_lowers_the_loss_and_gives_the_same_readers_again(splits):
    vocabulary = vocabulary_of(splits["train"])
    family = Family(own_predictions=0.5, self_contained=0.2)
    runs = [
        train_family(
            family, vocabulary, splits["train"], splits["dev"], _recipe(24), [12, 24], 3, refresh=8, own_dialogs=5
        )
        for _ in range(2)
    ]
    (readers, history), (again, _) = runs
    assert np.mean(history.loss[-4:]) < np.mean(history.loss[:4]) - 0.5 and list(readers) == [12, 24]
    for step in readers:
        for one, other in zip(readers[step].parameters(), again[step].parameters(), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(*(readers[step].span.weight for step in readers))


@pytest.mark.parametrize("family", [Family(history_turns=0), Family(separate_head=True)])
def test_only_a_reader_with_history_can_notice_whose_answers_it_holds(splits, family):
    readers, _ = train_family(
        family, vocabulary_of(splits["train"]), splits["train"], splits["dev"], _recipe(20), [20], 0
    )
    reader = SmallAnswerer(readers[20])
    gold, pred = (answers_of(run_protocol(splits["test"], reader, name)) for name in ("gold", "pred"))
    assert (gold == pred) == (family.history_turns == 0) or family.separate_head
    if family.separate_head:
        readers[20].config.threshold = 0.0
        assert set(answers_of(run_protocol(splits["test"], reader, "gold")).values()) == {NO_ANSWER}
        readers[20].config.threshold = 1.1
        assert NO_ANSWER not in answers_of(run_protocol(splits["test"], reader, "gold")).values()


def test_the_threshold_of_a_separate_head_is_the_best_one_and_each_question_is_read_once(splits, monkeypatch):
    family, dialogs = Family(separate_head=True), splits["test"]
    readers, _ = train_family(
        family, vocabulary_of(splits["train"]), splits["train"], splits["dev"], _recipe(40), [40], 1
    )
    model = readers[40]
    requests = [Request(dialog, turn.question, ()) for dialog in dialogs for turn in dialog.turns]
    logits = torch.cat([output.no_answer_logits for _, output in SmallAnswerer(model).outputs(requests)])
    with torch.no_grad():  # so that the thresholds part the questions
        model.none.weight /= logits.std()
        model.none.bias.sub_(logits.mean()).div_(logits.std())
    questions = [question for dialog in dialogs for question in dialog.scored_questions()]
    scores = {}
    for threshold in THRESHOLDS:
        model.config.threshold = threshold
        answers = answers_of(run_protocol(dialogs, SmallAnswerer(model), "gold"))
        scores[threshold] = corpus_scores(score_questions(questions, answers))["f1"][0]
    assert len(set(scores.values())) > 3
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *args: seen.append(len(args[0])) or forward(self, *args))
    best = best_threshold(model, Encoder(model.config), dialogs)
    assert scores[best] == max(scores.values()) and all(scores[each] < scores[best] for each in scores if each < best)
    assert sum(seen) == len(questions)


# ------------------------------------------------------------------------------------------- models that rewrite and resolve


@pytest.fixture(scope="module")
def tiny_t5(splits, tmp_path_factory):
    """A folder with a random T5 and a tokenizer of the words of the world."""
    folder = tmp_path_factory.mktemp("t5")
    texts = [text for part in splits.values() for d in part for text in (d.context, *(t.question for t in d.turns))]
    tokenizer = train_tokenizer("t5", [*texts, "|||"])
    model = build("t5", tokenizer, {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_rewriter_reads_the_turns_before_the_question_oldest_first(tiny_t5):
    rewriter = build_rewriter("t5", {"t5": tiny_t5})
    texts = [
        coref_text([("Which album?", "Mirell")], "When was it sold?", "left out"),
        coref_text([], "Who produced it?"),
    ]
    assert build_rewriter(None, {}) is None
    together = rewriter.rewrite(texts)
    for text, prompt, found in zip(
        texts, ("Which album? ||| Mirell ||| When was it sold?", "Who produced it?"), together, strict=True
    ):
        ids = rewriter.model.generate(**rewriter.tokenizer(prompt, return_tensors="pt"), max_new_tokens=64)[0]
        assert found == rewriter.tokenizer.decode(ids, skip_special_tokens=True) == rewriter.rewrite([text])[0]


def test_f_coref_resolves_to_words_where_its_package_is_installed(tmp_path):
    pytest.importorskip("fastcoref", reason="fastcoref is not among the pins")
    from fastcoref.coref_models.modeling_fcoref import FCorefModel
    from transformers import RobertaConfig

    text = coref_text([("Who sang?", "Odo Konn")], "Was it her first album?", "Odo Konn is a singer.")
    tokenizer = train_tokenizer("roberta", [" ".join(word for word, _, _ in find_words(str(text)))])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    head = {"max_span_length": 5, "top_lambda": 0.6, "ffnn_size": 8, "dropout_prob": 0.3, "max_segment_len": 64}
    more = {"max_position_embeddings": 130, "pad_token_id": tokenizer.pad_token_id, "coref_head": head}
    begin_by_post_init(FCorefModel)
    model = FCorefModel(RobertaConfig(vocab_size=len(tokenizer), **sizes, **more))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    resolver = build_resolver({"fastcoref": "model"}, {"model": tmp_path / "model"})
    loaded = resolver.model.model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())
    first, second = resolver.resolve([text, coref_text([], "Who?")])
    assert first.tokens[-1] == "?" and first.clusters
    for document in (first, second):
        for cluster in document.clusters:
            assert len(cluster) > 1 and all(0 <= start <= end < len(document.tokens) for start, end in cluster)


def test_without_the_package_of_a_resolver_rules_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastcoref", None)
    with pytest.raises(InputError, match="fastcoref.*resolver: rules"):
        build_resolver({"fastcoref": "model"}, {"model": "x"})


def test_invalid_questions_are_asked_as_the_rewriter_puts_them(splits, tiny_t5, monkeypatch):
    validities, resolvers = _protocols(
        {
            "validity": {"window": "all"},
            "protocols": {
                "gold": {},
                "rules": {"protocol": "rewrite"},
                "model": {"protocol": "rewrite", "rewriter": "t5"},
            },
        },
        {"t5": tiny_t5},
        "cpu",
    )
    assert len(resolvers) == 1 and {protocol for protocol, _ in validities.values()} == {"gold", "rewrite"}
    _, validity = validities["model"]
    monkeypatch.setattr(validity.rewriter, "rewrite", lambda texts: [f"What about {text.question}" for text in texts])
    reader = SmallAnswerer(build_reader(0, vocabulary=vocabulary_of(splits["train"])))
    turns = run_protocol(splits["test"], reader, *validities["model"])
    changed = [turn for turn in turns if turn.action == "rewritten"]
    assert changed and all(turn.asked == f"What about {turn.gold_text.question}" for turn in changed)
    assert not any(
        turn.asked.startswith("What about") for turn in run_protocol(splits["test"], reader, *validities["rules"])
    )


# ------------------------------------------------------------------------------------------------------------------ BERT


@pytest.fixture(scope="module")
def tiny_bert(splits, tmp_path_factory):
    """A folder with a random BERT, and a tokenizer of the words of the world."""
    folder = tmp_path_factory.mktemp("bert")
    texts = [text for part in splits.values() for d in part for text in (d.context, *(t.question for t in d.turns))]
    words = sorted({word.lower() for text in texts for word, _, _ in find_words(text)})
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "'", "s", *words]) + "\n"
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForQuac(BertConfig(vocab_size=len(tokenizer), **sizes)).bert.save_pretrained(folder)
    return folder


def test_windows_cover_the_passage_and_keep_the_end_of_the_question(splits, tiny_bert):
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    windows = Windows(tokenizer, Settings(max_seq_length=60, doc_stride=20, max_query_length=12))
    dialog = splits["test"][0]
    pieces = windows.cut(0, dialog.context, dialog.turns[1].question, [(dialog.turns[0].question, "x")])
    ids, offsets = windows.passage(dialog.context)
    covered = {piece.first + place for piece in pieces for place in range(piece.length)}
    assert len(pieces) > 1 and covered == set(range(len(ids)))
    for piece in pieces:
        assert len(piece.input_ids) <= 60 and len(piece.input_ids) == len(piece.token_type_ids)
        assert (
            piece.input_ids[piece.offset : piece.offset + piece.length] == ids[piece.first : piece.first + piece.length]
        )
    asked = tokenizer.decode(pieces[0].input_ids[: pieces[0].offset])
    assert dialog.turns[1].question.lower().rstrip("?") in asked
    assert dialog.context[slice(*offsets[-1])] == "."


def _spec(**changes):
    return {
        "kind": "convqa", "dialogs": "world", "families": {"markers": {}, "no_history": {"history_turns": 0}},
        "recipe": {"num_train_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 5e-3}, "snapshots": [4, 8],
        "protocols": {"gold": {}, "pred": {}, "rewrite": {}, "strict": {"protocol": "rewrite", "strict_names": True}},
        "validity": {"resolver": "rules"}, "live": {"conversations": 2, "num_turns": 3},
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    materialize(
        {"kind": "conversations", "source": "world", "generator": "conversations",
         "splits": {"train": 16, "dev": 3, "test": 5}, "seed": 2}, folder,
    )  # fmt: skip
    return folder


def test_a_bert_reader_goes_through_the_same_experiment(world, tiny_bert, tmp_path):
    family = {"architecture": "bert", "model": "tiny", "max_seq_length": 90, "doc_stride": 40}
    spec = _spec(
        families={"bert": family, "bert-no-history": {**family, "history_turns": 0}}, snapshots=[1], live=None,
        protocols={"gold": {}, "pred": {}}, recipe={"num_train_steps": 2, "per_device_train_batch_size": 4},
    )  # fmt: skip
    folders = {"world": world, "tiny": tiny_bert}
    outcome = run(spec, 0, data=folders, state_dir=tmp_path / "state", into=tmp_path / "kept")
    rows = {
        (row["variant"]["reader"], row["metric"]): row["value"]
        for row in outcome["metrics"]
        if "reader" in row["variant"]
    }
    assert rows["bert-no-history-2", "changed_by_own_history"] == 0.0 and ("bert-2", "f1") in rows
    assert load_reader(tmp_path / "kept" / "bert-2").settings.max_seq_length == 90
    key = {"paper": "convqa", "experiment": "quac", "seed": 0, "stage": "convqa", "job": "j"}
    write_outcome({k: v for k, v in outcome.items() if k != "costs"}, tmp_path / "out", **key)
    metrics, curves = (read_outcomes([tmp_path / "out"], name) for name in ("metrics", "curves"))
    exhibits = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics, pd.DataFrame(), curves))
    found = {exhibit.key: exhibit for exhibit in exhibits}
    assert [row[0] for row in found["protocols"].rows] == ["Auto-Gold", "Auto-Pred"]
    assert "BERT, two turns, 2 steps" in [row[0] for row in found["readers"].rows] and found["agreement"].missing


# ------------------------------------------------------------------------------------------------------------ experiment


def test_the_experiment_gives_equal_tables_after_a_stop_and_figures_for_the_report(world, tmp_path):
    class Stopped(Exception):
        pass

    def stop_at_evaluation(values):
        if len(values) < 8:  # readers, not training steps
            raise Stopped
        return iter(values)

    with pytest.raises(Stopped):
        run(_spec(), 1, data={"world": world}, state_dir=tmp_path / "a", progress=stop_at_evaluation)
    kept = (tmp_path / "a" / "readers" / "markers" / "record.json").stat().st_mtime_ns
    outcomes = [
        run(_spec(), 1, data={"world": world}, state_dir=tmp_path / name, into=tmp_path / f"{name}-into")
        for name in "ab"
    ]
    assert (tmp_path / "a" / "readers" / "markers" / "record.json").stat().st_mtime_ns == kept
    assert sorted(path.name for path in (tmp_path / "a-into").iterdir()) == [
        "markers-4",
        "markers-8",
        "no_history-4",
        "no_history-8",
    ]
    for outcome, name in zip(outcomes, "ab", strict=True):
        key = {"paper": "convqa", "experiment": "protocols", "seed": 1, "stage": "convqa", "job": "j"}
        write_outcome({k: v for k, v in outcome.items() if k != "costs"}, tmp_path / f"out-{name}", **key)
    for table in ("metrics", "items", "curves", "predictions"):
        assert (tmp_path / "out-a" / f"{table}.parquet").read_bytes() == (
            tmp_path / "out-b" / f"{table}.parquet"
        ).read_bytes()
    metrics = read_outcomes([tmp_path / "out-a"], "metrics")
    variants = metrics["variant"].map(json.loads)
    same = metrics[
        (metrics["metric"] == "changed_by_own_history") & variants.map(lambda v: v.get("family") == "no_history")
    ]
    assert (same["value"] == 0).all() and len(same) == 2
    assert {"kendall_tau", "passage_agreement", "tau_with_half", "shown_turn"} <= set(metrics["metric"])
    empty = pd.DataFrame()
    exhibits = SYSTEM.exhibits(SystemTables(empty, metrics, empty, read_outcomes([tmp_path / "out-a"], "curves")))
    found = {exhibit.key: exhibit for exhibit in exhibits}
    assert not found["protocols"].missing and len(found["conversation"].rows) == 8
    assert found["conversation"].columns[2:] == ("Auto-Gold", "Auto-Pred", "Auto-Rewrite", "live")
    assert any("the paper: HAM" in row for row in found["readers"].rows[-2])


# ------------------------------------------------------------------------------------------------------------------ chat


def test_the_chat_runs_in_a_terminal_and_keeps_what_was_judged_when_it_is_left(world, splits, tmp_path):
    build_reader(0, vocabulary=vocabulary_of(splits["train"])).save_pretrained(tmp_path / "reader")
    saved = tmp_path / "judgements.json"
    command = [sys.executable, "-m", "reclaim.convqa.chat", str(tmp_path / "reader"), str(world), "--save", str(saved)]
    main_end, other_end = pty.openpty()
    process = subprocess.Popen(command, stdin=other_end, stdout=other_end, stderr=other_end, close_fds=True)
    os.close(other_end)
    shown = ""

    def until(text, again=b""):
        nonlocal shown
        end = time.monotonic() + 300
        while text not in shown and time.monotonic() < end:
            if select.select([main_end], [], [], 1)[0]:
                shown += os.read(main_end, 65536).decode()
            else:
                os.write(main_end, again)
        assert text in shown, shown
        shown = shown.partition(text)[2]

    try:
        until("makes sense here?")
        os.write(main_end, b"y\n")
        until("span of the passage answer it?")
        os.write(main_end, b"n\n")
        until("question>")
        # Ctrl-D, and again each silent second: one typed while readline is still taking the terminal over is dropped.
        os.write(main_end, b"\x04")
        until("Saved 1 judgements", again=b"\x04")
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main_end)
    (conversation,) = json.loads(saved.read_text())["data"]
    assert conversation["model_name"] == "reader" and conversation["qas"][0]["answerable"] == "n"
