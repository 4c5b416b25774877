"""What one request feeds to the draft before its tree grows: confirmed tokens the draft has not seen, and the root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_specvlm.engine.tree_step import TreeRows


@dataclass(slots=True)
class Feed:
    """One request's rows in the pass that feeds confirmed tokens."""

    request_id: str
    row: int
    """Row in vLLM's input batch."""
    written: np.ndarray
    """int64: positions whose K/V go to the paged cache in this pass."""
    root: int | None
    """Position of the tree's root, or None while the request has not caught up."""
    upto: int
    """The paged positions below this are then all written, or holes."""
    spans: list[tuple[int, int]]
    pictures: list[tuple[MultiModalFeatureSpec, torch.Tensor]]

    @property
    def rows(self) -> int:
        """How many, the root's included."""
        return len(self.positions)

    @property
    def root_spans(self) -> list[tuple[int, int]]:
        """The positions that its tree may see."""
        return self.spans

    @property
    def positions(self) -> np.ndarray:
        """int64: positions of all rows, the root last."""
        return self.written if self.root is None else np.append(self.written, self.root)


def feed_rows(feed: Feed, first_row: int, dense_start: int) -> TreeRows:
    """Confirmed rows see themselves and what stands before them; the root is dense row 0 and sees itself too."""
    count = len(feed.positions)
    visible = (feed.positions + 1).astype(np.int32)
    dense_at = np.full(count, -1, dtype=np.int32)
    ancestors = np.zeros((count, 2), dtype=np.uint64)
    if feed.root is not None:
        visible[-1] = feed.root
        dense_at[-1] = dense_start
        ancestors[-1, 0] = 1
    return TreeRows(first_row, feed.row, feed.spans, visible, dense_start, dense_at, ancestors)


def complement(holes: Sequence[tuple[int, int]], upto: int) -> list[tuple[int, int]]:
    """[0, upto) without the holes."""
    spans, start = [], 0
    for hole_start, hole_stop in sorted(holes):
        if start < min(hole_start, upto):
            spans.append((start, min(hole_start, upto)))
        start = max(start, hole_stop)
    if start < upto:
        spans.append((start, upto))
    return spans
