"""Scores, predictions and unconstrained answers of the in-context study, on models with random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reclaim.errors import InputError
from reclaim.icl.metrics import predictions
from reclaim.icl.predict import free_answers, official_answer, run_icl, score
from reclaim.icl.prepare import Cell, prepare
from reclaim.icl.prompts import define_sets
from reclaim.tokenization import train_tokenizer

WORDS = "rain snow wind sun fog hail falls stops starts".split()
CELLS = [Cell("gold", 0), Cell("random", 3), Cell("abstract", 8, "letter"), Cell("gold", 8)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("opt", ["The sentiment is", *WORDS, "no impact mixed", "Label: A B"] * 3, vocab_size=330)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(60)))
    rows = [{"id": str(i), "text": text, "label": i % 3} for i, text in enumerate(texts)]
    (poem,) = define_sets("poem").values()
    return replace(poem, label_words=("negative", "no impact", "mixed"), pool=rows[:40], test=rows[40:50])


@pytest.fixture(scope="module", params=["opt", "llama"])
def model(request, tokenizer):
    import transformers

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        if request.param == "opt":
            config = transformers.OPTConfig(
                **sizes, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=512, init_std=0.3
            )
            return transformers.OPTForCausalLM(config).eval()
        config = transformers.LlamaConfig(
            **sizes, intermediate_size=64, num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.3
        )
        return transformers.LlamaForCausalLM(config).eval()


@torch.inference_mode()
def one_by_one(model, context, word) -> np.ndarray:
    logits = model(torch.tensor([[*context, *word]])).logits[0].double().log_softmax(-1)
    return np.array([logits[len(context) - 1 + i, token].item() for i, token in enumerate(word)])


def test_both_scorers_equal_one_prompt_at_a_time(model, tokenizer, dataset):
    prepared = prepare(tokenizer, dataset, CELLS, seed=0)
    table = score(model, prepared)
    assert max(len(word) for words in prepared.words for word in words) > 1
    for i, row in enumerate(table.itertuples()):
        for label, word in enumerate(prepared.words[i]):
            assert abs(one_by_one(model, prepared.contexts[i], word).sum() - row.logprob_word[label]) < 1e-4
            last = one_by_one(model, prepared.contexts[i], word[-1:])[0]
            assert abs(last - row.logprob_last[label]) < 1e-4
        assert row.prediction == row.label_words[int(np.argmax(row.logprob_word))]


def test_the_official_answer_is_that_of_constrained_generation_with_four_beams(model, tokenizer, dataset):
    prepared = prepare(tokenizer, dataset, CELLS, seed=0, scorer="official_last")
    table = score(model, prepared, scorer="official_last")
    for context, words, row in zip(prepared.contexts, prepared.words, table.itertuples(), strict=True):
        last = [word[-1] for word in words]
        ids = torch.tensor([context])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=4, max_new_tokens=1, do_sample=False,
            prefix_allowed_tokens_fn=lambda _batch, _ids, last=last: last, pad_token_id=1,
        )  # fmt: skip
        assert last.index(int(said[0, -1])) == row.label_words.index(row.prediction)
        assert official_answer(tokenizer, last, row.logprob_last) == tokenizer.decode(said[0, -1:]).strip()


def test_answers_do_not_depend_on_batches_or_on_the_order_of_rows(model, tokenizer, dataset):
    usual = run_icl(model, tokenizer, dataset, CELLS, 0)
    small = run_icl(model, tokenizer, dataset, CELLS, 0, batch_tokens=100)
    assert small["prediction"].tolist() == usual["prediction"].tolist()
    largest = max(
        np.abs(np.subtract(a, b)).max() for a, b in zip(small["logprob_word"], usual["logprob_word"], strict=True)
    )
    assert largest < 1e-4
    back = run_icl(model, tokenizer, dataset, CELLS[::-1], 0, rows=range(9, -1, -1))
    keys = ["setting", "num_demonstrations", "row"]
    merged = usual.merge(back, on=keys, suffixes=("", "_back"))
    assert len(merged) == len(usual)
    assert merged["prediction"].tolist() == merged["prediction_back"].tolist()
    assert merged["logprob_word"].tolist() == merged["logprob_word_back"].tolist()


def test_prompts_with_more_demonstrations_read_only_what_they_add(model, tokenizer, dataset):
    counts = (4, 8, 16)
    prepared = prepare(tokenizer, dataset, [Cell("gold", k) for k in counts], seed=0)
    read = []
    prepared.words = [[word[-1:] for word in words] for words in prepared.words]
    assert all(0 not in context for context in prepared.contexts)  # the id that batches are filled up with
    handle = model.register_forward_hook(
        lambda _module, _args, kwargs, _output: read.append(int((kwargs["input_ids"] > 0).sum())), with_kwargs=True
    )
    score(model, prepared)
    handle.remove()
    few, some, most = (prepared.contexts[i : i + 10] for i in (0, 10, 20))
    expected = sum(len(context) for context in most)
    for shorter, longer in (*zip(few, some, strict=True), *zip(some, most, strict=True)):
        shared = next(i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b)
        assert shared > 16
        expected += len(shorter) - shared
    # Rows whose prompts begin with one and the same demonstration share that, too.
    assert 0.98 * expected < sum(read) <= expected < 0.65 * sum(map(len, prepared.contexts))


def test_equal_scores_give_the_first_class(tokenizer, dataset):
    table = prepare(tokenizer, dataset, CELLS[:1], seed=0).table
    equal = [[-1.0, -1.0, -1.0]] * len(table)
    table = table.assign(logprob_word=equal, logprob_last=equal)
    assert set(predictions(table, "word")) == {"negative"}


def test_calibration_takes_off_what_words_have_without_a_query(model, tokenizer, dataset):
    cells = [Cell("gold", 4)]
    table = run_icl(model, tokenizer, dataset, cells, 0, scorer="word_calibrated")
    prepared = prepare(tokenizer, dataset, cells, seed=0, content_free=True)
    for context, words, row in zip(prepared.content_free, prepared.words, table.itertuples(), strict=True):
        free = [one_by_one(model, context, word).sum() for word in words]
        np.testing.assert_allclose(row.logprob_free, free, atol=1e-4)
        assert row.prediction == row.label_words[int(np.argmax(np.subtract(row.logprob_word, free)))]
    usual = run_icl(model, tokenizer, dataset, cells, 0)
    assert usual["prediction"].tolist() != table["prediction"].tolist()
    assert usual["logprob_word"].map(np.argmax).tolist() == table["logprob_word"].map(np.argmax).tolist()
    with pytest.raises(InputError, match="logprob_free"):
        predictions(usual, "word_calibrated")


def test_the_mean_over_pieces_is_a_scorer_of_its_own(tokenizer, dataset):
    table = prepare(tokenizer, dataset, CELLS[:1], seed=0).table.iloc[:1]
    pieces = table["label_pieces"].iloc[0]
    scores = [-1.0 * count for count in pieces]
    scores[1] = -0.9 * pieces[1]
    table = table.assign(logprob_word=[scores], logprob_last=[[-1.0, -2.0, -0.5]])
    assert predictions(table, "word_mean") == ["no impact"]
    assert predictions(table, "word") == [["negative", "no impact", "mixed"][int(np.argmax(scores))]]
    assert predictions(table, "official_last") == ["mixed"]
    with pytest.raises(InputError, match="scorer"):
        predictions(table, "best")


def test_free_answers_are_greedy_and_do_not_depend_on_padding(model, tokenizer, dataset):
    prepared = prepare(tokenizer, dataset, CELLS, seed=0)
    together = free_answers(model, tokenizer, prepared.contexts, max_new_tokens=2)
    alone = [free_answers(model, tokenizer, [context], max_new_tokens=2)[0] for context in prepared.contexts]
    assert together == alone
    with torch.inference_mode():
        first = [int(model(torch.tensor([context])).logits[0, -1].argmax()) for context in prepared.contexts]
    singles = free_answers(model, tokenizer, prepared.contexts)
    assert singles == [tokenizer.decode([token], skip_special_tokens=True).strip() for token in first]


def test_a_model_with_few_positions_gets_prompts_that_fit(tokenizer, dataset):
    import transformers

    config = transformers.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16,
        word_embed_proj_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    small = transformers.OPTForCausalLM(config).eval()
    with pytest.raises(InputError, match="too long"):
        run_icl(small, tokenizer, dataset, Cell("gold", 30), 0)
    table = run_icl(small, tokenizer, dataset, Cell("gold", 30), 0, degenerate="note")
    assert (table["num_tokens"] <= 48).all() and (table["num_kept"] < 30).all()


def test_a_token_that_the_model_lacks_is_refused(model, tokenizer, dataset):
    prepared = prepare(tokenizer, dataset, CELLS[:1], seed=0)
    prepared.contexts[0] = [*prepared.contexts[0], len(tokenizer)]
    with pytest.raises(InputError, match="those of the model"):
        score(model, prepared)
