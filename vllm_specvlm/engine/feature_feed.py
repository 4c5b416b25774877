"""What one request feeds to a feature head before its tree grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vllm_specvlm.engine.feature_context import FeatureContext
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_step import TreeRows


@dataclass(slots=True)
class FeatureFeed:
    """One request's slots in the pass over confirmed tokens."""

    request_id: str
    row: int
    """Row in vLLM's input batch."""
    context: FeatureContext
    slots: np.ndarray
    """int64, ascending; visible from now on."""
    upto: int
    """Slots below this are then visible, or holes for good."""
    root: int | None
    """Position of the tree's root, whose feature the last slot predicts; None while the request has not caught up."""

    @property
    def rows(self) -> int:
        """How many slots."""
        return len(self.slots)

    @property
    def root_spans(self) -> list[tuple[int, int]]:
        """The slots that its tree may see."""
        assert self.root is not None
        return self.context.spans(self.root)

    def tree_rows(self, first_row: int) -> TreeRows:
        """Slots see themselves and what stands before them; none is dense."""
        count = len(self.slots)
        return TreeRows(
            first_row=first_row,
            block_row=self.row,
            spans=self.context.spans(int(self.slots[-1]) + 1),
            visible_upto=(self.slots + 1).astype(np.int32),
            dense_start=0,
            dense_at=np.full(count, -1, dtype=np.int32),
            ancestors=np.zeros((count, 2), dtype=np.uint64),
        )


def spread(rows: torch.Tensor, pictured: np.ndarray) -> torch.Tensor:
    """[slots, hidden]: text rows [n, hidden] at their places among visual slots (bool [slots]), which are zeros."""
    return placed(rows, np.flatnonzero(~pictured), len(pictured))


def placed(rows: torch.Tensor, places: np.ndarray, slots: int) -> torch.Tensor:
    """[slots, hidden]: `rows` [n, hidden] at these places (int64 [n], known to the host), zeros elsewhere."""
    spaced = rows.new_zeros((slots, rows.shape[-1]))
    return spaced.index_copy_(0, upload(places, rows.device), rows)
