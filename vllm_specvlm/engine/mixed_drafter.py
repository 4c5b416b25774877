"""A drafter whose trees take in what the text itself suggests (ADED: lookup beside a model)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_specvlm.draft.drafter import Drafter, Opening
from vllm_specvlm.draft.lookup import Continuation, LookupDrafter
from vllm_specvlm.schedule.lookup_confidence import Habit, LookupConfidence, evidence
from vllm_specvlm.tree.grow import Frontier, LevelProposal

_MOST = 2
"""Continuations of a node that are looked at; further ones are hardly ever right where the first is not."""
_LIKELY = 0.1
"""Children less probable than this are not looked up: they will hardly be expanded."""

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Said:
    """What lookup said at a node: its best continuation, and what the drafter thought of that one."""

    token: int
    evidence: float
    habit: float
    opinion: float | None


class MixedDrafter:
    """Merges lookup's continuations into a drafter's levels.

    At each node of a level both are asked. A token that lookup suggests gets the probability that `LookupConfidence`
    has learned for this much evidence beside this opinion of the drafter, and no less than the drafter's; the other
    candidates share what is left as the drafter does. Children whose next token lookup knows say so
    (`LevelProposal.foreseen`), and rows that are marked `free` are answered by lookup alone: a stretch of text that is
    known needs no forward passes.

    Only tokens and tokens' probabilities are mixed, so answers are as exact as the drafter's own.
    """

    def __init__(self, drafter: Drafter, lookup: LookupDrafter) -> None:
        """Both know no requests yet."""
        self._drafter = drafter
        self._lookup = lookup
        self.confidence = LookupConfidence()
        self._request_ids: Sequence[str] = ()
        self._behind: frozenset[int] = frozenset()
        self._paths: list[Path] = []
        self._drafters_row = np.empty(0, dtype=np.int64)
        self._said: dict[str, dict[Path, _Said | None]] = {}
        self._habits: dict[str, Habit] = {}

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """As both."""
        self._said.pop(request_id, None)
        self._habits[request_id] = Habit()
        self._drafter.begin(request_id, tokens)
        self._lookup.begin(request_id, tokens)

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """As both; what lookup said of these tokens is compared with them."""
        said = self._said.pop(request_id, {})
        path: Path = ()
        for token in tokens:
            if path not in said:
                break
            if (guess := said[path]) is not None:
                right = guess.token == token
                self.confidence.learn(guess.opinion, guess.evidence, guess.habit, right)
                self._habits[request_id].learn(right)
            path = (*path, token)
        self._drafter.advance(request_id, tokens)
        self._lookup.advance(request_id, tokens)

    def finish(self, request_id: str) -> None:
        """As both."""
        self._said.pop(request_id, None)
        self._habits.pop(request_id, None)
        self._drafter.finish(request_id)
        self._lookup.finish(request_id)

    def backlog(self, request_id: str) -> int | None:
        """As the drafter."""
        return self._drafter.backlog(request_id)

    def rehearse(self, rows: int, scored: int) -> None:
        """As the drafter: looking up costs next to nothing."""
        self._drafter.rehearse(rows, scored)

    def open(self, request_ids: Sequence[str]) -> Opening:
        """As both."""
        self._request_ids = list(request_ids)
        self._said |= {request_id: {} for request_id in request_ids}
        self._lookup.open(request_ids)
        opening = self._drafter.open(request_ids)
        self._behind = opening.behind
        return opening

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The drafter's children and lookup's, at most top_k together, likeliest first."""
        proposal = self._drafted(frontier, top_k)
        above = self._paths
        self._paths = [
            () if parent < 0 else (*above[parent], token)
            for parent, token in zip(frontier.parent_row.tolist(), frontier.token.tolist(), strict=True)
        ]
        foreseen = np.zeros(proposal.tokens.shape, dtype=np.float32)
        found = self._lookup.continuations(frontier, _MOST)
        for row, (request, path) in enumerate(zip(frontier.request.tolist(), self._paths, strict=True)):
            if request in self._behind:  # it gets no tree, so the drafter knows none of its nodes
                continue
            request_id = self._request_ids[request]
            habit, said = self._habits[request_id].logit, None
            if found[row]:
                said = self._merge(proposal.tokens[row], proposal.log_probs[row], found[row], habit)
            self._said[request_id][path] = said
            self._foresee(row, proposal.tokens[row], proposal.log_probs[row], habit, foreseen[row])
        return LevelProposal(proposal.tokens, proposal.log_probs, foreseen if foreseen.any() else None)

    def _drafted(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The drafter's proposal, [rows, top_k]; empty in rows that are free."""
        rows = len(frontier.node)
        asked = np.arange(rows) if frontier.free is None else np.flatnonzero(~frontier.free)
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
                frontier.request[asked],
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

    def _merge(self, tokens: np.ndarray, log_probs: np.ndarray, found: Sequence[Continuation], habit: float) -> _Said:
        """Write the mixture into a row, [k] each; what lookup said of it, for learning."""
        law = {
            token: math.exp(min(log_prob, 0.0))
            for token, log_prob in zip(tokens.tolist(), log_probs.tolist(), strict=True)
            if log_prob > -math.inf
        }
        # A token that is not listed is less likely than the last one that is, and than all the others together.
        unlisted = 0.5 * min(max(1.0 - sum(law.values()), 0.0), *law.values()) if law else 0.0
        weighed = [(each.token, evidence(each.share, each.length)) for each in found]
        opinions = [law.get(token, unlisted) if law else None for token, _ in weighed]
        # Lookup may add to what a drafter believes, and not take away: those are not calibrated alike, and what was
        # taken from a drafter's best token would go to its worse ones.
        suggested = {
            token: max(law.get(token, 0.0), self.confidence.probability(opinion, weight, habit))
            for (token, weight), opinion in zip(weighed, opinions, strict=True)
        }
        if (whole := sum(suggested.values())) > 0.999:
            suggested = {token: 0.999 * probability / whole for token, probability in suggested.items()}
        others = max(1.0 - sum(law.get(token, 0.0) for token in suggested), 1e-6)
        left = min((1.0 - sum(suggested.values())) / others, 1.0)
        mixed = {token: probability * left for token, probability in law.items()} | suggested
        best = sorted(mixed.items(), key=lambda item: item[1], reverse=True)[: len(tokens)]
        log_probs[:] = -np.inf
        for rank, (token, probability) in enumerate(best):
            tokens[rank], log_probs[rank] = token, math.log(max(probability, 1e-12))
        return _Said(*weighed[0], habit, opinions[0])

    def _foresee(self, row: int, tokens: np.ndarray, log_probs: np.ndarray, habit: float, foreseen: np.ndarray) -> None:
        """Write how probably children's next tokens are known, [k]."""
        for rank in np.flatnonzero(log_probs > math.log(_LIKELY)).tolist():
            follows = self._lookup.next_continuation(row, int(tokens[rank]))
            if follows is not None:
                foreseen[rank] = self.confidence.probability(None, evidence(follows.share, follows.length), habit)
