"""Random small calls of tree attention, and how far a way of computing them is from the definition in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.tree_attention import TreeAttention
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
"""Rounding of the output, and of sums of some hundred terms in float32."""
# Large enough to be noticed where it is seen by mistake, and a number of every dtype.
_UNWRITTEN = 1e4


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What a kernel is chosen by."""

    query_heads: int
    heads: int
    head_size: int
    dtype: torch.dtype
    page: int = 16

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.query_heads}/{self.heads} heads of {self.head_size}, {dtype}"


@dataclass(frozen=True, slots=True)
class Shape:
    """One request of a trial."""

    context: int
    nodes: int
    """Of its tree, the root not counted."""
    hole: tuple[int, int] | None = None
    chunk: bool = False
    """A chunk of a prompt instead: every row sees one token more than the one before it, and there are no nodes."""


VERIFYING = (Shape(37, 7), Shape(1, 0), Shape(150, 70), Shape(16, 127))
"""As in verification: also the longest masks, and a request without a tree."""
DRAFTING = (Shape(90, 5, hole=(20, 51)), Shape(64, 3), Shape(40, 24, chunk=True))
"""As in a draft's passes: holes in the context, and prompts."""


class Trial:
    """A random call: caches and tables on a device, and the result it should have."""

    def __init__(self, kind: LayerKind, shapes: tuple[Shape, ...], device: torch.device, seed: int = 0) -> None:
        """Make it. With odd seeds the cache has another order in memory: slots before heads, as vLLM often has it."""
        self.kind = kind
        self._random = torch.Generator().manual_seed(seed)
        self._choice = np.random.default_rng(seed)
        self._device = device
        columns = max(-(-shape.context // kind.page) for shape in shapes)
        blocks = len(shapes) * columns + 1
        self._cache = torch.full((blocks, kind.heads, kind.page, 2 * kind.head_size), _UNWRITTEN, dtype=kind.dtype)
        order = torch.randperm(blocks, generator=self._random)[: len(shapes) * columns]
        self._table = order.to(torch.int32).view(len(shapes), columns)
        self._rows: list[TreeRows] = []
        tokens = dense = 0
        for row, shape in enumerate(shapes):
            self._write(row, shape)
            self._rows.append(self._request(row, shape, tokens, dense))
            tokens += len(self._rows[-1].dense_at)
            dense += shape.nodes
        heads = kind.query_heads + 2 * kind.heads
        # One tensor split in three, as a model's layer gives them.
        fused = self._noise(tokens, heads)
        self._states = fused.split([kind.query_heads, kind.heads, kind.heads], dim=1)
        self._capacity = dense + 3
        if seed % 2:
            self._cache = _slots_first(self._cache)

    def _noise(self, rows: int, heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, self.kind.head_size, generator=self._random).to(self.kind.dtype)

    def _write(self, row: int, shape: Shape) -> None:
        """The visible tokens of a request."""
        page, heads = self.kind.page, self.kind.heads
        written = [p for p in range(shape.context) if shape.hole is None or not shape.hole[0] <= p < shape.hole[1]]
        at = torch.tensor(written)
        blocks = self._table[row].long()[at // page]
        self._cache[blocks, :, at % page] = torch.cat([self._noise(len(at), heads) for _ in range(2)], dim=2)

    def _request(self, row: int, shape: Shape, first_row: int, dense_start: int) -> TreeRows:
        start, stop = shape.hole or (shape.context, shape.context)
        spans = [span for span in ((0, start), (stop, shape.context)) if span[0] < span[1]]
        if shape.chunk:
            upto = np.arange(shape.context - shape.nodes, shape.context, dtype=np.int32) + 1
            dense_at, ancestors = np.full(shape.nodes, -1, dtype=np.int32), np.zeros((shape.nodes, 2), dtype=np.uint64)
            return TreeRows(first_row, row, spans, upto, 0, dense_at, ancestors)
        count = shape.nodes + 1
        dense_at = np.arange(dense_start - 1, dense_start + shape.nodes, dtype=np.int32)
        dense_at[0] = -1
        ancestors = np.zeros((count, 2), dtype=np.uint64)
        for node in range(shape.nodes):
            parent = int(self._choice.integers(-1, node))
            if parent >= 0:
                ancestors[node + 1] = ancestors[parent + 1]
            ancestors[node + 1, node // 64] |= np.uint64(1) << np.uint64(node % 64)
        upto = np.full(count, shape.context, dtype=np.int32)
        return TreeRows(first_row, row, spans, upto, dense_start, dense_at, ancestors)

    def error(self, way: TreeAttention) -> float:
        """Largest difference from the definition in float64; NaN and infinity count as infinite."""
        difference = (self._run(way).double() - self._expected()).abs().max()
        return float(difference) if bool(difference.isfinite()) else float("inf")

    def _run(self, way: TreeAttention) -> torch.Tensor:
        query, key, value = (state.to(self._device) for state in self._states)
        out = torch.full_like(query, _UNWRITTEN)
        dense_key, dense_value = (key.new_full((self._capacity, *key.shape[1:]), _UNWRITTEN) for _ in range(2))
        step, cache, table = self._step(self._device), self._cache.to(self._device), self._table.to(self._device)
        scale = self.kind.head_size**-0.5
        way.attend(AttentionCall(step, out, query, key, value, cache, table, dense_key, dense_value, scale))
        return out.cpu()

    def _step(self, device: torch.device) -> TreeStep:
        return TreeStep.build(self._rows, DenseStore(), device, covers_batch=True, fast=False)

    def _expected(self) -> torch.Tensor:
        """float64 [rows, query heads, head size]."""
        query, key, value = self._states
        step = self._step(torch.device("cpu"))
        out = torch.zeros(query.shape, dtype=torch.float64)
        dense_key, dense_value = (key.new_zeros((self._capacity, *key.shape[1:])) for _ in range(2))
        cache, scale = self._cache.contiguous(), self.kind.head_size**-0.5
        call = AttentionCall(step, out, query, key, value, cache, self._table, dense_key, dense_value, scale)
        call.through(ops.tree_attention_reference, "rows")
        return out


def _slots_first(cache: torch.Tensor) -> torch.Tensor:
    """The same [blocks, kv heads, page, 2 * head size] with heads inside slots in memory."""
    return cache.transpose(1, 2).contiguous().transpose(1, 2)


def commit_is_right(kind: LayerKind, device: torch.device) -> bool:
    """Whether `ops.commit_rows` writes what it should, and nothing else."""
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(kind.dtype)

    layers, rows, blocks = 3, 9, 4
    caches = [noise(blocks, kind.heads, kind.page, 2 * kind.head_size) for _ in range(layers)]
    keys, values = ([noise(rows, kind.heads, kind.head_size) for _ in range(layers)] for _ in range(2))
    slots = torch.tensor([5, -1, 0, kind.page, -1, blocks * kind.page - 1, 17, 3, 2])
    moved = [_slots_first(cache.to(device)) for cache in caches]
    ops.commit_rows(moved, [k.to(device) for k in keys], [v.to(device) for v in values], slots.to(device))
    ops.commit_rows_reference(caches, keys, values, slots)
    return all(torch.equal(one.cpu(), two) for one, two in zip(moved, caches, strict=True))
