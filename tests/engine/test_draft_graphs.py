"""Inputs of CUDA graphs: always at the same place, padded to a size that was captured."""

from __future__ import annotations

import torch
from vllm.forward_context import BatchDescriptor

from vllm_specvlm.engine.draft_graphs import DraftGraphs


def graphs(*sizes: int) -> DraftGraphs:
    made = DraftGraphs()
    for size in sizes:
        made.add(BatchDescriptor(num_tokens=size))
    return made


def test_the_smallest_that_fits() -> None:
    made = graphs(64, 16, 4)
    fitting = [None if (found := made.fitting(rows)) is None else found.num_tokens for rows in (1, 4, 5, 16, 64, 65)]
    assert fitting == [4, 4, 16, 16, 64, None]
    assert graphs().fitting(1) is None


def test_inputs_stay_where_they_are() -> None:
    made = graphs(8)
    first = made.place("ids", torch.arange(8), 0, 8)
    again = made.place("ids", torch.tensor([7, 7, 7]), 0, 4)
    assert again.data_ptr() == first.data_ptr()
    assert again.tolist() == [7, 7, 7, 3]
    assert made.place("slots", torch.tensor([5, 6]), 0, 4, padding=-1).tolist() == [5, 6, -1, -1]


def test_rows_may_be_any_dimension() -> None:
    """As positions with M-RoPE have them."""
    made = graphs(8)
    whole = made.place("positions", torch.ones(3, 8, dtype=torch.int64), 1, 8)
    part = made.place("positions", torch.full((3, 2), 9), 1, 4)
    assert part.shape == (3, 4)
    assert part[:, :2].eq(9).all() and part[:, 2:].eq(1).all()
    assert part.data_ptr() == whole.data_ptr()
