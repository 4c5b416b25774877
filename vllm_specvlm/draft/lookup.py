"""Drafting without a model: what followed when the text last ran like this."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np

from vllm_specvlm.draft.drafter import Opening
from vllm_specvlm.draft.gram import BARRIER
from vllm_specvlm.draft.indexed_text import IndexedText
from vllm_specvlm.draft.lookup_node import LookupNode, Occurrence
from vllm_specvlm.draft.token_ring import TokenRing
from vllm_specvlm.tree.grow import Frontier, LevelProposal

_OCCURRENCES = 64
"""Most occurrences looked at per lookup and source, the latest ones: bounds the time spent on very repetitive text."""


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
        self._nodes: list[LookupNode] = []

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
        self._nodes = []
        return Opening(len(self._batch))

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """Continuations of every row, likeliest first; of equal ones the one that occurred last, own text first."""
        fields = (frontier.request.tolist(), frontier.parent_row.tolist(), frontier.token.tolist())
        self._nodes = [
            self._child(self._nodes[parent], token, afresh=False) if parent >= 0 else self.root(self._batch[request])
            for request, parent, token in zip(*fields, strict=True)
        ]
        tokens = np.full((len(self._nodes), top_k), BARRIER, dtype=np.int64)
        probs = np.zeros((len(self._nodes), top_k), dtype=np.float64)
        for row, node in enumerate(self._nodes):
            for rank, found in enumerate(node.continuations(top_k)):
                tokens[row, rank] = found.token
                probs[row, rank] = found.share * found.length / (found.length + 1)
        with np.errstate(divide="ignore"):
            return LevelProposal(tokens, np.log(probs).astype(np.float32))

    def echoed(self, request_id: str) -> int | None:
        """How many tokens of a request were what had followed when its text last ran like that.

        None if other requests' answers are asked, too. Raises KeyError for a request that never began.
        """
        return self._text(request_id).echoed if self._ring is None else None

    def root(self, request_id: str) -> LookupNode:
        """The root of a request's tree. Raises KeyError for a request that never began."""
        text = self._text(request_id)
        return self._node(text, (), self._found(text, ()))

    def below(self, node: LookupNode, token: int) -> LookupNode:
        """A child, whether the text led to it or another drafter did: then its path's end is looked up afresh."""
        return self._child(node, token, afresh=True)

    def _text(self, request_id: str) -> IndexedText:
        text = self._texts.get(request_id)
        if text is None:
            raise KeyError(f"Request {request_id} is not known to the lookup drafter; call begin first.")
        return text

    def _plain(self, tokens: Sequence[int]) -> list[int]:
        barriers, end = self._barriers, self._vocabulary
        return [BARRIER if token >= end or token in barriers else token for token in tokens]

    def _found(self, text: IndexedText, path: tuple[int, ...]) -> list[Occurrence]:
        """The places where what the text and then the path end with occurred before."""
        tokens = text.tokens
        recent = [*tokens[-self._max_match :], *path][-self._max_match :]
        gram = recent[-self._min_match :]
        if len(gram) < self._min_match:
            return []
        places = text.places_after(gram) if path else text.places()
        found = [
            Occurrence(self._matched(tokens[max(0, place - len(recent)) : place], recent), place, False)
            for place in islice(places, _OCCURRENCES)
        ]
        if self._ring is not None:
            found += [
                Occurrence(self._matched(self._ring.before(place, len(recent)), recent), place, True)
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

    def _child(self, parent: LookupNode, token: int, *, afresh: bool) -> LookupNode:
        node = parent.below.get(token)
        if node is None:
            path = (*parent.path, token)
            found = parent.children.get(token, [])
            if afresh and not found:
                found = self._found(parent.text, path)
            node = parent.below[token] = self._node(parent.text, path, found)
        return node

    def _node(self, text: IndexedText, path: tuple[int, ...], found: list[Occurrence]) -> LookupNode:
        """Group the occurrences by the token that follows, each moved on past it."""
        children: dict[int, list[Occurrence]] = {}
        own, end = text.tokens, len(text.tokens)
        for place in found:
            at = place.position
            if place.shared:
                token = self._ring.token(at) if self._ring is not None else BARRIER
            else:
                token = own[at] if at < end else path[at - end]
            if token != BARRIER:
                children.setdefault(token, []).append(Occurrence(place.length + 1, at + 1, place.shared))
        return LookupNode(text, path, children)
