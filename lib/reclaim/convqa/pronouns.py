"""The closed class of pronouns that name nothing by themselves (EvalConvQA, Li et al. 2022; its coreference rules)."""

PERSONAL = "i me he him she her it we us you thou thee ye they them"
POSSESSIVE = "my mine his hers its our ours your yours thy thine their theirs"
REFLEXIVE = (
    "myself himself herself itself ourself ourselves yourself yourselves thyself theirself theirselves "
    "themself themselves"
)
DEMONSTRATIVE = "this that these those such suchlike there yon yonder idem"
RELATIVE = (
    "who whom whose whoever whomever whosever whoso whomso whosoever whomsoever whosesoever which whichever whichsoever "
    "what whatever whatnot whatsoever where whence whereby wherefrom wherein whereinto whereof whereon wherever "
    "wheresoever whereto whereunto wherewith wherewithal whether as"
)
INDEFINITE = (
    "all another any anybody anyone anything aught both each either enough everybody everyone everything few many most "
    "naught neither nobody none nothing nought one other others ought several some somebody someone something somewhat"
)

PRONOUNS = frozenset(" ".join((PERSONAL, POSSESSIVE, REFLEXIVE, DEMONSTRATIVE, RELATIVE, INDEFINITE)).split()) | {
    "each other",
    "one another",
    "no one",
}
"""Lower-cased texts of mentions that are no name."""

DETERMINERS = frozenset("the this that these those a an".split())
"""Lower-case words that do not count when a mention is looked at as a name."""
