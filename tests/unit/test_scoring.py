import logging

import numpy as np
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers

from checks_mezo_prompting import ToyTokenizer
from reclaim import scoring
from reclaim.errors import InputError
from reclaim.prediction import calibrate_median, generate_answers, predict
from reclaim.prompting import CausalTemplate, MaskedPrompt, MaskedTemplate
from reclaim.scoring import Request, label_word_logits, score_continuations, score_label_words

VOCABULARY = 60
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def _causal(name):
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2
        )
        return transformers.GPT2LMHeadModel(config)
    if name == "opt":
        config = transformers.OPTConfig(
            **SMALL, ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=32, init_std=0.2
        )
        return transformers.OPTForCausalLM(config)
    window = 8 if name == "mistral-window" else None
    config = transformers.MistralConfig(
        **SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=window, initializer_range=0.2
    )
    return transformers.MistralForCausalLM(config)


CAUSAL = ["gpt2", "opt", "mistral", "mistral-window"]


@pytest.fixture(scope="module", params=CAUSAL)
def causal(request):
    return _causal(request.param)


@pytest.fixture(scope="module")
def gpt2():
    return _causal("gpt2")


def _requests(seed=0):
    """Contexts that share long and short beginnings, with one to five continuations of one to six tokens."""
    rng = np.random.default_rng(seed)
    preambles = [rng.integers(0, VOCABULARY, size).tolist() for size in (0, 3, 20, 35)]
    preambles.append(preambles[-1][:25] + rng.integers(0, VOCABULARY, 6).tolist())
    requests = []
    for _ in range(14):
        context = preambles[rng.integers(len(preambles))] + rng.integers(0, VOCABULARY, rng.integers(1, 12)).tolist()
        for _ in range(rng.integers(1, 5)):
            requests.append(Request(context, rng.integers(0, VOCABULARY, rng.integers(1, 7)).tolist()))
    requests.append(Request(preambles[2], [1, 2, 3]))  # a context that is the beginning of others
    requests.append(Request(preambles[2], [1, 2, 3]))  # the same request twice
    requests.append(Request([*preambles[2], 1, 2], [3, 4]))  # whose context is another's context and continuation
    return requests


def _one_by_one(model, requests):
    model.eval()
    scores = []
    for request in requests:
        ids = torch.tensor([[*request.context, *request.continuation]])
        with torch.no_grad():
            log_probabilities = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(request.context) - 1
        scores.append([log_probabilities[start + i, token].item() for i, token in enumerate(request.continuation)])
    return scores


def _assert_same(found, wanted):
    assert [len(a) for a in found] == [len(b) for b in wanted]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("min_shared", [1, 4, 16])
@pytest.mark.parametrize("batch_tokens", [1, 70, 8192])
def test_equals_one_by_one_scoring(causal, batch_tokens, min_shared):
    requests = _requests()
    found = score_continuations(causal, requests, batch_tokens=batch_tokens, min_shared=min_shared)
    _assert_same(found, _one_by_one(causal, requests))


def test_order_of_requests_does_not_matter(gpt2):
    requests = _requests(1)
    forward = score_continuations(gpt2, requests)
    _assert_same(score_continuations(gpt2, requests[::-1])[::-1], forward)


def test_small_bounds_on_logits_and_caches_change_nothing(gpt2, monkeypatch):
    requests = _requests(2)
    wanted = score_continuations(gpt2, requests)
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 2 * VOCABULARY)
    monkeypatch.setattr(scoring, "CACHE_BYTES", 1)
    _assert_same(score_continuations(gpt2, requests), wanted)


class Counter:
    """Counts the tokens (0 is padding) and the logit positions of a model's forward passes, by hooks."""

    def __init__(self, model):
        self.tokens = self.positions = self.passes = self.largest = self.kept = 0
        self.handle = model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, _module, _args, kwargs, output):
        self.passes += 1
        self.tokens += int((kwargs["input_ids"] != 0).sum())
        self.positions += output.logits.shape[0] * output.logits.shape[1]
        self.largest = max(self.largest, kwargs["input_ids"].numel())
        if kwargs["use_cache"] and "attention_mask" not in kwargs:
            self.kept = max(self.kept, kwargs["input_ids"].numel())


def test_each_distinct_prefix_is_encoded_once(gpt2):
    shared, rng = list(range(1, 41)), np.random.default_rng(3)
    requests = []
    for row in range(1, 7):
        context = shared + [row, *rng.integers(1, VOCABULARY, 20).tolist()]
        requests += [Request(context, [50 + label, 7, 8, 9]) for label in range(3)]
    counter = Counter(gpt2)
    score_continuations(gpt2, requests)
    counter.handle.remove()
    # 40 once, 21 for each of 6 contexts, 3 of 4 tokens for each of 18 continuations (the last one is not read).
    assert counter.tokens == 40 + 6 * 21 + 18 * 3


def test_label_words_after_one_context_cost_one_pass_and_one_position_each(gpt2):
    requests = [Request([row, *range(1, 6)], [label]) for row in range(1, 6) for label in range(4)]
    counter = Counter(gpt2)
    score_continuations(gpt2, requests)
    counter.handle.remove()
    assert (counter.passes, counter.tokens, counter.positions) == (1, 5 * 6, 5)


def test_a_window_switches_sharing_off_only_where_it_would_be_inexact():
    model = _causal("mistral-window")
    requests = [Request([*range(1, 21), 40 + row], [1, 2]) for row in range(3)]
    counter = Counter(model)
    score_continuations(model, requests)
    assert counter.tokens == 3 * 22
    model.config.sliding_window = 64
    score_continuations(model, requests)
    assert counter.tokens == 3 * 22 + 20 + 3 * 2


def test_batches_are_small_on_a_cpu_unless_they_are_asked_for(gpt2):
    requests = [Request([row, *range(1, 40)], [1]) for row in range(1, 51)]
    counter = Counter(gpt2)
    score_continuations(gpt2, requests)
    assert (counter.passes, counter.largest) == (2, 25 * 40)
    score_continuations(gpt2, requests, batch_tokens=4000)
    counter.handle.remove()
    assert (counter.passes, counter.largest) == (3, 50 * 40)


def test_what_a_batch_leaves_to_its_children_is_bounded(gpt2, monkeypatch):
    requests = [
        Request([row, *range(1, 30)], [label, 2, 3])
        for row in range(1, 9)
        for label in range(40, 42 if row < 7 else 41)
    ]
    # Room for two rows of 30 tokens: keys and values x layers x width x bytes.
    monkeypatch.setattr(scoring, "CACHE_BYTES", 2 * 30 * (2 * 2 * 32 * 4))
    counter = Counter(gpt2)
    score_continuations(gpt2, requests)
    counter.handle.remove()
    # Six contexts have two children each: three batches of two rows leave something to two batches of two rows each. The
    # other two contexts leave nothing and are one batch.
    assert counter.kept == 2 * 30 and counter.passes == 3 * (1 + 2) + 1


def test_truncation_keeps_the_end_and_the_first_tokens_and_is_counted(gpt2, caplog):
    long, short = Request([9, *range(30)], [1, 2]), Request([5, 6], [3])
    with caplog.at_level(logging.WARNING, logger="reclaim.scoring"):
        found = score_continuations(gpt2, [long, short], max_length=12, keep_first=1)
    assert "1 of 2 inputs were cut to 12 tokens" in caplog.text
    _assert_same(found, _one_by_one(gpt2, [Request([9, *range(21, 30)], [1, 2]), short]))
    # Without max_length the model's own limit holds (128 positions).
    assert len(score_continuations(gpt2, [Request([1] * 200, [2])])[0]) == 1


@pytest.mark.parametrize("request_", [Request([], [1]), Request([1], []), Request([1], [2] * 12)])
def test_requests_that_cannot_be_scored_are_refused(gpt2, request_):
    with pytest.raises(InputError, match="request 0: found .* tokens of context"):
        score_continuations(gpt2, [request_], max_length=12)


def test_model_is_left_as_it_was(gpt2):
    gpt2.train()
    first = score_continuations(gpt2, [Request([1, 2], [3, 4])])  # dropout of 0.1 must not show
    assert gpt2.training and np.array_equal(first[0], score_continuations(gpt2, [Request([1, 2], [3, 4])])[0])
    assert torch.is_grad_enabled()
    gpt2.eval()
    assert score_continuations(gpt2, []) == []


def test_half_precision_logits_are_normalised_in_float32(gpt2):
    half = _causal("gpt2").to(torch.bfloat16)
    scores = score_continuations(half, [Request([1, 2], [token]) for token in range(VOCABULARY)])
    assert abs(np.exp(np.concatenate(scores)).sum() - 1) < 1e-5


def test_lora_model_is_scored_with_its_adapters(gpt2):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(_causal("gpt2"), LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
    requests = _requests(4)
    found = score_continuations(model, requests)
    _assert_same(found, _one_by_one(model, requests))
    assert not np.allclose(np.concatenate(found), np.concatenate(score_continuations(gpt2, requests)), atol=1e-2)


def test_prefix_tuned_model_is_scored_with_its_prefix():
    from reclaim.adapters import add_prefix

    model = add_prefix(_causal("opt"), num_prefix=3, seed=1).eval()
    requests = _requests(6)
    found = score_continuations(model, requests, min_shared=4)
    _assert_same(found, _one_by_one(model, requests))
    plain = score_continuations(_causal("opt"), requests)
    assert not np.allclose(np.concatenate(found), np.concatenate(plain), atol=1e-2)


@pytest.fixture(scope="module")
def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def test_label_words_of_one_token_are_one_row_of_the_decoder(t5):
    requests = [Request([row, *range(5)], [label]) for row in range(3) for label in range(4)]
    requests += [Request([0, *range(5)], [7, label]) for label in range(4)]
    read = []
    handle = t5.get_decoder().register_forward_hook(
        lambda _module, _args, kwargs, _output: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    score_continuations(t5, requests)
    handle.remove()
    # A row for each of three contexts, and one more for the words of two tokens that begin alike.
    assert read == [(4, 2)]


def test_seq2seq_equals_one_by_one_and_encodes_each_context_once(t5):
    model = t5
    requests = _requests(5)
    encoded = []
    handle = model.get_encoder().register_forward_hook(
        lambda _module, _args, kwargs, _output: encoded.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
    )
    found = score_continuations(model, requests, batch_tokens=60)
    handle.remove()
    assert sum(encoded) == sum(map(len, {tuple(request.context) for request in requests}))
    for request, scores in zip(requests, found, strict=True):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([request.context]),
                decoder_input_ids=torch.tensor([[0, *request.continuation[:-1]]]),
            ).logits[0]
        wanted = logits.log_softmax(-1)[range(len(scores)), request.continuation]
        np.testing.assert_allclose(scores, wanted.numpy(), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------------- label words


@pytest.fixture(scope="module", params=["Roberta", "RobertaPreLayerNorm", "Bert"])
def masked(request):
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(
        **SMALL, intermediate_size=64, max_position_embeddings=64, pad_token_id=1, initializer_range=0.2
    )
    return getattr(transformers, f"{request.param}ForMaskedLM")(config).eval()


def test_label_word_logits_equal_the_full_head(masked):
    rng = np.random.default_rng(0)
    prompts = []
    for length in (9, 4, 12, 4, 1):
        prompts.append(MaskedPrompt(rng.integers(2, VOCABULARY, length).tolist(), int(rng.integers(length)), False))
    found = score_label_words(masked, prompts, [7, 3], pad_id=1, batch_tokens=20)
    for prompt, scores in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = masked(input_ids=torch.tensor([prompt.input_ids])).logits[0, prompt.mask_position]
        np.testing.assert_allclose(scores, logits[[7, 3]].numpy(), atol=1e-4, rtol=0)


def test_label_word_logits_carry_gradients(masked):
    ids = torch.tensor([[5, 6, 7]])
    label_word_logits(masked, ids, torch.ones_like(ids), torch.tensor([1]), [2, 4]).sum().backward()
    assert masked.get_input_embeddings().weight.grad.abs().sum() > 0
    masked.zero_grad()


# ----------------------------------------------------------------------------------------------------------- prediction


class Numbered(ToyTokenizer):
    """The toy tokenizer with numbers for ids; words are numbered as they appear."""

    pad_token_id, bos_token_id, eos_token_id, unk_token_id = 1, 2, 3, 4
    mask_token_id, cls_token_id, sep_token_id = 5, 6, 7

    def __init__(self):
        self.numbers = {}

    def encode(self, text, add_special_tokens=True):
        tokens = super().encode(text, add_special_tokens=False)
        ids = [self.numbers.setdefault(token, len(self.numbers) + 8) for token in tokens]
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def convert_tokens_to_ids(self, token):
        return self.encode(token, add_special_tokens=False)[0]

    def batch_decode(self, rows, skip_special_tokens):
        words = {number: token for token, number in self.numbers.items()}
        return ["".join(words.get(int(number), "") for number in row) for row in rows]


TEMPLATE = CausalTemplate("{text} It was", (" bad", " very good"), calibration_prompt="It was")
ROWS = [{"text": text, "label": label} for text, label in (("so dull", 0), ("what fun it is", 1), ("one", 0))]


def _reference(model, tokenizer, prompt, option):
    context, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + option)
    return np.array(_one_by_one(model, [Request(context, whole[len(context) :])])[0])


def test_zero_shot_is_the_mean_log_probability_of_the_option(gpt2):
    tokenizer = Numbered()
    scores = predict(gpt2, tokenizer, TEMPLATE, ROWS)
    for row, found in zip(ROWS, scores, strict=True):
        wanted = [_reference(gpt2, tokenizer, f"{row['text']} It was", option).mean() for option in TEMPLATE.candidates]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_calibrated_score_is_the_sum_minus_that_of_the_content_free_prompt(gpt2):
    tokenizer = Numbered()
    plain = [_reference(gpt2, tokenizer, "one It was", option).sum() for option in TEMPLATE.candidates]
    free = [_reference(gpt2, tokenizer, "It was", option).sum() for option in TEMPLATE.candidates]
    found = predict(gpt2, tokenizer, TEMPLATE, ROWS, calibration="sfc")[2]
    np.testing.assert_allclose(found, np.subtract(plain, free), atol=1e-4)


def test_demonstrations_for_all_rows_or_for_each(gpt2):
    tokenizer = Numbered()
    prompt = "so dull It was bad\n\nwhat fun it is It was very good\n\none It was"
    wanted = [_reference(gpt2, tokenizer, prompt, option).mean() for option in TEMPLATE.candidates]
    shared = predict(gpt2, tokenizer, TEMPLATE, ROWS, ROWS[:2])
    np.testing.assert_allclose(shared[2], wanted, atol=1e-4)
    each = predict(gpt2, tokenizer, TEMPLATE, ROWS, [[], [ROWS[0]], ROWS[:2]])
    np.testing.assert_allclose(each[2], wanted, atol=1e-4)
    np.testing.assert_allclose(each[0], predict(gpt2, tokenizer, TEMPLATE, ROWS)[0], atol=1e-4)
    with pytest.raises(InputError, match="2 lists; expected one for each of the 3 rows"):
        predict(gpt2, tokenizer, TEMPLATE, ROWS, [[], []])


def test_rows_with_fewer_candidates_end_in_minus_infinity(gpt2):
    template = CausalTemplate("{text} is", "choices", option=" {candidate}", calibration_prompt="is")
    rows = [{"text": "a", "choices": ["b", "c d", "e"]}, {"text": "a", "choices": ["b", "c d"]}]
    for calibration in (None, "sfc"):
        scores = predict(gpt2, Numbered(), template, rows, calibration=calibration)
        assert scores[1, 2] == -np.inf and np.isfinite(scores[0]).all()
        np.testing.assert_allclose(scores[1, :2], scores[0, :2], atol=1e-6)


def test_cut_prompts_are_logged(gpt2, caplog):
    predict(gpt2, Numbered(), TEMPLATE, ROWS, max_length=6)
    # With the start token: "so dull It was very good" has 7 tokens, those with "what fun it is" have 8 and 9.
    assert "3 of 6 prompts lost tokens" in caplog.text


def test_masked_prediction_and_its_calibration(masked):
    tokenizer, template = Numbered(), MaskedTemplate("*cls**sent_0*_It_was*mask*.*sep+*", ("bad", "good"))
    scores = predict(masked, tokenizer, template, ROWS)
    words = template.label_word_ids(tokenizer)
    prompt = template.encode(tokenizer, ROWS[1])
    with torch.no_grad():
        logits = masked(input_ids=torch.tensor([prompt.input_ids])).logits[0, prompt.mask_position]
        empty = [6, *tokenizer.encode(" It was", False), 5, *tokenizer.encode(".", False), 7]
        free = masked(input_ids=torch.tensor([empty])).logits[0, 3]
    np.testing.assert_allclose(scores[1], logits[words], atol=1e-4)
    calibrated = predict(masked, tokenizer, template, ROWS, calibration="sfc")
    np.testing.assert_allclose(calibrated, scores - free[words].numpy(), atol=1e-4)
    shown = predict(masked, tokenizer, template, ROWS, [ROWS[1]])
    assert not np.allclose(shown, scores)


def test_median_calibration_halves_the_rows_and_keeps_their_order():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(101, 2)) + [5.0, 0.0]  # label 0 is always predicted
    calibrated = calibrate_median(scores)
    assert (scores.argmax(1) == 0).mean() > 0.95
    assert (calibrated.argmax(1) == 1).sum() == 50
    before, after = scores[:, 1] - scores[:, 0], calibrated[:, 1] - calibrated[:, 0]
    np.testing.assert_allclose(before - np.median(before), after)
    # The threshold of other rows.
    reference = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 9.0]])
    assert calibrate_median(np.array([[0.0, 1.9], [0.0, 2.1]]), reference).argmax(1).tolist() == [0, 1]


def test_generated_answers_stop_at_a_newline_and_do_not_depend_on_the_batch(gpt2):
    template = CausalTemplate("Q: {text}\nA:", "answers", option=" {candidate}\n", generation=True)
    tokenizer, rows = Numbered(), [{"text": text, "answers": ["x"]} for text in ("a b c", "d", "e f", "g h a b")]
    for word in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO":
        tokenizer.encode(f" {word}", add_special_tokens=False)
    together = generate_answers(gpt2, tokenizer, template, rows, max_new_tokens=12)
    alone = [generate_answers(gpt2, tokenizer, template, [row], max_new_tokens=12)[0] for row in rows]
    assert together == alone and any(together)
    # Greedy, token by token.
    ids, newline = template.encode_generation(tokenizer, rows[0]).input_ids, tokenizer.encode("\n", False)[0]
    new = []
    while len(new) < 12 and (not new or new[-1] not in (newline, tokenizer.eos_token_id)):
        with torch.no_grad():
            new.append(int(gpt2(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    assert together[0] == tokenizer.batch_decode([new], True)[0].split("\n")[0].strip()
