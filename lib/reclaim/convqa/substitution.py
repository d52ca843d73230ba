"""Put in the place of each mention what it means: span substitution of coreference clusters, nested ones too.

Source: EvalConvQA (Li et al. 2022) rewrites questions with the package `nested-coref-resolver` 0.0.2; these are its rules,
written anew. A cluster's head is its first span that is not made of pronouns only; the other spans are replaced by it.
Spans are pairs of token positions, both inclusive. No grammar is touched: "her album" becomes "Velda Koss album".

Difference from the package: clusters and spans are looked at in document order throughout, so that the outcome never
depends on the order of a set.
"""

from __future__ import annotations

from collections.abc import Sequence

from reclaim.convqa.pronouns import PRONOUNS

Span = tuple[int, int]
Clusters = Sequence[Sequence[Sequence[int]]]


def resolve(document: Sequence[str], clusters: Clusters) -> list[str]:
    """The document's tokens with every mention replaced by its cluster's head."""
    heads = _targets(document, clusters)
    spans = set(heads) | set(heads.values())
    return _emit(document, (0, len(document) - 1), spans, heads, ())


def _targets(document: Sequence[str], clusters: Clusters) -> dict[Span, Span]:
    """Span to be replaced -> the head that replaces it."""
    heads: dict[Span, Span] = {}
    for cluster in clusters:
        spans = _without_overlaps(sorted((first, last) for first, last in cluster))
        head = next((span for span in spans if not _only_pronouns(document, span)), spans[0])
        for span in spans:
            if _text(document, head) not in _text(document, span):
                heads.setdefault(span, head)
    return heads


def _without_overlaps(spans: Sequence[Span]) -> list[Span]:
    """Cut a span that runs into a later one of its cluster to end before it, at least one token long."""
    cut = []
    for index, (start, end) in enumerate(spans):
        later = [first for first, _ in spans[index + 1 :] if start <= first <= end]
        cut.append((start, max(start, later[0] - 1) if later else end))
    return cut


def _emit(document, region: Span, spans: set[Span], heads: dict[Span, Span], active: tuple[Span, ...]) -> list[str]:
    """Tokens of a region, the widest registered span at each position resolved."""
    tokens: list[str] = []
    position = region[0]
    while position <= region[1]:
        inside = [span for span in spans if span[0] == position and span[1] <= region[1] and span not in active]
        if not inside:
            tokens.append(document[position])
            position += 1
            continue
        span = max(inside, key=lambda span: span[1])
        tokens += _resolved(document, span, spans, heads, active)
        position = span[1] + 1
    return tokens


def _resolved(document, span: Span, spans: set[Span], heads: dict[Span, Span], active: tuple[Span, ...]) -> list[str]:
    head = heads.get(span, span)
    if head in active:  # circular
        return list(document[head[0] : head[1] + 1])
    return _emit(document, head, spans, heads, (*active, span, head))


def _only_pronouns(document: Sequence[str], span: Span) -> bool:
    return all(token.lower() in PRONOUNS for token in document[span[0] : span[1] + 1])


def _text(document: Sequence[str], span: Span) -> str:
    return " ".join(document[span[0] : span[1] + 1]).lower()
