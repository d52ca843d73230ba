"""PMI: counts, scores over all segmentations, vocabulary, matching."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from reclaim import pmi
from reclaim.errors import InputError
from reclaim.world import generators
from reclaim.world.idioms import IDIOMS
from reclaim.world.lexicon import IDIOM_POOL


def by_hand(sentences, max_length=5):
    """Counts by definition: a dictionary of tuples per length."""
    counts = {n: {} for n in range(1, max_length + 1)}
    for sentence in sentences:
        for n in counts:
            for i in range(len(sentence) - n + 1):
                gram = tuple(sentence[i : i + n])
                counts[n][gram] = counts[n].get(gram, 0) + 1
    return counts


def score_by_hand(gram, counts, power=1):
    """The definition: every way to set the cuts, at least one."""

    def log_p(part):
        return math.log(counts[len(part)][part] / sum(counts[len(part)].values()))

    options = []
    for number in range(1, len(gram)):
        for cuts in itertools.combinations(range(1, len(gram)), number):
            edges = [0, *cuts, len(gram)]
            parts = [gram[a:b] for a, b in itertools.pairwise(edges)]
            options.append(power * log_p(gram) - sum(log_p(part) for part in parts))
    return min(options)


def random_sentences(seed, number=300, words=9):
    generator = np.random.default_rng(seed)
    return [[f"w{i}" for i in generator.integers(0, words, generator.integers(0, 12))] for _ in range(number)]


@pytest.mark.parametrize("seed, power", [(0, 1), (1, 2)])
def test_counts_and_scores_equal_the_definition(seed, power):
    sentences = random_sentences(seed)
    counts = by_hand(sentences)
    found = pmi.count_ngrams(sentences, count_above=2)
    assert found.totals == {n: sum(c.values()) for n, c in counts.items()}
    scores = pmi.score_ngrams(found, power)
    expected = {" ".join(gram): (n, gram) for n in range(2, 6) for gram, c in counts[n].items() if c > 2}
    assert set(scores["ngram"]) == set(expected)
    for row in scores.itertuples():
        n, gram = expected[row.ngram]
        assert (row.length, row.count) == (n, counts[n][gram])
        assert abs(row.score - score_by_hand(gram, counts, power)) < 1e-9


def test_the_count_is_exclusive_and_sequences_are_not_joined():
    sentences = [["a", "b"]] * 3 + [["c", "d"]] * 2 + [["b", "a"]]
    scores = pmi.score_ngrams(pmi.count_ngrams(sentences, count_above=2))
    assert scores["ngram"].tolist() == ["a b"]
    assert "b a" not in pmi.score_ngrams(pmi.count_ngrams([["a", "b"]] * 9, count_above=0))["ngram"].tolist()


def test_three_parts_can_be_the_best_explanation():
    sentences = [["a", "x"]] * 20 + [["y", "b"]] * 20 + [["c", "z"]] * 20 + [["a", "b", "c"]]
    scores = pmi.score_ngrams(pmi.count_ngrams(sentences, count_above=0)).set_index("ngram")["score"]
    assert abs(scores["a b c"] - 5.3030) < 1e-4  # 5.8948 with cuts in two only
    sentences = [["new", "york", "city"], ["new", "york", "times"], ["new", "car"], ["old", "car"], ["york", "minster"]]
    scores = pmi.score_ngrams(pmi.count_ngrams(sentences, count_above=0)).set_index("ngram")["score"]
    assert abs(scores["new york city"] - math.log(14)) < 1e-9  # 4.5643 with single words only


def test_ranks_break_ties_by_count_and_words():
    sentences = [["q", "p"]] * 4 + [["b", "a"]] * 4 + [["x", "y", "x", "y"]] * 4
    scores = pmi.score_ngrams(pmi.count_ngrams(sentences, count_above=1))
    pairs = scores[scores["length"] == 2]
    assert pairs["ngram"].tolist()[:2] == ["b a", "q p"]
    ordered = list(zip(pairs["score"].round(9), pairs["count"], strict=True))
    assert ordered == sorted(ordered, reverse=True)


def test_a_vocabulary_has_its_shares_and_short_lengths_stay_short():
    scores = pmi.score_ngrams(pmi.count_ngrams(random_sentences(3, 400, 6), count_above=1))
    vocabulary = pmi.build_vocabulary(scores, 40)
    assert vocabulary["length"].value_counts().to_dict() == {2: 20, 3: 10, 4: 5, 5: 5}
    assert pmi.build_vocabulary(scores, 400)["length"].value_counts()[2] == 36  # 200 wanted, 6 * 6 exist
    other = pmi.score_ngrams(pmi.count_ngrams(random_sentences(4, 400, 6), count_above=1))
    assert set(pmi.build_vocabulary(other, 40)["ngram"]) != set(vocabulary["ngram"])


def test_the_default_vocabulary_finds_the_idioms_of_the_corpus():
    """The figure that the claim T5b names."""
    config = yaml.safe_load((Path(__file__).parents[2] / "config.yaml").read_text())
    corpus, spec = config["data"]["idioms"], config["pmi"]["idioms"]
    made = generators.generate(corpus["generator"], {"train": corpus["splits"]["train"]}, corpus["seed"])
    counts = pmi.count_ngrams((text.split() for text in made["train"]["text"]), count_above=spec["count_above"])
    vocabulary = pmi.build_vocabulary(pmi.score_ngrams(counts, power=spec["power"]), size=spec["size"])
    triples = {" ".join(IDIOM_POOL[word] for word in idiom) for idiom in IDIOMS}
    assert len(triples) == 32 and len(triples & set(vocabulary["ngram"])) == 30


def test_planted_idioms_come_out_on_top():
    generator = np.random.default_rng(0)
    idioms = [["p1", "p2", "p3"], ["p2", "p4", "p1"], ["p5", "p3", "p4"]]
    sentences = []
    for _ in range(1500):
        words = []
        for _ in range(8):
            words += idioms[generator.integers(3)] if generator.random() < 0.3 else [f"w{generator.integers(10)}"]
        sentences.append(words)
    scores = pmi.score_ngrams(pmi.count_ngrams(sentences))
    top = scores[scores["length"] == 3].head(3)["ngram"].tolist()
    assert sorted(top) == sorted(" ".join(idiom) for idiom in idioms)


def test_a_million_tokens_are_counted():
    generator = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(2000)])
    weights = 1 / np.arange(1, 2001)
    sentences = words[generator.choice(2000, size=(10_000, 100), p=weights / weights.sum())].tolist()
    scores = pmi.score_ngrams(pmi.count_ngrams(sentences))
    assert len(scores) > 5000


@pytest.mark.parametrize(
    "call", [lambda: pmi.count_ngrams([[], []]), lambda: pmi.UnitMatcher([]), lambda: pmi.UnitMatcher([[]])]
)
def test_nothing_to_count_or_match_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_another_power_is_refused():
    with pytest.raises(InputError, match="power"):
        pmi.score_ngrams(pmi.count_ngrams([["a", "b"]], count_above=0), power=3)


# --- matching


def starts(matcher, ids, begins=None, priorities=None):
    ids = torch.tensor([ids])
    begins = None if begins is None else torch.tensor([begins]).bool()
    priorities = torch.arange(ids.shape[1], 0, -1)[None] if priorities is None else torch.tensor([priorities])
    return matcher.unit_starts(ids, begins, priorities)[0].tolist()


def test_units_begin_and_end_at_word_borders():
    matcher = pmi.UnitMatcher([[5, 6], [7, 8, 9]])
    # 6 continues a word in the first row: the word 5 6 is not the collocation's end if 7 goes on.
    assert starts(matcher, [5, 6, 4, 7, 8, 9], [1, 1, 1, 1, 0, 1]) == [0, 0, 2, 3, 3, 3]
    assert starts(matcher, [5, 6, 4, 4], [1, 1, 0, 1]) == [0, 1, 1, 3], "6 4 is one word, so 5 6 does not end there"
    assert starts(matcher, [4, 5, 6], [1, 0, 1]) == [0, 0, 2], "5 is the end of a word, not its beginning"
    assert starts(matcher, [4, 7, 8], [1, 1, 0]) == [0, 1, 1], "cut off by the end of the row"


def test_longest_match_wins_and_priorities_decide_overlaps():
    matcher = pmi.UnitMatcher([[1, 2], [1, 2, 3], [3, 4], [2, 3]])
    assert starts(matcher, [1, 2, 3, 4]) == [0, 0, 0, 3]
    assert starts(matcher, [1, 2, 3, 4], priorities=[1, 9, 2, 1]) == [0, 1, 2, 2], (
        "2 3 lies inside 1 2 3 and is dropped"
    )
    assert starts(matcher, [2, 3, 4], priorities=[1, 5, 0]) == [0, 1, 1]
    assert starts(matcher, [1, 2, 1, 2, 3, 1, 2]) == [0, 0, 2, 2, 2, 5, 5]


def test_chains_of_overlaps_agree_with_a_greedy_pass_by_priority():
    generator = np.random.default_rng(1)
    grams = [[a, b] for a in range(4) for b in range(4)] + [[0, 1, 2], [1, 2, 3, 0], [2, 2, 2]]
    matcher = pmi.UnitMatcher(grams)
    for _ in range(60):
        ids, priority = generator.integers(0, 5, 30).tolist(), generator.permutation(30).tolist()
        longest = {i: max((len(g) for g in grams if ids[i : i + len(g)] == g), default=0) for i in range(30)}
        reach, matches = 0, []
        for i in range(30):
            if i + longest[i] > reach and longest[i]:
                matches.append((i, i + longest[i]))
                reach = i + longest[i]
        kept: list[tuple[int, int]] = []
        for a, b in sorted(matches, key=lambda match: -priority[match[0]]):
            if all(b <= c or d <= a for c, d in kept):
                kept.append((a, b))
        expected = list(range(30))
        for a, b in kept:
            expected[a:b] = [a] * (b - a)
        assert starts(matcher, ids, priorities=priority) == expected


def test_matching_needs_no_vocabulary_wide_ids():
    matcher = pmi.UnitMatcher([[250_000, 3]])
    assert starts(matcher, [3, 250_000, 3, 250_001]) == [0, 1, 1, 3]
