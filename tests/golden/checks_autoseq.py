"""Checks of the AutoSeq vectors (thunlp/Seq2Seq-Prompt)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from harness import companion
from reclaim.autoseq.decoding import ClassDecoder
from reclaim.autoseq.prompts import Prompt, Sentinels, encode_prompt, label_ids, target_ids, task_prompts
from reclaim.autoseq.search import Constraints, SearchSettings, label_sequences, label_words, search
from reclaim.autoseq.selection import STS_B_BORDER, grid_report, official_split, rank_by_dev, task_metrics
from reclaim.autoseq.tuning import class_scores, regression_loss, regression_predictions, target_logits
from reclaim.models import load, load_tokenizer
from reclaim.prompting.tokens import text_ids

SOFT_TOKENS_FROM = 32000  # the official number of the first new token


def _cases(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def _tokenizer(folder: Path):
    return load_tokenizer(folder / "tiny_tokenizer")


@cache
def _model(folder: Path, name: str):
    model = load(folder / name, "seq2seq")
    # A v1.1 model: a head of its own, and no scaling of the output.
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr(), f"{name}: the head is tied"
    assert not torch.equal(model.lm_head.weight, model.shared.weight), f"{name}: the head is the embedding"
    assert not model.config.scale_decoder_outputs, f"{name}: the output is scaled"
    return model


def _prompts(path: Path, template: str, examples) -> list[list[int]]:
    return [encode_prompt(_tokenizer(path.parent), template, texts).input_ids for texts in examples]


def check_prompts(path: Path) -> int:
    tokenizer, cases = _tokenizer(path.parent), _cases(path)
    for case in cases:
        args = case.get("args", {})
        prompt = encode_prompt(tokenizer, case["template"], case["sentences"], **args, require_sentinel=False)
        ids, pad = prompt.input_ids, tokenizer.pad_token_id
        soft = {new: old for old, new in case.get("soft_tokens(origin,new)", [])}
        places = [place for place, token in enumerate(case["ids"]) if token >= SOFT_TOKENS_FROM]
        if soft:
            assert prompt.literals == places, f"{case}: literal text at {prompt.literals}"
        wanted = [soft.get(token, token) for token in case["ids"]]
        if "mask" in case:
            mask = [1] * len(ids) + [0] * (len(case["mask"]) - len(ids))
            assert mask == case["mask"], f"{case}: mask {mask}"
            ids = ids + [pad] * (len(wanted) - len(ids))
        assert ids == wanted, f"{case}: found {ids}"
    return len(cases)


def _same_candidates(found, case, tolerance: float) -> None:
    assert len(found) >= len(case["out"]), f"{len(found)} candidates, not {len(case['out'])}"
    for rank, (ours, theirs) in enumerate(zip(found, case["out"], strict=False)):
        assert list(ours.ids) == theirs["ids"], f"rank {rank}: {ours}, not {theirs}"
        np.testing.assert_allclose(ours.probability, theirs["prob"], rtol=tolerance, err_msg=f"rank {rank}")


def check_candidates(path: Path) -> int:
    """The whole beam: ids in order, probabilities; and one encoder pass in place of one for each hypothesis and step."""
    cases = _cases(path)
    for case in cases:
        inputs = _prompts(path, case["template"], case["examples"])
        assert inputs == case["input_ids"], f"inputs of {case['template']}"
        decoder = ClassDecoder(_model(path.parent, case["model"]), inputs)
        options = {"max_length": case["kwargs"]["length_limit"]} if "length_limit" in case["kwargs"] else {}
        assert set(case["kwargs"]) <= {"length_limit"}, f"unknown settings {case['kwargs']}"
        tokenizer = _tokenizer(path.parent)
        found = label_sequences(decoder, tokenizer, Constraints.official(), beam=case["beam"], **options)
        assert len(found) == len(case["out"])
        _same_candidates(found, case, 1e-4)
        assert decoder.encoder_calls == -(-len(inputs) // 16)
    return len(cases)


def check_label_words(path: Path) -> int:
    cases = _cases(path)
    for case in cases:
        decoder = ClassDecoder(_model(path.parent, case["model"]), _prompts(path, case["template"], case["examples"]))
        tokenizer = _tokenizer(path.parent)
        found = label_words(
            decoder, tokenizer, Constraints.official(), beam=case["beam"], num_candidates=len(case["out"])
        )
        _same_candidates(found, case, 1e-4)
    return len(cases)


def check_sequence_probabilities(path: Path) -> int:
    """All texts of one model and set of examples in one call, as the search asks for them."""
    cases, groups = _cases(path), {}
    for case in cases:
        groups.setdefault((case["model"], case["template"], json.dumps(case["examples"])), []).append(case)
    tokenizer = _tokenizer(path.parent)
    sentinels = Sentinels.of(tokenizer)
    for (model, template, examples), same in groups.items():
        decoder = ClassDecoder(_model(path.parent, model), _prompts(path, template, json.loads(examples)))
        targets = [[sentinels.first, *text_ids(tokenizer, case["text"]), sentinels.end] for case in same]
        assert targets == [case["target_ids"] for case in same], f"targets of {[case['text'] for case in same]}"
        wanted = np.log([case["prob"] for case in same])
        np.testing.assert_allclose(decoder.sequence_log_probabilities(targets), wanted, atol=1e-3, rtol=0)
    return len(cases)


def check_search(path: Path) -> int:
    cases, prompts = _cases(path), task_prompts()
    for case in cases:
        by_class: dict[str, list] = {}
        template = case.get("template") or prompts[case["task"]]["generation"]["template"]
        # The classes in the order of the official search, which is that of `ranked`.
        for label in case["ranked"]:
            by_class[label] = [row["text"] for row in case["train"] if row["label"] == label]
        inputs = {label: _prompts(path, template, rows) for label, rows in by_class.items()}
        words = case["kind"] == "words"
        # The official tool lets 20 candidates a class enter, of TREC 10.
        per_class = 10 if case["task"].lower() == "trec" else 20
        settings = SearchSettings(beam=case["beam"], per_class=per_class, num_combinations=len(case["combinations"]))
        result = search(
            _model(path.parent, case["model"]), _tokenizer(path.parent), inputs, settings,
            words=words, constraints=Constraints.official(),
        )  # fmt: skip
        place = f"{case['task']}, {case['kind']}"
        for label, wanted in case["ranked"].items():
            found = result.candidates[result.candidates["class"] == label]
            for rank, (text, score, *ids) in enumerate(wanted):
                ours = found.iloc[rank]
                if rank < 20:
                    assert ours["text"] == text, f"{place}, {label}, rank {rank}: {ours['text']!r}, not {text!r}"
                    assert not ids or ours["ids"] == ids[0], f"{place}, {label}, rank {rank}: ids {ours['ids']}"
                tolerance = {"rtol": 1e-3, "atol": 1e-10} if words else {"rtol": 0, "atol": 2e-6}
                np.testing.assert_allclose(ours["score"], score, **tolerance, err_msg=f"{place}, {label}, {rank}")
        assert result.combinations == case["combinations"], f"{place}: combinations {result.combinations}"
    return len(cases)


def check_class_scores(path: Path) -> int:
    cases, tokenizer = _cases(path), _tokenizer(path.parent)
    for case in cases:
        model = _model(path.parent, case["model"])
        assert [label_ids(tokenizer, text) for text in case["label_sequences"]] == case["label_ids"]
        targets = [target_ids(tokenizer, text) for text in case["label_sequences"]]
        lengths = [sum(mask) for mask in case["attention_mask"]]
        inputs = [Prompt(ids[:length], []) for ids, length in zip(case["input_ids"], lengths, strict=True)]
        scores = class_scores(model, inputs, targets)
        if "regression_bounds" in case:
            low, high = case["regression_bounds"]
            found = regression_predictions(scores, low, high)
            np.testing.assert_allclose(found, np.ravel(case["prediction"]), atol=2e-4, rtol=0)
            labels = torch.tensor(case["labels"], dtype=torch.float64)
            loss = regression_loss(torch.from_numpy(scores), labels, low, high, official=True)
            np.testing.assert_allclose(loss.item(), case["kl_loss"], rtol=1e-4)
            continue
        tolerance = {"atol": 2e-4, "rtol": 0} if case["model"] == "tiny_trained" else {"rtol": 1e-5}
        np.testing.assert_allclose(scores, case["class_scores"], **tolerance)
        loss = F.cross_entropy(torch.from_numpy(scores), torch.tensor(case["labels"]))
        np.testing.assert_allclose(loss.item(), case["eval_ce_loss"], rtol=1e-4)
        with torch.no_grad():
            logits, labels = target_logits(model, inputs, [targets[y] for y in case["labels"]])
        loss = F.cross_entropy(logits.transpose(1, 2), labels)
        np.testing.assert_allclose(loss.item(), case["train_lm_loss(no dropout)"], rtol=1e-4)
    return len(cases)


def check_kshot(path: Path) -> int:
    expected = json.loads(path.read_text(encoding="utf-8"))
    for case in expected["cases"]:
        task, k, seed = case["task"], case["k"], case["seed"]
        labels = expected["labels_of_rows"][task]
        if task == "STS-B":
            labels = [float(label) < STS_B_BORDER for label in labels]
        in_place = task == "CoLA" or case["format"] == "jsonl"
        order = case["seed_list_in_run_order"]
        before = order[: order.index(seed)] if in_place else []
        n_dev = 10 * k if case["mode"].endswith("10x") else k
        train, dev = official_split(labels, k, seed, seeds_before=before, n_dev=n_dev)
        found = (train.tolist(), dev.tolist())
        assert found == (case["train_rows"], case["dev_rows"]), f"{task}, {case['mode']}, seed {seed}: {found}"
    return len(expected["cases"])


def check_metrics(path: Path) -> int:
    cases = _cases(path)
    for case in cases:
        groups = [tuple(guid) for guid in case["guids"]] if "guids" in case else None
        found = task_metrics(case["task"], case["preds"], case["labels"], groups)
        assert set(found) == set(case["out"]), f"{case['task']}: {found}"
        for name, value in case["out"].items():
            assert abs(found[name] - value) < 1e-9, f"{case['task']}: {name} {found[name]}, not {value}"
    return len(cases)


def check_rerank(path: Path) -> int:
    expected = json.loads(path.read_text(encoding="utf-8"))
    runs: dict[str, list] = {}
    for entry in expected["mapping_log"]:
        runs.setdefault(str(entry["seed"]), []).append((entry["mapping_id"], _score(entry, "_dev_")))
    for seed, wanted in expected["sorted_mapping_ids"].items():
        assert rank_by_dev(runs[seed]) == wanted, f"seed {seed}: {rank_by_dev(runs[seed])}"
    trials = [{"seed": e["seed"], "dev": _score(e, "_dev_"), "test": _score(e, "_test_")} for e in expected["grid_log"]]
    found = grid_report(trials, "dev", "test")
    line = f"mean +- std: {found['mean']:.1f} ({found['std']:.1f}) (median {found['median']:.1f})"
    assert line == expected["grid_report_last_line"], line
    return len(expected["sorted_mapping_ids"]) + 1


def _score(entry: Mapping, part: str) -> float:
    return next(value for name, value in entry.items() if part in name)


# The official search reads the sentences of these tasks in another order than training: its number -> ours.
SEARCH_SENTENCES = {"BoolQ": {"0": "1", "1": "0"}, "COPA": {"0": "2", "1": "3", "2": "0", "3": "1"}}
# Official numbers of TREC's classes; the words of `manual_eng` are those of LM-BFF, whose rows begin with descriptions.
TREC = ("abbreviation", "entity", "description", "human", "location", "number")
TREC_OF_LM_BFF = ("description", "entity", "abbreviation", *TREC[3:])


def check_task_prompts(path: Path) -> int:
    """The shipped prompts of every task and form, but for numbers of sentences and classes; a form is one case."""
    shipped, cases = task_prompts(), 0
    for task, forms in json.loads(path.read_text(encoding="utf-8")).items():
        for form, keys in forms.items():
            if form == "generation":
                order = SEARCH_SENTENCES.get(task, {})
                keys["template"] = re.sub(
                    r"(?<=_)\d(?=\*)", lambda number, order=order: order.get(number[0], number[0]), keys["template"]
                )
            if task == "trec" and "labels" in keys:
                names = TREC_OF_LM_BFF if form == "manual_eng" else TREC
                keys["labels"] = {names[int(number)]: word for number, word in keys["labels"].items()}
            assert shipped.get(task, {}).get(form) == keys, f"{task}, {form}: {shipped.get(task, {}).get(form)}"
            cases += 1
    return cases


CHECKS = [
    ("tiny_*/*", companion),
    ("prompts*.json", check_prompts),
    ("candidates*.json", check_candidates),
    ("label_words*.json", check_label_words),
    ("sequence_prob*.json", check_sequence_probabilities),
    ("search*.json", check_search),
    ("class_scores*.json", check_class_scores),
    ("kshot*.json", check_kshot),
    ("metrics*.json", check_metrics),
    ("rerank*.json", check_rerank),
    ("task_prompts*.json", check_task_prompts),
    # Published development scores to compare with; nothing here computes them.
    ("released_dev_scores*.json", companion),
]
