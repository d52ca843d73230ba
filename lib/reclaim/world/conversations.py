"""Passages about a singer's albums, conversations about them, and a live user who reacts to what a reader answers.

For EvalConvQA (Li et al. 2022). A passage tells of three or four albums in order. Each has a header sentence, which names
it with its place in the order, and facts, each there with a probability, in one of three wordings; the album is called
"it" in most of them. A sentence that uses an ordinal word for something else misleads half the time. A conversation asks
for an album (first, debut, ...; or which sold best, which only the numbers tell), then for facts of what is in focus, by
"it" or by name when the last mention is more than two turns old. What the passage does not tell cannot be answered.

The live user knows the grammar and what it was told, takes the reader's last answer to a question for an album or a song
as what "it" means, and asks in any order. It judges an answer by looking up (referent, relation) in the world: an answer
is correct at token F1 of at least one half with the truth, or if both are no answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reclaim.convqa.dialogs import Dialog, DialogTurn
from reclaim.metrics.qa import token_f1
from reclaim.metrics.quac import NO_ANSWER
from reclaim.world.lexicon import (
    ALBUM_NAMES,
    ORDINALS,
    PRODUCER_NAMES,
    RECORDING_PLACES,
    SINGER_NAMES,
    SONG_NAMES,
)
from reclaim.world.tables import check_count, check_probability, check_sizes, stream

MEMORY = 2
"""Turns after which "it" is no longer said for what was named then."""

CORRECT_F1 = 0.5
NEW_ENTITY, NEXT_ALBUM, BEST_SELLER, IN_ORDER, PRESENT, ASK_LENGTH, NAMED = 0.25, 0.1, 0.3, 0.8, 0.7, 0.5, 0.2
RELATIONS = ("year", "place", "single", "producer", "chart")
QUESTIONS = {
    "year": ("When was {it} released?", "When did {it} come out?"),
    "place": ("Where was {it} recorded?", "Where was {it} made?"),
    "single": ("What was the single from {it}?", "Which single came from {it}?"),
    "producer": ("Who produced {it}?", "Who was the producer of {it}?"),
    "chart": ("How high did {it} climb?", "How far up the charts did {it} go?"),
    "length": ("How long was {it}?", "How long did {it} last?"),
    "ordinal": ("What was {her} {word} album?", "Which album was {her} {word}?"),
    "best": ("Which album sold best?", "What was {her} best selling album?"),
    "next": ("What was {her} next album?", "Which album came next?"),
}
SENTENCES = {
    "year": ("{It} was released in {value}.", "{It} came out in {value}.", "{It} appeared in {value}."),
    "place": ("{It} was recorded in {value}.", "{It} was made in {value}.", "The sessions for {it} were in {value}."),
    "single": ("{It} had the single {value}.", "The single {value} was taken from {it}.", "{It} gave the single {value}."),
    "producer": ("{It} was produced by {value}.", "The producer of {it} was {value}.", "{value} produced {it}."),
    "chart": ("{It} climbed to number {value}.", "{It} peaked at number {value}.", "In the charts {it} made number {value}."),
    "length": ("The song lasted {value} minutes.", "The song was {value} minutes long.", "The song ran {value} minutes."),
    "sold": ("{It} sold {value} copies.",),
}  # fmt: skip
HEADERS = (
    "{name} was {her} {word} album.",
    "{Her} {word} album was {name}.",
    "{She} made {name} as {her} {word} album.",
)
DISTRACTORS = ("{Her} {word} tour began in {value}.", "{Her} {word} child was born in {value}.")


def generate_dialogs(
    split_sizes: dict[str, int],
    seed: int,
    num_turns: int = 8,
    fact_probability: float = 0.7,
    pronoun_probability: float = 0.9,
    distractor_probability: float = 0.5,
) -> dict[str, list[Dialog]]:
    """Make the dialogs of each split, one passage a dialog; passages of splits and within a split differ.

    Raises InputError for unknown values.
    """
    check_sizes(split_sizes)
    check_count("num_turns", num_turns)
    for name, value in (
        ("fact_probability", fact_probability), ("pronoun_probability", pronoun_probability),
        ("distractor_probability", distractor_probability),
    ):  # fmt: skip
        check_probability(name, value)
    splits: dict[str, list[Dialog]] = {}
    seen: set[str] = set()
    for split, size in sorted(split_sizes.items()):
        rng = stream(seed, "conversations", split)
        dialogs: list[Dialog] = []
        while len(dialogs) < size:
            facts = _draw_facts(rng, fact_probability)
            context, starts = _passage(rng, facts, pronoun_probability, distractor_probability)
            if context not in seen:
                seen.add(context)
                dialogs.append(_dialog(rng, f"W_{split}_{len(dialogs)}", facts, context, starts, num_turns))
        splits[split] = dialogs
    return {split: splits[split] for split in split_sizes}


# -------------------------------------------------------------------------------------------------------------- passages


def _draw_facts(rng: np.random.Generator, probability: float) -> dict[str, Any]:
    """What is true of one singer: {name, she, her, albums: [{name, sold, year, ...}], distractors}; absent facts lack keys."""
    count = int(rng.integers(3, 5))
    first, last = (str(rng.choice(names)) for names in SINGER_NAMES)
    she, her = (("she", "her"), ("he", "his"))[int(rng.integers(2))]
    names = rng.choice(ALBUM_NAMES, count, replace=False)
    songs = rng.choice(SONG_NAMES, count, replace=False)
    years = np.sort(rng.choice(np.arange(1961, 2010), count, replace=False))
    sold = rng.choice(np.arange(11, 99), count, replace=False)
    albums = []
    for index in range(count):
        possible = {
            "year": str(years[index]),
            "place": str(rng.choice(RECORDING_PLACES)),
            "single": str(songs[index]),
            "producer": " ".join(str(rng.choice(part)) for part in PRODUCER_NAMES),
            "chart": str(rng.integers(1, 60)),
        }
        album = {key: value for key, value in possible.items() if rng.random() < probability}
        if "single" in album and rng.random() < probability:
            album["length"] = str(rng.integers(2, 10))
        keys = (*RELATIONS, "sold")
        order = [keys[place] for place in rng.permutation(len(keys))]
        albums.append({"name": str(names[index]), "sold": f"{sold[index]},000", "order": order, **album})
    return {"name": f"{first} {last}", "she": she, "her": her, "albums": albums}


def _passage(
    rng: np.random.Generator, facts: Mapping[str, Any], pronoun: float, distractor: float
) -> tuple[str, dict[tuple[str, str], int]]:
    """The text, and where each fact stands: (album's or song's name, relation or "name") -> offset."""
    she, her = facts["she"], facts["her"]
    forms = {"she": she, "her": her, "She": she.capitalize(), "Her": her.capitalize()}
    text = ""
    starts: dict[tuple[str, str], int] = {}

    def tell(template: str, owner: str, key: str, value: str, **words: str) -> None:
        nonlocal text
        before = template.partition("{" + ("name" if key == "name" else "value") + "}")[0].format(**words)
        starts.setdefault((owner, key), len(text) + len(before))
        text += template.format(**words, **{"name" if key == "name" else "value": value}) + " "

    for index, album in enumerate(facts["albums"]):
        name = album["name"]
        tell(str(rng.choice(HEADERS)), name, "name", name, word=str(rng.choice(ORDINALS[index])), **forms)
        for key in [key for key in album["order"] if key in album]:
            it = "it" if rng.random() < pronoun else name
            tell(str(rng.choice(SENTENCES[key])), name, key, album[key], it=it, It="It" if it == "it" else it)
            if key == "single" and "length" in album:
                tell(str(rng.choice(SENTENCES["length"])), album["single"], "length", album["length"])
        if rng.random() < distractor:
            word = str(rng.choice(ORDINALS[int(rng.integers(len(facts["albums"])))]))
            year = str(rng.integers(1961, 2010))
            tell(str(rng.choice(DISTRACTORS)), name, "distractor", year, word=word, **forms)
    return text + NO_ANSWER, starts


# ----------------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Asked:
    """A question of the world with its truth, its self-contained form, and what it is about.

    `entity` says that the answer can be meant by "it" afterwards.
    """

    text: str
    truth: str
    explicit: str
    relation: str
    about: str | None = None

    @property
    def entity(self) -> bool:
        """Whether the answer is an album or a song."""
        return self.relation in ("ordinal", "best", "next", "single")


class World:
    """Look-up of a passage's facts: relations of what is named, in the grammar's terms."""

    def __init__(self, facts: Mapping[str, Any]):
        self.facts, self.albums = facts, facts["albums"]
        self.index = {album["name"]: place for place, album in enumerate(self.albums)}
        self.songs = {album["single"]: album for album in self.albums if "single" in album}

    def named(self, answer: str) -> str | None:
        """The album or song that an answer names: its first word that is one of them; None where it names none."""
        words = (word.strip(".,") for word in answer.split())
        return next((word for word in words if word in self.index or word in self.songs), None)

    def relations(self, name: str) -> tuple[str, ...]:
        """What can be asked of something of this name, in the order in which the passage tells it."""
        if name in self.songs:
            return ("length",)
        order = self.albums[self.index[name]]["order"] if name in self.index else RELATIONS
        return tuple(key for key in order if key in RELATIONS)

    def truth(self, name: str | None, relation: str) -> str:
        """The answer to a relation of a named thing; no answer where the passage does not tell it."""
        if name in self.songs:
            return self.songs[name].get(relation, NO_ANSWER) if relation == "length" else NO_ANSWER
        return self.albums[self.index[name]].get(relation, NO_ANSWER) if name in self.index else NO_ANSWER

    def ask_fact(self, rng: np.random.Generator, said: str, name: str | None, relation: str) -> Asked:
        """Ask a relation of `name`, saying `said` for it."""
        form = str(rng.choice(QUESTIONS[relation]))
        return Asked(form.format(it=said), self.truth(name, relation), form.format(it=name or said), relation, name)

    def ask_entity(
        self, rng: np.random.Generator, relation: str, place: int | None = None, after: str | None = None
    ) -> Asked:
        """Ask for the album at `place` in the order, the one that sold best, or the one that follows `after`."""
        form, her = str(rng.choice(QUESTIONS[relation])), self.facts["her"]
        owner = f"{self.facts['name']}'s"
        if relation == "best":
            best = max(self.albums, key=lambda album: int(album["sold"].replace(",", "")))
            return Asked(form.format(her=her), best["name"], form.format(her=owner), relation)
        if relation == "next":
            follows = self.index[after] + 1 if after in self.index else len(self.albums)
            truth = self.albums[follows]["name"] if follows < len(self.albums) else NO_ANSWER
            explicit = f"What was the album after {after}?" if after else form.format(her=owner)
            return Asked(form.format(her=her), truth, explicit, relation)
        assert place is not None  # the ordinal's
        word = str(rng.choice(ORDINALS[place]))
        truth = self.albums[place]["name"] if place < len(self.albums) else NO_ANSWER
        return Asked(form.format(her=her, word=word), truth, form.format(her=owner, word=word), relation)


class Questioner:
    """What the person of a dialog and the live user share: focus, memory of mentions, and the choice of a question."""

    def __init__(self, world: World, rng: np.random.Generator, careful: bool):
        """`careful` asks mostly for what the passage tells, in its order, as one who reads along does."""
        self.world, self.rng, self.careful = world, rng, careful
        self.focus: str | None = None
        self.album: str | None = None
        self.mentioned = -99
        self.turn = 0
        self.done: set[tuple[str | None, str]] = set()
        self.places: list[int] = []

    def next_question(self) -> Asked:
        """Choose and word the next question."""
        rng = self.rng
        if self.focus is None or rng.random() < NEW_ENTITY:
            return self._new_entity()
        if self.focus in self.world.songs and (self.focus, "length") not in self.done and rng.random() < ASK_LENGTH:
            return self._fact(self.focus, "length")
        if self.focus != self.album and self.album is not None:
            self.focus, self.mentioned = self.album, -99  # back to the album, which has to be named
        if rng.random() < NEXT_ALBUM:
            return self.world.ask_entity(rng, "next", after=self.focus)
        left = [key for key in self.world.relations(self.focus) if (self.focus, key) not in self.done]
        if not left:
            return self._new_entity()
        if self.careful:
            told = [key for key in left if self.world.truth(self.focus, key) != NO_ANSWER]
            left = told if told and rng.random() < PRESENT else left
            if rng.random() < IN_ORDER:
                left = left[:1]
        return self._fact(self.focus, str(rng.choice(left)))

    def _fact(self, name: str, relation: str) -> Asked:
        self.done.add((name, relation))
        recent = self.turn - self.mentioned <= MEMORY and self.rng.random() >= NAMED
        asked = self.world.ask_fact(self.rng, "it" if recent else name, name, relation)
        self.mentioned = self.turn if not recent else self.mentioned
        return asked

    def _new_entity(self) -> Asked:
        if self.rng.random() < BEST_SELLER:
            return self.world.ask_entity(self.rng, "best")
        left = [place for place in range(len(ORDINALS)) if place not in self.places] or list(range(len(ORDINALS)))
        place = int(self.rng.choice(left))
        self.places.append(place)
        return self.world.ask_entity(self.rng, "ordinal", place=place)

    def told(self, asked: Asked, answer: str) -> None:
        """Take in an answer, whoever gave it: what it names is in focus now."""
        if asked.entity and answer != NO_ANSWER:
            name = self.world.named(answer)
            # An answer that names nothing is still what "it" means; nothing can be said of it.
            self.focus, self.mentioned = name or answer, self.turn
            if name not in self.world.songs:
                self.album = self.focus
        self.turn += 1


def _dialog(
    rng: np.random.Generator,
    key: str,
    facts: Mapping[str, Any],
    context: str,
    starts: Mapping[tuple[str, str], int],
    num_turns: int,
) -> Dialog:
    """A conversation of two people, the answers being the truth, with three references each."""
    person = Questioner(World(facts), rng, careful=True)
    turns = []
    for number in range(num_turns):
        asked = person.next_question()
        if asked.truth == NO_ANSWER:
            start = context.rindex(NO_ANSWER)
        else:
            start = starts[(asked.about, asked.relation) if asked.about else (asked.truth, "name")]
        longer, longer_start = _one_word_more(context, asked.truth, start)
        turns.append(
            DialogTurn(
                f"{key}_q#{number}", asked.text, (asked.truth, longer, asked.truth), (start, longer_start, start),
                asked.truth, start, rewrite=asked.explicit,
            )
        )  # fmt: skip
        person.told(asked, asked.truth)
    background = f"{facts['name']} is a singer."
    return Dialog(key, facts["name"], "Albums", background, context, tuple(turns), json.dumps(facts, sort_keys=True))


def _one_word_more(context: str, text: str, start: int) -> tuple[str, int]:
    """What another annotator marks: the word before, too, where the sentence has one."""
    before = context[:start].rstrip()
    if text == NO_ANSWER or not before or before.endswith("."):
        return text, start
    first = before.rfind(" ") + 1
    return context[first : start + len(text)], first


# --------------------------------------------------------------------------------------------------------- the live user


class LiveUser:
    """An oracle user of one passage: asks, is told the reader's answer, judges it, and goes on from that answer.

    The first question is the dialog's own. `ask` gives the next question; `judge` takes the answer to it and returns
    what the annotation format holds of the turn.
    """

    def __init__(self, dialog: Dialog, seed: int, *names: object):
        self.dialog = dialog
        self.world = World(json.loads(dialog.facts))
        self.person = Questioner(self.world, stream(seed, "live user", dialog.id, *names), careful=False)
        first = dialog.turns[0]
        relation = "ordinal"  # a dialog begins with a question for an album
        self.asked: Asked | None = Asked(first.question, first.orig_answer, first.rewrite, relation)
        self.turn_id = 0

    def ask(self) -> str:
        """The question of this turn."""
        if self.asked is None:
            self.asked = self.person.next_question()
        return self.asked.text

    def judge(self, answer: str) -> dict[str, Any]:
        """Judge the answer to the last question; gives the turn as the annotation format has it."""
        asked = self.asked
        assert asked is not None  # `ask` comes first
        correct = is_correct(answer, asked.truth)
        unanswerable = asked.truth == NO_ANSWER
        self.person.told(asked, answer)
        turn = {
            "turn_id": self.turn_id, "question": asked.text, "answer": answer, "valid": "y",
            "answerable": "n" if unanswerable else "y", "correct": "y" if correct else "n",
            "gold_anno": [] if correct or unanswerable else [asked.truth],
        }  # fmt: skip
        self.turn_id += 1
        self.asked = None
        return turn


def is_correct(answer: str, truth: str) -> bool:
    """Whether the oracle accepts an answer."""
    if NO_ANSWER in (answer, truth):
        return answer == truth
    return token_f1(answer, truth) >= CORRECT_F1
