"""How long tree attention takes on this GPU, beside what else there is for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.tree_attention import KernelAttention
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep
from vllm_specvlm.selftest.check import Check

_PAGE = 16
_REPEATS = 30
_WARM = 5
_COPY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """A layer's attention in a verify step: every request has one context length and one tree, bfloat16."""

    model: str
    query_heads: int
    heads: int
    batch: int
    context: int
    nodes: int
    head_size: int = 128

    @property
    def key_bytes(self) -> int:
        """Keys and values that have to be read, once."""
        return self.batch * (self.context + self.nodes) * self.heads * self.head_size * 2 * 2

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, context {self.context}, {self.nodes} nodes"


CASES = [
    Case(model, query_heads, heads, batch, context, nodes)
    for model, query_heads, heads in (("Qwen2.5-VL-7B", 28, 4), ("LLaVA-1.5-7B", 32, 32))
    for batch in (1, 8)
    for context in (1000, 8000)
    for nodes in (16, 64)
]


class Problem:
    """Tensors of a case: a binary tree, pages in random order."""

    def __init__(self, case: Case, device: torch.device) -> None:
        """Make them."""
        self.case = case
        generator = torch.Generator(device=device).manual_seed(0)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(torch.bfloat16)

        size, heads, rows = case.head_size, case.heads, case.nodes
        self.columns = -(-case.context // _PAGE)
        self.cache = noise(case.batch * self.columns, heads, _PAGE, 2 * size)
        order = torch.randperm(case.batch * self.columns, generator=generator, device=device)
        self.table = order.int().view(case.batch, self.columns)
        self.query = noise(case.batch * rows, case.query_heads, size)
        self.key, self.value = (noise(case.batch * rows, heads, size) for _ in range(2))
        self.dense_key, self.dense_value = self.key.clone(), self.value.clone()
        self.parents = [-1, *((i - 1) // 2 for i in range(1, rows))]
        self.masks = np.zeros((rows, 2), dtype=np.uint64)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                self.masks[node] = self.masks[parent]
            self.masks[node, node // 64] |= np.uint64(1) << np.uint64(node % 64)
        upto = np.full(rows, case.context, dtype=np.int32)
        requests = [
            TreeRows(
                first_row=r * rows,
                block_row=r,
                spans=[(0, case.context)],
                visible_upto=upto,
                dense_start=r * rows,
                dense_at=np.arange(r * rows, (r + 1) * rows, dtype=np.int32),
                ancestors=self.masks,
            )
            for r in range(case.batch)
        ]
        self.step = TreeStep.build(requests, DenseStore(), device, covers_batch=True, fast=False)
        self.device, self.scale = device, size**-0.5

    def call(self, out: torch.Tensor) -> AttentionCall:
        """Its attention, written to `out`, which is like `query`."""
        return AttentionCall(
            self.step,
            out,
            self.query,
            self.key,
            self.value,
            self.cache,
            self.table,
            self.dense_key,
            self.dense_value,
            self.scale,
        )

    def visible(self) -> torch.Tensor:
        """bool [nodes, nodes]: which node sees which."""
        bits = (self.masks[:, :1] >> np.arange(self.case.nodes, dtype=np.uint64)) & np.uint64(1)
        return torch.from_numpy(bits.astype(bool)).to(self.device)

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of context and nodes, [batch, context + nodes, kv heads, size], for who has no pages."""
        pages = self.cache[self.table.long()].transpose(2, 3).flatten(1, 2)[:, : self.case.context]
        paged = pages.split(self.case.head_size, dim=-1)
        nodes = (t.view(self.case.batch, self.case.nodes, *t.shape[1:]) for t in (self.key, self.value))
        keys, values = (torch.cat([old, new], dim=1) for old, new in zip(paged, nodes, strict=True))
        return keys, values


def ours(problem: Problem) -> Callable[[], Any]:
    """Our kernel."""
    out = torch.empty_like(problem.query)
    way = KernelAttention()
    call = problem.call(out)
    return lambda: way.attend(call)


def flash(problem: Problem) -> Callable[[], Any]:
    """vLLM's FlashAttention over the same rows as a chain: no tree, the nodes counted as the context's last tokens."""
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

    case = problem.case
    keys, values = problem.cache.transpose(1, 2).split(case.head_size, dim=-1)
    starts = torch.arange(case.batch + 1, dtype=torch.int32, device=problem.device) * case.nodes
    used = torch.full((case.batch,), case.context, dtype=torch.int32, device=problem.device)
    version = get_flash_attn_version()
    return lambda: flash_attn.flash_attn_varlen_func(
        q=problem.query,
        k=keys,
        v=values,
        cu_seqlens_q=starts,
        max_seqlen_q=case.nodes,
        seqused_k=used,
        max_seqlen_k=case.context,
        softmax_scale=problem.scale,
        causal=True,
        block_table=problem.table,
        fa_version=version,
    )


def xformers(problem: Problem) -> Callable[[], Any]:
    """`xformers.ops.tree_attention`, one tree for all requests, over caches without pages."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalPaddedKeysMask
    from xformers.ops.tree_attention import tree_attention

    case = problem.case
    group = case.query_heads // case.heads
    keys, values = problem.contiguous()

    def grouped(states: torch.Tensor) -> torch.Tensor:
        return states.unsqueeze(3).expand(-1, -1, -1, group, -1)

    query = problem.query.view(case.batch, case.nodes, case.heads, group, case.head_size)
    old = [grouped(t[:, : case.context].contiguous()) for t in (keys, values)]
    new = [grouped(t[:, case.context :].contiguous()) for t in (keys, values)]
    seen = problem.visible()
    # Some of its kernels want the mask's rows aligned.
    mask = torch.zeros(case.nodes, -(-case.nodes // 16) * 16, dtype=torch.bfloat16, device=problem.device)
    mask = mask[:, : case.nodes].masked_fill_(~seen, -torch.inf)
    prefix = BlockDiagonalPaddedKeysMask.from_seqlens(
        q_seqlen=[case.nodes] * case.batch, kv_seqlen=[case.context] * case.batch, kv_padding=case.context
    )
    return lambda: tree_attention(query, *new, *old, mask, prefix)


def flex(problem: Problem) -> Callable[[], Any]:
    """torch's FlexAttention, compiled, over caches without pages."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    case = problem.case
    keys, values = (states.transpose(1, 2).contiguous() for states in problem.contiguous())
    query = problem.query.view(case.batch, case.nodes, case.query_heads, case.head_size).transpose(1, 2).contiguous()
    seen, context, nodes = problem.visible(), case.context, case.nodes

    def sees(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k < context) | seen[q.clamp(max=nodes - 1), (k - context).clamp(0, nodes - 1)]

    mask = create_block_mask(sees, None, None, nodes, context + nodes, device=str(problem.device))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(
        query, keys, values, block_mask=mask, scale=problem.scale, enable_gqa=case.heads != case.query_heads
    )


OTHERS: dict[str, Callable[[Problem], Callable[[], Any]]] = {
    "FlashAttention, a chain": flash,
    "xformers tree attention": xformers,
    "FlexAttention": flex,
}


def microseconds(run: Callable[[], Any]) -> float:
    """Median over some runs, by the GPU's own clock; each run finds the caches filled by something else."""
    for _ in range(_WARM):
        run()
    torch.cuda.synchronize()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(_REPEATS):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(1e3 * start.elapsed_time(stop))
    return float(np.median(times))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy on the GPU reads and writes together."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / (1e-6 * microseconds(lambda: target.copy_(source)))


def check(device: torch.device, *, quick: bool) -> Iterable[Check]:
    """A line for each case: times, bandwidth, and the share of what a plain copy reaches. Speed cannot fail."""
    peak = copy_bandwidth(device)
    yield Check.judged("bandwidth of a copy", True, f"{peak / 1e9:.0f} GB/s", bytes_per_second=peak)
    for case in CASES[:2] if quick else CASES:
        problem = Problem(case, device)
        spent = microseconds(ours(problem))
        reached = case.key_bytes / (1e-6 * spent)
        figures: dict[str, Any] = {"ours_us": spent, "bytes_per_second": reached, "roofline": reached / peak}
        detail = f"{spent:.0f} us, {reached / 1e9:.0f} GB/s, {reached / peak:.0%} of a copy's"
        for name, other in OTHERS.items():
            try:
                figures[name] = microseconds(other(problem))
                detail += f"; {name} {figures[name]:.0f} us"
            except Exception as error:
                figures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                detail += f"; {name} not run ({type(error).__name__})"
        yield Check.judged(f"speed: {case}", True, detail, **figures)
