"""A coreference model without a model: rules over the turns of a conversation. The default, which needs no download.

In the place of the span model that EvalConvQA (Li et al. 2022) uses. Mentions are names (runs of capitalised words), quoted
titles, definite noun phrases, and pronouns. A pronoun of a question means the newest mention that fits: it, its, this and
that a thing; he, she and their forms a person, who is the background's where it names one; they and theirs a group. An
answer can be meant only if its question asks for something (what or which with a noun, who for persons), never after when,
where, how or why. Within a turn the answer is newer than the question. Gives clusters, so that the decisions and the
rewriting of the paper apply unchanged.

Differences from a trained model: no knowledge of words beyond the closed classes here, and "next album", whose referent
moves without a pronoun, is invisible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reclaim.convqa.coreference import QUESTION_MARK, Document
from reclaim.convqa.history import CorefText
from reclaim.convqa.pronouns import DETERMINERS
from reclaim.convqa.words import find_words
from reclaim.metrics.quac import NO_ANSWER

THING, PERSON, GROUP, SUBJECT = "thing", "person", "group", "subject"
PRONOUN_KINDS = {
    **dict.fromkeys("it its this that itself".split(), THING),
    **dict.fromkeys("he she him his her hers himself herself".split(), PERSON),
    **dict.fromkeys("they them their theirs these those themselves".split(), GROUP),
}
QUESTION_WORDS = frozenset("what which who whom whose when where why how".split())
AUXILIARIES = frozenset(
    "did do does is are was were has have had can could will would should in on at of by for from with and or but".split()
)
VERBS = frozenset("go come happen work sell do".split())
GROUP_NOUNS = frozenset("band group team family company club members brothers sisters people".split())


@dataclass
class _Mention:
    """A span of tokens and what kind of thing it names."""

    first: int
    last: int
    kind: str
    words: str
    entity: list[tuple[int, int]] = field(default_factory=list)


class RuleResolver:
    """Rule-based clusters for texts of turns; deterministic, and a function of each text alone."""

    def resolve(self, texts: Sequence[CorefText]) -> list[Document]:
        """One document for each text: its tokens, and the clusters of two mentions or more."""
        return [_resolve(text) for text in texts]


def _resolve(text: CorefText) -> Document:
    tokens: list[str] = []
    entities: list[list[tuple[int, int]]] = []
    mentions: list[_Mention] = []

    def add(words: str) -> tuple[int, int]:
        start = len(tokens)
        tokens.extend(word for word, _, _ in find_words(words))
        return start, len(tokens)

    def note(start: int, end: int, kind: str, pronouns: bool) -> None:
        """Read a part of the text: names become mentions, pronouns join what they mean."""
        found = _mentions(tokens, start, end, kind)
        taken = {place for mention in found for place in range(mention.first, mention.last + 1)}
        for mention in found:
            _join(mention, mentions, entities)
        for place in range(start, end) if pronouns else ():
            wanted = PRONOUN_KINDS.get(tokens[place].lower())
            if wanted is None or place in taken or not _stands_alone(tokens, place, end):
                continue
            antecedent = next(
                (old for old in reversed(mentions) if old.first < start and _fits(old, wanted, subject)), None
            )
            if antecedent is not None:
                antecedent.entity.append((place, place))
                mentions.append(_Mention(place, place, antecedent.kind, antecedent.words, antecedent.entity))

    if text.background is not None:
        note(*add(text.background), SUBJECT, pronouns=False)
    subject = any(mention.kind == SUBJECT for mention in mentions)
    for asked, answer in text.turns:
        start, end = add(asked)
        note(start, end, THING, pronouns=True)
        answer_kind = _asked_kind(tokens[start:end])
        start, end = add(answer)
        if answer != NO_ANSWER and answer_kind:
            _answer_mention(tokens, start, end, answer_kind, mentions, entities)
    tokens.extend(QUESTION_MARK)
    note(*add(text.question), THING, pronouns=True)
    clusters = sorted(tuple(sorted(entity)) for entity in entities if len(entity) > 1)
    return Document(tuple(tokens), tuple(clusters))


def _answer_mention(tokens, start, end, kind, mentions, entities) -> None:
    """The thing that an answer gives: its first name, else its first noun phrase, else all of it."""
    found = [mention for mention in _mentions(tokens, start, end, kind) if mention.first >= start]
    if not found and end > start:
        found = [_Mention(start, end - 1, kind, " ".join(tokens[start:end]).lower())]
    for mention in found[:1]:
        _join(mention, mentions, entities)


def _join(mention: _Mention, mentions: list[_Mention], entities: list[list[tuple[int, int]]]) -> None:
    """Add a mention to the entity of the same words, or to a new one."""
    same = next((old for old in reversed(mentions) if old.words == mention.words), None)
    if same is None:
        entities.append(mention.entity)
    else:
        mention.entity = same.entity
        mention.kind = same.kind
    mention.entity.append((mention.first, mention.last))
    mentions.append(mention)


def _mentions(tokens: Sequence[str], start: int, end: int, kind: str | None) -> list[_Mention]:
    """Names, quoted titles and definite noun phrases between two positions, in order."""
    found: list[_Mention] = []
    place = start
    while place < end:
        last = _quoted(tokens, place, end) or _name(tokens, place, start, end)
        if last is None and tokens[place].lower() == "the" and place + 1 < end and tokens[place + 1].isalpha():
            last = place + 1
            while last + 1 < end and tokens[last + 1][:1].isupper():
                last += 1
        if last is None:
            place += 1
            continue
        words = " ".join(tokens[place : last + 1]).lower()
        found.append(_Mention(place, last, GROUP if _is_group(words) else kind or THING, words))
        place = last + 1
    return found


def _quoted(tokens: Sequence[str], place: int, end: int) -> int | None:
    """Last token of a quotation that begins here."""
    if tokens[place] not in ('"', "“"):
        return None
    return next((last for last in range(place + 1, end) if tokens[last] in ('"', "”") and last > place + 1), None)


def _name(tokens: Sequence[str], place: int, start: int, end: int) -> int | None:
    """Last token of a run of capitalised words; a question word or auxiliary at the beginning is none."""
    if not tokens[place][:1].isupper() or tokens[place] == NO_ANSWER:
        return None
    low = tokens[place].lower()
    if place == start and (low in QUESTION_WORDS or low in AUXILIARIES) or low in DETERMINERS | PRONOUN_KINDS.keys():
        return None
    last = place
    while last + 1 < end and tokens[last + 1][:1].isupper() and tokens[last + 1] != NO_ANSWER:
        last += 1
    return last


def _stands_alone(tokens: Sequence[str], place: int, end: int) -> bool:
    """This, that, these and those count without a noun after them; that not as a conjunction in front of a clause."""
    if tokens[place].lower() not in ("this", "that", "these", "those"):
        return True
    after = tokens[place + 1] if place + 1 < end else "."
    return not after[:1].isalpha() or after.lower() in AUXILIARIES or after.lower() in VERBS


def _asked_kind(question: Sequence[str]) -> str | None:
    """What the answer to a question names: a thing, a person, a group, or nothing that a pronoun can mean."""
    low = [word.lower() for word in question]
    word = next((place for place, word in enumerate(low) if word in QUESTION_WORDS), None)
    if word is None:
        return None
    if low[word] in ("who", "whom"):
        return PERSON
    if low[word] in ("what", "which"):
        return GROUP if any(noun in GROUP_NOUNS for noun in low) else THING
    return None


def _fits(mention: _Mention, wanted: str, subject: bool) -> bool:
    """Whether a pronoun can mean a mention; he and she mean who the background is about, where it names someone."""
    return mention.kind == (SUBJECT if wanted == PERSON and subject else wanted)


def _is_group(words: str) -> bool:
    return any(word in GROUP_NOUNS for word in words.split())
