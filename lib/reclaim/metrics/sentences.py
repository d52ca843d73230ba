"""Sentence splitters: English Punkt where its data are installed, and the same algorithm without them where they are not.

Source: Kiss and Strunk 2006 (Punkt), as NLTK has it; ALCE (Gao et al. 2023) splits answers into statements with it. Its
trained parameters are no package and may be missing offline, where NLTK then raises LookupError. A splitter carries a
name, so that a result can say which one made its statements: splitters differ on abbreviations, and so do the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from reclaim.errors import InputError

SPLITTERS = ("punkt", "punkt_list", "punkt_untrained")
ABBREVIATIONS = """
    mr mrs ms dr prof sr jr st mt rev hon gen col maj capt lt sgt gov sen rep pres gr
    vs etc al cf e.g i.e a.m p.m u.s u.k u.n b.c a.d ph.d d.c no vol fig pp ed eds ca approx
    inc ltd co corp bros dept univ assn ave blvd jan feb mar apr jun jul aug sep sept oct nov dec
""".split()
"""Words that keep their full stop, without it and in lower case, for `punkt_list`."""


@dataclass(frozen=True)
class Splitter:
    """A text to its sentences, without the blanks between them; an empty text has none."""

    name: str
    split: Callable[[str], list[str]]

    def __call__(self, text: str) -> list[str]:
        return self.split(text)


@cache
def sentence_splitter(name: str = "auto") -> Splitter:
    """The splitter of a name.

    `punkt`: the trained English parameters from NLTK's data folders; `punkt_list`: the algorithm with the abbreviations
    above in place of trained ones; `punkt_untrained`: the algorithm alone; `auto`: the first that is there. Raises
    InputError for another name, and for `punkt` where its data are missing.
    """
    if name == "auto":
        return _trained() or sentence_splitter("punkt_list")
    if name not in SPLITTERS:
        raise InputError("splitter", repr(name), f"auto, {', '.join(SPLITTERS)}")
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    if name == "punkt":
        trained = _trained()
        if trained is None:
            raise InputError("splitter", "no Punkt data", "punkt_tab for English in a folder of NLTK_DATA")
        return trained
    parameters = PunktParameters()
    if name == "punkt_list":
        parameters.abbrev_types.update(ABBREVIATIONS)
    return Splitter(name, PunktSentenceTokenizer(parameters).tokenize)


def _trained() -> Splitter | None:
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        return Splitter("punkt", PunktTokenizer("english").tokenize)
    except LookupError:
        return None
