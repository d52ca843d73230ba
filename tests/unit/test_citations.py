"""Citation recall and precision, and the two modes; the official numbers are in tests/golden/test_alce.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclaim.errors import InputError
from reclaim.metrics.citations import citation_numbers, counts, multiple_citations, remove_citations, score_citations

DOCS = [{"title": letter, "text": f"{letter} holds."} for letter in "abcd"]


def needs(*groups):
    """A judge to which a premise entails anything if it has all passages of a group."""

    def judge(pairs):
        return [any(all(f"{letter} holds" in premise for letter in group) for group in groups) for premise, _ in pairs]

    return judge


def split(text):
    return [part for part in text.split("|") if part]


def score(output, judge, mode="legacy", **options):
    return score_citations([{"question": "Q?", "output": output, "docs": DOCS}], judge, split, mode=mode, **options)[0]


@pytest.mark.parametrize(
    ("output", "judge", "recall", "precision"),
    [
        ("s [1]", needs("a"), 1, 1),
        ("s", needs("a"), 0, 0),
        ("s [2]", needs("a"), 0, 0),
        ("s [1][2]", needs("ab"), 1, 1),  # each supports a part
        ("s [1][2]", needs("a"), 1, 0.5),  # the second is not needed
        ("s [1][2]", needs("a", "b"), 1, 1),  # each suffices
        ("s [1][2][1]", needs("ab"), 1, 1 / 3),  # without one [1] the others still suffice, not so without [2]
        ("s [1]|t [2]|u", needs("a"), 1 / 3, 0.5),
    ],
)
@pytest.mark.parametrize("mode", ["legacy", "strict"])
def test_partial_support(output, judge, recall, precision, mode):
    answer = score(output, judge, mode)
    assert (answer.recall, answer.precision) == (pytest.approx(recall), pytest.approx(precision))


def test_a_statement_without_support_has_no_good_citation_even_if_one_would_do():
    def contrary(pairs):  # entails alone, not together
        return [premise.count("holds") == 1 for premise, _ in pairs]

    answer = score("s [1][2]", contrary)
    assert (answer.recall, answer.precision) == (0, 0)


@pytest.mark.parametrize(
    ("output", "legacy", "strict"),
    [
        ("", (None, None), (0, 0)),
        ("s [0]", (1, 1), (0, 0)),  # legacy reads the last passage
        ("s [4]|t [9]", (0.5, 1), (0.5, 0.5)),  # and forgets citations out of range
        ("s [1, 4]", (0, 0), (1, 0.5)),
    ],
)
def test_strict_mends_what_legacy_has(output, legacy, strict):
    for mode, expected in (("legacy", legacy), ("strict", strict)):
        answer = score(output, needs("d"), mode)
        assert (answer.recall, answer.precision) == expected, mode


def test_limit_counts_citations_of_a_statement_after_the_range_check():
    assert score("s [2][3][4][1]", needs("a")).recall == 0
    assert score("s [2][3][4][1]", needs("a"), at_most_citations=None).recall == 1
    assert score("s [1][2][3][9]", needs("a")).recall == 0


def test_lists_are_judged_entry_by_entry_behind_the_question():
    answer = score("x [1], y [2], , z [1, 2].", needs("a"), "strict", lists=True)
    assert [s.hypothesis for s in answer.statements] == ["Q? x", "Q? y", "Q? z"]
    assert [s.cited for s in answer.statements] == [[0], [1], [0, 1]]
    legacy = score("x [1], y [2], , z", needs("a"), lists=True)
    assert [s.hypothesis for s in legacy.statements] == ["Q? x", "Q? y", "Q?", "Q? z"]


def test_all_answers_share_three_calls_of_the_judge():
    calls = []

    def judge(pairs):
        calls.append(len(pairs))
        return needs("a")(pairs)

    items = [{"question": "Q?", "output": "s [1][2]|t [1][3]|u [2]", "docs": DOCS}] * 5
    answers = score_citations(items, judge, split)
    assert calls == [15, 20, 10]
    assert counts(answers)["questions"] == 45
    assert multiple_citations(answers) == {
        "multi_cite": pytest.approx(2 / 3),
        "multi_cite_supported": 1.0,
        "over_cite": 1.0,
    }


def test_counts_tell_what_the_means_hide():
    answers = score_citations(
        [{"question": "Q?", "output": text, "docs": DOCS} for text in ("", "s|t [9]|u [0]", "v [1][2][3][4]")],
        needs("a"),
        split,
    )
    found = counts(answers)
    assert found == {
        "empty": 1,
        "statements": 4,
        "uncited": 1,
        "out_of_range": 1,
        "zero": 1,
        "dropped": 1,
        "questions": 1 + 1 + 3 + 2,
    }


def test_strict_text_keeps_other_brackets():
    text = "Deep [sic] | wide [1, 2] lake[3]."
    assert remove_citations(text, "strict") == "Deep [sic] | wide lake."
    assert citation_numbers(text, "strict") == [0, 1, 2]
    assert remove_citations(text) == "Deep [sic wide, 2 lake."


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("stuv"), st.lists(st.integers(1, 4), max_size=4)), min_size=1, max_size=4))
def test_modes_agree_on_well_formed_answers(parts):
    output = "|".join(word + " " + "".join(f"[{number}]" for number in numbers) for word, numbers in parts)
    judge = needs("ab", "c")
    answers = [score(output, judge, mode) for mode in ("legacy", "strict")]
    assert answers[0].recall == answers[1].recall
    assert answers[0].precision == answers[1].precision


def test_a_number_of_any_length_is_out_of_range():
    for mode in ("legacy", "strict"):
        assert score(f"s [{'9' * 6000}]", needs("a"), mode).recall == 0


def test_bad_input_is_named():
    with pytest.raises(InputError, match="mode"):
        score("s", needs("a"), "official")
    with pytest.raises(InputError, match="item 0: docs"):
        score_citations([{"question": "", "output": "s [0]", "docs": []}], needs("a"), split)
