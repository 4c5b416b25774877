"""One forward pass seen by the tree attention op: which rows see which paged tokens and which dense nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.static_tables import StaticTables
from vllm_specvlm.engine.transfer import upload_all


@dataclass(frozen=True, slots=True)
class TreeRows:
    """The rows of one request in one forward pass, `n` of them, contiguous in the batch."""

    first_row: int
    """Index of the first row in the query tensor."""
    block_row: int
    """Row of the block table."""
    spans: Sequence[tuple[int, int]]
    """Visible paged positions, ascending half-open intervals."""
    visible_upto: np.ndarray
    """int32 [n]: paged positions from here on are invisible to the row."""
    dense_start: int
    """First row of this request's segment in the dense store."""
    dense_at: np.ndarray
    """int32 [n]: row of the dense store where the row's own K/V goes, or -1 when it goes to the paged cache."""
    ancestors: np.ndarray
    """uint64 [n, 2]: bit j makes dense row `dense_start + j` visible."""


@dataclass(frozen=True, slots=True)
class TreeStep:
    """The arguments of `ops.tree_attention` that all layers of a forward pass share (shapes: see that op)."""

    rows: tuple[TreeRows, ...]
    """What the tensors below say, on the CPU."""
    requests: torch.Tensor
    spans: torch.Tensor
    visible_upto: torch.Tensor
    dense_at: torch.Tensor
    ancestors: torch.Tensor
    store: DenseStore
    covers_batch: bool
    """Every row of the batch is listed here, so the stock attention has nothing to do."""
    fast: bool

    @classmethod
    def build(
        cls,
        rows: Sequence[TreeRows],
        store: DenseStore,
        device: torch.device,
        *,
        covers_batch: bool,
        fast: bool,
        tables: StaticTables | None = None,
    ) -> TreeStep:
        """Pack the requests' rows into the op's flat tensors: new ones, or the `tables` of `room`."""
        requests = np.empty((len(rows), 6), dtype=np.int32)
        spans: list[tuple[int, int]] = []
        for i, request in enumerate(rows):
            count = len(request.dense_at)
            requests[i] = (
                request.first_row,
                count,
                request.block_row,
                request.dense_start,
                len(spans),
                len(request.spans),
            )
            spans.extend(request.spans)

        arrays = [
            requests,
            np.asarray(spans, dtype=np.int32).reshape(-1, 2),
            np.concatenate([request.visible_upto for request in rows]),
            np.concatenate([request.dense_at for request in rows]),
            np.concatenate([request.ancestors for request in rows]).view(np.int64),
        ]
        request_table, span_table, upto, dense_at, ancestors = (
            upload_all(arrays, device) if tables is None else tables.write(arrays)
        )
        return cls(
            rows=tuple(rows),
            requests=request_table,
            spans=span_table,
            visible_upto=upto,
            dense_at=dense_at,
            ancestors=ancestors,
            store=store,
            covers_batch=covers_batch,
            fast=fast,
        )

    @staticmethod
    def room(requests: int, rows: int, device: torch.device) -> StaticTables:
        """Tables for steps of at most so many requests, with one span each, and rows."""
        largest: list[np.ndarray] = [
            np.empty((requests, 6), dtype=np.int32),
            np.empty((requests, 2), dtype=np.int32),
            np.empty(rows, dtype=np.int32),
            np.empty(rows, dtype=np.int32),
            np.empty((rows, 2), dtype=np.int64),
        ]
        return StaticTables(largest, device)
