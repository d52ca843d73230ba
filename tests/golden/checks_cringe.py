"""Checks of the vectors of the CRINGE paper's code: losses, baselines, metrics, data path."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import companion
from reclaim.cringe.director import director_loss, director_scores
from reclaim.cringe.loss import candidates, cringe_loss, example_metrics, linear_cringe_loss
from reclaim.cringe.unlikelihood import FLOOR, FLOOR_FP16, unlikelihood_loss
from reclaim.cringe.utterances import LABELS as CLASSES
from reclaim.cringe.utterances import (
    Reply,
    balanced_replies,
    is_boring,
    keep_label,
    reply_label,
    split_utterance,
    without_mark,
)
from reclaim.errors import InputError
from reclaim.metrics import dialogue

LOSS, GRADIENT, METRIC = 1e-5, 1e-6, 1e-9  # the vectors' own tolerances
DRAWS = 20_000


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    tensors = path.with_suffix(".safetensors")
    return json.loads(path.read_text(encoding="utf-8")), load_file(tensors) if tensors.exists() else {}


def _tensors(tensors: dict[str, torch.Tensor], case: str) -> dict[str, torch.Tensor]:
    return {name.partition(".")[2]: value for name, value in tensors.items() if name.partition(".")[0] == case}


def _close(found, expected, tolerance: float, place: str) -> None:
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    # The stated tolerance is of values of order one; float32 carries seven digits of larger ones.
    bound = tolerance * expected.abs().clamp(min=1.0)
    assert ((found - expected).abs() <= bound).all(), f"{place}: off by {float((found - expected).abs().max()):.3g}"


# ------------------------------------------------------------------------------------------------------------------ loss


def check_loss(path: Path) -> int:
    content, tensors = _read(path)
    for case in content["cases"]:
        _check_loss_case(case, _tensors(tensors, case["name"]))
    return len(content["cases"])


def _check_loss_case(case: dict, t: dict[str, torch.Tensor]) -> None:
    place, k = case["name"], case["k"]
    logits = t["logits"].clone().requires_grad_()
    settings = {
        "k": k,
        "alpha": case["alpha"],
        "ignore_index": case["ignore_index"],
        "detach_positives": case["detach"],
        "contrast_positives": case["ct_on_pos"],
        "ce_on_positives": case["ce_on_pos"],
    }
    if k < 1:
        with pytest.raises(InputError):
            cringe_loss(logits, t["labels"], t["seq_labels"], **settings)
        return
    vocabulary = logits.shape[-1]
    if "official_raises" in case:  # k + 1 above the vocabulary: clamped here
        assert k > vocabulary - 1, place
        with pytest.warns(UserWarning, match="clamped"):
            ids, _ = candidates(t["logits"], t["labels"].clamp(min=0), k)
        assert ids.shape[1] == vocabulary, place
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            terms = cringe_loss(logits, t["labels"], t["seq_labels"], **settings)
        assert torch.isfinite(terms.loss), place
        return
    quirks = {0: case["ct_on_pos"], 1: True}.get(case["ignore_index"], False)
    terms = cringe_loss(
        logits, t["labels"], t["seq_labels"], **settings,
        positive_ids=t["seeded_pos_id"], official_quirks=quirks, reduction="none",
    )  # fmt: skip
    _close(terms.loss, t["loss"], LOSS, f"{place} loss")
    _close(terms.ce, t["ce"], LOSS, f"{place} ce")
    _close(terms.ct, t["ct"], LOSS, f"{place} ct")
    padding = t["labels"] == case["ignore_index"]
    assert torch.equal(terms.ce_mask, t["ce_mask"] & ~padding), f"{place} ce_mask"
    assert torch.equal(terms.ct_mask, t["ct_mask"] & ~padding), f"{place} ct_mask"
    if not case["ties"]:
        terms.loss.sum().backward()
        _close(logits.grad, t["grad"], GRADIENT, f"{place} gradient")
    _check_candidates(case, t, place)
    _check_draws(t, {**settings, "official_quirks": quirks}, place)
    plain = not (case["ct_on_pos"] or case["detach"] or quirks) and case["ce_on_pos"]
    if plain and not case["ties"]:
        _check_linear(case, t, place)


def _check_candidates(case: dict, t: dict[str, torch.Tensor], place: str) -> None:
    """The distribution over candidates, scattered over the vocabulary, and the contrast of each."""
    labels = t["labels"].clamp(min=0)
    ids, probability = candidates(t["logits"], labels, case["k"])
    if case["ties"]:
        ordered = [values.sort(dim=1).values for values in (probability, t["cand_prob"])]
        _close(*ordered, GRADIENT, f"{place} probabilities")
        return
    spread = [
        torch.zeros_like(t["logits"]).scatter_add(1, where, values)
        for where, values in ((ids, probability), (t["cand_ids"], t["cand_prob"]))
    ]
    _close(*spread, GRADIENT, f"{place} probabilities")


def _check_draws(t: dict[str, torch.Tensor], settings: dict, place: str) -> None:
    """The expectation is exact, and the mean of many draws lies within three standard errors of it, row by row."""
    settings = {**settings, "contrast_positives": False, "detach_positives": False}
    rows = (t["seq_labels"] == 0) & (t["labels"] != settings["ignore_index"])
    if not rows.any():
        return
    logits, labels, polarity = t["logits"][rows], t["labels"][rows], t["seq_labels"][rows]
    exact = cringe_loss(logits, labels, polarity, **settings, expected=True, reduction="none").ct
    _close(exact, t["expected_ct"][rows], LOSS, f"{place} expected contrast")
    per_call = max(1, DRAWS // 20)
    generator = torch.Generator().manual_seed(0)
    many = [part.repeat_interleave(per_call, 0) for part in (logits, labels, polarity)]
    drawn = torch.cat(
        [
            cringe_loss(*many, **settings, generator=generator, reduction="none").ct.view(-1, per_call)
            for _ in range(20)
        ],
        dim=1,
    )
    error = drawn.std(dim=1) / math.sqrt(drawn.shape[1])
    # Three standard errors of each of N rows would be left by chance now and then: five here.
    off = (drawn.mean(dim=1) - exact).abs()
    assert (off <= 5 * error + LOSS).all(), f"{place}: mean of draws off by {float(off.max()):.3g}"


def _check_linear(case: dict, t: dict[str, torch.Tensor], place: str) -> None:
    """Output layer and loss together, with an identity as the layer: same loss, same gradient, whatever the chunk."""
    labels = t["labels"].masked_fill(t["labels"] == case["ignore_index"], -100)
    for chunk_rows in (1, 5, 1000):
        hidden = t["logits"].clone().requires_grad_()
        terms = linear_cringe_loss(
            hidden, torch.eye(hidden.shape[1]), labels, t["seq_labels"],
            k=case["k"], alpha=case["alpha"], positive_ids=t["seeded_pos_id"], chunk_rows=chunk_rows,
        )  # fmt: skip
        _close(terms.loss.detach(), t["loss"].double().sum(), LOSS, f"{place} linear loss")
        terms.loss.backward()
        _close(hidden.grad, t["grad"], GRADIENT, f"{place} linear gradient")


def check_sequences(path: Path) -> int:
    content, tensors = _read(path)
    for case in content["cases"]:
        t = _tensors(tensors, case["name"])
        place = case["name"]
        logits = t["logits"].clone().requires_grad_()
        settings = {"k": case["k"], "alpha": case["alpha"], "ignore_index": content["pad"]}
        settings["ce_on_positives"] = case.get("train_ce_on_positive_examples", True)
        terms = cringe_loss(logits, t["labels"], t["seq_labels"], **settings)
        expected = float(case["loss"])
        terms.loss.backward()
        if math.isnan(expected):  # nothing counts: a loss of 0 that can be trained on
            assert terms.count == 0 and terms.loss == 0 and not logits.grad.any(), place
        else:
            _close(terms.loss.detach(), expected, LOSS, f"{place} loss")
            _close(logits.grad, t["grad"], GRADIENT, f"{place} gradient")
        found = example_metrics(terms, logits.detach(), t["labels"], case["alpha"])
        found = {name: values.tolist() for name, values in found.items()}
        unweighted = (terms.ce + terms.ct).detach().view(t["labels"].shape).sum(1)
        found["ppl_debug"] = (unweighted / torch.tensor(found["total_target_tokens"])).exp().tolist()
        # Positives that have no cross entropy stand under `pos` with nothing counted.
        found["ppl_pos"] = [1.0 if math.isnan(value) else value for value in found["ppl_ce"]]
        for name, values in case["metrics"].items():
            for i, value in enumerate(values):
                if value is None or value == "nan" or (name == "token_acc_pos" and math.isnan(found[name][i])):
                    continue
                _close(found[name][i], float(value), LOSS, f"{place} {name} of sequence {i}")
    return len(content["cases"])


# ------------------------------------------------------------------------------------------------------------- baselines


def check_unlikelihood(path: Path) -> int:
    content, tensors = _read(path)
    for case in content["cases"]:
        t, place = _tensors(tensors, case["name"]), case["name"]
        logits = t["logits"].clone().requires_grad_()
        terms = unlikelihood_loss(
            logits, t["labels"], t["rewards"][:, None] < 0, alpha=case["alpha"], ignore_index=content["pad"],
            training=case["training"], floor=FLOOR_FP16 if case["fp16_clamp"] else FLOOR,
        )  # fmt: skip
        _close(terms.loss.detach(), case["loss"], LOSS, f"{place} loss")
        terms.loss.backward()
        _close(logits.grad, t["grad"], GRADIENT, f"{place} gradient")
        found = {"nll_loss": terms.ce.item(), "ppl": math.exp(terms.ce.item()), "ul_loss": terms.ul.item()}
        for name in found.keys() & case["metrics"].keys():
            _close(found[name], case["metrics"][name], LOSS, f"{place} {name}")
    return len(content["cases"])


def check_director(path: Path) -> int:
    content, tensors = _read(path)
    for case in content["cases"]:
        t, place = _tensors(tensors, case["name"]), case["name"]
        if case["kind"] == "decode":
            _close(director_scores(t["gen"], t["cls"], case["gamma"]), t["scores"], LOSS, place)
            continue
        logits, head = (t[name].clone().requires_grad_() for name in ("gen", "cls"))
        loss = director_loss(
            logits, head, t["labels"], t["seq_labels"], gamma_train=case["train_gamma"], ignore_index=content["pad"],
            norm_coeff=case["norm_coeff"] if case["explicit_norm"] else 0.0, trains_lm=t["train_generator"],
        )  # fmt: skip
        _close(loss.detach(), case["loss"], LOSS, f"{place} loss")
        loss.backward()
        _close(logits.grad, t["grad_gen"], GRADIENT, f"{place} gradient of the language model")
        _close(head.grad, t["grad_cls"], GRADIENT, f"{place} gradient of the head")
    return len(content["cases"])


# ------------------------------------------------------------------------------------------------------ metrics, data path


def check_metrics(path: Path) -> int:
    content, _ = _read(path)
    for case in content["f1"]:
        _check_f1(case)
    guesses = [case["guess"] for case in content["f1"]]
    value, count = dialogue.corpus_f1(guesses, [case["answers"] for case in content["f1"]])
    _close(value, content["corpus_f1"], METRIC, "corpus F1")
    assert count == content["corpus_n"], "number of counted examples"
    given = [guess for guess in guesses if guess is not None]
    for n in (1, 2):
        _close(dialogue.inter_distinct(given, n), content[f"inter_distinct_{n}"], METRIC, f"inter-distinct {n}")
    tasks = content["aggregate"]["tasks_numer_denom"]
    summed = {task: tuple(map(sum, zip(*counts, strict=True))) for task, counts in tasks.items()}
    for how, result in content["aggregate"]["result"].items():
        _close(dialogue.average_perplexity(summed, how), result["ppl"], METRIC, f"{how} perplexity")
        _close(dialogue.average_loss(summed, how), result["loss"], METRIC, f"{how} loss")
        for task, counts in summed.items():
            _close(dialogue.perplexity(*counts), result[f"{task}/ppl"], METRIC, f"{how} {task}")
    judged = content["classifier_accuracy"]
    bad = set(judged["bad_words"])
    for truncate_at, expected in judged["by_truncate_at"].items():
        good, count = dialogue.classifier_accuracy(
            judged["responses"], lambda texts: [not bad & set(text.split()) for text in texts], int(truncate_at)
        )
        assert (good, count) == (expected["numer"], expected["denom"]), f"classifier accuracy at {truncate_at}"
        _close(good / count, expected["classifier_accuracy"], METRIC, f"classifier accuracy at {truncate_at}")
    return len(content["f1"]) + 4 + len(content["aggregate"]["result"]) + len(judged["by_truncate_at"])


def _check_f1(case: dict) -> None:
    place = f"F1 of {case['guess']!r}"
    scores = dialogue.dialogue_f1(case["guess"], case["answers"])
    assert (scores is not None) == case["counted"], place
    if scores is None:
        return
    for name in ("precision", "recall", "f1"):
        _close(scores[name], case[name], METRIC, f"{place} {name}")
    assert dialogue.normalize_answer(case["guess"]) == case["normalized_guess"], place
    assert [dialogue.normalize_answer(text) for text in case["answers"]] == case["normalized_answers"], place
    assert dialogue.exact_match(case["guess"], case["answers"]) == case["exact"], place
    for n in (1, 2):
        _close(dialogue.intra_distinct(case["guess"], n), case[f"intra_distinct_{n}"], METRIC, f"{place} distinct {n}")


def check_iterative(path: Path) -> int:
    content, _ = _read(path)
    for case in content["filter"]:
        turns = [pair for log in case["input"] for pair in log["dialog"]]
        replies = [Reply(prompt["text"], answer["text"], reply_label(answer["metrics"])) for prompt, answer in turns]
        for seed in (None, 0, 1):
            kept = sorted(f"{reply.context} -> {reply.response}" for reply in balanced_replies(replies, seed))
            assert kept == case["kept_sorted"], f"{case['name']}: {kept}"
        assert len(kept) == case["n_kept"], case["name"]
    for case in content["label_mapping"]:
        label = reply_label(case["metrics"])
        assert label == case["result"].get("classifier_label"), case
        assert without_mark(f"{case['result']['text']} _POTENTIALLY_UNSAFE__") == case["result"]["text"], case
    return len(content["filter"]) + len(content["label_mapping"])


def check_mutators(path: Path) -> int:
    content, _ = _read(path)
    ways = {"LTR_EMPTY": "empty", "LTR_COPY": "copy", "LTR": "drop"}
    for case in content["cases"]:
        (utterance,) = case["input"]
        text, label = utterance["text"], CLASSES[utterance["labels"][0]]
        assert label == case["relabel"][0]["labels"][0], case
        for name, one_line in ways.items():
            reply = split_utterance(text, label, one_line)
            expected = [(row["text"], row["labels"][0], row["classifier_label"]) for rows in case[name] for row in rows]
            assert ([tuple(reply)] if reply else []) == expected, f"{name} of {text!r}"
        row = Reply("", text, label)
        for name in ("neg", "pos"):
            kept = [row["text"] for rows in case[f"{name}_only"] for row in rows]
            assert [reply.response for reply in keep_label([row], name)] == kept, f"{name}_only of {text!r}"
        kept = [row["text"] for rows in case["filter_want_to_talk"] for row in rows]
        assert ([] if is_boring(text) else [text]) == kept, f"filter_want_to_talk of {text!r}"
    return len(content["cases"])


CHECKS = [
    ("cringe_loss.json", check_loss),
    ("cringe_agent_loss.json", check_sequences),
    ("unlikelihood_loss.json", check_unlikelihood),
    ("director.json", check_director),
    ("metrics.json", check_metrics),
    ("iterative.json", check_iterative),
    ("mutators.json", check_mutators),
    ("*.safetensors", companion),
]
