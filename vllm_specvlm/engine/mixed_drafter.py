"""A drafter whose trees take in what the text itself suggests (ADED: lookup beside a model), where that has paid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm_specvlm.draft.drafter import Drafter, Opening
from vllm_specvlm.draft.lookup import LookupDrafter
from vllm_specvlm.draft.lookup_node import Continuation, LookupNode
from vllm_specvlm.schedule.lookup_confidence import Habit, LookupConfidence, evidence
from vllm_specvlm.schedule.lookup_merit import ALONE, FAR, SPARED, LookupMerit, Merit
from vllm_specvlm.tree.grow import Frontier, LevelProposal

_MOST = 2
"""Continuations of a node that are looked at; further ones are hardly ever right where the first is not."""
_LIKELY = 0.1
"""Children less probable than this are not looked up: they will hardly be expanded."""
_SURE = 0.75
"""What is known less surely does not spare a forward pass: below a row without one the drafter has no state to go on
from, and the stretch that is known would soon end."""


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of the batch's trees and what the drafter itself said to it."""

    frontier: Frontier
    proposal: LevelProposal

    def row(self, above: int, token: int) -> int | None:
        """The row of a child of a row above, None if that was not expanded."""
        found = np.flatnonzero((self.frontier.parent_row == above) & (self.frontier.token == token))
        return int(found[0]) if len(found) else None

    def law(self, row: int) -> dict[int, float]:
        """Probabilities of the drafter's children, likeliest first; none in a row that it was not asked for."""
        log_probs = self.proposal.log_probs[row].tolist()
        return {
            token: math.exp(min(log_prob, 0.0))
            for token, log_prob in zip(self.proposal.tokens[row].tolist(), log_probs, strict=True)
            if log_prob > -math.inf
        }


@dataclass(slots=True)
class _Request:
    """What is known of lookup in a request, and of its latest tree."""

    merit: Merit
    compared: bool | None = None
    """Whether what lookup says of the next tree is compared with what follows; None while nobody has asked for one
    since the text last grew."""
    habit: Habit = field(default_factory=Habit)
    levels: list[_Level] = field(default_factory=list)
    row: int = 0
    """Of its root in the first of `levels`."""
    alone: bool | None = None
    """Whether the next tree is lookup's alone; None as above."""
    root: LookupNode | None = None
    """Its next tree's, if it was looked up already."""


class MixedDrafter:
    """Merges lookup's continuations into a drafter's levels, in requests in which that has paid.

    Where it pays, both are asked at each node. A token that lookup suggests gets the probability that
    `LookupConfidence` has learned for this much evidence beside this opinion of the drafter, and no less than the
    drafter's; the other candidates share what is left as the drafter does. Children whose next token lookup is sure
    of say so (`LevelProposal.foreseen`), and rows that are marked `free` are answered by lookup alone: a stretch of
    text that is known needs no forward passes. Where a request's own next tokens are known like that (`Opening.known`),
    the drafter is not asked for the request at all: it reads what was confirmed meanwhile when it is next needed.

    Elsewhere (see `LookupMerit`) the drafter's levels pass through as they are. Where the text at least echoes itself,
    lookup's suggestions to a few trees are compared with the confirmed tokens afterwards; where it does not, only the
    text is kept up to date, and the drafter may grow its trees by itself (`grower`).

    Only tokens and tokens' probabilities are mixed, so answers are as exact as the drafter's own.
    """

    def __init__(self, drafter: Drafter, lookup: LookupDrafter) -> None:
        """Both know no requests yet."""
        self._drafter = drafter
        self._lookup = lookup
        self.confidence = LookupConfidence()
        self.merit = LookupMerit()
        self._requests: dict[str, _Request] = {}
        self._batch: Sequence[str] = ()
        self._watching = False
        self._merged: dict[int, _Request] = {}
        self._levels: list[_Level] = []
        self._nodes: list[LookupNode | None] = []
        self._drafters_row = np.empty(0, dtype=np.int64)
        self._drafters_index = np.empty(0, dtype=np.int64)
        """Per request of the batch, its place in the drafter's own; -1 where lookup drafts alone."""

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """As both."""
        self._requests[request_id] = _Request(self.merit.begin())
        self._drafter.begin(request_id, tokens)
        self._lookup.begin(request_id, tokens)

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """As both; what lookup says of these tokens is compared with them, now and then."""
        request = self._requests[request_id]
        if request.levels:
            self._learn(request_id, request, tokens)
            request.levels = []
        else:  # nobody grew a tree that could have said so
            request.merit.misled = False
        request.compared = request.alone = request.root = None
        self._drafter.advance(request_id, tokens)
        before = self._lookup.echoed(request_id)
        self._lookup.advance(request_id, tokens)
        after = self._lookup.echoed(request_id)
        self.merit.heard(request.merit, len(tokens), None if before is None or after is None else after - before)

    def finish(self, request_id: str) -> None:
        """As both."""
        self._requests.pop(request_id, None)
        self._drafter.finish(request_id)
        self._lookup.finish(request_id)

    def backlog(self, request_id: str) -> int | None:
        """As the drafter; 0 while lookup drafts for the request alone."""
        return 0 if self._is_alone(request_id) else self._drafter.backlog(request_id)

    def _is_alone(self, request_id: str) -> bool:
        """Whether lookup knows so well how a request goes on that its next tree needs no drafter."""
        request = self._requests.get(request_id)
        if request is None or not request.merit.pays:
            return False
        if request.alone is None:
            request.alone = self.merit.suffices(request.merit, self._stretch(request_id, request))
        return request.alone

    def _is_compared(self, request_id: str) -> bool:
        request = self._requests[request_id]
        if request.compared is None:
            request.compared = self.merit.due(request.merit)
        return request.compared

    def _stretch(self, request_id: str, request: _Request) -> list[float]:
        """Per token of the text's likeliest continuation, how probable it is after the one before; none if it is unsure
        of the first."""
        node, found = self._root(request_id, request), list[float]()
        while len(found) < FAR and (best := node.continuations(1)):
            known = self._known(best[0], request.habit.logit)
            if not found and known < ALONE:
                break
            found.append(known)
            node = self._lookup.below(node, best[0].token)
        return found

    def _root(self, request_id: str, request: _Request) -> LookupNode:
        if request.root is None:
            request.root = self._lookup.root(request_id)
        return request.root

    def _known(self, continuation: Continuation, habit: float) -> float:
        """How probable it is where the drafter is not asked."""
        return self.confidence.probability(None, evidence(continuation.share, continuation.length), habit)

    def rehearse(self, rows: int, scored: int) -> None:
        """As the drafter: looking up costs next to nothing."""
        self._drafter.rehearse(rows, scored)

    def grower(self, request_ids: Sequence[str]) -> Drafter:
        """Who is to grow the next trees of these requests: the drafter itself if lookup will not look at them."""
        if any(self._is_compared(request_id) for request_id in request_ids):
            return self
        self._begin_batch(())  # of the one before nothing is kept
        return self._drafter

    def _begin_batch(self, request_ids: Sequence[str]) -> None:
        self._batch, self._levels, self._nodes, self._merged = list(request_ids), [], [], {}
        self._watching = False

    def open(self, request_ids: Sequence[str]) -> Opening:
        """As the drafter, which is not told of requests that lookup drafts for alone."""
        known = frozenset(i for i, request_id in enumerate(request_ids) if self._is_alone(request_id))
        asked = [i for i in range(len(request_ids)) if i not in known]
        opening = self._drafter.open([request_ids[i] for i in asked])
        behind = frozenset(asked[i] for i in opening.behind)
        self._begin_batch(request_ids)
        self._drafters_index = np.full(len(request_ids), -1, dtype=np.int64)
        self._drafters_index[asked] = np.arange(len(asked))
        for index, request_id in enumerate(request_ids):
            request = self._requests[request_id]
            # Those that are behind get no tree, so the drafter knows none of their nodes.
            if self._is_compared(request_id) and index not in behind:
                self._watching = True
                request.levels, request.row = self._levels, index
                if request.merit.pays:
                    self._merged[index] = request
        return Opening(opening.rows, behind, known)

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The drafter's children and, where it pays, lookup's, at most top_k together, likeliest first."""
        proposal = self._drafted(frontier, top_k)
        if not self._watching:
            return proposal
        level = _Level(frontier, proposal)
        self._levels.append(level)
        if not self._merged:
            return proposal
        above = self._nodes
        self._nodes = [None] * len(frontier.node)
        tokens, log_probs = proposal.tokens.copy(), proposal.log_probs.copy()
        settled, foreseen = np.zeros(tokens.shape, dtype=bool), np.zeros(tokens.shape, dtype=np.float32)
        fields = (frontier.request.tolist(), frontier.parent_row.tolist(), frontier.token.tolist())
        for row, (index, parent, token) in enumerate(zip(*fields, strict=True)):
            if index not in self._merged:
                continue
            request = self._merged[index]
            habit = request.habit.logit
            over = above[parent] if parent >= 0 else None
            node = self._root(self._batch[index], request) if over is None else self._lookup.below(over, token)
            self._nodes[row] = node
            found = node.continuations(_MOST)
            if found:
                self._merge(tokens[row], log_probs[row], settled[row], level.law(row), found, habit)
            # Below a row without a forward pass there will be none: what is known less surely is all there is.
            sure = _SURE if self._drafters_row[row] >= 0 else 0.0
            self._foresee(node, tokens[row], log_probs[row], habit, foreseen[row], sure)
        return LevelProposal(tokens, log_probs, foreseen if foreseen.any() else None, settled)

    def _drafted(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The drafter's own proposal, [rows, top_k]; empty in rows that are free."""
        if not self._merged:
            return self._drafter.propose_level(frontier, top_k)
        rows = len(frontier.node)
        drafted = self._drafters_index[frontier.request] >= 0
        asked = np.flatnonzero(drafted if frontier.free is None else drafted & ~frontier.free)
        before = self._drafters_row
        self._drafters_row = np.full(rows, -1, dtype=np.int64)
        self._drafters_row[asked] = np.arange(len(asked))
        proposal = LevelProposal(
            np.zeros((rows, top_k), dtype=np.int64), np.full((rows, top_k), -np.inf, dtype=np.float32)
        )
        if not len(asked):
            return proposal
        parents = frontier.parent_row[asked]
        answered = self._drafter.propose_level(
            Frontier(
                self._drafters_index[frontier.request[asked]],
                frontier.node[asked],
                np.where(parents < 0, -1, before[parents]) if len(before) else parents,
                frontier.token[asked],
                frontier.depth[asked],
            ),
            top_k,
        )
        width = answered.tokens.shape[1]
        proposal.tokens[asked, :width] = answered.tokens
        proposal.log_probs[asked, :width] = answered.log_probs
        return proposal

    def _merge(
        self,
        tokens: np.ndarray,
        log_probs: np.ndarray,
        settled: np.ndarray,
        law: dict[int, float],
        continuations: Sequence[Continuation],
        habit: float,
    ) -> None:
        """Write the mixture into a row, [k] each: which children, how probable, and of which of them lookup says so."""
        suggested = {
            each.token: self.confidence.probability(_opinion(law, each.token), evidence(each.share, each.length), habit)
            for each in continuations
        }
        # Lookup may add to what a drafter believes, and not take away: those are not calibrated alike, and what was
        # taken from a drafter's best token would go to its worse ones.
        suggested = {token: found for token, found in suggested.items() if found > law.get(token, 0.0)}
        if not suggested:
            return
        if (whole := sum(suggested.values())) > 0.999:
            suggested = {token: 0.999 * probability / whole for token, probability in suggested.items()}
        others = max(1.0 - sum(law.get(token, 0.0) for token in suggested), 1e-6)
        left = min((1.0 - sum(suggested.values())) / others, 1.0)
        mixed = {token: probability * left for token, probability in law.items()} | suggested
        best = sorted(mixed.items(), key=lambda item: item[1], reverse=True)[: len(tokens)]
        log_probs[:] = -np.inf
        for rank, (token, probability) in enumerate(best):
            tokens[rank], log_probs[rank] = token, math.log(max(probability, 1e-12))
            settled[rank] = token in suggested

    def _foresee(
        self,
        node: LookupNode,
        tokens: np.ndarray,
        log_probs: np.ndarray,
        habit: float,
        foreseen: np.ndarray,
        sure: float,
    ) -> None:
        """Write how probably children's next tokens are known, [k], where that is more than `sure`."""
        for rank in np.flatnonzero(log_probs > math.log(_LIKELY)).tolist():
            token = int(tokens[rank])
            if token not in node.children:  # the match would begin anew, and be short
                continue
            for follows in self._lookup.below(node, token).continuations(1):
                known = self._known(follows, habit)
                foreseen[rank] = known if known > sure else 0.0

    def _learn(self, request_id: str, request: _Request, tokens: Sequence[int]) -> None:
        """What lookup says at the nodes on the target's path, against what followed and the drafter's next choice."""
        merit, gain, right, rows = request.merit, 0.0, False, 0
        node, row = self._lookup.root(request_id), request.row
        for depth, (level, token) in enumerate(zip(request.levels, tokens, strict=False)):
            if depth:
                below = level.row(row, tokens[depth - 1])
                if below is None:
                    break
                node, row = self._lookup.below(node, tokens[depth - 1]), below
            law, right, rows = level.law(row), False, depth + 1
            if law:
                self.merit.drafted(merit, next(iter(law)) == token)
            for best in node.continuations(1):
                right, habit = best.token == token, request.habit.logit
                gain += _gained(law, best.token, token, sure=self._known(best, habit) > _SURE)
                if not depth:
                    merit.misled = not right and request.alone is True
                self.confidence.learn(_opinion(law, best.token), evidence(best.share, best.length), habit, right)
                request.habit.learn(right)
        if request.alone:
            # What it displaced is all that the drafter would have given; where an answer ends, that ends too.
            gain -= self.merit.usual(merit, rows if right else FAR)
        self.merit.learn(merit, gain)


def _opinion(law: dict[int, float], token: int) -> float | None:
    """What the drafter thinks of a token; None if it was not asked."""
    if not law:
        return None
    # A token that is not listed is less likely than the last one that is, and than all the others together.
    return law.get(token, 0.5 * min(max(1.0 - sum(law.values()), 0.0), *law.values()))


def _gained(law: dict[int, float], suggested: int, token: int, *, sure: bool) -> float:
    """What lookup's suggestion gained where this token followed: in tokens, over the drafter's next choice."""
    right = suggested == token
    if suggested == next(iter(law), None):
        return SPARED if right and sure else 0.0
    # After its first, which stays, and what lookup suggests.
    displaced = next((each for each in list(law)[1:] if each != suggested), None)
    return float(right - (token == displaced))
