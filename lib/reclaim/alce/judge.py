"""Judges of entailment behind one small interface, batched, and never asked twice.

Source: Gao et al. 2023 (ALCE), section 3.3: a statement is supported if a T5-11B that was trained on a mixture of NLI sets
(TRUE; Honovich et al. 2022) writes "1" for `premise: P hypothesis: H`.

A `Judge` turns a batch of (premise, hypothesis) into probabilities of entailment. `CachedJudge` is what everything else asks:
it passes each distinct pair on once, in batches of similar length, remembers the answers under a hash of the pair, and
writes them to a file as they come, so that a run that was stopped pays for nothing twice.

Differences from the official script, which generates up to ten tokens for one pair at a time and caches nothing: batches; one
step of the decoder, which compares the first tokens of "1" and "0" (that model writes nothing else). Probabilities are kept
to six decimals, because the last bits depend on the other pairs of a batch and results must not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reclaim.errors import InputError
from reclaim.io import atomic_path
from reclaim.metrics.citations import Pair

if TYPE_CHECKING:
    import torch

DIGITS = 6


class Judge(Protocol):
    """`name` says which judge it is, weights included: answers kept under another name are not used."""

    name: str

    def probabilities(self, pairs: Sequence[Pair]) -> Sequence[float]:
        """The probability of entailment of each pair of one batch."""
        ...


class FunctionJudge:
    """A judge from a function of premise and hypothesis, for exact judges and rules."""

    def __init__(self, function: Callable[[str, str], float | bool], name: str):
        self.function, self.name = function, name

    def probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        return [float(self.function(*pair)) for pair in pairs]


class CachedJudge:
    """Ask a judge about each distinct pair once.

    Called with pairs it gives verdicts (probability of at least 0.5), `probabilities` gives the numbers. `path`: a file of
    answers, read at the start and added to after each batch; one of another judge is replaced. `requests` counts the pairs
    that were asked about, `judged` those passed on, `batches` the calls of the judge.
    """

    def __init__(
        self,
        judge: Judge,
        path: str | Path | None = None,
        batch_size: int = 64,
        progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    ):
        if batch_size < 1:
            raise InputError("batch_size", repr(batch_size), "a positive whole number")
        self.judge, self.batch_size, self.progress = judge, batch_size, progress
        self.path = None if path is None else Path(path)
        self.requests = self.judged = self.batches = 0
        self._known: dict[str, float] = self._read()

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        return [probability >= 0.5 for probability in self.probabilities(pairs)]

    def probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        """The probability of entailment of each pair, to six decimals."""
        keys = [pair_key(*pair) for pair in pairs]
        self.requests += len(pairs)
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        # Similar lengths share a batch; the key makes the order a function of the pairs alone.
        ordered = sorted(missing.items(), key=lambda entry: (sum(map(len, entry[1])), entry[0]))
        starts = range(0, len(ordered), self.batch_size)
        for start in self.progress(starts) if len(starts) > 1 else starts:
            batch = ordered[start : start + self.batch_size]
            found = self.judge.probabilities([pair for _, pair in batch])
            answers = {key: round(float(p), DIGITS) for (key, _), p in zip(batch, found, strict=True)}
            self._known.update(answers)
            self._append(answers)
            self.judged += len(batch)
            self.batches += 1
        return [self._known[key] for key in keys]

    def _read(self) -> dict[str, float]:
        """Answers of this judge in the file; a last line that was cut off is no answer. Leaves the file ready to add to."""
        known: dict[str, float] = {}
        if self.path is None:
            return known
        header = json.dumps({"judge": self.judge.name})
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else [""]
        if lines[0] == header:
            for line in lines[1:-1]:
                key, _, value = line.partition(" ")
                known[key] = float(value)
        if lines[0] != header or lines[-1]:
            with atomic_path(self.path) as temporary:
                rows = [header, *(f"{key} {value!r}" for key, value in known.items())]
                temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return known

    def _append(self, answers: dict[str, float]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{key} {value!r}\n" for key, value in answers.items()))


def pair_key(premise: str, hypothesis: str) -> str:
    """A hash of a pair (128 bits), in which premise and hypothesis cannot run into each other."""
    text = f"{len(premise)}\n{premise}{hypothesis}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class T5Judge:
    """The judge of the paper: a T5 that writes "1" or "0" for `premise: P hypothesis: H` (google/t5_xxl_true_nli_mixture).

    `over`: "pair" makes the probability of "1" against "0"; "vocabulary" against every token, as the official reranking sums.
    Inputs are not cut: T5's positions are relative. Raises InputError for a tokenizer to which "1" and "0" begin alike.
    """

    def __init__(self, model, tokenizer, name: str, over: str = "pair"):
        if over not in ("pair", "vocabulary"):
            raise InputError("over", repr(over), "pair or vocabulary")
        self.model, self.tokenizer, self.name, self.over = model.eval(), tokenizer, f"{name} {over}", over
        self.tokens = [tokenizer(digit, add_special_tokens=False)["input_ids"][0] for digit in "10"]
        if self.tokens[0] == self.tokens[1]:
            raise InputError(name, 'one first token for "1" and "0"', "a tokenizer that tells them apart")

    def probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        from reclaim.scoring import Request, score_continuations

        texts = [f"premise: {premise} hypothesis: {hypothesis}" for premise, hypothesis in pairs]
        requests = [Request(ids, [digit]) for ids in self.tokenizer(texts)["input_ids"] for digit in self.tokens]
        one, zero = np.reshape(score_continuations(self.model, requests), (-1, 2)).T
        return np.exp(one if self.over == "vocabulary" else one - np.logaddexp(one, zero)).tolist()


def load_judge(
    folder: str | Path, device: torch.device | str = "cpu", dtype: str = "float32", over: str = "pair"
) -> Judge:
    """The judge in a model folder: a T5 that writes its verdict, or the small entailment model of `reclaim.alce.nli`.

    Raises InputError for a folder without a config and for another architecture.
    """
    import reclaim.torchvision_shim  # noqa: F401
    import torch
    from transformers import AutoConfig, T5ForConditionalGeneration

    from reclaim.alce.nli import EntailmentConfig, EntailmentJudge, EntailmentModel
    from reclaim.models import load_tokenizer

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            str(folder), str(error).strip().splitlines()[0], "a model folder with a config.json"
        ) from error
    options = {"local_files_only": True, "dtype": getattr(torch, dtype)}
    tokenizer = load_tokenizer(folder)
    name = f"{config.model_type} {_digest(folder)} {dtype}"
    if config.model_type == "t5":
        return T5Judge(T5ForConditionalGeneration.from_pretrained(folder, **options).to(device), tokenizer, name, over)
    if config.model_type == EntailmentConfig.model_type:
        return EntailmentJudge(EntailmentModel.from_pretrained(folder, **options).to(device), tokenizer, name)
    raise InputError(str(folder), f"the architecture {config.model_type!r}", "t5 or " + EntailmentConfig.model_type)


def _digest(folder: str | Path) -> str:
    """Which weights a folder has: names, sizes and first bytes of its files (a whole hash of 22 GB would take minutes)."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(1 << 20))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            found.update(file.read())
    return found.hexdigest()[:16]


def agreement(verdicts: Sequence[bool], truth: Sequence[bool]) -> dict[str, float]:
    """How well a judge agrees with another (people, or the exact judge of a world), as the paper reports it.

    accuracy; kappa (Cohen); insufficient_recall and insufficient_precision: of finding pairs without entailment. What has no
    denominator is missing. Raises InputError for unequal numbers, or none.
    """
    found, wanted = np.asarray(verdicts, dtype=bool), np.asarray(truth, dtype=bool)
    if found.shape != wanted.shape or not found.size:
        raise InputError("verdicts", f"{found.size} for {wanted.size} true ones", "the same number, at least one")
    accuracy = float(np.mean(found == wanted))
    chance = float(found.mean() * wanted.mean() + (1 - found.mean()) * (1 - wanted.mean()))
    scores = {"accuracy": accuracy}
    if chance < 1:
        scores["kappa"] = (accuracy - chance) / (1 - chance)
    both = float(np.sum(~found & ~wanted))
    if (~wanted).any():
        scores["insufficient_recall"] = both / float(np.sum(~wanted))
    if (~found).any():
        scores["insufficient_precision"] = both / float(np.sum(~found))
    return scores
