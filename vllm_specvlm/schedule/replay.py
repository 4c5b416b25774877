"""Recorded trees in the place of a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vllm_specvlm.schedule.trace import RecordedTree
from vllm_specvlm.tree.grow import Frontier, LevelProposal


class Replay:
    """Proposes what was recorded: the token of a proposed child is its node's number in the recorded tree.

    Children that the recording cut off are not proposed, so a tree cannot outgrow the recorded one.
    """

    def __init__(self, trees: Sequence[RecordedTree | None]) -> None:
        """One tree per request of the batch, None where nothing was drafted."""
        self._trees = trees
        self.rows: list[int] = []
        """Rows of each level so far."""

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The recorded children of each row's node, at most `top_k`."""
        count = len(frontier.node)
        self.rows.append(count)
        tokens = np.full((count, top_k), -1, dtype=np.int64)
        log_probs = np.full((count, top_k), -np.inf, dtype=np.float32)
        for row, (request, node) in enumerate(zip(frontier.request.tolist(), frontier.token.tolist(), strict=True)):
            tree = self._trees[request]
            if tree is None:
                continue
            children = _children(tree).get(node, ())[:top_k]
            tokens[row, : len(children)] = children
            log_probs[row, : len(children)] = [tree.log_probs[child] for child in children]
        return LevelProposal(tokens, log_probs)


@lru_cache(maxsize=1 << 14)
def _children(tree: RecordedTree) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for node, parent in enumerate(tree.parents):
        found[parent] = (*found.get(parent, ()), node)
    return found
