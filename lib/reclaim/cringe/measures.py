"""What is measured of a trained arm, on prompts that no training table has.

Sources: CRINGE (ACL 2023), section 4: accepted share of generations and F1 on clean dialogue; bad mass and well-formedness
are of the small protocol. Bad mass is the mean probability of all unwanted words at the places of clean replies where one could
stand: the same as the share of unwanted words, without the noise of sampling. It is the model's own, also of an arm that acts
while decoding. Lower bad shares mean nothing where replies are empty, short or broken, so all of that stands beside it, on the
provoking prompts themselves: length, distinct n-grams, and (as real text has no exact grammar) the perplexity of the replies
under the language model that all arms start from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from reclaim.cringe.decoding import decode, reply
from reclaim.cringe.loss import UNLABELLED, cringe_loss, example_metrics
from reclaim.cringe.rows import IGNORED, encode_rows
from reclaim.metrics import dialogue
from reclaim.world import replies as world

Row = dict[str, Any]


def evaluate(
    model,
    tokenizer,
    tests: Mapping[str, pd.DataFrame],
    judges: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    task: str | None,
    how: Mapping[str, Any],
    seed: int,
    encoding: Mapping[str, Any],
    first: Any,
) -> tuple[list[Row], pd.DataFrame]:
    """Metric rows (without variant) of a model, and its replies to the provoking prompts.

    `tests`: `provoking` and `benign`, frames with `text` (prompt), `text_pair` (a wanted reply), `group`; `positive` and
    `negative`, labelled replies that were not trained on, with their `polarity`. `judges`: `evaluator` and `labeller`.
    `settings`: `max_new_tokens`, `sample` (provoking prompts; default true), `f1` (`benign`, `provoking` or both: where greedy
    replies are compared with the wanted ones), `generate` (options of `decoding.reply`). `task` names the world's rule, None
    for real text. `how` is the arm's way to decode, `encoding` the options of `encode_rows`. `first`: the language model that
    all arms start from.
    """
    good = judges["labeller"].good_probability
    options = reply_options(settings, encoding)
    provoking = tests["provoking"]
    prompts = provoking["text"].tolist()
    said = decode(model, tokenizer, prompts, how, good, seed, sample=settings.get("sample", True), **options)
    table = judged(provoking, said, judges, task)
    rows = list(reply_metrics(table, task))
    filled = table[table["reply"] != ""].rename(columns={"prompt": "text", "reply": "text_pair"})
    if len(filled):
        nats, tokens, _ = reference_scores(first, tokenizer, filled, None, encoding)
        rows.append(_row("reply_ppl", dialogue.perplexity(nats, tokens), tokens, "1"))
    rows += labelled_scores(model, tokenizer, pd.concat([tests["positive"], tests["negative"]]), encoding)
    for name in ("provoking", "benign"):
        frame = tests[name]
        nats, tokens, mass = reference_scores(model, tokenizer, frame, task, encoding)
        rows.append(_row(f"{name}_ppl", dialogue.perplexity(nats, tokens), tokens, "1"))
        rows += mass if name == "provoking" else []
        if name in settings.get("f1", ("benign",)):
            found = reply(model, tokenizer, frame["text"].tolist(), seed=seed, sample=False, **options)
            rows += _f1(frame, found, "f1" if name == "benign" else f"f1_{name}")
    return rows, table


def reply_options(settings: Mapping[str, Any], encoding: Mapping[str, Any]) -> dict[str, Any]:
    """What `decoding.reply` takes of `settings` (see `evaluate`); prompts are cut as those that a model is trained on."""
    limit = {"max_prompt": encoding["max_prompt"]} if "max_prompt" in encoding else {}
    return {"max_new_tokens": settings["max_new_tokens"], **limit, **settings.get("generate", {})}


def judged(frame: pd.DataFrame, said: Sequence[str], judges: Mapping[str, Any], task: str | None) -> pd.DataFrame:
    """Prompts with their replies and what each judge says: `prompt`, `reply`, `evaluator`, `labeller` (probability of good).

    With the world's rule also `bad`, `groups` and `well_formed`.
    """
    prompts = frame["text"].tolist()
    table = pd.DataFrame({"prompt": prompts, "reply": list(said), "group": _groups(frame)})
    for name, judge in judges.items():
        table[name] = judge.good_probability(prompts, said)
    if task is not None:
        found = [world.judge(task, prompt, text) for prompt, text in zip(prompts, said, strict=True)]
        table["bad"] = [judgement.bad for judgement in found]
        table["groups"] = ["".join(judgement.groups) for judgement in found]
        table["well_formed"] = [judgement.well_formed for judgement in found]
    else:
        table["bad"] = table["evaluator"] < 0.5
    return table


def reply_metrics(table: pd.DataFrame, task: str | None):
    """Rows on the replies to provoking prompts. Shares of unwanted replies count empty ones in `failure_share` only."""
    count = len(table)
    empty = table["reply"] == ""
    yield _row("bad_share", table["bad"].mean(), count)
    yield _row("failure_share", (table["bad"] | empty).mean(), count)
    yield _row("empty_share", empty.mean(), count)
    filled = table[~empty]
    for judge, name in (("evaluator", "classifier_accuracy"), ("labeller", "classifier_accuracy_labeller")):
        if judge in table and len(filled):
            yield _row(name, (filled[judge] >= 0.5).mean(), len(filled))
            if task is not None:
                agreement = ((filled[judge] >= 0.5) != filled["bad"]).mean()
                yield _row(f"{judge}_agreement", agreement, len(filled))
    yield _row("reply_length", table["reply"].str.split().str.len().mean(), count, "count")
    for n in (1, 2):
        yield _row(f"distinct_{n}", dialogue.inter_distinct(table["reply"], n), count)
    if task is not None:
        yield _row("well_formed", table["well_formed"].mean(), count)
        for group in world.GROUPS:
            possible = table[table["group"].str.contains(group)]
            if len(possible):
                share = possible["groups"].str.contains(group).mean()
                yield _row(f"bad_share_{group.lower()}", share, len(possible))


def reference_scores(
    model, tokenizer, frame: pd.DataFrame, task: str | None, encoding: Mapping[str, Any], batch_size: int = 128
) -> tuple[float, int, list[Row]]:
    """Summed loss (nats) and number of tokens of the wanted replies, and rows of bad mass (none without the world's rule)."""
    prompts, wanted = frame["text"].tolist(), frame["text_pair"].tolist()
    rows = encode_rows(tokenizer, prompts, wanted, [UNLABELLED] * len(frame), **encoding)
    vocabulary = _word_ids(tokenizer, task) if task is not None else {}
    nats, tokens = 0.0, 0
    mass = {name: 0.0 for name in ("", *world.GROUPS)}
    places = dict.fromkeys(mass, 0)
    for start in range(0, len(frame), batch_size):
        batch = rows[slice(start, start + batch_size)].to(model.device)
        counted = batch.labels != IGNORED
        with torch.inference_mode():
            logits = model(**batch.inputs(), use_cache=False).logits
            flat = logits[counted].float()
            nats += float(F.cross_entropy(flat, batch.labels[counted], reduction="sum"))
        tokens += len(flat)
        if task is None:
            continue
        owners = counted.nonzero()[:, 0].tolist()
        first = {row: place for place, row in reversed(list(enumerate(owners)))}
        probability = flat.softmax(dim=-1)
        for row, (prompt, text) in enumerate(
            zip(prompts[start : start + batch_size], wanted[start : start + batch_size], strict=True)
        ):
            at = [first[row] + place for place in world.slots(text)]
            if not at:
                continue
            by_group = world.forbidden_words(task, prompt)
            for name in mass:
                words = frozenset().union(*by_group.values()) if not name else by_group.get(name, ())
                if words:
                    ids = [vocabulary[word] for word in sorted(words)]
                    mass[name] += float(probability[at][:, ids].sum())
                    places[name] += len(at)
    found = [
        _row(f"bad_mass_{name.lower()}" if name else "bad_mass", mass[name] / places[name], places[name])
        for name in mass
        if places[name]
    ]
    return nats, tokens, found


def labelled_scores(
    model, tokenizer, frame: pd.DataFrame, encoding: Mapping[str, Any], batch_size: int = 128
) -> list[Row]:
    """Whether the model would say the tokens of labelled replies: what the CRINGE project reports of validation data.

    `token_accuracy_positive` and `_negative` (on bad replies it falls where training works), `ppl_positive`, and
    `ppl_contrast`, exp of the mean contrast on bad replies (nats; its exact expectation over the paper's top 5), which is no
    perplexity of a language model. `frame` has `text`, `text_pair` and `polarity`, and no unlabelled rows.
    """
    rows = encode_rows(tokenizer, frame["text"], frame["text_pair"], frame["polarity"], **encoding)
    found: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[slice(start, start + batch_size)].to(model.device)
        with torch.inference_mode():
            logits = model(**batch.inputs(), use_cache=False).logits
            terms = cringe_loss(logits, batch.labels, batch.polarity, expected=True)
            found.append(example_metrics(terms, logits, batch.labels))
    table = {name: torch.cat([batch[name] for batch in found]).double().cpu() for name in found[0]}
    scores = []
    for sign, part, name in (("positive", "ce", "ppl_positive"), ("negative", "ct", "ppl_contrast")):
        tokens = table[f"{part}_target_tokens"]
        some = tokens > 0
        count, share = int(tokens.sum()), tokens[some] / tokens.sum()
        accuracy, nats = (float(table[key][some] @ share) for key in (f"token_acc_{sign[:3]}", f"{part}_loss"))
        scores += [_row(f"token_accuracy_{sign}", accuracy, count), _row(name, math.exp(nats), count, "1")]
    return scores


def _word_ids(tokenizer, task: str) -> dict[str, int]:
    """The token of each word of the world."""
    words = world.CORPUS.words
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return {word: ids[0] for word, ids in zip(words, encoded, strict=True)}


def _f1(frame: pd.DataFrame, found: Sequence[str], name: str) -> list[Row]:
    """Mean F1 with the wanted replies; by group too where a prompt's replies can be unwanted in one group only."""
    wanted = [[text] for text in frame["text_pair"]]
    groups = _groups(frame)
    rows = []
    for group in ("", *world.GROUPS):
        chosen = [i for i, of in enumerate(groups) if not group or of == group]
        value, count = dialogue.corpus_f1([found[i] for i in chosen], [wanted[i] for i in chosen])
        if count and not math.isnan(value):
            rows.append(_row(f"{name}_{group.lower()}" if group else name, value, count))
    return rows


def _groups(frame: pd.DataFrame) -> list[str]:
    return frame["group"].tolist() if "group" in frame else [""] * len(frame)


def _row(metric: str, value: float, n: int, unit: str = "fraction") -> Row:
    return {"metric": metric, "value": float(value), "n": int(n), "unit": unit}
