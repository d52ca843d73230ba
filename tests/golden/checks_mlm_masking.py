"""Checks of the vectors of DinkyTrain (fairseq) and SpanBERT; see the README beside the vectors."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from harness import companion
from reclaim import fairseq, pmi
from reclaim.blocks import token_blocks
from reclaim.masking import Masker, draw_spans, span_lengths
from reclaim.masking_legacy import mask_fairseq, mask_spanbert, numpy_seed
from reclaim.metrics import classification
from reclaim.optim.fairseq_adam import FairseqAdam
from reclaim.schedules import polynomial_decay, schedule

SPECIAL_IDS = (0, 1, 2, 3)


def _read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def check_numpy_seed(path: Path) -> int:
    vectors = _read(path)
    for case in vectors["cases"]:
        assert numpy_seed(case["seed"], case["epoch"], case["index"]) == case["numpy_seed"], case
    checked = len(vectors["cases"])
    if "distinct_numpy_seeds_of_100000_items" in vectors:
        first = vectors["cases"][0]
        seeds = [numpy_seed(first["seed"], first["epoch"], index) for index in range(100_000)]
        assert len(set(seeds)) == vectors["distinct_numpy_seeds_of_100000_items"], len(set(seeds))
        _close(np.mean(np.array(seeds) % 64 == 0), vectors["all_multiples_of_64_share"], 1e-9, "multiples of 64")
        checked += 2
    return checked


def check_fairseq_masking(path: Path) -> int:
    vectors = _read(path)
    checked = 0
    for case in vectors["cases"]:
        assert case["error"] is None, case["error"]
        options = dict(case["args"])
        weighted = options.pop("freq_weighted_replacement", False)
        weights = np.array(vectors["counts_random_freq"] if weighted else np.ones(vectors["vocab_size"]), dtype=float)
        weights[list(SPECIAL_IDS)] = 0
        if options.pop("mask_whole_words", False):
            options["word_start"] = vectors["word_begin_by_id"]
        for i, item in enumerate(case["items"]):
            source, target = mask_fairseq(
                item,
                case["numpy_seeds"][i],
                mask_prob=case["mask_prob"],
                mask_id=vectors["specials"]["mask"],
                pad_id=vectors["specials"]["pad"],
                random_weights=weights,
                **options,
            )
            place = f"{case['name']} at {case['mask_prob']}, item {i}"
            assert source.tolist() == case["source"][i], f"source of {place}"
            assert target.tolist() == case["target"][i], f"target of {place}"
            checked += 1
    return checked


def check_spanbert_masking(path: Path) -> int:
    vectors = _read(path)
    lengths = span_lengths(vectors["geometric_p"], vectors["span_upper"])
    np.testing.assert_allclose(lengths, vectors["length_distribution"], atol=1e-12)
    assert abs(lengths @ np.arange(1, len(lengths) + 1) - vectors["mean_length"]) < 1e-9
    for i, case in enumerate(vectors["cases"]):
        source, target, drawn, merged = mask_spanbert(
            case["sentence"],
            case["numpy_seed"],
            ratio=case["ratio"],
            length_distribution=vectors["length_distribution"],
            random_token_pool=vectors["random_token_pool"],
            mask_id=vectors["mask_id"],
            pad_id=vectors["pad"],
            per_span=case["replacement"] == "span",
            word_start=vectors["word_begin_by_id"] if case["word_flags"] == "pieces" else None,
        )
        assert source.tolist() == case["source"], f"source of case {i}"
        assert target.tolist() == case["target"], f"target of case {i}"
        assert drawn == case["spans_drawn"], f"spans of case {i}"
        assert merged == case["merged_spans"], f"merged spans of case {i}"
    return len(vectors["cases"])


# --- masking_stats.json: our own stream against the statistics of the official programs

REPLACEMENTS = {
    "80_10_10": (0.8, 0.1, 0.1),
    "same_only": (0.875, 0.0, 0.125),
    "random_only": (0.875, 0.125, 0.0),
}
# As many times the sequences of the file, so that most of the sampling error is the file's.
OVERSAMPLING = 2


def _run_lengths(chosen: np.ndarray) -> np.ndarray:
    """Histogram of the lengths of runs of True in the rows, index = length."""
    edges = np.diff(np.pad(chosen.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    return np.bincount(lengths)


def _compare_histogram(ours: np.ndarray, expected: dict[str, int], scale: float, place: str) -> None:
    for length, count in expected.items():
        if count >= 500:
            ours_scaled = (ours[int(length)] if int(length) < len(ours) else 0) / scale
            # 8 %, or 3.5 standard errors of the two counts where the file's own error is larger than that.
            tolerance = max(0.08, 3.5 * math.sqrt((1 + 1 / scale) / count))
            assert abs(ours_scaled / count - 1) < tolerance, f"{place}: runs of {length}: {ours_scaled} against {count}"


def check_masking_stats(path: Path) -> int:
    vectors = _read(path)
    rows, length, vocab_size = vectors["sequences"] * OVERSAMPLING, vectors["length"], 65
    weights = 1 / np.arange(1, 61)
    tokens = 4 + np.random.RandomState(5).choice(60, size=(rows, length), p=weights / weights.sum())
    tokens[:, 0] = 0
    input_ids = torch.from_numpy(tokens)
    # The vocabulary of the companion vectors: from 6 on every third id continues a word, the mask token does not.
    word_start = [not (i >= 6 and i % 3 == 0 and i != vocab_size - 1) for i in range(vocab_size)]
    for stats in vectors["stats"]:
        program, name = stats["scheme"].split(":")
        place = f"{stats['scheme']} at {stats['mask_prob']}"
        ids, scheme, options, spans = input_ids, "uniform", {}, None
        if program == "spanbert":
            ids, scheme, options["replacement"] = input_ids[:, 1:], "span", "80-10-10"
            options["word_start"] = word_start if name == "pieces" else None
        elif name.startswith("whole_word"):
            scheme, options["word_start"] = "whole_word", word_start
        if name.startswith("fixed_length"):
            inputs, labels = _fixed_length(tokens[: vectors["sequences"]], stats, int(name.rpartition("_")[2]))
            ids = input_ids[: vectors["sequences"]]
        else:
            if program == "fairseq":
                options["replacement"] = REPLACEMENTS.get(name.removeprefix("whole_word_"), "mask")
            masker = Masker(
                scheme,
                stats["mask_prob"],
                seed=11,
                vocab_size=vocab_size,
                mask_token_id=vocab_size - 1,
                # SpanBERT never draws the mask token, fairseq may.
                special_ids=SPECIAL_IDS if program == "fairseq" else (*SPECIAL_IDS, vocab_size - 1),
                **options,
            )
            # In pieces that fit the processor's cache; the result is that of one batch.
            pieces = [masker.mask(ids[i], 0, i) for i in torch.arange(rows).split(500)]
            inputs = torch.cat([piece.input_ids for piece in pieces]).numpy()
            labels = torch.cat([piece.labels for piece in pieces]).numpy()
            if program == "spanbert":
                spans = _span_tokens(ids, stats["mask_prob"], masker)
        ids = ids.numpy()
        predicted = labels != -100
        # fairseq's random ids may be the mask token; a random hit on the true token counts as "same" in the file.
        rates = {
            "predicted_rate": predicted.mean(),
            "mask_rate": (predicted & (inputs == vocab_size - 1)).mean(),
            "same_rate": (predicted & (inputs == ids)).mean(),
            "random_rate": (predicted & (inputs != ids) & (inputs != vocab_size - 1)).mean(),
        }
        for rate, value in rates.items():
            assert abs(value - stats[rate]) < 0.0025, f"{place}: {rate} {value} against {stats[rate]}"
        # The rate at one position has the error of as many coins as there are sequences: four standard errors.
        first = stats["first_position_predicted_rate"]
        error = 4 * math.sqrt(first * (1 - first) * (1 / len(ids) + 1 / vectors["sequences"]))
        assert abs(predicted[:, 0].mean() - first) < error, f"{place}: first position {predicted[:, 0].mean()}"
        counts, expected = predicted.sum(1), stats["predicted_per_sequence"]
        assert abs(counts.mean() - expected["mean"]) < 0.3, f"{place}: {counts.mean()} a sequence"
        assert abs(counts.var() - expected["var"]) < 0.01 + 0.08 * expected["var"], f"{place}: variance {counts.var()}"
        _compare_histogram(
            _run_lengths(predicted), stats["run_length_histogram"], len(ids) / vectors["sequences"], place
        )
        if spans is not None:
            mean = stats["mean_span_tokens_before_merge"]
            assert abs(spans.mean() / mean - 1) < 0.02, f"{place}: mean span {spans.mean()} against {mean}"
            histogram = stats["span_token_length_histogram_before_merge"]
            _compare_histogram(np.bincount(spans), histogram, OVERSAMPLING, place + ", spans")
    return len(vectors["stats"])


def _fixed_length(tokens: np.ndarray, stats: dict, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiple lengths exist in fairseq's legacy stream only; one generator a sequence."""
    pairs = [
        mask_fairseq(
            item,
            seed,
            mask_prob=stats["mask_prob"],
            mask_id=64,
            pad_id=-100,
            random_weights=[0, 0, 0, 0] + [1] * 61,
            mask_multiple_length=length,
        )
        for seed, item in enumerate(tokens)
    ]
    return np.stack([source for source, _ in pairs]), np.stack([target for _, target in pairs])


def _span_tokens(ids: torch.Tensor, rate: float, masker: Masker) -> np.ndarray:
    """Tokens of each span as drawn."""
    budget, generator, tokens = math.ceil(rate * ids.shape[1]), torch.Generator().manual_seed(3), []
    for piece in ids.split(500):
        begins = None if masker.word_start is None else masker.word_start[piece]
        draws = torch.rand(len(piece), 2 * budget, dtype=torch.float64, generator=generator)
        free = torch.ones_like(piece, dtype=torch.bool)
        _, spans = draw_spans(free, begins, torch.full((len(piece),), budget), masker.span_cdf, draws)
        tokens.append((spans[..., 1] - spans[..., 0] + 1)[spans[..., 1] >= 0].numpy())
    return np.concatenate(tokens)


# --- pmi.json


def check_pmi(path: Path) -> int:
    vectors = _read(path)
    checked = 0
    for name in [key for key in vectors if key.startswith("hand")]:
        counts = pmi.count_ngrams(vectors[name]["sentences"], count_above=0)
        plain, listed = (pmi.score_ngrams(counts, power).set_index("ngram") for power in (1, 2))
        for row in vectors[name]["scores"]:
            ngram = " ".join(row["ngram"])
            assert plain.loc[ngram, "count"] == row["count"], f"{name}: count of {ngram}"
            _close(plain.loc[ngram, "score"], row["pmi"], 1e-9, f"{name}: {ngram}")
            _close(listed.loc[ngram, "score"], row["pmi_list_variant"], 1e-9, f"{name}: {ngram}, list variant")
            checked += 1
    counts = pmi.count_ngrams([line.split() for line in vectors["corpus"]], count_above=vectors["min_count_exclusive"])
    assert {str(n): total for n, total in counts.totals.items()} == vectors["totals"], counts.totals
    scores = {power: pmi.score_ngrams(counts, power) for power in (1, 2)}
    assert len(scores[1]) == len(vectors["scored"]), f"{len(scores[1])} n-grams against {len(vectors['scored'])}"
    by_ngram = {power: frame.set_index("ngram") for power, frame in scores.items()}
    for row in vectors["scored"]:
        assert by_ngram[1].loc[row["ngram"], "count"] == row["count"], f"count of {row['ngram']}"
        _close(by_ngram[1].loc[row["ngram"], "score"], row["pmi"], 1e-9, row["ngram"])
        _close(by_ngram[2].loc[row["ngram"], "score"], row["pmi_list_variant"], 1e-9, row["ngram"] + ", list variant")
        checked += 1
    shares = {int(n): share for n, share in vectors["shares"].items()}
    for power, key in ((1, "vocab"), (2, "vocab_list_variant")):
        vocabulary = pmi.build_vocabulary(scores[power], vectors["vocab_size"], shares)
        for n, expected in vectors[key].items():
            found = vocabulary.loc[vocabulary["length"] == int(n), "ngram"].tolist()
            assert found == expected, f"{key}, length {n}: {found} against {expected}"
            checked += 1
    return checked + _check_units(vectors, pmi.build_vocabulary(scores[1], vectors["vocab_size"], shares))


def _check_units(vectors: dict, vocabulary: pd.DataFrame) -> int:
    number_of: dict[str, int] = {}

    def encode(text: str) -> list[int]:
        return [number_of.setdefault(word, len(number_of)) for word in text.split()]

    matcher = pmi.UnitMatcher.from_vocabulary(vocabulary, encode)
    for case in vectors["units_leftmost_tie_rule"]:
        words = torch.tensor([encode(" ".join(case["words"]))])
        starts = matcher.unit_starts(words, None, torch.arange(words.shape[1], 0, -1)[None])[0].tolist()
        edges = [*sorted(set(starts)), len(starts)]
        units = [[start, end] for start, end in zip(edges, edges[1:], strict=False)]
        assert units == case["units"], f"{case['words']}: {units} against {case['units']}"
    return len(vectors["units_leftmost_tie_rule"])


def _close(found: float, expected: float, tolerance: float, place: str) -> None:
    assert abs(found - expected) <= tolerance, f"{place}: {found} against {expected}"


# --- blocks, optimiser, checkpoints, metrics


def check_token_blocks(path: Path) -> int:
    vectors = _read(path)
    for case in vectors["cases"]:
        blocks = token_blocks(vectors["sentences"], case["block_size"], case["break_mode"], bos=0)
        found = [block.tolist() for block in blocks]
        assert found == case["blocks"], f"{case['break_mode']}, size {case['block_size']}: {found}"
    return len(vectors["cases"])


def check_optim(path: Path) -> int:
    vectors = _read(path)
    adam = vectors["adam"]
    parameter = torch.nn.Parameter(torch.tensor(adam["params"][0]))
    optimizer = FairseqAdam(
        [parameter], lr=adam["lr"], betas=tuple(adam["betas"]), eps=adam["eps"], weight_decay=adam["weight_decay"]
    )
    for step, (grad, expected) in enumerate(zip(adam["grads"], adam["params"][1:], strict=True)):
        parameter.grad = torch.tensor(grad)
        optimizer.step()
        difference = (parameter.detach() - torch.tensor(expected)).abs().max().item()
        assert difference <= 2e-6, f"Adam, step {step + 1}: {difference}"
    checked = len(adam["grads"])
    for case in vectors["polynomial_decay"]:
        place = f"schedule of {case['total']} updates"
        rate = schedule("linear", case["peak"], case["total"], case["warmup"])
        _close(rate(0), case["lr_before_first_update"], 1e-12, place + ", first")
        for updates, expected in case["lr_after_update"].items():
            updates = int(updates)
            _close(polynomial_decay(updates, case["peak"], case["total"], case["warmup"]), expected, 1e-12, place)
            if updates > 0:
                _close(rate(updates), expected, 1e-12, f"{place}, update {updates}")
            checked += 1
    return checked


def check_tiny_preln(path: Path) -> int:
    import reclaim.torchvision_shim  # noqa: F401
    from transformers import (
        RobertaPreLayerNormConfig,
        RobertaPreLayerNormForMaskedLM,
        RobertaPreLayerNormForSequenceClassification,
    )

    vectors = _read(path)
    size = vectors["config"]
    state = load_file(path.with_name(f"{path.stem}_fairseq.safetensors"))
    for name, shape in vectors["fairseq_keys"].items():
        if name in state:
            assert list(state[name].shape) == shape, name
    config = RobertaPreLayerNormConfig(
        vocab_size=size["vocab_size"],
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=size["ffn"],
        max_position_embeddings=size["position_table_rows"],
        layer_norm_eps=size["layer_norm_eps"],
        type_vocab_size=1,
        num_labels=len(vectors["class_logits"][0]),
    )
    input_ids, target = torch.tensor(vectors["input_ids"]), torch.tensor(vectors["target"])
    attention_mask = input_ids != 1
    model = RobertaPreLayerNormForMaskedLM(config).eval()
    renamed = fairseq.from_fairseq(state)
    problems = model.load_state_dict(renamed, strict=False)
    assert not problems.unexpected_keys and not problems.missing_keys, problems
    back = fairseq.to_fairseq(renamed)
    assert set(back) - set(state) <= {"encoder.lm_head.weight"}, set(back) - set(
        state
    )  # tied, so the file may leave it out
    for name, tensor in state.items():
        if not name.startswith("classification_heads.") and not name.endswith(".version"):
            assert torch.equal(back[name], tensor), f"{name} on the way back"

    classifier = RobertaPreLayerNormForSequenceClassification(config).eval()
    head = next(name.split(".")[1] for name in state if name.startswith("classification_heads."))
    classifier.load_state_dict(fairseq.from_fairseq(state, classification_head=head), strict=True)
    with torch.no_grad():
        hidden = model.roberta_prelayernorm(input_ids, attention_mask)[0]
        logits = model.lm_head(hidden)
        at_targets = model.lm_head(hidden[target != 1])
        classes = classifier(input_ids, attention_mask).logits
    _close_tensors(logits[attention_mask], torch.tensor(vectors["logits"])[attention_mask], "logits")
    _close_tensors(at_targets, torch.tensor(vectors["logits_at_targets_only"]), "logits at targets")
    _close_tensors(classes, torch.tensor(vectors["class_logits"]), "class logits")
    loss = torch.nn.functional.cross_entropy(at_targets, target[target != 1], reduction="sum").item()
    number = int((target != 1).sum())
    assert number == vectors["sample_size"]
    _close(loss, vectors["loss_sum"], 2e-4 * number, "loss sum")
    _close(loss / number, vectors["loss_mean_nats"], 2e-4, "mean loss")
    _close(loss / number / math.log(2), vectors["loss_logged_base2"], 3e-4, "loss in bits")
    _close(2 ** (loss / number / math.log(2)) / vectors["ppl_logged"], 1, 3e-4, "perplexity")
    nothing = model.lm_head(hidden[torch.zeros_like(attention_mask)])
    empty = torch.nn.functional.cross_entropy(nothing, target[:0, 0], reduction="sum").item()
    assert (empty, len(nothing)) == (vectors["no_target"]["loss_sum"], vectors["no_target"]["sample_size"])
    return len(input_ids) * 3 + 2


def _close_tensors(found: torch.Tensor, expected: torch.Tensor, place: str) -> None:
    difference = (found - expected).abs().max().item()
    assert difference <= 2e-4, f"{place}: differ by {difference}"


def check_deepspeed_keys(path: Path) -> int:
    vectors = _read(path)
    found = fairseq.from_deepspeed_kernel({k: torch.tensor(v) for k, v in vectors["kernel_checkpoint"].items()})
    expected = vectors["fairseq_checkpoint"]
    assert set(found) == set(expected), set(found) ^ set(expected)
    for name, values in expected.items():
        assert found[name].tolist() == values, name
    return len(expected)


def _official(numerator: float, denominator: float) -> float | str:
    """The official code rounds to three digits and gives infinity for an empty denominator."""
    return round(numerator / denominator, 3) if denominator else "inf"


def check_glue_metrics(path: Path) -> int:
    vectors = _read(path)
    for case in vectors["binary"]:
        predictions, labels = case["pred"], case["label"]
        pairs = list(zip(predictions, labels, strict=True))
        tp, fp, tn, fn = (sum(pair == kind for pair in pairs) for kind in ((1, 1), (1, 0), (0, 0), (0, 1)))
        assert [tp, fp, tn, fn] == case["tp_fp_tn_fn"]
        scores = {
            "accuracy": classification.accuracy(predictions, labels),
            "f1": classification.f1(predictions, labels),
            "mcc": classification.matthews(predictions, labels),
        }
        for name, score in scores.items():
            _close(score.value, case[name], 1e-9, f"{name} of {predictions}")
        official = case["official_rounded_3"]
        assert official["precision"] == _official(tp, tp + fp) and official["recall"] == _official(tp, tp + fn)
        # The official code has no F1 as soon as precision or recall has none.
        f1 = round(scores["f1"].value, 3) if tp + fp and tp + fn else "inf"
        assert official["f1"] == f1, f"official F1 of {predictions}"
        matthews = "inf" if scores["mcc"].degenerate else round(scores["mcc"].value, 3)
        assert official["matthews"] == matthews, f"official Matthews of {predictions}"
    for case in vectors["regression"]:
        scores = classification.glue_metrics("stsb", case["pred"], case["label"])
        _close(scores["pearson"].value, case["pearson"], 1e-9, "Pearson")
        _close(scores["spearman"].value, case["spearman"], 1e-9, "Spearman")
        _close(scores["pearson_spearman"].value, case["glue_stsb"], 1e-9, "STS-B")
    constant = classification.glue_metrics("stsb", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    for official, name in zip(vectors.get("constant_predictions_official", []), ("pearson", "spearman"), strict=False):
        assert official == "nan" and constant[name] == (0.0, True), constant
    return len(vectors["binary"]) + len(vectors["regression"]) + len(vectors.get("constant_predictions_official", []))


CHECKS = [
    ("numpy_seed*.json", check_numpy_seed),
    ("fairseq_masking*.json", check_fairseq_masking),
    ("spanbert_masking*.json", check_spanbert_masking),
    ("masking_stats*.json", check_masking_stats),
    ("pmi*.json", check_pmi),
    ("token_blocks*.json", check_token_blocks),
    ("optim*.json", check_optim),
    ("tiny_preln*.json", check_tiny_preln),
    ("tiny_preln*.safetensors", companion),
    ("deepspeed_keys*.json", check_deepspeed_keys),
    ("glue_metrics*.json", check_glue_metrics),
]
