"""Drafting without a model: what followed when the text last ran like this."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice

import numpy as np

from vllm_specvlm.draft.drafter import Opening
from vllm_specvlm.draft.gram import BARRIER
from vllm_specvlm.draft.indexed_text import IndexedText
from vllm_specvlm.draft.token_ring import TokenRing
from vllm_specvlm.tree.grow import Frontier, LevelProposal

_OCCURRENCES = 64
"""Most occurrences looked at per lookup and source, the latest ones: bounds the time spent on very repetitive text."""
_SHORTER_BY_ONE = 0.25


@dataclass(frozen=True, slots=True)
class _Occurrence:
    """A place where the text went on after the same suffix."""

    length: int
    """Tokens matched before `position`, at most max_match when found; one more with each token drafted from here."""
    position: int
    """Of the token that follows, in the text's own tokens or in the ring."""
    shared: bool


@dataclass(slots=True)
class _Row:
    """State of a frontier row: its text, the tokens drafted on its path, and its occurrences by the token they add."""

    text: IndexedText
    path: tuple[int, ...]
    children: dict[int, list[_Occurrence]]
    below: dict[int, _Row] = field(default_factory=dict)
    """The rows of children that were asked for."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token that followed where the text ran like this."""

    token: int
    share: float
    """Of the places, weighted by the lengths of their matches; those of all continuations add up to 1."""
    length: int
    """Tokens of the longest match at this node, at most max_match at the root and growing with the path."""


class LookupDrafter:
    """Prompt lookup (Saxena 2023) that answers with a tree: every continuation the text has seen, each with its share.

    At the root, the places are found where the last min_match tokens occurred before, in the request's own prompt and
    answer (the latest 64 of them) and, with `shared_tokens`, in finished answers of other requests (likewise). Each
    match is measured backwards up to max_match tokens. A node deeper in the tree keeps the places that agree with its
    path, so nothing is looked up again. A place whose continuation reaches the end of the text goes on with the
    drafted path itself: text that runs in a cycle is drafted round and round.

    Probability of a child: its share of its node's places, where a place whose match is one token shorter than
    the node's longest counts a quarter, times L / (L + 1), L being the node's longest match. The second factor is
    the chance that the text repeats itself at all; it is an estimate that grows with the evidence and leaves room for
    what was never seen. As matches grow along a path, the product over a path of d tokens is L / (L + d) times its
    shares: long matches are drafted deep, short ones shallow.

    Time is O(min_match) per token taken in; a lookup is bounded by the 64 occurrences. Memory is a request's
    tokens and their n-grams, plus at most `shared_tokens` tokens and n-grams.
    """

    def __init__(
        self,
        *,
        min_match: int = 2,
        max_match: int = 16,
        shared_tokens: int = 0,
        barrier_tokens: Collection[int] = (),
        vocabulary: int | None = None,
    ) -> None:
        """min_match, max_match: shortest suffix that counts as a match, and longest that is told apart.

        shared_tokens: how many tokens of finished answers are kept for other requests, the oldest dropped first. Off
        (0) by default: a request's speed then tells nothing about what others were answered. barrier_tokens: ids that
        are never matched or proposed, such as image placeholders; so are ids from `vocabulary` up.

        Raises ValueError for numbers out of range.
        """
        if not 1 <= min_match <= max_match:
            raise ValueError(
                f"min_match is {min_match} and max_match {max_match}; lookup needs 1 <= min_match <= max_match."
            )
        if shared_tokens < 0:
            raise ValueError(f"shared_tokens is {shared_tokens}; give the number of tokens to keep, or 0 for none.")
        self._min_match = min_match
        self._max_match = max_match
        self._barriers = frozenset(barrier_tokens)
        self._vocabulary = sys.maxsize if vocabulary is None else vocabulary
        self._ring = TokenRing(shared_tokens, min_match) if shared_tokens else None
        self._texts: dict[str, IndexedText] = {}
        self._answer_starts: dict[str, int] = {}
        self._batch: list[str] = []
        self._rows: list[_Row] = []

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """A request starts, or starts anew, with these tokens."""
        text = IndexedText(self._min_match)
        text.extend(self._plain(tokens))
        self._texts[request_id] = text
        self._answer_starts[request_id] = len(tokens)

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """These tokens were confirmed. Raises KeyError for a request that never began."""
        self._text(request_id).extend(self._plain(tokens))

    def finish(self, request_id: str) -> None:
        """The request is over; what was confirmed since it began goes to the shared buffer, if there is one."""
        text = self._texts.pop(request_id, None)
        if text is not None:
            start = self._answer_starts.pop(request_id)
            if self._ring is not None:
                self._ring.add(text.tokens[start:])

    def backlog(self, request_id: str) -> int:
        """None: there is nothing to compute."""
        return 0

    def rehearse(self, rows: int, scored: int) -> None:
        """There is nothing to compute."""

    def open(self, request_ids: Sequence[str]) -> Opening:
        """The batch to draft for."""
        self._batch = list(request_ids)
        self._rows = []
        return Opening(len(self._batch))

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """Continuations of every row, likeliest first; of equal ones the one that occurred last, own text first."""
        rows = self._follow(frontier, afresh=False)
        tokens = np.full((len(rows), top_k), BARRIER, dtype=np.int64)
        probs = np.zeros((len(rows), top_k), dtype=np.float64)
        for at, row in enumerate(rows):
            for rank, found in enumerate(_continuations(row, top_k)):
                tokens[at, rank] = found.token
                probs[at, rank] = found.share * found.length / (found.length + 1)
        with np.errstate(divide="ignore"):
            return LevelProposal(tokens, np.log(probs).astype(np.float32))

    def continuations(self, frontier: Frontier, most: int) -> list[list[Continuation]]:
        """Of every row at most so many, likeliest first; for the levels of a tree that others grow as well.

        Unlike `propose_level` it looks at nodes that the text did not lead to: their paths' ends are looked up afresh.
        """
        return [_continuations(row, most) for row in self._follow(frontier, afresh=True)]

    def next_continuation(self, row: int, token: int) -> Continuation | None:
        """The likeliest one below a child of the last frontier's row, whether it will be in the next one or not."""
        found = _continuations(self._child(self._rows[row], token, afresh=True), 1)
        return found[0] if found else None

    def _follow(self, frontier: Frontier, *, afresh: bool) -> list[_Row]:
        """The rows of the next level."""
        fields = (frontier.request.tolist(), frontier.parent_row.tolist(), frontier.token.tolist())
        self._rows = [
            self._child(self._rows[parent], token, afresh=afresh)
            if parent >= 0
            else self._row(text := self._text(self._batch[request]), (), self._found(text, ()))
            for request, parent, token in zip(*fields, strict=True)
        ]
        return self._rows

    def _text(self, request_id: str) -> IndexedText:
        text = self._texts.get(request_id)
        if text is None:
            raise KeyError(f"Request {request_id} is not known to the lookup drafter; call begin first.")
        return text

    def _plain(self, tokens: Sequence[int]) -> list[int]:
        barriers, end = self._barriers, self._vocabulary
        return [BARRIER if token >= end or token in barriers else token for token in tokens]

    def _found(self, text: IndexedText, path: tuple[int, ...]) -> list[_Occurrence]:
        """The places where what the text and then the path end with occurred before."""
        tokens = text.tokens
        recent = [*tokens[-self._max_match :], *path][-self._max_match :]
        gram = recent[-self._min_match :]
        if len(gram) < self._min_match:
            return []
        places = text.places_after(gram) if path else text.places()
        found = [
            _Occurrence(self._matched(tokens[max(0, place - len(recent)) : place], recent), place, False)
            for place in islice(places, _OCCURRENCES)
        ]
        if self._ring is not None:
            found += [
                _Occurrence(self._matched(self._ring.before(place, len(recent)), recent), place, True)
                for place in islice(self._ring.places(gram), _OCCURRENCES)
            ]
        return found

    def _matched(self, before: Sequence[int], recent: Sequence[int]) -> int:
        """Length of the common suffix of two stretches that agree in their last min_match tokens."""
        length = self._min_match
        most = min(len(before), len(recent))
        while length < most and before[-1 - length] == recent[-1 - length] != BARRIER:
            length += 1
        return length

    def _child(self, parent: _Row, token: int, *, afresh: bool) -> _Row:
        row = parent.below.get(token)
        if row is None:
            path = (*parent.path, token)
            found = parent.children.get(token, [])
            if afresh and not found:
                found = self._found(parent.text, path)
            row = parent.below[token] = self._row(parent.text, path, found)
        return row

    def _row(self, text: IndexedText, path: tuple[int, ...], found: list[_Occurrence]) -> _Row:
        """Group the occurrences by the token that follows, each moved on past it."""
        children: dict[int, list[_Occurrence]] = {}
        own, end = text.tokens, len(text.tokens)
        for place in found:
            at = place.position
            if place.shared:
                token = self._ring.token(at) if self._ring is not None else BARRIER
            else:
                token = own[at] if at < end else path[at - end]
            if token != BARRIER:
                children.setdefault(token, []).append(_Occurrence(place.length + 1, at + 1, place.shared))
        return _Row(text, path, children)


def _continuations(row: _Row, most: int) -> list[Continuation]:
    """At most so many, likeliest first; of equal ones the one that occurred last."""
    if not row.children:
        return []
    # Children's places have been moved on by one, which leaves the differences.
    longest = max(place.length for places in row.children.values() for place in places)
    weights = {
        token: sum(_SHORTER_BY_ONE ** (longest - place.length) for place in places)
        for token, places in row.children.items()
    }
    whole = sum(weights.values())
    best = nlargest(most, weights.items(), key=lambda item: item[1])
    return [Continuation(token, weight / whole, longest - 1) for token, weight in best]
