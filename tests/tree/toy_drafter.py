"""A drafter with a random law per context, which checks every frontier that it is asked about."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from vllm_specvlm.tree.grow import Frontier, LevelProposal

Context = tuple[int, ...]


class ToyDrafter:
    """Log-probabilities depend on (seed, request, context) only. `asked` holds each call's (request, context) rows."""

    def __init__(self, seed: int, vocab: int, concentration: float = 0.5) -> None:
        self.seed, self.vocab, self.concentration = seed, vocab, concentration
        self.asked: list[list[tuple[int, Context]]] = []
        self._nodes: dict[tuple[int, int], Context] = {}

    def children(self, request: int, context: Context, top_k: int) -> list[tuple[int, float]]:
        """The top_k likeliest tokens and their log-probabilities in float32, best first."""
        key = hashlib.sha256(repr((self.seed, request, context)).encode()).digest()
        law = np.random.default_rng(int.from_bytes(key[:8], "big")).dirichlet([self.concentration] * self.vocab)
        log_probs = np.log(np.maximum(law, 1e-12)).astype(np.float32)
        order = np.argsort(-log_probs, kind="stable")[:top_k]
        return [(int(token), float(log_probs[token])) for token in order]

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The proposal, after checking what the frontier promises."""
        contexts = self._contexts(frontier)
        self.asked.append(contexts)
        tokens = np.full((len(contexts), top_k), -1, dtype=np.int64)
        log_probs: npt.NDArray[np.float32] = np.full((len(contexts), top_k), -np.inf, dtype=np.float32)
        for row, (request, context) in enumerate(contexts):
            for rank, (token, log_prob) in enumerate(self.children(request, context, top_k)):
                tokens[row, rank], log_probs[row, rank] = token, log_prob
        return LevelProposal(tokens, log_probs)

    def _contexts(self, frontier: Frontier) -> list[tuple[int, Context]]:
        before = self.asked[-1] if self.asked else []
        columns = (frontier.request, frontier.node, frontier.parent_row, frontier.token, frontier.depth)
        assert all(column.dtype == np.int64 and column.shape == frontier.request.shape for column in columns)
        assert (np.diff(frontier.request) >= 0).all()  # ascending, hence contiguous
        contexts: list[tuple[int, Context]] = []
        for request, node, parent_row, token, depth in zip(*(column.tolist() for column in columns), strict=True):
            assert depth == len(self.asked)
            if depth == 0:
                assert (node, parent_row, token) == (-1, -1, -1)
                contexts.append((request, ()))
                continue
            parent, context = before[parent_row]
            assert parent == request
            assert self._nodes.setdefault((request, node), (*context, token)) == (*context, token)
            contexts.append((request, (*context, token)))
        assert len(set(contexts)) == len(contexts)
        return contexts
