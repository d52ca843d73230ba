"""The evaluation of answers: which measures a data set has, both modes, and the pieces; official numbers are golden."""

import numpy as np
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import AutoModelForQuestionAnswering, RobertaConfig

from reclaim.alce.evaluate import evaluate, official_scores
from reclaim.alce.judge import CachedJudge, FunctionJudge
from reclaim.alce.reader import ExtractiveReader
from reclaim.errors import InputError
from reclaim.metrics.long_answers import bootstrap_median, contains_answer, list_scores, rouge_lsum, squad2_f1
from reclaim.metrics.mauve import hashed_ngrams, mauve, mauve_of_histograms
from reclaim.metrics.sentences import sentence_splitter
from reclaim.metrics.span_decode import Chunk, best_span
from reclaim.tokenization import train_tokenizer
from reclaim.world.passages import draw_questions, draw_world, entails

torch.set_num_threads(1)
EXACT = FunctionJudge(entails, "exact")


def items_of(task, output, count=4):
    """Questions of a world with all its passages about the name; `output(item)` writes the answer."""
    rng = np.random.default_rng(3)
    world = draw_world(rng, 6, 2)
    items = draw_questions(world, task, count, rng)
    for item in items:
        about = [p for p in world.passages if p.name in item["question"]]
        item["docs"] = [{"title": p.title, "text": p.text} for p in about]
        item["output"] = output(item)
    return items


def cite(item):
    """The gold answer, each sentence with the passages that support it."""
    texts = [f"Title: {doc['title']}\n{doc['text']}" for doc in item["docs"]]
    cited = []
    for sentence in item["answer"].split(". "):
        sentence = sentence.rstrip(".")
        numbers = [place + 1 for place, text in enumerate(texts) if entails(text, sentence + ".")]
        cited.append(sentence + " " + "".join(f"[{number}]" for number in numbers) + ".")
    return " ".join(cited)


@pytest.mark.parametrize("mode", ["legacy", "strict"])
def test_a_perfect_answer_has_full_marks(mode):
    found = evaluate(items_of("asqa", cite), CachedJudge(EXACT), mode, encode=hashed_ngrams)
    for metric in ("citation_recall", "citation_precision", "str_em", "str_hit", "rouge_lsum"):
        assert found.value(metric) == pytest.approx(1), metric
    assert found.value("mauve") == pytest.approx(1)
    assert found.value("num_uncited") == 0
    assert found.splitter.startswith("punkt")
    assert [set(values) for values in found.items] == [set(found.items[0])] * 4


def test_measures_by_data_set():
    asqa = evaluate(items_of("asqa", lambda item: "No."), None)
    assert {row["metric"] for row in asqa.rows} == {"length", "str_em", "str_hit", "rouge_lsum"}
    qampari = evaluate(items_of("qampari", lambda item: item["answer"]), CachedJudge(EXACT))
    assert qampari.value("qampari_f1") == 1
    assert qampari.value("citation_recall") == 0
    eli5 = evaluate(items_of("eli5", cite, 3), CachedJudge(EXACT), measures=["claims", "citations"])
    assert eli5.value("claim_recall") == 1
    assert {"citation_recall", "length"} <= set(eli5.items[0])
    assert "rouge_lsum" not in eli5.items[0]
    assert official_scores(eli5)["claims_nli"] == 100


def test_empty_answers_count_in_strict_only():
    items = items_of("asqa", cite)
    items[0]["output"] = "  \n"
    cached = CachedJudge(EXACT)
    legacy, strict = (evaluate(items, cached, mode) for mode in ("legacy", "strict"))
    assert legacy.value("citation_recall") == 1
    assert strict.value("citation_recall") == 0.75
    assert legacy.value("num_empty") == strict.value("num_empty") == 1
    assert "citation_recall" not in legacy.items[0]
    assert cached.judged < cached.requests


def test_only_the_first_line_counts():
    items = items_of("asqa", lambda item: "\n" + cite(item) + "\nThe hue of Nobody (town) is nothing.")
    assert evaluate(items, CachedJudge(EXACT)).value("citation_recall") == 1


@pytest.mark.parametrize("task", ["asqa", "qampari", "eli5"])
def test_items_without_gold_stop_legacy_and_are_left_out_of_strict(task):
    items = items_of(task, lambda item: item["answer"])
    key = {"asqa": "qa_pairs", "qampari": "answers", "eli5": "claims"}[task]
    items[1][key] = []
    with pytest.raises(InputError, match=key):
        evaluate(items, CachedJudge(EXACT), "legacy")
    metric = {"asqa": "str_em", "qampari": "qampari_f1", "eli5": "claim_recall"}[task]
    row = next(r for r in evaluate(items, CachedJudge(EXACT), "strict").rows if r["metric"] == metric)
    assert row["n"] == len(items) - 1


def test_bad_input_is_named():
    items = items_of("asqa", cite)
    for arguments, place in (
        (([], None), "items"),
        ((items, None, "fast"), "mode"),
        (([{"question": "?", "output": "", "docs": []}], None), "item"),
    ):
        with pytest.raises(InputError, match=place):
            evaluate(*arguments)
    cached = CachedJudge(EXACT)
    for fields, place in (({"output": ["one", "two"]}, "item 1: output"), ({"docs": [{"title": ""}]}, "item 1: docs")):
        with pytest.raises(InputError, match=place):
            evaluate([items[0], {**items[1], **fields}], cached)
    without = {key: value for key, value in items[0].items() if key not in ("answer", "annotations")}
    with pytest.raises(InputError, match="no answer"):
        evaluate([without], None)
    with pytest.raises(InputError, match="measures"):
        evaluate(items, None, measures=["fluency"])


def test_substrings_and_empty_aliases():
    assert contains_answer(["art"], "a party")
    assert contains_answer(["The"], "nothing") and not contains_answer(["The"], "nothing", "strict")
    assert squad2_f1("the", "a") == 1 and squad2_f1("", "x") == 0


def test_list_scores_are_averaged_by_item():
    found = list_scores("One [x], two, two", [["one x"], ["three"], ["two", "2"]])
    assert found["qampari_precision"] == 1
    assert found["qampari_recall"] == pytest.approx(2 / 3)
    assert list_scores("a: b: one, two", [["two"]], cot=True)["num_preds"] == 2
    assert list_scores("one, two", [["two"]], cot=True)["qampari_recall"] == 0
    many = [[f"n{number}"] for number in range(10)]
    assert list_scores("n0, n1, n2, n3, n4", many)["qampari_recall_5"] == 1


def test_rouge_takes_the_better_reference_and_its_bootstrap_is_a_function_of_the_seed():
    split = sentence_splitter("punkt_list")
    assert rouge_lsum("One two three.", ["Four.", "One two three."], split) == pytest.approx(1)
    values = np.linspace(0, 1, 20)
    assert bootstrap_median(values, 1) == bootstrap_median(values, 1) != bootstrap_median(values, 2)
    assert abs(bootstrap_median(values) - 0.5) < 0.02


def test_mauve_falls_as_texts_part():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 12)) for _ in range(120)]
    other = [" ".join(rng.choice(list("stuvwxyz"), 12)) for _ in range(60)]
    same = mauve(texts[:60], texts[60:], hashed_ngrams)
    mixed = mauve([*texts[:30], *other[:30]], texts[60:], hashed_ngrams)
    apart = mauve(other, texts[60:], hashed_ngrams)
    assert same > mixed > apart
    assert same == mauve(texts[:60], texts[60:], hashed_ngrams)
    assert mauve(["a"] * 3, ["a"] * 3, hashed_ngrams) == 1
    with pytest.raises(InputError, match="distributions"):
        mauve_of_histograms([0.5, 0.6], [1, 0])
    assert mauve_of_histograms([0.5, 0.5], [0.5, 0.5]) == 1


def test_splitters_differ_on_abbreviations():
    text = "It froze, says Dr. Orvane of the survey. It thawed."
    assert len(sentence_splitter("punkt_list")(text)) == 2
    assert len(sentence_splitter("punkt_untrained")(text)) == 3
    assert sentence_splitter("punkt_list")("") == []
    with pytest.raises(InputError, match="splitter"):
        sentence_splitter("regex")


def test_trained_punkt_is_used_where_its_data_are(tmp_path, monkeypatch):
    import nltk

    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name, text in {"abbrev_types.txt": "zzq\n", "sent_starters.txt": "", "collocations.tab": ""}.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "ortho_context.tab").write_text("lake\t46\n", encoding="utf-8")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    sentence_splitter.cache_clear()
    try:
        splitter = sentence_splitter()
        assert splitter.name == "punkt"
        assert splitter("See zzq. Orvane is deep. It froze.") == ["See zzq. Orvane is deep.", "It froze."]
        monkeypatch.setattr(nltk.data, "path", [])
        sentence_splitter.cache_clear()
        assert sentence_splitter().name == "punkt_list"
        with pytest.raises(InputError, match="Punkt data"):
            sentence_splitter("punkt")
    finally:
        sentence_splitter.cache_clear()


def test_spans_are_whole_words_of_the_context_or_nothing():
    # CLS, question, then the tokens "ab" + "c" of the word "abc", and "d".
    chunk = {
        "context_mask": [0, 0, 1, 1, 1],
        "offsets": [None, None, (0, 2), (2, 3), (4, 5)],
        "word_ids": [None, None, 0, 0, 1],
    }
    assert best_span([Chunk([0, 9, 5, 0, 0], [0, 9, 5, 0, 0], **chunk)], "abc d").text == "abc"
    assert best_span([Chunk([0, 0, 0, 5, 0], [0, 0, 0, 0, 5], **chunk)], "abc d").text == "abc d"
    assert best_span([Chunk([0, 0, 5, 0, 0], [0, 0, 0, 0, 5], **chunk)], "abc d", 2).text != "abc d"
    assert best_span([Chunk([9, 0, 5, 0, 0], [9, 0, 5, 0, 0], **chunk)], "abc d").text == ""


def test_reader_gives_one_answer_a_question_whatever_the_batch():
    tokenizer = train_tokenizer("roberta", ["the salt lake has a depth of many metres and sure"], vocab_size=290)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=600, **sizes)
    model = AutoModelForQuestionAnswering.from_config(config)
    for parameter in model.parameters():
        parameter.data *= 8
    questions = ["How deep?", "How many?", "Which one?", "And?"]
    contexts = ["the salt lake has a depth", "sure " * 500 + "lake", "a  é depth", " "]
    answers = [ExtractiveReader(model, tokenizer, batch_size=size)(questions, contexts) for size in (1, 3)]
    assert answers[0] == answers[1]
    assert all(answer in context for answer, context in zip(answers[0], contexts, strict=True))
    assert ExtractiveReader(model, tokenizer)([], []) == []
