"""Token sequences that begin alike, as a tree in which each beginning stands once.

For `reclaim.scoring`: the label words of a prompt share all of it, and prompts share what they begin with, as those with
fewer and with more of the same demonstrations do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """Token ids of a context (at least one) and of what may follow it (at least one)."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass
class Node:
    """Tokens that follow those of the node's ancestors, and what is asked about them.

    `targets` are (position in segment, request, index, token): the log-probability of `token` after that position is
    value `index` of the request.
    """

    segment: tuple[int, ...]
    targets: list[tuple[int, int, int, int]]
    children: list[Node] = field(default_factory=list)

    @property
    def scored(self) -> list[int]:
        """Positions of the segment whose logits are needed."""
        return sorted({position for position, *_ in self.targets})


def prefix_tree(requests: Sequence[Request], min_shared: float) -> list[Node]:
    """Roots of the tree of what the model reads; neighbours share a node where it has at least `min_shared` tokens."""
    inputs = [(*request.context, *request.continuation[:-1]) for request in requests]
    order = sorted(range(len(inputs)), key=inputs.__getitem__)
    common = [_common_length(inputs[a], inputs[b]) for a, b in zip(order, order[1:], strict=False)]

    def share(neighbour: int, start: int) -> bool:
        same = common[neighbour] == len(inputs[order[neighbour]]) == len(inputs[order[neighbour + 1]])
        return same or common[neighbour] - start >= min_shared

    def node(first: int, last: int, start: int, end: int) -> Node:
        """Tokens start..end-1 of the sorted inputs first..last-1, which agree on them."""
        targets = []
        for request in order[first:last]:
            opening = len(requests[request].context) - 1
            for position in range(max(start, opening), min(end, len(inputs[request]))):
                index = position - opening
                targets.append((position - start, request, index, requests[request].continuation[index]))
        return Node(inputs[order[first]][start:end], targets)

    def grow(first: int, last: int, start: int) -> list[Node]:
        nodes = []
        while first < last:
            stop = first + 1
            while stop < last and share(stop - 1, start):
                stop += 1
            end = min(common[first : stop - 1], default=len(inputs[order[first]]))
            nodes.append(node(first, stop, start, end))
            # Inputs that end here stand first among those that agree.
            while first < stop and len(inputs[order[first]]) == end:
                first += 1
            nodes[-1].children = grow(first, stop, end)
            first = stop
        return nodes

    return grow(0, len(order), 0)


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)
