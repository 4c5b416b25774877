"""A drafter that remembers how probable its proposals were."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_specvlm.draft.drafter import Drafter, Opening
from vllm_specvlm.tree.grow import Frontier, LevelProposal
from vllm_specvlm.tree.token_tree import TokenTree


class RecordingDrafter:
    """Stands in for a drafter and passes everything on.

    What it notes is the draft's own law, before the planner calibrates it, from `open` to the next `open`.
    """

    def __init__(self, drafter: Drafter) -> None:
        """The drafter that does the work."""
        self.drafter = drafter
        self.levels = 0
        """Levels asked for since the start."""
        self.spared: frozenset[str] = frozenset()
        """Requests of the last `open` that needed no forward pass (`Opening.known`): they may never have been read."""
        self._request_ids: Sequence[str] = ()
        self._paths: list[tuple[int, ...]] = []
        self._log_probs: dict[str, dict[tuple[int, ...], float]] = {}

    def log_probs(self, request_id: str, tree: TokenTree) -> tuple[float, ...]:
        """Of each node given its parent, as proposed since the last `open`; 0 of one that a grammar dictated."""
        proposed = self._log_probs.get(request_id, {})
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        return tuple(proposed.get(path, 0.0) for path in paths)

    def open(self, request_ids: Sequence[str]) -> Opening:
        """As the drafter; what was noted before is forgotten."""
        self._request_ids = list(request_ids)
        self._log_probs = {request_id: {} for request_id in request_ids}
        opening = self.drafter.open(request_ids)
        self.spared = frozenset(request_ids[i] for i in opening.known)
        return opening

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """As the drafter; noted."""
        proposal = self.drafter.propose_level(frontier, top_k)
        self.levels += 1
        above = self._paths
        self._paths = [
            () if parent < 0 else (*above[parent], token)
            for parent, token in zip(frontier.parent_row.tolist(), frontier.token.tolist(), strict=True)
        ]
        rows = zip(frontier.request.tolist(), self._paths, proposal.tokens, proposal.log_probs, strict=True)
        for request, path, tokens, log_probs in rows:
            noted = self._log_probs[self._request_ids[request]]
            for token, log_prob in zip(tokens.tolist(), log_probs.tolist(), strict=True):
                noted.setdefault((*path, token), min(log_prob, 0.0))
        return proposal

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """As the drafter."""
        self.drafter.begin(request_id, tokens)

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """As the drafter."""
        self.drafter.advance(request_id, tokens)

    def backlog(self, request_id: str) -> int | None:
        """As the drafter."""
        return self.drafter.backlog(request_id)

    def rehearse(self, rows: int, scored: int) -> None:
        """As the drafter."""
        self.drafter.rehearse(rows, scored)

    def finish(self, request_id: str) -> None:
        """As the drafter."""
        self.drafter.finish(request_id)
