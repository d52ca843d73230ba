"""AutoSeq's search, prompts and tuning against slow, plain versions of themselves, and the shortcuts that spoil them."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from reclaim.autoseq.decoding import ClassDecoder
from reclaim.autoseq.pretraining import build_t5, corrupt_spans, pretrain_spans, random_spans, sentinel_ids
from reclaim.autoseq.prompts import Prompt, Sentinels, encode_prompt, label_ids, target_ids, task_prompt, task_prompts
from reclaim.autoseq.search import (
    Candidate,
    Constraints,
    SearchSettings,
    _top,
    combinations,
    contrast,
    label_sequences,
    label_words,
    search,
)
from reclaim.autoseq.tuning import Examples, SoftPromptModel, class_scores, fit, target_logits
from reclaim.errors import InputError
from reclaim.models import load
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe

SENTENCES = ["The film is warm .", "The plot is dull and the cast is weak .", "The story is bright ."]
COMMENTS = ["Never skip it .", "Do watch it .", "Thanks for reading .", "Okay"]
CONFIG = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 2}
TEMPLATE = "*cls**sent_0**mask**sep+*"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("t5", SENTENCES + COMMENTS, words=["film is"], num_sentinels=5)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_t5(tokenizer, {**CONFIG, "dropout_rate": 0.0}, seed=1)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [encode_prompt(tokenizer, TEMPLATE, [text]) for text in SENTENCES]


def ids_of(prompts):
    return [prompt.input_ids for prompt in prompts]


def pooled_log_q(model, prompts, prefix):
    """Log q of the next token: one example at a time, the logits averaged."""
    rows = []
    for ids in prompts:
        decoder = torch.tensor([[model.config.decoder_start_token_id, *prefix]])
        with torch.no_grad():
            rows.append(model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0, -1])
    return torch.stack(rows).mean(0).log_softmax(-1)


def slow_beam(model, prompts, tokenizer, constraints, beam, max_length):
    """The method of the paper as its words say it, hypothesis by hypothesis."""
    sentinels = Sentinels.of(tokenizer)
    pool = [((), 0.0, False)]
    for position in range(max_length - 2):
        new = [entry for entry in pool if entry[2]]
        for ids, score, finished in pool:
            if finished:
                continue
            log_q = pooled_log_q(model, prompts, ids).tolist()
            for token in sorted(range(len(log_q)), key=lambda t: (-log_q[t], t))[: beam + 3]:
                if token in constraints.banned or (position == 1 and token == sentinels.end):
                    continue
                if ids and ids[-1] in constraints.punctuation and token in constraints.punctuation:
                    continue
                new.append(((*ids, token), score + log_q[token], token in (sentinels.second, sentinels.end)))
        pool = sorted(new, key=lambda entry: -entry[1])[:beam]
        if all(entry[2] for entry in pool):
            break
    return pool


@pytest.mark.parametrize("cache_bytes", [2**30, 1])
def test_beam_search_equals_the_slow_one_and_encodes_once(model, tokenizer, prompts, cache_bytes):
    constraints = Constraints.of(tokenizer)
    calls = []
    handle = model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    decoder = ClassDecoder(model, ids_of(prompts), batch_size=2, cache_bytes=cache_bytes)
    found = label_sequences(decoder, tokenizer, constraints, beam=6, max_length=7)
    handle.remove()
    assert len(calls) == decoder.encoder_calls == 2  # ceil(3 / 2), whatever the beam
    wanted = slow_beam(model, ids_of(prompts), tokenizer, constraints, 6, 7)
    assert [candidate.ids for candidate in found] == [ids for ids, _, _ in wanted]
    np.testing.assert_allclose([math.log(c.probability) for c in found], [score for _, score, _ in wanted], atol=1e-4)


def test_bans_matter_to_this_search(model, tokenizer, prompts):
    """Without the constraints the same model gives something else, so the comparison above does test them."""
    free = Constraints(frozenset(), frozenset())
    decoder = ClassDecoder(model, ids_of(prompts))
    everything = [c.ids for c in label_sequences(decoder, tokenizer, free, beam=40, max_length=6)]
    bound = [c.ids for c in label_sequences(decoder, tokenizer, Constraints.of(tokenizer), beam=40, max_length=6)]
    assert everything != bound
    banned = Constraints.of(tokenizer).banned
    assert not any(set(ids) & banned for ids in bound)


def test_logits_are_pooled_not_probabilities_nor_log_likelihoods(model, tokenizer, prompts):
    target = target_ids(tokenizer, "Never skip it .")
    value = ClassDecoder(model, ids_of(prompts)).sequence_log_probabilities([target])[0]
    wanted = sum(pooled_log_q(model, ids_of(prompts), target[:i])[token].item() for i, token in enumerate(target))
    assert value == pytest.approx(wanted, abs=1e-4)
    likelihoods = class_scores(model, prompts, [target])
    assert abs(value - likelihoods.mean()) > 1e-3
    pooled = ClassDecoder(model, ids_of(prompts), pooling="probabilities").sequence_log_probabilities([target])[0]
    assert abs(value - pooled) > 1e-3


def test_sequence_probabilities_do_not_depend_on_the_batch(model, tokenizer, prompts):
    decoder = ClassDecoder(model, ids_of(prompts))
    targets = [target_ids(tokenizer, text) for text in COMMENTS]
    alone = [decoder.sequence_log_probabilities([target])[0] for target in targets]
    np.testing.assert_allclose(decoder.sequence_log_probabilities(targets), alone, atol=1e-5)


def test_words_are_scored_again_as_whole_targets(model, tokenizer, prompts):
    decoder = ClassDecoder(model, ids_of(prompts))
    found = label_words(decoder, tokenizer, Constraints.of(tokenizer), beam=10, num_candidates=5)
    sentinels = Sentinels.of(tokenizer)
    assert all(c.ids[0] == sentinels.first and c.ids[-1] == sentinels.end and len(c.ids) == 3 for c in found)
    values = decoder.sequence_log_probabilities([c.ids for c in found])
    np.testing.assert_allclose([math.log(c.probability) for c in found], values, atol=1e-6)
    assert [c.probability for c in found] == sorted((c.probability for c in found), reverse=True)


class KnownProbabilities:
    """Stands for a class's decoder: the probability of a text, by table."""

    def __init__(self, table):
        self.table = table

    def sequence_log_probabilities(self, targets):
        return np.log([self.table[target] for target in targets])


def test_contrast_subtracts_the_sum_of_original_values():
    candidates = {
        "a": [Candidate((1,), "x", 0.5), Candidate((2,), "y", 0.3), Candidate((3,), "x", 0.1)],
        "b": [Candidate((4,), "x", 0.2), Candidate((5,), "z", 0.1)],
        "c": [Candidate((6,), "z", 0.25)],
    }
    tables = {"a": {"z": 0.01}, "b": {"y": 0.05}, "c": {"x": 0.15, "y": 0.02}}
    decoders = {y: KnownProbabilities(table) for y, table in tables.items()}
    ranked = contrast(candidates, decoders, lambda candidate: candidate.text)
    # x of class a: 0.5 - 0.2 (first candidate of b) - 0.15 (scored), not the maximum and not the mean.
    values = {y: [(c.ids, round(score, 9)) for c, _, score in rows] for y, rows in ranked.items()}
    assert values["a"] == [((2,), 0.23), ((1,), 0.15), ((3,), -0.25)]
    # Of class b: 0.2 - 0.5 - 0.15, from the value of a before anything was taken off it.
    assert dict(values["b"])[(4,)] == pytest.approx(-0.45)
    assert values["c"] == [((6,), round(0.25 - 0.01 - 0.1, 9))]
    most = contrast(candidates, decoders, lambda candidate: candidate.text, rule="max")
    assert {c.ids: round(score, 9) for c, _, score in most["a"]}[(1,)] == 0.3
    none = contrast(candidates, decoders, lambda candidate: candidate.text, rule="none")
    assert [score for _, _, score in none["a"]] == [0.5, 0.3, 0.1]


def test_combinations_are_those_of_the_sorted_product():
    rng = np.random.default_rng(0)
    for classes in (1, 2, 3):
        ranked = {
            y: [(f"{y}{i}", score) for i, score in enumerate(sorted(rng.integers(0, 4, 6) / 4.0, reverse=True))]
            for y in range(classes)
        }
        product = list(itertools.product(*(found[:5] for found in ranked.values())))
        order = sorted(range(len(product)), key=lambda i: -sum(score for _, score in product[i]))[:15]
        found, scores = combinations(ranked, per_class=5, num_combinations=15)
        assert [tuple(combination.values()) for combination in found] == [
            tuple(text for text, _ in product[i]) for i in order
        ]
        np.testing.assert_allclose(scores, [sum(score for _, score in product[i]) for i in order])


def test_combination_options():
    ranked = {"a": [("x", 0.9), ("y", 0.5), ("", 0.4)], "b": [("x", 0.8), ("z", 0.1), ("y", 0.0)]}
    plain, _ = combinations(ranked, num_combinations=2)
    assert plain[0] == {"a": "x", "b": "x"}
    distinct, _ = combinations(ranked, num_combinations=20, distinct=True)
    assert all(c["a"] != c["b"] and c["a"] and c["b"] for c in distinct)
    shared, _ = combinations(ranked, num_combinations=20, max_shared=1)
    assert len({c["a"] for c in shared}) == len(shared) == 3
    with pytest.raises(InputError):
        combinations({"a": [], "b": [("x", 1.0)]})
    with pytest.raises(InputError, match="distinct"):
        combinations({"a": [("x", 1.0)], "b": [("x", 1.0), ("", 0.5)]}, distinct=True)


def test_search_reads_only_the_training_prompts(model, tokenizer, prompts):
    settings = SearchSettings(beam=8, max_length=6, num_combinations=3)
    by_class = {"a": ids_of(prompts[:2]), "b": ids_of(prompts[2:])}
    result = search(model, tokenizer, by_class, settings)
    assert len(result.combinations) == 3 and set(result.combinations[0]) == {"a", "b"}
    found = result.candidates
    np.testing.assert_allclose(found["own"] - found["others"], found["score"])
    assert not np.allclose(found["own"], found["score"])  # contrast is not skipped
    assert list(found.groupby("class")["rank"].first()) == [0, 0]
    again = search(model, tokenizer, by_class, settings)
    assert again.candidates.equals(found)


def test_settings_that_cannot_be_are_refused(model, tokenizer):
    for wrong in ({"beam": 0}, {"contrast": "ratio"}, {"max_length": 3}):
        with pytest.raises(InputError):
            SearchSettings(**wrong)
    with pytest.raises(InputError):
        ClassDecoder(model, [])
    with pytest.raises(InputError):
        ClassDecoder(model, [[3, 1]], pooling="mean")
    with pytest.raises(InputError):
        Sentinels.of(tokenizer).terminator("dot")


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_sentinel_that_is_cut_off_is_an_error(tokenizer):
    with pytest.raises(InputError, match="no sentinel"):
        encode_prompt(tokenizer, TEMPLATE, SENTENCES[1:2], max_length=4)
    kept = encode_prompt(tokenizer, TEMPLATE, SENTENCES[1:2], max_length=6, first_sent_limit=4)
    assert kept.input_ids[-2:] == [Sentinels.of(tokenizer).first, tokenizer.eos_token_id]
    with pytest.raises(InputError, match="sentences"):
        encode_prompt(tokenizer, "*sent_0**mask**sent_1*", ["one"])


def test_a_long_sentence_yields_to_the_sentinel(tokenizer):
    template = "*sent_0*_and*mask*_or*sent_1**sep+*"
    whole = encode_prompt(tokenizer, template, SENTENCES[1:])
    short = encode_prompt(tokenizer, template, SENTENCES[1:], max_length=8, keep_sentinel=True)
    sentinel = Sentinels.of(tokenizer).first
    place = whole.input_ids.index(sentinel)
    assert len(short.input_ids) == 8 and short.input_ids[-1] == sentinel
    assert short.input_ids[:6] == whole.input_ids[:6] and short.input_ids[6] == whole.input_ids[place - 1]
    assert short.literals == [6]  # `and`, behind the sentence that was cut
    same = encode_prompt(tokenizer, template, SENTENCES[1:], max_length=place + 1, keep_sentinel=True)
    assert same.input_ids == whole.input_ids[: place + 1]


def test_ids_come_from_the_tokenizer():
    few = train_tokenizer("t5", SENTENCES + COMMENTS, num_sentinels=3)
    many = train_tokenizer("t5", SENTENCES + COMMENTS, num_sentinels=9)
    for tokenizer in (few, many):
        sentinels = Sentinels.of(tokenizer)
        assert tokenizer.convert_ids_to_tokens([sentinels.first, sentinels.second]) == ["<extra_id_0>", "<extra_id_1>"]
        target = target_ids(tokenizer, "Okay", "sentinel")
        assert target == [sentinels.first, *label_ids(tokenizer, "Okay"), sentinels.second, tokenizer.eos_token_id]
        constraints = Constraints.of(tokenizer)
        assert tokenizer.convert_tokens_to_ids("▁.") in constraints.punctuation
        assert not {sentinels.first, sentinels.second, tokenizer.eos_token_id} & constraints.banned
    assert Sentinels.of(few).first != Sentinels.of(many).first


def test_prompts_of_the_paper_are_there_by_name():
    assert task_prompt("trec", "manual")["labels"]["human"] == "human"
    for task, form in (("imdb", "auto"), ("trec", "oracle")):
        with pytest.raises(InputError):
            task_prompt(task, form)


def test_the_search_reads_the_prompt_that_is_trained():
    """One order of sentences in both; of MPQA the official prompts differ. Words of TREC follow its classes by name."""
    different = {
        task
        for task, forms in task_prompts().items()
        if {"generation", "auto"} <= set(forms)
        and forms["generation"]["template"].replace("<extra_id_0>", "mask") != forms["auto"]["template"]
    }
    assert different == {"mpqa"}
    for form in ("manual", "manual_eng"):
        words = task_prompt("trec", form)["labels"]
        assert words["description"].lower() == "description" and words["entity"].lower() == "entity"


# --------------------------------------------------------------------------------------------------------------- tuning


def test_class_scores_are_sums_with_the_terminator(model, tokenizer, prompts):
    targets = [target_ids(tokenizer, "Okay"), target_ids(tokenizer, "Thanks for reading .")]
    found = class_scores(model, prompts, targets)
    for row, prompt in enumerate(prompts):
        for y, target in enumerate(targets):
            with torch.no_grad():
                labels = torch.tensor([target])
                loss = model(input_ids=torch.tensor([prompt.input_ids]), labels=labels).loss.item()
            assert found[row, y] == pytest.approx(-loss * len(target), abs=1e-4)


def examples_of(tokenizer, prompts):
    return Examples(prompts, [0, 1, 0], [target_ids(tokenizer, "Okay"), target_ids(tokenizer, "Do watch it .")])


RECIPE = Recipe(num_train_steps=3, per_device_train_batch_size=3, learning_rate=1e-2)


def test_every_run_starts_from_the_same_weights_and_leaves_them(model, tokenizer, prompts):
    before = copy.deepcopy(model.state_dict())
    examples = examples_of(tokenizer, prompts)
    logits, labels = target_logits(model, prompts, [examples.targets[y] for y in examples.labels])
    zero_shot = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels).item()
    for seed in (0, 1):
        tuned, history, _ = fit(model, examples, RECIPE, seed=seed)
        assert history.loss[0] == pytest.approx(zero_shot, rel=1e-5)
        assert history.loss[-1] < history.loss[0]
        assert not torch.equal(tuned.lm_head.weight, model.lm_head.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_soft_prompt_trains_its_own_rows_alone(model, tokenizer):
    template = "*cls**sent_0*_film_is*mask**sep+*"
    prompts = [encode_prompt(tokenizer, template, [text]) for text in SENTENCES]
    examples = examples_of(tokenizer, prompts)
    # Before training the soft words are the words.
    soft = SoftPromptModel(copy.deepcopy(model), prompts[0])
    np.testing.assert_allclose(
        soft.class_scores(prompts, examples.targets), class_scores(model, prompts, examples.targets), atol=1e-4
    )
    tuned, history, _ = fit(model, examples, RECIPE, seed=0, trained="prompt")
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained == ["soft_prompt"] and tuned.soft_prompt.shape == (2, CONFIG["d_model"])
    assert not torch.equal(tuned.soft_prompt, soft.soft_prompt) and history.loss[-1] < history.loss[0]
    for name, value in tuned.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(InputError, match="literal"):
        fit(model, examples_of(tokenizer, [Prompt([5, 6], [])] * 3), RECIPE, seed=0, trained="prompt")


def test_adapters_train_low_rank_updates_alone(model, tokenizer, prompts):
    tuned, history, _ = fit(model, examples_of(tokenizer, prompts), RECIPE, seed=0, trained="lora")
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained) and history.loss[-1] < history.loss[0]


def test_the_first_best_evaluation_on_dev_is_kept(model, tokenizer, prompts):
    examples = examples_of(tokenizer, prompts)
    recipe = Recipe(num_train_steps=8, per_device_train_batch_size=3, learning_rate=1e-2)

    def dev(tuned):
        return float(np.mean(class_scores(tuned, prompts, examples.targets).argmax(1) == examples.labels))

    tuned, _, evaluations = fit(model, examples, recipe, seed=0, dev=dev, eval_steps=1)
    assert [step for step, _ in evaluations] == list(range(1, 9))
    best = max(score for _, score in evaluations)
    first = next(step for step, score in evaluations if score == best)
    short, _, _ = fit(model, examples, recipe, seed=0, dev=dev, eval_steps=first)
    assert torch.equal(tuned.shared.weight, short.shared.weight)


# ---------------------------------------------------------------------------------------------------------- pre-training


def test_spans_are_replaced_by_sentinels_and_listed_in_the_target():
    source, target = corrupt_spans([10, 11, 12, 13, 14], [(0, 1), (3, 5)], [90, 91, 92, 93], 1)
    assert source == [90, 11, 12, 91, 1]
    assert target == [90, 10, 91, 13, 14, 92, 1]


def test_random_spans_are_apart_in_order_and_of_the_wanted_density():
    rng, shares = np.random.default_rng(0), []
    for _ in range(400):
        spans = random_spans(rng, 16, (0.08, 0.45), 3.0, 9)
        assert spans and all(a < b for a, b in spans)
        assert all(b < c for (_, b), (c, _) in itertools.pairwise(spans))
        shares.append(sum(b - a for a, b in spans) / 16)
    assert 0.2 < np.mean(shares) < 0.3 and max(shares) < 0.5


def test_pretraining_resumes_bit_for_bit_and_survives_saving(tokenizer, tmp_path):
    recipe = Recipe(num_train_steps=6, per_device_train_batch_size=4, learning_rate=3e-3)
    sentences, comments = SENTENCES * 4, COMMENTS * 3
    whole = build_t5(tokenizer, CONFIG, seed=0)
    pretrain_spans(whole, tokenizer, sentences, comments, recipe, seed=0)

    class Killed(Exception):
        pass

    def stop(steps):
        for step in steps:
            if step == 4:
                raise Killed
            yield step

    state = tmp_path / "state"
    options = {"state_path": state, "run": "one", "save_seconds": 0}
    with pytest.raises(Killed):
        killed = build_t5(tokenizer, CONFIG, seed=0)
        pretrain_spans(killed, tokenizer, sentences, comments, recipe, seed=0, progress=stop, **options)
    resumed = build_t5(tokenizer, CONFIG, seed=0)
    pretrain_spans(resumed, tokenizer, sentences, comments, recipe, seed=0, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    whole.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", "seq2seq")
    assert not loaded.config.scale_decoder_outputs
    ids = torch.tensor([[5, 6, sentinel_ids(tokenizer)[0], 1]])
    assert torch.equal(whole(input_ids=ids, labels=ids).logits, loaded(input_ids=ids, labels=ids).logits)
    with pytest.raises(InputError):
        load(tmp_path, "seq2seq")
    with pytest.raises(InputError):
        build_t5(tokenizer, {"hidden": 3}, seed=0)


def test_lower_ids_come_first_among_equals():
    log_q = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    ids, values = _top(log_q, 4)
    assert ids.tolist() == [[1, 3, 2, 4], [0, 1, 2, 3]] and values[0].tolist() == [2.0, 2.0, 1.0, 1.0]
    assert _top(log_q, 50)[0].shape == (2, 6)
