"""Trees within the memory for their K/V: what is not drafted for, what is drafted smaller, what is not verified."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.planned_growth import Growable
from vllm_specvlm.engine.tree_bounds import TreeBounds
from vllm_specvlm.engine.verification import Verification
from vllm_specvlm.tree.accept import Accepted
from vllm_specvlm.tree.token_tree import TokenTree

CPU = torch.device("cpu")


def growable(name: str, nodes: int) -> Growable:
    return Growable(name, nodes, depth=4, sampled=False, picture=False, left=50, bounded=False)


@pytest.mark.parametrize(
    ("bounds", "wanted", "given"),
    [
        (TreeBounds(nodes=100, requests=9), [16, 16, 4], [16, 16, 4]),
        (TreeBounds(nodes=30, requests=9), [16, 16, 4], [10, 10, 4]),
        (TreeBounds(nodes=100, requests=2), [16, 16, 4], [16, 16]),
        (TreeBounds(nodes=2, requests=9), [16, 16, 4], [1, 1]),
        (TreeBounds(nodes=5, requests=9), [], []),
    ],
)
def test_requests_share_evenly(bounds: TreeBounds, wanted: list[int], given: list[int]) -> None:
    found = bounds.within([growable(str(i), nodes) for i, nodes in enumerate(wanted)])
    assert [one.nodes for one in found] == given
    # The planner learns from them: all trees are that small, not one request's.
    assert not any(one.bounded for one in found)
    assert sum(one.nodes for one in found) <= bounds.nodes


def test_a_tree_that_does_not_fit_counts_as_not_drafted() -> None:
    """So do placeholders. Their rows see the text and no node, and write nothing anywhere."""
    trees = {
        "small": TokenTree((5, 6), (-1, 0)),
        "padding": TokenTree((-1, -1), (-1, 0)),
        "large": TokenTree((5, 6, 7), (-1, 0, 0)),
        "fits": TokenTree((8, 9), (-1, -1)),
    }
    starts = np.cumsum([0, 3, 3, 4, 3])
    index = {name: i for i, name in enumerate(trees)}
    verification = Verification(trees, index, starts, np.full(4, 20), room=4)
    assert [place.dense_start for place in verification.places] == [0, None, None, 2]
    assert verification.dense_rows == 4
    slots = torch.arange(100, 100 + starts[-1])
    verification.divert_slots([slots])
    nodes = [1, 2, 4, 5, 7, 8, 9, 11, 12]
    assert slots[nodes].eq(-1).all() and int((slots == -1).sum()) == len(nodes)

    store = DenseStore(limit=4)
    step = verification.step(store, CPU, fast=False)
    assert step.covers_batch
    small, padding, large, fits = step.rows
    assert small.dense_at.tolist() == [-1, 0, 1] and fits.dense_at.tolist() == [-1, 2, 3]
    for left_out in (padding, large):
        assert (left_out.dense_at == -1).all() and not left_out.ancestors.any()
        assert (left_out.visible_upto == 21).all()

    first = [0, 3, 6, 10]
    row_tokens = [5, 6, 1, 5, 6, 7, 5, 6, 7, 1, 9, 1, 2]
    accepted = verification.accept(row_tokens, first, [True] * 4)
    assert accepted == {
        0: Accepted((0, 1), (5, 6, 1)),
        1: Accepted((), (5,)),
        2: Accepted((), (5,)),
        3: Accepted((1,), (9, 2)),
    }
    # Accepted nodes go to the slots of the rows right behind their roots.
    (to,) = verification.commit_slots(accepted)
    assert to.tolist() == [101, 102, -1, 111]
    assert {request: rows.tolist() for request, rows in verification.kept_rows(accepted).items()} == {
        0: [0, 1, 2],
        1: [3],
        2: [6],
        3: [10, 12],
    }


def test_a_store_keeps_to_its_limit() -> None:
    store = DenseStore(limit=70)
    key = torch.zeros(3, 2, 8)
    store.reserve(3)
    assert store.layer("a", key)[0].shape == (64, 2, 8)
    store.reserve(65)
    assert store.layer("a", key)[0].shape == (70, 2, 8)
    with pytest.raises(ValueError, match="71 tree nodes do not fit"):
        store.reserve(71)
    store.allocate(12, {"a": (2, 8), "b": (1, 16)}, torch.zeros(0, dtype=torch.bfloat16))
    kept = store.stored("b")
    assert kept is not None and kept[1].shape == (12, 1, 16) and kept[1].dtype == torch.bfloat16
    store.reserve(12)
    assert store.layer("b", key)[0] is kept[0]
