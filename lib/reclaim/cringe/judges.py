"""Trained judges of replies: a classifier of words, or one of the Hub; the world's own rule validates them.

The one that labels generated replies for the next iteration is never the one that evaluates them: each has training rows of
its own. (The project's README uses one and the same for both.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class WordJudge:
    """Logistic regression on which words a reply has (`reply`), or which words of prompt and reply meet (`pair`, as well).

    Whether an insult is there can be seen in the reply; whether it contradicts the prompt can not.
    """

    def __init__(self, features: str = "reply", regularization: float = 1.0):
        from sklearn.linear_model import LogisticRegression

        self.features = features
        self.model = LogisticRegression(C=regularization, max_iter=1000)
        self.columns: dict[Any, int] = {}

    def fit(self, prompts: Sequence[str], replies: Sequence[str], good: Sequence[int]) -> WordJudge:
        """Learn from replies with their labels (1 good, 0 bad)."""
        found = sorted({feature for pair in zip(prompts, replies, strict=True) for feature in self._features(*pair)})
        self.columns = {feature: i for i, feature in enumerate(found)}
        self.model.fit(self._matrix(prompts, replies), np.asarray(good))
        return self

    def good_probability(self, prompts: Sequence[str], replies: Sequence[str]) -> np.ndarray:
        """Probability that each reply is good (rows)."""
        return self.model.predict_proba(self._matrix(prompts, replies))[:, 1]

    def _features(self, prompt: str, reply: str) -> set[str]:
        words = set(reply.split())
        if self.features == "reply":
            return words
        return words | {f"{first} {second}" for first in set(prompt.split()) for second in words}

    def _matrix(self, prompts: Sequence[str], replies: Sequence[str]):
        from scipy.sparse import csr_matrix

        rows, columns = [], []
        for row, pair in enumerate(zip(prompts, replies, strict=True)):
            known = [self.columns[feature] for feature in self._features(*pair) if feature in self.columns]
            rows += [row] * len(known)
            columns += sorted(known)
        return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(prompts), len(self.columns)))


class HubJudge:
    """A sequence classifier in a `save_pretrained` folder.

    It reads the reply alone, as the paper's safety classifier does, or with `features` pair the prompt as its first text and
    the reply as its second (contradiction, as models of entailment know it). `good_label` names the class of good replies,
    `bad_label` that of all others; of classifiers with one output per fault (toxicity by kind, neither label given) the
    probability of good is one less the largest.
    """

    def __init__(
        self,
        folder: Path,
        good_label: str | None = None,
        device: Any = "cpu",
        batch_size: int = 64,
        *,
        bad_label: str | None = None,
        features: str = "reply",
    ):
        import reclaim.torchvision_shim  # noqa: F401
        from transformers import AutoModelForSequenceClassification

        from reclaim.errors import InputError
        from reclaim.models import load_tokenizer

        options = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
        self.model = AutoModelForSequenceClassification.from_pretrained(str(folder), **options).to(device).eval()
        self.tokenizer, self.batch_size = load_tokenizer(folder), batch_size
        names = [str(name) for name in self.model.config.id2label.values()]
        for key, label in (("good_label", good_label), ("bad_label", bad_label)):
            if label is not None and label not in names:
                raise InputError(f"{folder}: {key}", repr(label), f"one of {', '.join(names)}")
        self.good = None if good_label is None else names.index(good_label)
        self.bad = None if bad_label is None else names.index(bad_label)
        self.features = features

    def good_probability(self, prompts: Sequence[str], replies: Sequence[str]) -> np.ndarray:
        """Probability that each reply is good (rows)."""
        import torch

        found = []
        for start in range(0, len(replies), self.batch_size):
            part = slice(start, start + self.batch_size)
            texts = [list(replies[part])] if self.features == "reply" else [list(prompts[part]), list(replies[part])]
            batch = self.tokenizer(*texts, return_tensors="pt", padding=True, truncation=True).to(self.model.device)
            with torch.inference_mode():
                logits = self.model(**batch).logits.float()
            if self.good is not None:
                good = logits.softmax(dim=-1)[:, self.good]
            elif self.bad is not None:
                good = 1 - logits.softmax(dim=-1)[:, self.bad]
            else:
                good = 1 - logits.sigmoid().amax(dim=-1)
            found.append(good.cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0)


def make_judge(spec: Mapping[str, Any], rows, data: Mapping[str, Path], device: Any) -> WordJudge | HubJudge:
    """The judge of a spec: `model` (with what `HubJudge` takes), or trained on `rows` (`text`, `text_pair`, `good`)."""
    if "model" in spec:
        options = {key: spec[key] for key in ("good_label", "bad_label", "features") if key in spec}
        return HubJudge(data[spec["model"]], device=device, **options)
    judge = WordJudge(spec.get("features", "reply"), spec.get("regularization", 1.0))
    return judge.fit(rows["text"].tolist(), rows["text_pair"].tolist(), rows["good"].tolist())
