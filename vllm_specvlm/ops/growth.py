"""Growing token trees level by level without leaving the device, by functions that CPU and GPU share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_specvlm.ops.library import load


@dataclass(frozen=True, slots=True)
class GrowingTrees:
    """The trees of R requests while they grow, all tensors on one device and changed in place by `grow`.

    Grown as `tree.grow.grow` documents for dynamic shapes: the best `budget` candidates by their paths' probability,
    better ones first, which is a topological order.

    Attributes:
        budgets: int32 [R], most nodes of each tree.
        counts: int32 [R], nodes so far.
        tokens: int64 [R, capacity].
        parents: int32 [R, capacity], -1 for the root.
        scores: float64 [R, capacity], log-probabilities of the paths.
        origins: int32 [R, capacity], which proposal made the node: (level * width + row) * top_k + rank.
        frontier: int32 [R, width], the nodes to expand next, -1 for the root, -2 for none.
        parent_rows: int32 [R, width], the rows of their parents in the frontier before, -1 for none.
    """

    budgets: Tensor
    counts: Tensor
    tokens: Tensor
    parents: Tensor
    scores: Tensor
    origins: Tensor
    frontier: Tensor
    parent_rows: Tensor

    @classmethod
    def empty(cls, budgets: Tensor, capacity: int, width: int) -> GrowingTrees:
        """Trees that are their roots; capacity is at most 128, and no budget should exceed it."""
        requests, device = len(budgets), budgets.device

        def filled(value: float, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full((requests, *shape), value, dtype=dtype, device=device)

        frontier = filled(-2, width)
        frontier[:, 0] = -1
        return cls(
            budgets,
            filled(0),
            filled(-1, capacity, dtype=torch.int64),
            filled(-1, capacity),
            filled(0.0, capacity, dtype=torch.float64),
            filled(0, capacity),
            frontier,
            filled(-1, width),
        )

    def grow(self, proposed: Tensor, log_probs: Tensor, level: int) -> None:
        """One level: takes in the children of the frontier's nodes and chooses the next frontier.

        Args:
            proposed: int64 [R, width, top_k], tokens of the children; rows of no node are ignored.
            log_probs: float32 [R, width, top_k], descending along a row; -inf: no candidate here or later in the row.
            level: 0 for the roots' children, one more each time.

        Raises:
            RuntimeError: a tensor is not as described, or capacity + width * top_k is above 1536.
        """
        load()
        torch.ops.vllm_specvlm.grow_level(
            self.budgets,
            proposed,
            log_probs,
            level,
            self.counts,
            self.tokens,
            self.parents,
            self.scores,
            self.origins,
            self.frontier,
            self.parent_rows,
        )

    def describe(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """The trees' flat codes, ancestor masks and depths.

        Args:
            bits: of a token in the codes, as `tree.flat_code.FlatCode.bits`.

        Returns:
            Codes int64 [R, capacity], -1 behind a tree; masks int64 [R, capacity, 2], bit j of a row: node j is the
            node itself or an ancestor; depths int32 [R, capacity], 1 for children of the root, 0 behind a tree.
        """
        load()
        codes, depths = torch.empty_like(self.tokens), torch.empty_like(self.parents)
        ancestors = self.tokens.new_empty(*self.tokens.shape, 2)
        torch.ops.vllm_specvlm.describe_trees(self.counts, self.tokens, self.parents, bits, codes, ancestors, depths)
        return codes, ancestors, depths
