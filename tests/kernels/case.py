"""Random calls of the op: paged caches full of NaN except where tokens were written, trees, holes, strided inputs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vllm_specvlm import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rounding of the output dominates below float32; logits of a few units make float32 sums of some hundred terms.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def random_parents(nodes: int, rng: random.Random, reach: int = 5) -> tuple[int, ...]:
    """Parents of a random tree whose first node is the root."""
    return (-1, *(rng.randrange(max(0, i - reach), i) for i in range(1, nodes))) if nodes else ()


def masks_of(parents: tuple[int, ...]) -> tuple[int, ...]:
    """Ancestor masks, own bit included."""
    masks: list[int] = []
    for node, parent in enumerate(parents):
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << node)
    return tuple(masks)


@dataclass(frozen=True)
class Request:
    """One request of a call.

    Attributes:
        spans: its visible positions; all of them hold tokens.
        upto: visible_upto of each row.
        masks: ancestors of each row; empty: none.
        stores: which dense bit each row fills, -1 for none; empty: none.
        filled: dense bits that hold something before the call.
    """

    spans: tuple[tuple[int, int], ...]
    upto: tuple[int, ...]
    masks: tuple[int, ...] = ()
    stores: tuple[int, ...] = ()
    filled: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.upto)

    @property
    def end(self) -> int:
        return max([end for _, end in self.spans], default=0)


def tree(context: int, parents: tuple[int, ...], spans: tuple[tuple[int, int], ...] | None = None) -> Request:
    """Verification of a tree: every node a row that stores itself."""
    spans = ((0, context),) if spans is None else spans
    nodes = len(parents)
    return Request(spans, (context,) * nodes, masks_of(parents), tuple(range(nodes)))


def prefill(start: int, rows: int) -> Request:
    """A chunk of a prompt: every row sees the paged tokens up to itself."""
    return Request(((0, start + rows),), tuple(start + i + 1 for i in range(rows)))


def frontier(context: int, parents: tuple[int, ...], level: tuple[int, ...]) -> Request:
    """A draft step: rows for some nodes of a tree whose other nodes are stored already."""
    masks = masks_of(parents)
    known = tuple(i for i in range(len(parents)) if i not in level)
    return Request(((0, context),), (context,) * len(level), tuple(masks[i] for i in level), level, known)


@dataclass(frozen=True)
class Shape:
    """Heads, page and dtype of a call."""

    heads: int = 2
    group: int = 3
    head_size: int = 64
    page: int = 32
    dtype: torch.dtype = torch.float32
    layout: str = "vec"
    seed: int = 0
    spread: float = 1.5  # standard deviation of queries


@dataclass
class Call:
    """Arguments of the op and what else a test wants to know."""

    shape: Shape
    requests: list[Request]
    arguments: dict[str, Any]
    contexts: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # keys and values of each request's positions

    def run(self, **changes: Any) -> Tensor:
        """The op's output on fresh copies of what it writes."""
        arguments = self.copies() | changes
        ops.tree_attention(**arguments)
        return arguments["out"]

    def expected(self) -> Tensor:
        """The reference in float64, unrounded."""
        arguments = self.copies()
        arguments["out"] = arguments["out"].double()
        ops.tree_attention_reference(**arguments)
        return arguments["out"]

    def copies(self) -> dict[str, Any]:
        """The arguments with fresh copies of what the op writes."""
        return self.arguments | {name: self.arguments[name].clone() for name in ("out", "dense_key", "dense_value")}


def signed(mask: int) -> list[int]:
    """A mask of 128 bits as two int64."""
    words = [mask >> 64 * w & (1 << 64) - 1 for w in range(2)]
    return [w - (1 << 64) if w >> 63 else w for w in words]


def build(shape: Shape, requests: list[Request], gap: int = 1) -> Call:
    """A call with these requests, `gap` unlisted query rows before each, blocks in random order."""
    rng = torch.Generator().manual_seed(shape.seed)
    dtype, heads, head_size, page = shape.dtype, shape.heads, shape.head_size, shape.page

    def states(n: int, h: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(n, h, head_size, generator=rng) * spread).to(dtype)

    columns = max(1, *(-(-r.end // page) for r in requests)) if requests else 1
    blocks = len(requests) * columns + 2
    table = torch.randperm(blocks, generator=rng)[: len(requests) * columns].to(torch.int32).view(-1, columns)
    nan = float("nan")
    cache = torch.full((blocks, heads, page, 2 * head_size), nan, dtype=dtype)
    tokens = sum(r.rows + gap for r in requests)
    query_heads = heads * shape.group
    # query, key and value are views of one tensor, as they are in a model.
    fused = torch.cat([states(tokens, query_heads, shape.spread), states(tokens, 2 * heads)], dim=1)
    query, key, value = fused.split([query_heads, heads, heads], dim=1)
    dense_key = torch.full((len(requests) * 128 + 5, heads, head_size), nan, dtype=dtype)
    dense_value = dense_key.clone()

    contexts, table_rows, spans, upto, dense_at, ancestors, row = [], [], [], [], [], [], 0
    for i, request in enumerate(requests):
        positions = torch.tensor([p for start, end in request.spans for p in range(start, end)], dtype=torch.int64)
        k, v = states(len(positions), heads), states(len(positions), heads)
        slots = table[i].long()[positions // page] * page + positions % page
        ops.scatter(cache, shape.layout, slots, k, v)
        contexts.append((k, v))
        dense_start = 128 * i + 3
        for bit in request.filled:
            dense_key[dense_start + bit], dense_value[dense_start + bit] = states(2, heads)
        row += gap
        table_rows.append([row, request.rows, i, dense_start, len(spans), len(request.spans)])
        spans += request.spans
        upto += request.upto
        stores = request.stores or (-1,) * request.rows
        dense_at += [dense_start + s if s >= 0 else -1 for s in stores]
        ancestors += [signed(m) for m in request.masks or (0,) * request.rows]
        row += request.rows
    arguments = {
        "out": torch.full((tokens, query_heads, head_size), 7.0, dtype=dtype),
        "query": query,
        "key": key,
        "value": value,
        "kv_cache": cache,
        "block_table": table,
        "dense_key": dense_key,
        "dense_value": dense_value,
        "requests": torch.tensor(table_rows, dtype=torch.int32).view(-1, 6),
        "spans": torch.tensor(spans, dtype=torch.int32).view(-1, 2),
        "visible_upto": torch.tensor(upto, dtype=torch.int32),
        "dense_at": torch.tensor(dense_at, dtype=torch.int32),
        "ancestors": torch.tensor(ancestors, dtype=torch.int64).view(-1, 2),
        "scale": head_size**-0.5,
        "layout": shape.layout,
    }
    return Call(shape, requests, arguments, contexts)


def listed_rows(call: Call) -> Tensor:
    """Which rows of `out` the requests list: bool [T]."""
    listed = torch.zeros(call.arguments["out"].shape[0], dtype=torch.bool)
    for first, rows, *_ in call.arguments["requests"].tolist():
        listed[first : first + rows] = True
    return listed


def assert_close(call: Call, out: Tensor, tolerance: float | None = None) -> None:
    """`out` equals the float64 reference up to rounding, and unlisted rows are untouched."""
    expected = call.expected()
    bound = tolerance or TOLERANCE[call.shape.dtype]
    worst = float((out.double() - expected).abs().max()) if out.numel() else 0.0
    assert not out.isnan().any(), "NaN: something unwritten was read"
    assert worst <= bound, worst
    assert bool((out[~listed_rows(call)] == 7.0).all())
