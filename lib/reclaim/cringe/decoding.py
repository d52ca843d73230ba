"""Replies of a model to prompts: sampled, greedy or by beam search; and the two baselines that act while decoding.

Sources: the CRINGE project's README (ParlAI) for beam search, minimum length and blocking of repeated n-grams; `rerank` and
`Pacer` as ParlAI's re-ranker and PACER. Everything goes through `generate` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from reclaim.errors import InputError
from reclaim.seeding import derive

GoodProbability = Callable[[Sequence[str], Sequence[str]], Any]
"""(prompts, replies) -> probability that each reply is good."""


def reply(
    model,
    tokenizer,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    sample: bool = True,
    batch_size: int = 400,
    max_prompt: int = 128,
    processors: Callable[[Sequence[str]], Sequence[LogitsProcessor]] = lambda prompts: (),
    **options: Any,
) -> list[str]:
    """One reply to each prompt, as text without special tokens (`num_return_sequences` of them where it is given).

    With `sample` the whole distribution is sampled (temperature 1 unless `options` say otherwise); else greedy, or by beams
    with `num_beams`. `options` go to `generate` of transformers. A batch's draws depend on the seed and its place only.
    """
    seq2seq = model.config.is_encoder_decoder
    replies: list[str] = []
    tokenizer.padding_side = "right" if seq2seq else "left"
    tokenizer.truncation_side = "left"  # the end of a prompt is what is replied to
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        encoded = tokenizer(
            [prompt or _first(tokenizer) for prompt in part], return_tensors="pt", padding=True,
            truncation=True, max_length=max_prompt,
        ).to(model.device)  # fmt: skip
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(derive(seed, "reply", start))
            found = model.generate(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
                do_sample=sample, **({"top_k": 0, "top_p": 1.0} if sample else {}),
                max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id, logits_processor=LogitsProcessorList(processors(part)), **options,
            )  # fmt: skip
        new = found if seq2seq else found[:, encoded["input_ids"].shape[1] :]
        replies += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    tokenizer.padding_side = "right"
    return replies


def _first(tokenizer) -> str:
    """What stands before a reply without any prompt."""
    return tokenizer.bos_token or tokenizer.eos_token


def rerank(
    model, tokenizer, prompts: Sequence[str], good: GoodProbability, *, samples: int, seed: int, **options: Any
) -> list[str]:
    """Of `samples` replies to each prompt, the one that the judge likes best (the first of equals).

    They are drawn, or, without sampling, the best beams.
    """
    if options.get("sample", True):
        draws = [reply(model, tokenizer, prompts, seed=derive(seed, "rerank", i), **options) for i in range(samples)]
    else:
        beams = reply(model, tokenizer, prompts, seed=seed, num_return_sequences=samples, **options)
        draws = [beams[i::samples] for i in range(samples)]
    best: list[tuple[float, str]] = [(-1.0, "")] * len(prompts)
    for found in draws:
        for i, (text, score) in enumerate(zip(found, good(prompts, found), strict=True)):
            if float(score) > best[i][0]:
                best[i] = float(score), text
    return [text for _, text in best]


class Pacer(LogitsProcessor):
    """At some steps, the `top` likeliest tokens are scored by a judge on the text so far, and all others are banned.

    Log-probabilities of model and judge are added, then normalised. Defaults are the official ones.
    """

    def __init__(
        self, tokenizer, prompts: Sequence[str], good: GoodProbability, seed: int, share: float = 0.05, top: int = 10
    ):
        self.tokenizer, self.prompts, self.good, self.share, self.top = tokenizer, prompts, good, share, top
        self.generator = torch.Generator().manual_seed(derive(seed, "pacer"))
        self.length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, V) with the judged rows replaced."""
        self.length = input_ids.shape[1] if self.length is None else self.length
        judged = (torch.rand(len(scores), generator=self.generator) < self.share).nonzero()[:, 0].tolist()
        if not judged:
            return scores
        scores = scores.log_softmax(dim=-1)
        top = scores[judged].topk(min(self.top, scores.shape[-1]), dim=-1)
        prompts, texts = [], []
        beams = len(scores) // len(self.prompts)
        for row, ids in zip(judged, top.indices.tolist(), strict=True):
            before = input_ids[row, self.length :].tolist()
            prompts += [self.prompts[row // beams]] * len(ids)
            texts += self.tokenizer.batch_decode([[*before, token] for token in ids], skip_special_tokens=True)
        good = torch.as_tensor(self.good(prompts, texts), dtype=scores.dtype).clamp(min=1e-20).log()
        combined = (top.values + good.view_as(top.values).to(scores.device)).log_softmax(dim=-1)
        scores = scores.clone()
        rows = torch.tensor(judged, device=scores.device)
        scores[rows] = float("-inf")
        scores[rows[:, None], top.indices] = combined
        return scores


def decode(
    model,
    tokenizer,
    prompts: Sequence[str],
    how: Mapping[str, Any],
    good: GoodProbability | None,
    seed: int,
    **options: Any,
) -> list[str]:
    """Replies as an arm asks for: `{}` plainly, `{rerank: n}` the best of n, `{pacer: share}` with the judge at some steps."""
    if "rerank" in how or "pacer" in how:
        if good is None:
            raise InputError("decoding", f"{dict(how)} without a judge", "the probability that a reply is good")
        if "rerank" in how:
            return rerank(model, tokenizer, prompts, good, samples=how["rerank"], seed=seed, **options)
        options["processors"] = lambda part: [Pacer(tokenizer, part, good, seed, share=how["pacer"])]
    return reply(model, tokenizer, prompts, seed=seed, **options)
