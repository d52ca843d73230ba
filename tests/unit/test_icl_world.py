"""The language of natural tasks and episodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from reclaim.errors import InputError
from reclaim.world import episodes, generators
from reclaim.world.lexicon import EPISODE_NEUTRAL, EPISODE_WORDS, MADE_UP_LABELS, MADE_UP_TASK, NATURAL_TASKS

TOPIC = {
    word: (task, label) for task, topics in NATURAL_TASKS.items() for label, ws in topics.items() for word in ws.split()
}
CORPUS = episodes.generate_corpus({"train": 2000}, 0)["train"]
NOISY = episodes.generate_corpus({"train": 1000}, 0, num_examples=17, swap=0.15, blank=0.2)["train"]


def examples(text: str) -> list[list[str]]:
    words = text.split()
    return [words[i : i + 4] for i in range(0, len(words), 4)]


def documents(frame, kind):
    return [examples(text) for text in frame["text"][frame["document"] == kind]]


def test_every_word_means_one_thing():
    assert len(EPISODE_WORDS) == len(set(EPISODE_WORDS)) == 165
    assert len(TOPIC) == 96 and not set(TOPIC) & {*MADE_UP_LABELS, *EPISODE_NEUTRAL, *NATURAL_TASKS, MADE_UP_TASK}


def test_natural_documents_name_their_task_and_label_mostly_right():
    right = []
    for document in documents(CORPUS, "natural"):
        assert len(document) == 9 and len({example[0] for example in document}) == 1
        for name, first, second, label in document:
            assert TOPIC[first][0] == TOPIC[second][0] == name and label in NATURAL_TASKS[name]
            right.append(TOPIC[first][1] == label)
    assert abs(np.mean(right) - 0.9) < 0.01


def test_an_episode_is_of_two_different_tasks_and_two_made_up_labels():
    labels = Counter()
    for document in documents(CORPUS, "episode"):
        meaning: dict[str, set] = {}
        for name, first, second, label in document:
            assert name == MADE_UP_TASK and label in MADE_UP_LABELS and TOPIC[first] == TOPIC[second]
            meaning.setdefault(label, set()).add(TOPIC[first])
        topics = [topic for found in meaning.values() for topic in found]
        assert all(len(found) == 1 for found in meaning.values())
        # The two classes of a natural task never meet.
        assert len(topics) <= 2 and len({task for task, _ in topics}) == len(topics)
        labels.update(list(meaning))
    assert set(labels) == set(MADE_UP_LABELS)


def test_what_a_label_stands_for_changes_from_episode_to_episode():
    meanings = Counter(
        (label, TOPIC[first][1]) for document in documents(CORPUS, "episode") for _, first, _, label in document[:1]
    )
    assert len(meanings) > 400 and max(meanings.values()) < 12


def test_topics_are_bursty():
    used = Counter()
    for document in documents(CORPUS, "natural"):
        for label in {TOPIC[example[1]][1] for example in document}:
            words = [word for example in document for word in example[1:3] if TOPIC[word][1] == label]
            if len(words) >= 8:
                used[len(set(words))] += 1
    shares = {count: used[count] / sum(used.values()) for count in used}
    assert abs(shares[1] - 0.4) < 0.06 and abs(shares[2] - 0.3) < 0.06 and set(shares) <= {1, 2, 3, 4}


def test_noise_comes_from_the_other_class_and_from_neutral_words():
    words = [
        (example[3], word) for document in documents(NOISY, "episode") for example in document for word in example[1:3]
    ]
    assert all(len(document) == 17 for document in documents(NOISY, "episode"))
    neutral = np.mean([word in EPISODE_NEUTRAL for _, word in words])
    assert abs(neutral - 0.2) < 0.01


def test_the_share_of_episodes_is_exact():
    for share in (0.0, 0.3, 1.0):
        frame = episodes.generate_corpus({"train": 100}, 0, episodes=share)["train"]
        assert (frame["document"] == "episode").sum() == 100 * share


def test_tasks_are_balanced_and_labels_are_those_of_the_lexicon():
    frame = episodes.generate_tasks({"test": 1200}, 0, swap=0.0, blank=0.0)["test"]
    assert set(frame.groupby(["task", "label"]).size()) == {50}
    for row in frame.itertuples():
        word = row.text.split()[0]
        assert TOPIC[word] == (row.task, list(NATURAL_TASKS[row.task])[row.label])
    noisy = episodes.generate_tasks({"test": 12000}, 0)["test"]
    words = [(row, word) for row in noisy.itertuples() for word in row.text.split()]
    assert abs(np.mean([word in EPISODE_NEUTRAL for _, word in words]) - 0.2) < 0.01
    own = [TOPIC[w][1] == list(NATURAL_TASKS[row.task])[row.label] for row, w in words if w in TOPIC]
    assert abs(np.mean(own) - 0.85) < 0.01


def test_registered_deterministic_and_checked():
    for name in ("episodes_corpus", "episodes_tasks"):
        first, again = (generators.generate(name, {"train": 50, "test": 30}, 3)["train"] for _ in range(2))
        assert first.equals(again) and not first.equals(generators.generate(name, {"train": 50}, 4)["train"])
        assert {word for text in first["text"] for word in text.split()} <= set(generators.info(name)["words"])
        with pytest.raises(InputError, match="swap"):
            generators.generate(name, {"train": 5}, 0, swap=1.5)
    with pytest.raises(InputError, match="num_examples"):
        episodes.generate_corpus({"train": 5}, 0, num_examples=0)
