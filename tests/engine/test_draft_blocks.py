from __future__ import annotations

import numpy as np

from vllm_specvlm.engine.draft_blocks import DraftBlocks
from vllm_specvlm.engine.draft_feed import complement


def test_marks_follow_the_physical_blocks() -> None:
    blocks = DraftBlocks(num_blocks=8, block_size=4)
    first, second = np.array([5, 2, 7]), np.array([5, 3, 1])
    blocks.mark(first, np.arange(0, 9))
    assert blocks.missing(first, 0, 9).tolist() == []
    # Another request shares block 5 by its prefix; its own blocks hold nothing of the draft's.
    assert blocks.missing(second, 0, 9).tolist() == [4, 5, 6, 7, 8]
    blocks.mark(second, np.array([4, 6]))
    assert blocks.missing(second, 0, 9).tolist() == [5, 7, 8]
    blocks.clear([5])
    assert blocks.missing(first, 0, 9).tolist() == [0, 1, 2, 3]
    assert blocks.missing(first, 2, 6).tolist() == [2, 3]
    assert blocks.missing(first, 3, 3).tolist() == []


def test_slots() -> None:
    blocks = DraftBlocks(num_blocks=8, block_size=4)
    assert blocks.slots(np.array([5, 2]), np.array([0, 3, 4, 7])).tolist() == [20, 23, 8, 11]


def test_spans_leave_holes_out() -> None:
    assert complement([], 10) == [(0, 10)]
    assert complement([(2, 5)], 10) == [(0, 2), (5, 10)]
    assert complement([(0, 3), (8, 12)], 10) == [(3, 8)]
    assert complement([(4, 20)], 4) == [(0, 4)]
    assert complement([(6, 7), (1, 2)], 7) == [(0, 1), (2, 6)]
    assert complement([(0, 9)], 5) == []
