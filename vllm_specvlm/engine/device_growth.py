"""Growing trees level by level with nobody waiting: the host learns of them when they are finished, in one copy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.device_trees import DeviceLevel
from vllm_specvlm.engine.transfer import download_all, upload_all
from vllm_specvlm.tree.grow import Grown
from vllm_specvlm.tree.token_tree import TokenTree
from vllm_specvlm.tree.tree_shape import TreeShape

_MOST_CANDIDATES = 1536
"""Of a tree and a level together: what the operator has room for."""

Law = Callable[[torch.Tensor, int], torch.Tensor]
"""float32 [rows, k], a draft's log-probabilities of children of that depth, to those of being accepted."""


class DeviceProposer(Protocol):
    """A drafter that proposes without waiting for its device."""

    @property
    def device(self) -> torch.device:
        """Where it drafts."""
        ...

    @property
    def rooted(self) -> Sequence[int]:
        """The requests of the batch that have a tree: the lines of every level."""
        ...

    @property
    def noted(self) -> list[torch.Tensor]:
        """What it wants on the host, with the trees."""
        ...

    def settle(self, noted: Sequence[np.ndarray]) -> None:
        """What it `noted`."""
        ...

    def open_levels(self, widths: Sequence[int]) -> None:
        """Before the first level: so many nodes of each tree are expanded in each."""
        ...

    def propose_on_device(self, level: DeviceLevel, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Children of a level's nodes: int64 and float32 [R * w, k], k at most top_k, as in `LevelProposal`.

        Nodes that are padding or find no room have none.
        """
        ...


@dataclass(frozen=True, slots=True)
class GrownTrees:
    """What a drafting grew."""

    trees: dict[int, Grown]
    """By request of the batch; a node's `origins` count the entries of `proposed`."""
    proposed: npt.NDArray[np.float32]
    """[levels, R, widest level, top_k]: the drafter's own log-probabilities, -inf where there was no candidate."""
    reach: list[float]
    """Of each level below the roots: the sum of its nodes' probabilities, each that of its path."""


def can_grow(shape: TreeShape) -> bool:
    """Whether the operator grows trees of this shape: it knows no rank paths, and has room for so many candidates."""
    return shape.paths is None and shape.nodes + shape.width * shape.top_k <= _MOST_CANDIDATES


def levels(shape: TreeShape, budgets: Sequence[int], depths: Sequence[int]) -> tuple[int, ...]:
    """How many nodes of a tree the levels of a growth have at most, the roots' first."""
    deepest = min(shape.depth, max(depths, default=0))
    return (1, *[min(shape.width, max(budgets, default=0))] * (deepest - 1))[: max(deepest, 0)]


def grow_on_device(
    proposer: DeviceProposer,
    shape: TreeShape,
    budgets: Sequence[int],
    depths: Sequence[int],
    widths: Sequence[int],
    ends: Sequence[Collection[int]] | None = None,
    law: Law | None = None,
    passed: Callable[[], None] = lambda: None,
) -> GrownTrees:
    """The trees of `tree.grow.grow_scored`, grown by the operators of `ops.GrowingTrees`.

    Every level is queued before anything is known of the one above it, so how many there are and how wide is decided
    beforehand. With `levels` as widths, and without a `law`, the trees are those of `grow_scored`, node for node,
    but that a node that ends its answer keeps its place in the next level, unexpanded.

    Args:
        proposer: opened with the batch.
        shape: bounds; without rank paths (`can_grow`).
        budgets: nodes of each request's tree at most, by index in the batch.
        depths: levels of each.
        widths: nodes of each tree that are expanded in each level, the best; 1 for the roots' level.
        ends: tokens that end each request's answer; nodes of these have no children.
        law: what to make of the draft's probabilities before nodes are compared.
        passed: called when a level has been queued.
    """
    rooted, device = proposer.rooted, proposer.device
    if not rooted or not widths:
        return GrownTrees({}, np.empty((0, 0, 0, 0), dtype=np.float32), [])
    widest = max(widths)
    most, deepest, last = upload_all(
        [
            np.array([min(budgets[i], shape.nodes) for i in rooted], dtype=np.int32),
            np.array([[depths[i]] for i in rooted], dtype=np.int64),
            _rectangle([() if ends is None else sorted(ends[i]) for i in rooted]),
        ],
        device,
    )
    trees = ops.GrowingTrees.empty(most, shape.nodes, widest)
    proposer.open_levels(widths)
    proposed, reached = [], []
    for depth, width in enumerate(widths):
        level = _level(trees, depth, width, deepest, last)
        if depth:
            scores = trees.scores.gather(1, trees.frontier[:, :width].clamp(min=0).long())
            reached.append(torch.where(level.live, scores.exp(), 0.0).sum())
        tokens, log_probs = proposer.propose_on_device(level, shape.top_k)
        log_probs = log_probs.masked_fill(~level.live.view(-1, 1), -torch.inf)
        proposed.append(_padded(log_probs, width, widest, shape.top_k, -torch.inf))
        if law is not None:
            log_probs = law(log_probs, depth + 1)
        children = _padded(tokens, width, widest, shape.top_k, 0)
        trees.grow(children, _padded(log_probs, width, widest, shape.top_k, -torch.inf), depth)
        passed()
    counts, tokens_, parents, scores_, origins, laws, reach, *noted = download_all(
        [
            trees.counts,
            trees.tokens,
            trees.parents,
            trees.scores,
            trees.origins,
            torch.stack(proposed),
            torch.stack([most.new_zeros((), dtype=torch.float64), *reached]),
            *proposer.noted,
        ]
    )
    proposer.settle(noted)
    lines = len(rooted)
    grown = {}
    for line, request in enumerate(rooted):
        kept = slice(0, int(counts[line]))
        tree = TokenTree(tuple(tokens_[line, kept].tolist()), tuple(parents[line, kept].tolist()))
        # An origin counts rows of its own tree; `proposed` has those of all.
        level_of, row = np.divmod(origins[line, kept].astype(np.int64), widest * shape.top_k)
        entries = (level_of * lines + line) * widest * shape.top_k + row
        grown[request] = Grown(tree, tuple(scores_[line, kept].tolist()), tuple(entries.tolist()), tree.depths)
    return GrownTrees(grown, laws, reach[1:].tolist())


def _rectangle(tokens: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """[R, most of them], filled up with -1, which is no token."""
    found = np.full((len(tokens), max(map(len, tokens), default=0)), -1, dtype=np.int64)
    for line, its in enumerate(tokens):
        found[line, : len(its)] = its
    return found


def _level(trees: ops.GrowingTrees, depth: int, width: int, deepest: torch.Tensor, last: torch.Tensor) -> DeviceLevel:
    """The frontier's best `width` nodes of each tree that may be so deep, without those of its `last` tokens."""
    nodes = trees.frontier[:, :width]
    live = (nodes >= (0 if depth else -1)) & (deepest > depth)
    tokens = trees.tokens.gather(1, nodes.clamp(min=0).long())
    if depth and last.shape[1]:
        live &= (tokens.unsqueeze(2) != last.unsqueeze(1)).all(2)
    parent_rows = trees.parent_rows[:, :width].clamp(min=0).long()
    # Before the first level there are no tokens yet, and behind a tree's end none ever.
    return DeviceLevel(depth, torch.where(live, tokens, 0), torch.where(live, parent_rows, 0), live)


def _padded(values: torch.Tensor, width: int, widest: int, top_k: int, by: float) -> torch.Tensor:
    """[R, widest, top_k], contiguous, of [R * width, k]."""
    k = values.shape[1]
    shaped = values.view(-1, width, k)
    return torch.nn.functional.pad(shaped, (0, top_k - k, 0, widest - width), value=by).contiguous()
