import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaim.metrics.qa import (
    accuracy,
    answer_f1,
    exact_match,
    mean_answer_f1,
    normalize_answer,
    token_f1,
)


def test_normalisation_joins_across_punctuation_and_drops_articles():
    assert normalize_answer("  The Five-year  PLAN, an\tanswer. ") == "fiveyear plan answer"
    assert normalize_answer("theatre a-z") == "theatre az"  # articles are whole words, after punctuation is gone


def test_f1_counts_repeated_tokens():
    # 3 tokens predicted, 4 wanted, overlap b b.
    assert token_f1("b b c", "b b d e") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_no_overlap_and_empty_give_zero_f1_but_empty_matches_exactly():
    assert token_f1("", "") == 0.0
    assert token_f1("x", "y") == 0.0
    assert exact_match("the", ["a"]) == 1.0


def test_first_gold_no_answer_turns_f1_into_exact_match_with_it():
    assert answer_f1("something", ["CANNOTANSWER", "something"]) == 0.0
    assert answer_f1("cannotanswer.", ["CANNOTANSWER"]) == 1.0
    assert answer_f1("something", ["something", "no answer"]) == 1.0


def test_mean_of_questions():
    assert mean_answer_f1(["new york", "x"], [["york", "new york city"], ["x"]]) == pytest.approx((0.8 + 1) / 2)
    assert mean_answer_f1(["something"], [["CANNOTANSWER", "something"]]) == 0.0


def test_accuracy_accepts_any_of_several_correct_answers():
    assert accuracy([0, 2, "b"], [0, [1, 2], ("a",)]) == pytest.approx(2 / 3)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 predictions for 1 answers"):
        accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="0 predictions"):
        mean_answer_f1([], [])


@given(st.text(), st.text())
def test_f1_is_symmetric_and_bounded(a, b):
    assert token_f1(a, b) == pytest.approx(token_f1(b, a))
    assert 0.0 <= token_f1(a, b) <= 1.0


@given(st.text())
def test_normalisation_is_idempotent(text):
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)
