"""The property that the study of label sequences needs: in one language only the phrase tells the classes apart."""

from collections import Counter

import pytest

from reclaim.errors import InputError
from reclaim.world import generators
from reclaim.world.phrases import COMMENTS, GENERIC, NEGATIVE, POSITIVE


def shares(comments):
    """How often each word stands in a class's comments."""
    words = Counter(word for comment in comments for word in comment.split())
    return {word: count / len(comments) for word, count in words.items()}


@pytest.fixture(scope="module", params=["phrases", "words"])
def task(request):
    return request.param, generators.generate(f"{request.param}_task", {"train": 4000}, 0)["train"]


def test_single_words_tell_nothing_or_everything(task):
    language, rows = task
    by_class = [shares(rows["comment"][rows["label"] == label].tolist()) for label in (0, 1)]
    words = {word for side in COMMENTS[language] for comment in side for word in comment.split() if word != "."}
    gaps = [abs(by_class[0].get(word, 0) - by_class[1].get(word, 0)) for word in words]
    if language == "phrases":
        assert max(gaps) < 0.05  # every word is in both classes
    else:
        assert min(gaps) > 0.15  # every word is in one
    phrases = [set(rows["comment"][rows["label"] == label]) - set(GENERIC) for label in (0, 1)]
    assert [set(side) for side in COMMENTS[language]] == phrases


def test_sentences_follow_their_class_and_hold_no_word_of_a_comment(task):
    language, rows = task
    spoken = {word for text in rows["text"] for word in text.split()} - {"."}
    comments = {word for side in COMMENTS[language] for comment in side for word in comment.split()}
    assert not spoken & (comments | {word for comment in GENERIC for word in comment.split()})
    positive = rows["text"].map(lambda text: sum(word in POSITIVE for word in text.split()))
    negative = rows["text"].map(lambda text: sum(word in NEGATIVE for word in text.split()))
    side = positive - negative
    correct = ((side > 0) == (rows["label"] == 1)).where(side != 0, 0.5).astype(float).mean()
    assert 0.88 < correct < 0.95


def test_corpora_hold_documents_without_labels():
    frame = generators.generate("phrases_corpus", {"train": 2000}, 1)["train"]
    assert set(frame.columns) == {"id", "text", "sentence", "comment"}
    assert (frame["text"] == frame["sentence"] + " " + frame["comment"]).all()
    assert 0.55 < frame["comment"].isin(GENERIC).mean() < 0.65
    with pytest.raises(InputError, match="agreement"):
        generators.generate("phrases_corpus", {"train": 5}, 1, agreement=0.95, neutral=0.1)
