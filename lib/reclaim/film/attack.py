"""One attack on one batch: from the client's gradient to sentences, with the controls that give its figures a meaning.

Gupta et al. 2022, sections 3 to 5. Candidates come best first by the search's own rank. What is reported apart: the first of
them (`top1`), the best match with the truth among the first eight (`oracle8`, which no attacker can choose), and, for
coverage, all of them. Excess is the best ROUGE-L against the true batch less that against a decoy batch of equal size: the
largest of many comparisons rises with their number, whatever the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reclaim.film.bag import read_bag, standing_out
from reclaim.film.gradients import client_gradient, embedding_names, mean_hidden_norm, padded
from reclaim.film.search import SearchOptions, official_search, start_tokens
from reclaim.film.start_search import end_tokens, start_search
from reclaim.film.texts import Batch
from reclaim.metrics import recovery

PICKS = {"top1": 1, "oracle8": 8, "all": None}
COVERED = 0.6
OFFICIAL: dict[str, dict[str, Any]] = {
    "official": {},
    "official_no_ban": {"no_repeat_ngram_size": None},
    "official_trigrams": {"no_repeat_ngram_size": 3},
    "official_one_group": {"num_groups": 1},
    "official_eight_groups": {"num_groups": 8},
    "official_counts": {"counts_known": True},
}
"""The official search and its ablations: what is set otherwise than in the experiment's options."""
TARGET_ERRORS = (0.8, 1.0, 1.2)
"""The attacker knows the number of targets up to some 20 %."""


@dataclass(frozen=True)
class Attacker:
    """The eavesdropper: the model that is attacked, its tokenizer, how the search is set.

    `hidden_norm` (H of the kH/N rule) is taken on public text; `starts` and `ends` are the tokens of the vocabulary that begin
    and end sentences.
    """

    model: Any
    tokenizer: Any
    options: SearchOptions
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    hidden_norm: float

    @classmethod
    def of(cls, model, tokenizer, options: SearchOptions, public: Sequence[str]) -> Attacker:
        """An attacker who knows some public sentences."""
        size = model.config.vocab_size
        starts, ends = tuple(start_tokens(range(size), tokenizer, 1)), tuple(end_tokens(tokenizer, size))
        return cls(model, tokenizer, options, starts, ends, mean_hidden_norm(model, *padded(model, tokenizer, public)))

    def official(self, bag: Sequence[int], batch_size: int, counts: Mapping[int, int] | None = None) -> list[str]:
        """Texts that the official search finds, cut; without `counts`, each word may come as often as fits."""
        counts = {token: self.options.max_length for token in bag} if counts is None else counts
        starts = start_tokens(bag, self.tokenizer, batch_size)
        found = official_search(self.model, counts, starts, self.tokenizer.eos_token_id, self.options)
        return [recovery.cut(self.decode(tokens)) for each in found for tokens in each.tokens]

    def per_start(self, bag: Sequence[int], per_start: int = 1) -> list[str]:
        """Texts that the search with a beam for each start token finds, cut."""
        found = start_search(
            self.model,
            bag,
            start_tokens(bag, self.tokenizer, 1),
            self.ends,
            max_length=self.options.max_length,
            num_beams=self.options.num_beams,
            no_repeat_ngram_size=self.options.no_repeat_ngram_size,
            per_start=per_start,
        )
        return [recovery.cut(self.decode(each.tokens[0])) for each in found]

    def with_options(self, **options: Any) -> Attacker:
        """The same with other options of the official search."""
        return replace(self, options=replace(self.options, **options))

    def random_words(self, bag: Sequence[int], rng: np.random.Generator) -> list[str]:
        """Words of the bag drawn at random, as many as the search may take, cut as any candidate is: behind the first end.

        ROUGE-L of about .3 at one sentence and .25 at four, as this project's small protocol measured of its control.
        """
        return [recovery.cut(self.decode(rng.choice(bag, self.options.max_length).tolist()))] if bag else []

    def random_sentence(self, bag: Sequence[int], rng: np.random.Generator) -> list[str]:
        """A harder control: the bag's words, each once, in random order between a start and an end token, up to that length."""
        starts = start_tokens(bag, self.tokenizer, 1)
        ends = [token for token in bag if token in self.ends]
        others = [token for token in bag if token not in (*starts, *ends)]
        chosen = [others[place] for place in rng.permutation(len(others))[: self.options.max_length - 2]]
        first = [starts[rng.integers(len(starts))]] if starts else []
        return [self.decode([*first, *chosen, *ends[:1]])] if bag else []

    def random_order(self, sentences: Sequence[str], rng: np.random.Generator) -> str:
        """The true words in random order, as many as the search may take; a first and a last one stay where they are."""
        rows = self.tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
        inner = [token for ids in rows for token in ids[1:-1]]
        order = rng.permutation(len(inner))[: self.options.max_length - 2]
        return self.decode([*rows[0][:1], *(inner[place] for place in order), *rows[0][1:][-1:]])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


@dataclass(frozen=True)
class Observed:
    """What the eavesdropper receives of one batch: the gradient of the word embeddings, and how large the batch is.

    `truth`, the counts of its tokens, is for scoring and for the oracle.
    """

    words: Any
    num_targets: int
    batch_size: int
    truth: dict[int, int]

    def bag(self, rule: Mapping[str, Any], attacker: Attacker, targets: float = 1.0) -> list[int]:
        """The bag by a rule (`rule` and its parameters); the number of targets is known up to the factor `targets`.

        Sentence ends are added by hand; with `starts: true` in the rule, so are the start tokens that stand out among start
        tokens. The rule `size` is given the size of the true bag.
        """
        rule, add = dict(rule), list(attacker.ends)
        if rule.pop("starts", False):
            add += standing_out(self.words.float().norm(dim=1), attacker.starts, self.batch_size)
        return read_bag(
            self.words,
            num_targets=round(targets * self.num_targets),
            hidden_norm=attacker.hidden_norm,
            size=len(self.truth),
            add=add,
            **rule,
        )


def observe(model, tokenizer, sentences: Sequence[str]) -> Observed:
    """The client's step on a batch."""
    ids, mask = padded(model, tokenizer, sentences)
    word_name = embedding_names(model)[0]
    sent = client_gradient(model, ids, mask, [word_name])
    tokens, counts = np.unique(ids[mask].cpu().numpy(), return_counts=True)
    truth = dict(zip(tokens.tolist(), counts.tolist(), strict=True))
    return Observed(sent.gradients[word_name], sent.num_targets, len(sentences), truth)


def rule_label(rule: Mapping[str, Any]) -> str:
    """`scaled-0.35-starts`, `nonzero`: a rule and its parameters in one word."""
    settings = (
        key if value is True else f"{value:g}" for key, value in sorted(rule.items()) if key != "rule" and value
    )
    return "-".join([rule["rule"], *settings])


Scores = dict[str, dict[str, float]]


def recovery_scores(
    batch: Batch, candidates: Sequence[str], entities: Callable[[str], list[str]] | None
) -> tuple[Scores, tuple[str, str, float]]:
    """Scores of each pick, and the example (true sentence, candidate, ROUGE-L) of the first one.

    Per pick: rouge_1, rouge_2, rouge_L (best pair of the batch, F), excess_rouge_L, exact, edit_distance (of the best pair
    by ROUGE-L), entity_f1 where `entities` tags texts; for `all`: coverage, coverage_exact, and coverage of the decoys. No
    candidate: zeros, and an edit distance of 1.
    """
    candidates = list(candidates) or [""]
    found = {name: scores["fmeasure"] for name, scores in recovery.rouge(batch.sentences, candidates).items()}
    decoys = recovery.rouge_l(batch.decoys, candidates)
    exact = recovery.exact_matches(batch.sentences, candidates)
    if entities is not None:
        tags = [[entities(text) for text in texts] for texts in (batch.sentences, candidates)]
        found["entity_f1"] = recovery.entity_matrix(*tags)
    scores: Scores = {}
    for pick, size in PICKS.items():
        values = {name: float(matrix[:, :size].max()) for name, matrix in found.items()}
        values["decoy_rouge_L"] = float(decoys[:, :size].max())
        values["excess_rouge_L"] = values["rouge_L"] - values["decoy_rouge_L"]
        values["exact"] = float(exact[:, :size].any())
        (row, column), _ = recovery.best(found["rouge_L"][:, :size])
        values["edit_distance"] = recovery.edit_distance(batch.sentences[row].split(), candidates[column].split())
        scores[pick] = values
    scores["all"] |= {
        "coverage": recovery.coverage(found["rouge_L"], COVERED),
        "coverage_exact": float(exact.any(axis=1).mean()),
        "decoy_coverage": recovery.coverage(decoys, COVERED),
        "candidates": float(len(candidates)),
    }
    scores["all"]["excess_coverage"] = scores["all"]["coverage"] - scores["all"]["decoy_coverage"]
    (row, _), value = recovery.best(found["rouge_L"][:, :1])
    return scores, (batch.sentences[row], candidates[0], value)
