"""A node of a tree, seen from the text: where the same was said before, and how it went on."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nlargest

from vllm_specvlm.draft.indexed_text import IndexedText

_SHORTER_BY_ONE = 0.25


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A place where the text went on after the same suffix."""

    length: int
    """Tokens matched before `position`, at most max_match when found; one more with each token drafted from here."""
    position: int
    """Of the token that follows, in the text's own tokens or in the ring."""
    shared: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token that followed where the text ran like this."""

    token: int
    share: float
    """Of the places, weighted by the lengths of their matches; those of all continuations add up to 1."""
    length: int
    """Tokens of the longest match at this node, at most max_match at the root and growing with the path."""


@dataclass(slots=True)
class LookupNode:
    """Its text, the tokens drafted on its path, and its occurrences by the token they add."""

    text: IndexedText
    path: tuple[int, ...]
    children: dict[int, list[Occurrence]]
    below: dict[int, LookupNode] = field(default_factory=dict)
    """The nodes of children that were asked for."""

    def continuations(self, most: int) -> list[Continuation]:
        """At most so many, likeliest first; of equal ones the one that occurred last, own text first."""
        if not self.children:
            return []
        # Children's places have been moved on by one, which leaves the differences.
        longest = max(place.length for places in self.children.values() for place in places)
        weights = {
            token: sum(_SHORTER_BY_ONE ** (longest - place.length) for place in places)
            for token, places in self.children.items()
        }
        whole = sum(weights.values())
        best = nlargest(most, weights.items(), key=lambda item: item[1])
        return [Continuation(token, weight / whole, longest - 1) for token, weight in best]
