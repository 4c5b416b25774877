"""One request whose tree a draft model is growing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class GrowingTree:
    """One request whose tree is being grown."""

    row: int
    """Row in vLLM's input batch."""
    root: int
    """Position of the last confirmed token; the draft's K/V below it are in the paged cache."""
    spans: Sequence[tuple[int, int]]
    """Where they can be trusted."""
    dense_start: int
    dense_rows: int
    """Rows of its dense segment in use."""
