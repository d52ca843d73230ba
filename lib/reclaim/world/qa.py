"""Questions on passages of household facts; the answer is one word of the passage, to be found or to be written."""

from __future__ import annotations

import numpy as np

from reclaim.world.household import draw_facts, draw_question, word_passage
from reclaim.world.lexicon import COLOURS, HOUSEHOLD_WORDS
from reclaim.world.tables import Generator, Tables, balanced, check_count, disjoint_splits, table

ROLES = ("place", "colour", "person")


def generate_questions(split_sizes: dict[str, int], seed: int, num_facts: int = 3) -> Tables:
    """Make a passage of `num_facts` facts, a question on one of them, and its answer (kind `qa`, one answer a row).

    The three kinds of questions (where, what colour, who) are balanced. The title is the object asked for. No passage
    occurs twice, in one split or in two.
    """
    check_count("num_facts", num_facts, most=len(COLOURS))

    def draw(rng: np.random.Generator, kinds: np.ndarray) -> list[tuple[str, str, str, str, int]]:
        rows = []
        for kind in kinds:
            facts = draw_facts(rng, num_facts)
            asked = facts[rng.integers(num_facts)]
            context = word_passage(rng, facts)
            question, answer = draw_question(asked, ROLES[kind])
            # Persons, colours and places occur once in a passage, but `red` may begin another word.
            start = f" {context} ".index(f" {answer} ")
            rows.append((context, asked.object, question, answer, start))
        return rows

    splits = disjoint_splits(split_sizes, seed, "questions", lambda rng, size: balanced(rng, size, 3), draw)
    return {
        split: table(
            split,
            title=[title for _, title, _, _, _ in rows],
            context=[context for context, *_ in rows],
            question=[question for _, _, question, _, _ in rows],
            answers=[[answer] for *_, answer, _ in rows],
            answer_starts=[[start] for *_, start in rows],
        )
        for split, (rows, _) in splits.items()
    }


QUESTIONS = Generator(generate_questions, "qa", HOUSEHOLD_WORDS)
