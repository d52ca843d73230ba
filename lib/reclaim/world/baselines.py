"""References that need no model: the entropy of a corpus, and naive Bayes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from reclaim.errors import InputError


def unigram_entropy(texts: Iterable[str], start_tokens: int = 0) -> float:
    """Entropy in nats of the words of `texts`: the loss of a model that knows how often each word occurs, and no more.

    With `start_tokens` tokens in front of each text that are predicted like words but cost nothing (the `<s>` of a
    masked model), it is the mean over all predicted positions: the plateau that every pre-training run must leave.
    """
    counts: Counter[str] = Counter()
    num_texts = 0
    for text in texts:
        counts.update(text.split())
        num_texts += 1
    if not counts:
        raise InputError("texts", "no word", "at least one word")
    number = np.array(list(counts.values()), dtype=np.float64)
    share = number / number.sum()
    return float(-(share * np.log(share)).sum() * number.sum() / (number.sum() + start_tokens * num_texts))


def naive_bayes_accuracy(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    test_texts: Sequence[str],
    test_labels: Sequence[int],
    smoothing: float = 0.5,
) -> float:
    """Accuracy, as a fraction, of multinomial naive Bayes over words, trained on `train_texts`.

    `smoothing` is added to every count; priors are the class shares of the training set; words that the training set
    lacks are left out of the test texts.
    """
    words = sorted({word for text in train_texts for word in text.split()})
    column = {word: number for number, word in enumerate(words)}

    def counts(texts: Sequence[str]) -> np.ndarray:
        matrix = np.zeros((len(texts), len(words)))
        for row, text in enumerate(texts):
            for word in text.split():
                if word in column:
                    matrix[row, column[word]] += 1
        return matrix

    classes, targets = np.unique(np.asarray(train_labels), return_inverse=True)
    membership = np.eye(len(classes))[targets]
    class_counts = membership.T @ counts(train_texts) + smoothing
    log_likelihood = np.log(class_counts / class_counts.sum(axis=1, keepdims=True))
    log_prior = np.log(membership.mean(axis=0))
    predictions = classes[(counts(test_texts) @ log_likelihood.T + log_prior).argmax(axis=1)]
    return float((predictions == np.asarray(test_labels)).mean())
