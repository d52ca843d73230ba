"""Checks of the MeZO vectors of prompts, scores, sampling and answer metrics."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from reclaim.errors import InputError
from reclaim.metrics.qa import accuracy, answer_f1, exact_match, normalize_answer
from reclaim.optim.streams import legacy_numpy_seeds
from reclaim.prompting import MaskedTemplate, encode_plain, get_template
from reclaim.sampling import evaluation_sample, icl_seeds, kshot, mezo_subset

TOLERANCE = 2e-5  # the vectors' own, for losses in float32

# The vectors hold rows with the columns of the Hub; templates read canonical ones.
COLUMNS = {
    "SST2": {"text": "sentence"},
    "RTE": {"text": "premise", "text_pair": "hypothesis"},
    "CB": {"text": "premise", "text_pair": "hypothesis"},
    "BoolQ": {"text": "passage", "text_pair": "question", "label": "answer"},
    "WIC": {"text": "sentence1", "text_pair": "sentence2"},
    "MultiRC": {"text": "paragraph"},
    "Copa": {"text": "premise"},
    "ReCoRD": {"text": "passage", "choices": "entities"},
    "DROP": {"context": "passage"},
}


class ToyTokenizer:
    """The tokenizer of the vectors: words with their leading space, single characters, and a token IS its id."""

    bos_token_id, eos_token_id, unk_token_id = "<bos>", "<eos>", "<unk>"
    cls_token_id, sep_token_id, mask_token_id, pad_token_id = "<s>", "</s>", "<mask>", "<pad>"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[str]:
        tokens = re.findall(r" ?[A-Za-z]+|[^A-Za-z]", text)
        return [self.bos_token_id, *tokens] if add_special_tokens else tokens

    def convert_tokens_to_ids(self, token: str) -> str:
        return token


def _canonical(task: str, example: dict) -> dict:
    row = dict(example)
    row.update({new: example[old] for new, old in COLUMNS.get(task, {}).items()})
    if task == "Copa":
        row["choices"] = [example["choice1"], example["choice2"]]
    for nested in ("text", "spans"):
        for column in ("answers", "answers_spans"):
            if isinstance(row.get(column), dict) and nested in row[column]:
                row["answers"] = row[column][nested]
    if isinstance(row.get("label"), bool):
        row["label"] = int(row["label"])
    return row


def check_prompts(path: Path) -> int:
    """Every string and every encoding of every example; an example is one case."""
    tokenizer, cases = ToyTokenizer(), 0
    for task, expected in json.loads(path.read_text()).items():
        template = get_template(task.lower(), "causal")
        assert template.separator == expected["train_sep"], f"{task}: separator"
        assert template.generation == expected["generation"], f"{task}: generation"
        rows = [_canonical(task, case["example"]) for case in expected["rows"]]
        for row, case in zip(rows, expected["rows"], strict=True):
            for name, found in _prompt_fields(task, template, tokenizer, row, rows, case).items():
                assert found == case[name], f"{task}: {name}\n found {found!r}\nwanted {case[name]!r}"
            cases += 1
    return cases


def _prompt_fields(task: str, template, tokenizer, row: dict, rows: list[dict], case: dict) -> dict:
    texts = template.candidate_texts(row)
    shown = texts[:1] if template.generation else texts
    verbalized = [template.verbalize(row, text) for text in shown]
    # The official code lists BoolQ's candidates as Yes, No; ours follow the label 0, 1.
    order = [verbalized.index(text) for text in case["verbalized"]]
    trained = template.encode(tokenizer, row)
    found = {
        "prompt": template.prompt_text(row),
        "verbalized": [verbalized[i] for i in order],
        "verbalized_as_demonstration": template.demonstration(row),
        "train_encoding_tokens": [trained[i].input_ids for i in order],
        "train_option_lens": [trained[i].option_length for i in order],
    }
    if template.generation:
        encoded = [template.encode_generation(tokenizer, row, rows, max_length=90, max_new_tokens=20)]
        found["correct_candidate"] = texts
    else:
        encoded = [template.encode(tokenizer, row, rows, max_length=60)[i] for i in order]
        found["sfc_prompt"] = template.prompt_text(row, calibration=True)
        found["sfc_verbalized"] = [template.verbalize(row, texts[i], calibration=True) for i in order]
        # Numbers where the official candidates are label ids, else their texts.
        names = list(template.label_values(row)) if isinstance(case["candidates"][0], int) else texts
        right = [names[i] for i in template.correct(row)]
        found["candidates"] = [names[i] for i in order]
        found["correct_candidate"] = right if isinstance(case["correct_candidate"], list) else right[0]
    found["icl_encoding_tokens_truncated"] = [option.input_ids for option in encoded]
    found["icl_option_lens"] = [option.option_length for option in encoded]
    return {name: value for name, value in found.items() if name in case}


def check_masked_templates(path: Path) -> int:
    """Tokens and mask position with and without a template, and the cases in which truncation removes the mask."""
    tokenizer, cases = ToyTokenizer(), json.loads(path.read_text())
    for case in cases:
        if case["template"] is None:
            found = encode_plain(tokenizer, case["sentences"], case["max_length"])
            assert found == case["tokens"], f"{case}: found {found}"
            continue
        template = MaskedTemplate(
            case["template"],
            label_words=("no", "yes"),
            first_limit=case.get("first_sent_limit"),
            other_limit=case.get("other_sent_limit"),
            max_length=case["max_length"],
        )
        row = dict(zip(("text", "text_pair"), case["sentences"], strict=False))
        try:
            prompt = template.encode(tokenizer, row)
        except InputError as error:
            assert case["error"], f"{case}: {error}"
            continue
        assert not case["error"], f"{case}: no error"
        assert (prompt.input_ids, [prompt.mask_position]) == (case["tokens"], case["mask_pos"]), (
            f"{case}: found {prompt}"
        )
    return len(cases)


def check_kshot(path: Path) -> int:
    expected = json.loads(path.read_text())
    for name, split in expected["splits"].items():
        task, _, seed = name.rpartition("/")
        train, dev = kshot(expected["train_labels"][task], expected["k"], int(seed))
        assert train.tolist() == split["train"], f"{name}: train {train}"
        assert dev.tolist() == split["dev"], f"{name}: dev {dev}"
        test = evaluation_sample(expected["n_test_in"])
        found = {
            "count": len(test),
            "first_10": test[:10].tolist(),
            "last_3": test[-3:].tolist(),
            "sum": int(test.sum()),
        }
        assert found == split["test"], f"{name}: test {found}"
    return len(expected["splits"])


def check_sampling(path: Path) -> int:
    expected = json.loads(path.read_text())
    for case in expected["sample_subset"]:
        found = mezo_subset(case["n"], case["num"], case["seed"]).tolist()
        assert found == case["indices"], f"{case}: found {found}"
    (seeds,) = (value for name, value in expected.items() if name.startswith("icl_train_set_seeds"))
    assert icl_seeds(len(seeds)).tolist() == seeds, "demonstration seeds"
    for seed, wanted in expected["step_seeds"].items():
        assert list(islice(legacy_numpy_seeds(int(seed)), len(wanted))) == wanted, f"step seeds of {seed}"
    return len(expected["sample_subset"]) + 1 + len(expected["step_seeds"])


def check_qa(path: Path) -> int:
    cases = json.loads(path.read_text())
    for case in cases:
        prediction, gold = case["prediction"], case["gold"]
        assert normalize_answer(prediction) == case["normalized_prediction"], case
        for name, value in (("f1", answer_f1), ("calculate_metric_f1", answer_f1), ("em", exact_match)):
            assert abs(value(prediction, gold) - case[name]) < 1e-9, f"{name} of {case}"
    return len(cases)


def check_accuracy(path: Path) -> int:
    cases = json.loads(path.read_text())
    for case in cases:
        correct, predicted = zip(*case["correct_predicted"], strict=True)
        assert abs(accuracy(predicted, correct) - case["accuracy"]) < 1e-9, case
    return len(cases)


@cache
def _opt(folder: Path):
    import reclaim.torchvision_shim  # noqa: F401
    import torch
    from safetensors.torch import load_file
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(OPTConfig(**json.loads((folder / "opt_config.json").read_text())))
    weights = load_file(folder / "opt_init.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(torch.float32).eval()


def check_scoring(path: Path) -> int:
    """Token log-probabilities, mean and calibrated scores and choices, scored together and case by case."""
    from reclaim.prediction import calibrate_surface_form
    from reclaim.scoring import Request, score_continuations

    model, cases = _opt(path.parent), json.loads(path.read_text())
    for group in [cases, *([case] for case in cases)]:
        requests = [
            Request(case[prefix], candidate)
            for case in group
            for prefix in ("prefix", "sfc_prefix")
            for candidate in case["candidates"]
        ]
        scores = iter(score_continuations(model, requests))
        for case in group:
            plain = [next(scores) for _ in case["candidates"]]
            content_free = [next(scores) for _ in case["candidates"]]
            for found, wanted in ((plain, case["token_logprobs"]), (content_free, case["sfc_token_logprobs"])):
                for ours, theirs in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
            means = np.array([option.mean() for option in plain])
            calibrated = calibrate_surface_form(
                np.array([option.sum() for option in plain]), np.array([option.sum() for option in content_free])
            )
            np.testing.assert_allclose(means, case["mean_scores"], atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(calibrated, case["sfc_scores"], atol=10 * TOLERANCE, rtol=0)
            assert (int(means.argmax()), int(calibrated.argmax())) == (case["argmax"], case["sfc_argmax"])
    return len(cases)


CHECKS = [
    ("large/prompts*.json", check_prompts),
    ("large/scoring*.json", check_scoring),
    ("large/sampling*.json", check_sampling),
    ("large/metrics_qa*.json", check_qa),
    ("large/metrics_accuracy*.json", check_accuracy),
    ("medium/kshot*.json", check_kshot),
    ("medium/templates_mlm*.json", check_masked_templates),
]
