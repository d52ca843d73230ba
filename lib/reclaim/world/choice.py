"""Causes and effects with two choices, as COPA: what does a person in some state do, or why does someone do it?"""

from __future__ import annotations

import numpy as np

from reclaim.world.household import STATES, pronoun
from reclaim.world.lexicon import HOUSEHOLD_WORDS, PEOPLE, PLACES, REMEDIES
from reclaim.world.tables import Generator, Tables, balanced, disjoint_splits, table


def generate_causes(split_sizes: dict[str, int], seed: int) -> Tables:
    """Make beginnings and two continuations, one of which belongs to another state (kind `multiple_choice`, balanced).

    Half of the texts ask for the effect (`mira is cold in the hall so`), half for the cause (`mira lights the fire in
    the hall because`). No text occurs twice, in one split or in two; there are 4,320 in all.
    """

    def draw(rng: np.random.Generator, labels: np.ndarray) -> list[tuple[str, list[str]]]:
        rows = []
        for label in labels:
            state, other = (STATES[number] for number in rng.permutation(len(STATES))[:2])
            person, place = str(rng.choice(PEOPLE)), str(rng.choice(PLACES))
            subject = pronoun(person)
            if rng.random() < 0.5:
                text = f"{person} is {state} in the {place} so"
                choices = [f"{subject} {rng.choice(REMEDIES[of])} ." for of in (state, other)]
            else:
                text = f"{person} {rng.choice(REMEDIES[state])} in the {place} because"
                choices = [f"{subject} is {of} ." for of in (state, other)]
            rows.append((text, choices if label == 0 else choices[::-1]))
        return rows

    splits = disjoint_splits(split_sizes, seed, "causes", lambda rng, size: balanced(rng, size, 2), draw)
    return {
        split: table(split, text=[text for text, _ in rows], choices=[choices for _, choices in rows], label=labels)
        for split, (rows, labels) in splits.items()
    }


CAUSES = Generator(generate_causes, "multiple_choice", HOUSEHOLD_WORDS)
