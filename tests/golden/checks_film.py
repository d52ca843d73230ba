"""Checks of the vectors of FILM's attack: bags of words, beam search, reordering, metrics."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from harness import companion
from reclaim.film import bag, gradients, reorder, search
from reclaim.film.defences import prune
from reclaim.film.reorder_scores import reorder_scores
from reclaim.metrics import recovery

TOLERANCE = 1e-4  # the vectors' own, relative
RESTARTS = 6  # the official runs are one draw of their random order each; the bar is for the search, not for a draw


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _model(path: Path):
    folder = str(path.parent / "model")
    return GPT2LMHeadModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def _close(found, expected, place: str, relative: float = TOLERANCE, absolute: float = 1e-8) -> None:
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape, f"{place}: shape {found.shape}, expected {expected.shape}"
    wrong = np.abs(found - expected) > absolute + relative * np.abs(expected)
    assert not wrong.any(), f"{place}: {found[wrong][:3]}, expected {expected[wrong][:3]}"


# ---------------------------------------------------------------------------------------------------------------------- bag


def _untied(model):
    model = copy.deepcopy(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _check_bag(case: dict, model, tokenizer, place: str) -> None:
    ids, mask = gradients.padded(model, tokenizer, case["sentences"])
    word_name, position_name = gradients.embedding_names(model)
    sent = gradients.client_gradient(model, ids, mask)
    tied, positions = sent.gradients[word_name], sent.gradients[position_name]
    assert gradients.is_tied(model), f"{place}: the model's head"
    parts = gradients.client_gradient(_untied(model), ids, mask, [word_name, "lm_head.weight"]).gradients
    _close(sent.loss, case["loss"], f"{place}: loss", absolute=1e-6)
    assert sent.num_targets == case["n_targets"], f"{place}: {sent.num_targets} targets"
    words = {int(token): count for token, count in case["bag"].items()}
    counted = dict(zip(*(part.tolist() for part in torch.unique(ids[mask], return_counts=True)), strict=True))
    assert counted == words, f"{place}: bag {counted}"
    for name, gradient in (
        ("row_norm_tied", tied),
        ("row_norm_input", parts[word_name]),
        ("row_norm_output", parts["lm_head.weight"]),
        ("wpe_row_norm", positions),
    ):
        # Norms of rows are sums over the vocabulary in float32: absolute errors follow the largest one.
        found = gradient.norm(dim=1).numpy()
        _close(found, case[name], f"{place}: {name}", absolute=1e-5 * max(1.0, found.max()))
    assert bag.nonzero_rows(parts[word_name]) == case["nonzero_input"], f"{place}: rows of the input"
    assert bag.nonzero_rows(tied) == case["nonzero_tied"], f"{place}: rows of the tied matrix"
    assert bag.longest_input(positions) == case["longest_input_position"], f"{place}: longest input"
    official = bag.varying_rows(gradients.hidden_state_gradient(model, ids)[word_name])
    assert official == case["official_run_leakage"]["leaked_token_ids"], f"{place}: run_leakage"
    _close(len(official) / ids.numel(), case["official_run_leakage"]["leakratio"], f"{place}: leakratio", 1e-6)
    norms = tied.norm(dim=1)
    rule = case["breaching_embedding_norm"]
    found = bag.log_norm_tokens(norms, ids.numel(), rule["cutoff"])
    assert set(found) == set(rule["tokens_sorted"]), f"{place}: embedding-norm"
    assert len(found) == len(rule["tokens_sorted"]), f"{place}: embedding-norm, {len(found)} tokens"
    hidden_norm = gradients.mean_hidden_norm(model, ids, mask)
    _close(hidden_norm, case["mean_hidden_norm"], f"{place}: hidden norm")
    for k, tokens in case["hn_rule"].items():
        assert bag.scaled_rows(norms, hidden_norm, sent.num_targets, float(k)) == tokens, f"{place}: kH/N at {k}"
    for name, expected in case["defences"].items():
        kind, _, strength = name.partition("_")
        if kind == "prune":
            for side, gradient in (("input", parts[word_name]), ("tied", tied)):
                _check_pruned(gradient, float(strength), expected, side, f"{place}: {name}, {side}")
        else:
            assert kind == "noise", f"{place}: a defence named {name}"
            generator = torch.Generator().manual_seed(expected["generator_seed"])
            noisy = (tied + float(strength) * torch.randn(tied.shape, generator=generator)).norm(dim=1)
            _close(noisy, expected["row_norm_tied"], f"{place}: {name}", absolute=1e-5 * float(norms.max()))
            found = bag.scaled_rows(noisy, hidden_norm, sent.num_targets, 0.35)
            assert found == expected["hn_035"], f"{place}: {name}, kH/N"


def _check_pruned(gradient: torch.Tensor, ratio: float, expected: dict, side: str, place: str) -> None:
    kept = prune(gradient, ratio)
    assert bag.nonzero_rows(kept) == expected[f"nonzero_rows_{side}"], f"{place}: rows"
    removed = gradient[(kept == 0) & (gradient != 0)].abs()
    quantile = expected[f"quantile_{side}"]
    least, most = float(kept[kept != 0].abs().min()), float(removed.max()) if len(removed) else 0.0
    slack = 1e-6 + TOLERANCE * quantile
    assert most <= quantile + slack and least >= quantile - slack, f"{place}: threshold between {most} and {least}"


def check_bags(path: Path) -> int:
    content, (model, tokenizer) = _read(path), _model(path)
    for number, case in enumerate(content["cases"]):
        _check_bag(case, model, tokenizer, f"case {number}")
    return len(content["cases"])


# ------------------------------------------------------------------------------------------------------------------- search

ARGUMENTS = {
    "max_length": "max_length",
    "num_beams": "num_beams",
    "num_groups": "num_groups",
    "div": "diversity_penalty",
    "freqknown": "counts_known",
    "height": "height",
    "red": "reduction",
    "ngram": "no_repeat_ngram_size",
    "reps": "repetitions",
}


def _check_search(case: dict, model, tokenizer, filler: int, place: str) -> None:
    options = search.SearchOptions(**{ARGUMENTS[name]: value for name, value in case["args"].items()})
    words = {int(token): count for token, count in case["bag"].items()}
    starts = sorted(search.start_tokens(list(words), tokenizer, len(case["sentences"])))
    assert starts == case["start_tokens"], f"{place}: start tokens {starts}"
    seen: list[dict[int, list[search.Group]]] = []

    def watch(step: int, groups: list[search.Group]) -> None:
        if step == 1:
            seen.append({})
        seen[-1][step] = groups

    results = search.official_search(model, words, starts, filler, options, watch=watch)
    expected = case["results"]
    assert [result.tokens for result in results] == [each["tokens"] for each in expected], f"{place}: results"
    _close([result.log_prob for result in results], [each["sum_logprob_reduced"] for each in expected], place)
    _close([result.score for result in results], [each["last_score"] for each in expected], place)
    texts = [[tokenizer.decode(row, skip_special_tokens=True) for row in result.tokens] for result in results]
    assert texts == [each["text"] for each in expected], f"{place}: texts"
    assert len(seen) == len(case["steps"]), f"{place}: {len(seen)} repetitions"
    for beams, repetition in zip(seen, case["steps"], strict=True):
        for step in repetition:
            for group, wanted in zip(beams[step["step"]], step["groups"], strict=True):
                where = f"{place}, step {step['step']}"
                for beam, want in enumerate(wanted):
                    found = zip(group.tokens[beam].tolist(), group.lengths[beam].tolist(), strict=True)
                    assert [row[:length] for row, length in found] == want["tokens"], where
                    _close(group.scores[beam], want["score"], where, absolute=TOLERANCE)
                    _close(group.log_probs[beam], want["logprob"], where, absolute=TOLERANCE)


def check_searches(path: Path) -> int:
    content, (model, tokenizer) = _read(path), _model(path)
    for number, case in enumerate(content["cases"]):
        _check_search(case, model, tokenizer, content["eos"], f"case {number}, {case['args']}")
    return len(content["cases"])


# --------------------------------------------------------------------------------------------------------------- reordering


def _parameter_gradients(model, tokenizer, sentence: str, length: int) -> list[torch.Tensor]:
    """Gradients of the transformer's parameters, padded as the official code pads."""
    ids = tokenizer(sentence)["input_ids"][:length]
    ids = torch.tensor([ids + [tokenizer.eos_token_id] * (length - len(ids))])
    return list(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(model.transformer.parameters())))


def _candidate_places(model, tokens: np.ndarray, links: np.ndarray) -> np.ndarray:
    """The places at which the model's transition table is `links`; the vectors do not say them."""
    table = reorder.transition_table(model, tokens)
    for places in itertools.combinations(range(len(tokens)), len(links)):
        if np.allclose(table[np.ix_(places, places)], links, rtol=TOLERANCE, atol=2e-4):
            return np.array(places)
    raise AssertionError("no places of the sentence have these links")


def _check_moves(case: dict, model, place: str) -> None:
    tokens, links, order = np.array(case["tokens"]), np.array(case["links"]), case["order"]
    assert tuple(order) in reorder.segment_orders(case["k"]), f"{place}: order {order}"
    candidates = _candidate_places(model, tokens, links)
    cuts, gains = reorder.segment_moves(links, order)
    gain_of = {tuple(each): gain for each, gain in zip(cuts.tolist(), gains.tolist(), strict=True)}
    least = np.sort(gains)[::-1][:32][-1]
    for sample in case["sampled"]:
        gain = gain_of[tuple(sample["cuts"])]
        _close(gain, sample["gain"], f"{place}: gain of {sample['cuts']}", absolute=TOLERANCE)
        assert gain >= least - TOLERANCE, f"{place}: {sample['cuts']} is not among the best"
        if sample["result"] is not None:
            moved = tokens[reorder.moved_places(len(tokens), candidates, np.array(sample["cuts"]), order)]
            assert moved.tolist() == sample["result"], f"{place}: {sample['cuts']}"


def _check_local(case: dict, score, tokenizer, place: str) -> None:
    steps = [
        ([reorder.swapped(case["tokens"], each) for each in case["swap_sequences"]], case["best_swap"]),
        (
            [reorder.inserted(case["tokens"], case["token_pool"], each) for each in case["insertions"]],
            case["best_insert"],
        ),
    ]
    for proposed, expected in steps:
        scores = score([reorder.pieces_of(tokenizer, ids) for ids in proposed])
        assert proposed[int(scores.argmin())] == expected["tokens"], place
        _close(scores.min(), expected["score"], place)
    _close(score([reorder.pieces_of(tokenizer, case["tokens"])])[0], case["start_score"], place)


def _check_run(case: dict, model, tokenizer, options: reorder.ReorderOptions, place: str) -> None:
    runs = (
        reorder.reorder(model, tokenizer, case["start"], options, np.random.default_rng(i)) for i in range(RESTARTS)
    )
    scores = []
    for found in runs:
        scores.append(found.score)
        if found.score <= case["score_fine"] * (1 + TOLERANCE):
            return
    raise AssertionError(f"{place}: scores {scores}, the official run came to {case['score_fine']}")


def check_reordering(path: Path) -> int:
    content, (model, tokenizer) = _read(path), _model(path)
    block, alpha, length = int(content["grad_tensor"].split(".")[1]), content["alpha"], content["pad_len"]
    assert content["grad_tensor"].endswith(".ln_2.weight"), content["grad_tensor"]
    settings = {"block": block, "alpha": alpha, "pad_length": length}
    found = reorder_scores(model, tokenizer, [[case["sentence"]] for case in content["scores"]], **settings)
    for name, values in (("grad_norm", found.grad_norm), ("perplexity", found.perplexity), ("score", found.total)):
        _close(values, [case[name] for case in content["scores"]], name)
    for case in content["scores"]:
        first = _parameter_gradients(model, tokenizer, case["sentence"], length)[: len(case["grad_norm_all"])]
        _close([float(gradient.norm()) for gradient in first], case["grad_norm_all"], "grad_norm_all")
    losses = content["gradloss"]
    sides = [_parameter_gradients(model, tokenizer, losses[side], length) for side in "ab"]
    distances = gradients.gradient_distances(*sides)
    _close([distances["mse"], distances["cosine"]], [losses["mse"], losses["cosine"]], "gradloss")
    itself = gradients.gradient_distances(sides[0], sides[0])["cosine"]
    _close(itself, losses["cosine_self"], "cosine_self", absolute=5e-6)
    for number, case in enumerate(content["phrase_moves"]):
        _check_moves(case, model, f"phrase move {number}")
    for case in content["swap_sets_depth1"]:
        for name in ("unordered", "ordered"):
            pairs = reorder.pairs(case["sentence_size"], case["sep_idx"], ordered=name == "ordered")
            assert sorted(map(list, pairs)) == sorted(case[name]), f"{name} swaps of {case['sentence_size']}"

    def score(candidates):
        return reorder_scores(model, tokenizer, candidates, **settings).total

    for number, case in enumerate(content["local_steps"]):
        _check_local(case, score, tokenizer, f"local step {number}")
    options = reorder.ReorderOptions(alpha=alpha, block=block)
    runs = content["official_runs"]["runs"]
    for number, case in enumerate(runs):
        _check_run(case, model, tokenizer, options, f"official run {number}")
    lists = ("scores", "phrase_moves", "swap_sets_depth1", "local_steps")
    return sum(len(content[name]) for name in lists) + 1 + len(runs)


# ------------------------------------------------------------------------------------------------------------------ metrics


def check_metrics(path: Path) -> int:
    content = _read(path)
    ruler = recovery.EntityRuler(itertools.chain(*content["entity_patterns"].values()))
    for case in content["named_entity_ratio"]:
        _close(recovery.entity_f1(case["ref"], case["cand"]), case["value"], f"entities {case}", 1e-6, 1e-6)
    for number, case in enumerate(content["cases"]):
        for mode in ("strip", "nostrip"):
            expected, place = case[mode], f"case {number}, {mode}"
            candidates = [recovery.cut(text) for text in case["cand"]] if mode == "strip" else case["cand"]
            assert candidates == expected["cand_used"], f"{place}: {candidates}"
            scores = recovery.rouge(case["ref"], candidates)
            for name, statistic in itertools.product(recovery.ROUGE, recovery.STATISTICS):
                _close(
                    scores[name][statistic], expected[f"{name}_{statistic}"], f"{place}: {name} {statistic}", 1e-6, 1e-6
                )
            names = [[ruler(text) for text in texts] for texts in (case["ref"], candidates)]
            assert names == [expected["ent_ref"], expected["ent_cand"]], f"{place}: {names}"
            _close(recovery.entity_matrix(*names), expected["ner"], f"{place}: ner", 1e-6, 1e-6)
            index, value = recovery.best(scores["rouge_L"]["fmeasure"])
            assert list(index) == expected["best_rougeL"]["index"], f"{place}: best pair {index}"
            _close(value, expected["best_rougeL"]["value"], f"{place}: best", 1e-6, 1e-6)
    return len(content["named_entity_ratio"]) + len(content["cases"])


CHECKS = [
    ("model/*", companion),
    ("bow*.json", check_bags),
    ("beam*.json", check_searches),
    ("reorder*.json", check_reordering),
    ("metrics*.json", check_metrics),
]
