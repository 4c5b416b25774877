"""Growing trees by the operators, on the CPU and emulated, gives the trees of the plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels import emulated
from tests.tree.toy_drafter import ToyDrafter
from vllm_specvlm import ops
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.grow import Frontier, LevelProposal, TreeShape, grow_scored

needs_compiler = pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with")

BITS = 4
SHAPES = [
    TreeShape(nodes=16, depth=5, width=4, top_k=3),
    TreeShape(nodes=127, depth=6, width=16, top_k=8),
    TreeShape(nodes=5, depth=4, width=8, top_k=4),
    TreeShape.chain(6),
]


class Proposals(ToyDrafter):
    """A toy drafter with proposals as real ones have them: tokens twice, rows that end early, certain tokens, NaN."""

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        proposal = super().propose_level(frontier, top_k)
        rng = np.random.default_rng(len(self.asked))
        for row in range(len(proposal.tokens)):
            kind = rng.integers(6)
            if kind == 0 and top_k > 1:
                proposal.tokens[row, 1] = proposal.tokens[row, 0]
            elif kind == 1:
                proposal.log_probs[row, top_k // 2 :] = -np.inf
            elif kind == 2:
                proposal.log_probs[row] = 0.25 - np.arange(top_k, dtype=np.float32)
            elif kind == 3 and top_k > 2:
                proposal.log_probs[row, 2] = np.nan
        return proposal


def grown(
    seed: int, shape: TreeShape, budgets: list[int], step: Callable[[ops.GrowingTrees, Any, Any, int], None]
) -> ops.GrowingTrees:
    """Trees grown by `step`, a level at a time, asking the drafter what the Python would ask."""
    drafter = Proposals(seed, vocab=9)
    trees = ops.GrowingTrees.empty(torch.tensor(budgets, dtype=torch.int32), shape.nodes, shape.width)
    requests = len(budgets)
    rows_before = np.full((requests, shape.width), -1)  # rows of the frontier before, counted over all requests
    names: dict[tuple[int, int], int] = {}  # a node's number in the Python's growth: any fixed one will do here
    for level in range(shape.depth):
        live = [
            (r, w)
            for r in range(requests)
            if budgets[r] > 0
            for w in range(shape.width)
            if int(trees.frontier[r, w]) > -2
        ]
        if not live:
            break
        nodes = [int(trees.frontier[r, w]) for r, w in live]
        origins = [int(trees.origins[r, n]) if n >= 0 else -1 for (r, _), n in zip(live, nodes, strict=True)]
        for (r, _), origin in zip(live, origins, strict=True):
            names.setdefault((r, origin), -1 if origin < 0 else len(names))
        fields = [
            [r for r, _ in live],
            [names[r, origin] for (r, _), origin in zip(live, origins, strict=True)],
            [int(rows_before[r, int(trees.parent_rows[r, w])]) if level else -1 for r, w in live],
            [int(trees.tokens[r, n]) if n >= 0 else -1 for (r, _), n in zip(live, nodes, strict=True)],
            [level] * len(live),
        ]
        proposal = drafter.propose_level(Frontier(*np.array(fields, dtype=np.int64)), shape.top_k)
        tokens = torch.full((requests, shape.width, shape.top_k), 77)
        log_probs = torch.zeros(requests, shape.width, shape.top_k)
        rows_before = np.full((requests, shape.width), -1)
        for row, (r, w) in enumerate(live):
            tokens[r, w] = torch.from_numpy(proposal.tokens[row])
            log_probs[r, w] = torch.from_numpy(proposal.log_probs[row])
            rows_before[r, w] = row
        step(trees, tokens, log_probs, level)
    return trees


def check(seed: int, shape: TreeShape, budgets: list[int], trees: ops.GrowingTrees) -> None:
    expected = grow_scored(Proposals(seed, vocab=9), shape, budgets, list(range(len(budgets))))
    codes, ancestors, depths = trees.describe(BITS)
    for r, result in expected.items():
        tree, count = result.tree, int(trees.counts[r])
        assert count == len(tree)
        assert tuple(trees.tokens[r, :count].tolist()) == tree.tokens
        assert tuple(trees.parents[r, :count].tolist()) == tree.parents
        assert tuple(trees.scores[r, :count].tolist()) == result.log_probs
        assert codes[r].tolist() == FlatCode(1 << BITS).encode(tree) + [-1] * (shape.nodes - count)
        assert np.array_equal(ancestors[r, :count].numpy().view(np.uint64), tree.ancestor_masks())
        assert tuple(depths[r, :count].tolist()) == tree.depths
        assert (depths[r, count:] == 0).all() and (ancestors[r, count:] == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=["16", "127", "narrow budget", "chain"])
def test_trees_are_those_of_the_python(shape: TreeShape) -> None:
    for seed in range(12):
        budgets = [shape.nodes, 1 + seed % shape.nodes, 0, max(1, shape.nodes // 2)]
        trees = grown(seed, shape, budgets, lambda trees, *arguments: trees.grow(*arguments))
        check(seed, shape, budgets, trees)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=["16", "127", "narrow budget", "chain"])
def test_emulated_trees_are_the_same(shape: TreeShape) -> None:
    emulated.library()
    gpu = torch.ops.vllm_specvlm_emulated

    def both(trees: ops.GrowingTrees, tokens: torch.Tensor, log_probs: torch.Tensor, level: int) -> None:
        before = [tensor.clone() for tensor in astuple(trees)]
        trees.grow(tokens, log_probs, level)
        emulated.schedule(level + 1)
        gpu.grow_level(before[0], tokens, log_probs, level, *before[1:])
        emulated.schedule(0)
        assert all(torch.equal(a, b) for a, b in zip(before, astuple(trees), strict=True))

    budgets = [shape.nodes, 3, 0]
    trees = grown(5, shape, budgets, both)
    check(5, shape, budgets, trees)
    described = trees.describe(BITS)
    again = [torch.full_like(tensor, 99) for tensor in described]
    gpu.describe_trees(trees.counts, trees.tokens, trees.parents, BITS, *again)
    assert all(torch.equal(a, b) for a, b in zip(again, described, strict=True))


@needs_compiler
def test_opcheck() -> None:
    emulated.library()
    trees = ops.GrowingTrees.empty(torch.tensor([3, 4], dtype=torch.int32), 4, 2)
    rest = astuple(trees)[1:]
    proposal = (torch.zeros(2, 2, 3, dtype=torch.int64), torch.zeros(2, 2, 3))
    torch.library.opcheck(torch.ops.vllm_specvlm_emulated.grow_level.default, (trees.budgets, *proposal, 0, *rest))
    tables = (
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2, 4, 2, dtype=torch.int64),
        torch.zeros_like(trees.parents),
    )
    arguments = (trees.counts, trees.tokens, trees.parents, BITS, *tables)
    torch.library.opcheck(torch.ops.vllm_specvlm_emulated.describe_trees.default, arguments)


def test_wrong_calls() -> None:
    trees = ops.GrowingTrees.empty(torch.tensor([3], dtype=torch.int32), 4, 2)
    tokens, log_probs = torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="log_probs must be float32"):
        trees.grow(tokens, log_probs.double(), 0)
    with pytest.raises(RuntimeError, match="level -1"):
        trees.grow(tokens, log_probs, -1)
    with pytest.raises(RuntimeError, match="too large"):
        big = ops.GrowingTrees.empty(torch.tensor([3], dtype=torch.int32), 100, 200)
        big.grow(torch.zeros(1, 200, 8, dtype=torch.int64), torch.zeros(1, 200, 8), 0)
    with pytest.raises(RuntimeError, match="31 bits"):
        trees.describe(40)
