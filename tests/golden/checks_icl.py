"""Checks of the vectors of the in-context study: templates, draws, prompts, scores, metrics."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from harness import companion
from reclaim.icl import draws, metrics
from reclaim.icl.predict import official_answer, score
from reclaim.icl.prepare import Cell, Prepared, PromptWriter, draw_official
from reclaim.icl.prompts import IclSet, append_period, clean_answer, define_sets

LOGPROB_TOLERANCE = 2e-4  # the vectors' own
SPACES = {"number": "number", "letter": "letter", "abstract": "symbol", "symbol": "symbol"}
KINDS = {"natlan": "natural", "natural": "natural", "minimal": "minimal"}


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _set(name: str) -> IclSet:
    (definition,) = define_sets(name).values()
    return definition


def check_templates(path: Path) -> int:
    content = _read(path)
    pairs = [{"text": first, "text_pair": second} for first, second in content["inputs_pair"]]
    singles = [{"text": text} for text in content["inputs_single"]]
    for case in content["cases"]:
        place = f"{case['dataset']}, {case['kind']} {case['template']}"
        definition = _set(case["dataset"])
        template = definition.template(KINDS[case["kind"]], case["template"])
        rows = pairs if "{text_pair}" in template.prompt else singles
        assert [template.fill(row, official=True) for row in rows] == case["formatted"], place
        words = template.label_words(definition.label_words)
        assert {str(label): word for label, word in enumerate(words)} == case["labels"], place
    return len(content["cases"])


def check_label_maps(path: Path) -> int:
    cases = _read(path)["cases"]
    for case in cases:
        rng = random.Random(case["seed"])
        found = draws.official_label_map(SPACES[case["label_space"]], case["n_classes"], rng)
        assert found == case["map"], f"{case}: {found}"
    return len(cases)


def check_demo_sampling(path: Path) -> int:
    cases = _read(path)["cases"]
    for case in cases:
        rng = random.Random(case["seed"])
        found = draws.sample_demos(case["pool_labels"], case["K"], case["n_classes"], rng)
        assert found == case["selected"], f"K {case['K']}, seed {case['seed']}: {found}, not {case['selected']}"
    return len(cases)


def check_eval_order(path: Path) -> int:
    cases = _read(path)["cases"]
    for case in cases:
        assert draws.evaluation_order(case["n_rows"], case["seed"]) == case["rows"], case
    return len(cases)


def _with_rows(name: str, files: dict) -> IclSet:
    """A data set with the rows of the vectors, [text, second text, class]."""
    from dataclasses import replace

    def rows(part: str) -> list[dict]:
        return [
            {"id": f"{part}-{i}", "text": text, "text_pair": second, "label": label}
            for i, (text, second, label) in enumerate(files[part])
        ]

    return replace(_set(name), pool=rows("train"), test=rows("dev"))


class NoTokenizer:
    """For prompts whose length is not looked at."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0]


def check_prompts(path: Path) -> int:
    content = _read(path)
    sets = {name: _with_rows(name, files) for name, files in content["files"].items()}
    writer = PromptWriter(NoTokenizer(), float("inf"))
    for case in content["cases"]:
        place = f"{case['dataset']}, {case['setting']}, template {case['template']}, K {case['K']}, seed {case['seed']}"
        dataset = sets[case["dataset"]]
        setting, _, space = case["setting"].partition("_")
        space = SPACES[space] if space else "natural"
        cell = Cell(setting, case["K"], space, template=case["template"], draws="official")
        words = dataset.template(cell.template_kind, cell.template).label_words(dataset.label_words)
        labels = [row["label"] for row in dataset.pool]
        drawn = draw_official(labels, words, setting, space, case["K"], random.Random(case["seed"]))
        assert drawn.demonstrations == case["demo_rows"], place
        assert drawn.labels == case["demo_labels"], place
        assert drawn.label_words == case["label_words"], place
        assert drawn.label_words[dataset.test[case["dev_row"]]["label"]] == case["target"], place
        prompt, _ = writer.write(dataset, cell, drawn, case["dev_row"])
        assert prompt == case["prompt"], f"{place}: {prompt!r}"
    return len(content["cases"])


def check_shortened(path: Path) -> int:
    content = _read(path)
    writer = PromptWriter(_tokenizer(path.parent))
    dataset = _with_rows("sst2", {"train": content["train"], "dev": content["dev"]})
    for case in content["cases"]:
        place = f"limit {case['token_limit']}, K {case['K']}, seed {case['seed']}"
        writer.max_length = case["token_limit"]
        labels = [row["label"] for row in dataset.pool]
        drawn = draw_official(labels, dataset.label_words, "gold", "natural", case["K"], random.Random(case["seed"]))
        assert drawn.demonstrations == case["drawn_rows"], place
        prompt, kept = writer.write(dataset, Cell("gold", case["K"], draws="official"), drawn, content["dev_row"])
        assert prompt == case["prompt"], f"{place}: {prompt!r}"
        assert len(kept) == case["n_kept"], place
        assert len(writer.encode([prompt])[0]) == case["n_tokens"], place
    return len(content["cases"])


@cache
def _tokenizer(folder: Path):
    from transformers import PreTrainedTokenizerFast

    options = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="left", **options)


@cache
def _model(folder: Path, name: str):
    import transformers
    from safetensors.torch import load_file

    config = _read(folder / f"tiny_{name}_config.json")
    family = {"opt": "OPT", "llama": "Llama"}[config["model_type"]]
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config").from_dict(config))
    absent, unexpected = model.load_state_dict(load_file(folder / f"tiny_{name}.safetensors"), strict=False)
    assert not unexpected and set(absent) <= {"lm_head.weight"}, f"{name}: {absent}, {unexpected}"
    model.tie_weights()
    return model.eval()


def check_scores(path: Path) -> int:
    """Both scorers in batches, whatever the model, and the original's answers from the last piece."""
    cases = _read(path)["cases"]
    prompts = path.with_name(path.name.replace("scores", "prompts"))
    prompts = _read(prompts if prompts.exists() else path.with_name("prompts.json"))["cases"]
    tokenizer = _tokenizer(path.parent)
    writer = PromptWriter(tokenizer)
    torch.set_num_threads(1)
    for name in sorted({case["model"] for case in cases}):
        chosen = [case for case in cases if case["model"] == name]
        shown = [prompts[case["prompt_index"]] for case in chosen]
        contexts = writer.encode([prompt["prompt"] for prompt in shown])
        words = [[writer.label(word) for word in prompt["label_words"]] for prompt in shown]
        table = pd.DataFrame({
            "label_words": [prompt["label_words"] for prompt in shown],
            "label_pieces": [[len(tokens) for tokens in row] for row in words],
        })  # fmt: skip
        scored = score(_model(path.parent, name), Prepared(table, contexts, words), scorer="official_last")
        for case, context, tokens, row in zip(chosen, contexts, words, scored.itertuples(), strict=True):
            place = f"prompt {case['prompt_index']}, {name}"
            assert len(context) == case["n_prompt_tokens"], place
            assert [word[-1] for word in tokens] == case["label_last_token_ids"], place
            assert [len(word) for word in tokens] == case["label_n_tokens"], place
            for column, key in (
                ("logprob_last", "logprob_last_token_at_prompt_end"),
                ("logprob_word", "sum_logprob_full_label"),
            ):
                difference = np.abs(np.subtract(getattr(row, column), case[key])).max()
                assert difference < LOGPROB_TOLERANCE, f"{place}: {column} differs by {difference:.1e}"
            answer = official_answer(tokenizer, case["label_last_token_ids"], row.logprob_last)
            official = {case["official_response_beam1"], case["official_response_beam4"]}
            assert {answer} == official, f"{place}: {answer!r}, not {official}"
    return len(cases)


def check_metrics(path: Path) -> int:
    cases = _read(path)["cases"]
    for case in cases:
        definition, table, arguments = _set(case["dataset"]), case["table"], case["args"]
        kind = "natural" if "natlan_template_number" in arguments else "minimal"
        number = int(arguments.get("natlan_template_number") or arguments["minimal_template_number"])
        natural = definition.template(kind, number).label_words(definition.label_words)
        accuracy = metrics.correct(table["gt_output"], table["output_sentences"]).mean()
        # The original asks for natural words even where others were offered.
        valid = metrics.valid_output(table["output_sentences"], [natural] * len(table["gt_output"]))
        found = {"accuracy": accuracy, "original_accuracy": accuracy, "valid_output": valid}
        for name, value in case["official"].items():
            assert abs(found[name] - value) < 1e-9, f"{case['dataset']}, {name}: {found[name]}, not {value}"
    return len(cases)


def check_helpers(path: Path) -> int:
    content = _read(path)
    tokenizer = _tokenizer(path.parent)
    for case in content.get("choice", []):
        found = official_answer(tokenizer, case["label_last_token_ids"], case["label_logits"])
        assert found == case["official_response"], f"choice {case}: {found!r}"
    for case in content.get("average", []):
        expected = dict(case["official"])
        assert expected.pop("num_episodes") == len(case["results"])
        found = metrics.average_episodes(case["results"])
        assert set(found) == set(expected), f"average: {found}"
        for name, values in expected.items():
            assert np.abs(np.subtract(found[name], values)).max() < 1e-12, f"average, {name}: {found[name]}"
    functions = {
        "append_period": append_period,
        "episodes": draws.episode_indices,
        "clean_response": clean_answer,
    }
    for name, function in functions.items():
        for given, expected in content.get(name, []):
            assert function(given) == expected, f"{name} of {given!r}: {function(given)!r}, not {expected!r}"
    return sum(len(cases) for cases in content.values() if isinstance(cases, list))


CHECKS = [
    ("*templates*.json", check_templates),
    ("*label_maps*.json", check_label_maps),
    ("*demo_sampling*.json", check_demo_sampling),
    ("*eval_order*.json", check_eval_order),
    ("*prompts*.json", check_prompts),
    ("*scores*.json", check_scores),
    ("*shortened*.json", check_shortened),
    ("*metrics*.json", check_metrics),
    ("*helpers*.json", check_helpers),
    ("*tokenizer*.json", companion),
    ("*_config.json", companion),
    ("*.safetensors", companion),
]
