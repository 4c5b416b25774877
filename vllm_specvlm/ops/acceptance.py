"""Acceptance without leaving the device: walks of trees and races of tokens, by functions that CPU and GPU share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vllm_specvlm.ops.library import load


class Walks(NamedTuple):
    """What the walks of R trees gave, on the device of the inputs.

    Attributes:
        emitted: int64 [R, most + 1], the accepted tokens and the bonus token, then -1.
        path: int32 [R, most], the accepted nodes, then -1.
        counts: int32 [R], how many nodes were accepted.
        slots: int64 [groups, nodes], the slot that a node's row is to be committed to, -1 for rejected ones.
    """

    emitted: Tensor
    path: Tensor
    counts: Tensor
    slots: Tensor


def walk_trees(
    tokens: Tensor,
    parents: Tensor,
    first_nodes: Tensor,
    row_tokens: Tensor,
    first_rows: Tensor,
    linear_slots: Tensor,
    most: int,
) -> Walks:
    """The walk of `tree.accept.walk` for R trees at once, and where its rows go in the paged cache (`commit_rows`).

    Args:
        tokens: int64 [nodes] of all trees, one after the other; -1 is never accepted.
        parents: int32 [nodes], the parent's number in its tree, -1 for the root.
        first_nodes: int32 [R + 1], where each tree begins, and the number of nodes at the end.
        row_tokens: int64 [rows], the target's tokens: of a tree's root, then of its nodes.
        first_rows: int32 [R], the root's row of each tree.
        linear_slots: int64 [groups, nodes], the slots of the rows after the root, by their place in the tree; one line
            for each group of layers that share a block table.
        most: accepted nodes of a tree at most; a longer path ends there, and the token after it is its bonus.

    Raises:
        RuntimeError: a tensor or, on the CPU, an index is not as described.
    """
    load()
    trees, device = len(first_rows), tokens.device
    walks = Walks(
        torch.empty(trees, most + 1, dtype=torch.int64, device=device),
        torch.empty(trees, most, dtype=torch.int32, device=device),
        torch.empty(trees, dtype=torch.int32, device=device),
        torch.empty_like(linear_slots),
    )
    torch.ops.vllm_specvlm.walk_trees(tokens, parents, first_nodes, row_tokens, first_rows, linear_slots, *walks)
    return walks


def race(probs: Tensor, keys: Tensor) -> Tensor:
    """The winners of `tree.race.race` in one pass: float32 [n, V] and int64 [n] give int64 [n].

    CPU and GPU share every rounding, so that they have the same winners (on GPUs, by emulation only so far). torch's
    logarithm rounds otherwise in the last place, so `tree.race.race` names another winner where two tokens arrive
    within one part in a million. A row without positive, finite mass gives -1.

    Raises:
        RuntimeError: a tensor is not as described.
    """
    load()
    winners: Tensor = torch.ops.vllm_specvlm.race(probs, keys)
    return winners
