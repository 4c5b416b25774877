"""Times tree attention against what else could compute it on a CPU, in one process, runs interleaved.

    python benchmarks/kernels.py [--quick] [--threads N] [--json FILE]

Rivals on the same shapes: torch's scaled_dot_product_attention with a dense mask over contiguous keys (`sdpa`), the
same after gathering keys and values from the paged cache (`sdpa_gather`, what a plugin without a kernel has to do), and
vLLM's own paged attention, which can only do a causal chain (`vllm`). Figures are medians of wall time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from machine import machine, versions
from torch import Tensor

from vllm_specvlm import ops

PAGE = 128


class Case(NamedTuple):
    name: str
    query_heads: int
    heads: int
    head_size: int
    context: int
    rows: int


QUICK = [
    Case("tree", 28, 4, 128, 600, 32),
    Case("tree", 9, 3, 64, 600, 16),
    Case("decode", 28, 4, 128, 600, 1),
]
CASES = [
    *QUICK,
    Case("tree", 16, 2, 128, 600, 32),
    Case("tree", 28, 4, 128, 2000, 64),
    Case("tree", 16, 16, 80, 1000, 32),
    Case("draft level", 9, 3, 64, 600, 4),
    Case("decode", 9, 3, 64, 600, 1),
    Case("prefill", 28, 4, 128, 0, 512),
]


def chain_masks(rows: int) -> Tensor:
    """Ancestor masks of a chain, so that vLLM's causal attention computes the same; int64 [rows, 2]."""
    masks = [(1 << i + 1) - 1 for i in range(rows)]
    words = [[m & (1 << 64) - 1, m >> 64] for m in masks]
    return torch.tensor([[w - (1 << 64) if w >> 63 else w for w in pair] for pair in words], dtype=torch.int64)


def rivals(case: Case, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What is timed, by name. All compute the same: `rows` new tokens in a chain after `context` cached ones."""
    torch.manual_seed(0)
    _, query_heads, heads, D, context, rows = case
    tokens = context + rows
    blocks = -(-tokens // PAGE)
    # The fused projection a model makes: query, key and value are views of it.
    fused = torch.randn(rows, query_heads + 2 * heads, D).to(dtype)
    query, new_key, new_value = fused.split([query_heads, heads, heads], dim=1)
    keys = torch.cat([torch.randn(context, heads, D).to(dtype), new_key])
    values = torch.cat([torch.randn(context, heads, D).to(dtype), new_value])
    cache = torch.zeros(blocks, heads, PAGE, 2 * D, dtype=dtype)
    table = torch.randperm(blocks).to(torch.int32)[None]
    positions = torch.arange(tokens)
    ops.scatter(cache, "vec", table[0].long()[positions // PAGE] * PAGE + positions % PAGE, keys, values)
    scale = D**-0.5

    paged = case.name == "prefill"  # a prompt's chunk is in the cache when attention runs, a tree is not
    ours = {
        "out": torch.zeros(rows, query_heads, D, dtype=dtype),
        "query": query,
        "key": new_key,
        "value": new_value,
        "kv_cache": cache,
        "block_table": table,
        "dense_key": torch.zeros(128, heads, D, dtype=dtype),
        "dense_value": torch.zeros(128, heads, D, dtype=dtype),
        "requests": torch.tensor([[0, rows, 0, 0, 0, 1]], dtype=torch.int32),
        "spans": torch.tensor([[0, tokens if paged else context]], dtype=torch.int32),
        "visible_upto": torch.arange(context + 1, tokens + 1, dtype=torch.int32)
        if paged
        else torch.full((rows,), context, dtype=torch.int32),
        "dense_at": torch.full((rows,), -1, dtype=torch.int32) if paged else torch.arange(rows, dtype=torch.int32),
        "ancestors": torch.zeros(rows, 2, dtype=torch.int64) if paged else chain_masks(rows),
        "scale": scale,
        "layout": "vec",
    }
    mask = torch.ones(rows, tokens, dtype=torch.bool).tril(context)
    batched_query = query.transpose(0, 1)[None]
    dense_keys, dense_values = (t.transpose(0, 1)[None].contiguous() for t in (keys, values))

    def attend(k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(batched_query, k, v, attn_mask=mask, scale=scale, enable_gqa=True)

    def gather_and_attend() -> Tensor:
        pages = cache.view(-1, heads, 2, PAGE * D)[table[0].long()]
        k = pages[:, :, 0].view(-1, heads, D, PAGE).permute(1, 0, 3, 2).reshape(1, heads, -1, D)[:, :, :tokens]
        v = pages[:, :, 1].view(-1, heads, PAGE, D).transpose(0, 1).reshape(1, heads, -1, D)[:, :, :tokens]
        return attend(k, v)

    timed: dict[str, Callable[[], object]] = {"exact": lambda: ops.tree_attention(**ours)}
    if dtype == torch.bfloat16 and ops.cpu_features().fast:
        timed["fast"] = lambda: ops.tree_attention(**ours, fast=True)
    timed |= {"sdpa": lambda: attend(dense_keys, dense_values), "sdpa_gather": gather_and_attend}
    timed["vllm"] = vllm_causal(case, query, cache, table)
    check(case, ours, timed)
    return timed


def vllm_causal(case: Case, query: Tensor, cache: Tensor, table: Tensor) -> Callable[[], Tensor]:
    """vLLM's own op on the same cache; its scheduling metadata, made once per step there, is not timed."""
    import vllm._custom_ops as stock

    _, query_heads, heads, D, context, rows = case
    starts, lengths = torch.tensor([0, rows], dtype=torch.int32), torch.tensor([context + rows], dtype=torch.int32)
    key_cache, value_cache = cache.view(-1, heads, 2 * PAGE, D).chunk(2, dim=2)
    metadata = stock.cpu_attn_get_scheduler_metadata(
        1, query_heads, heads, D, lengths, query.dtype, starts, True, -1, "vec", True
    )
    out = torch.empty(rows, query_heads, D, dtype=query.dtype)

    def run() -> Tensor:
        stock.cpu_attention_with_kv_cache(
            query=query,
            key_cache=key_cache,
            value_cache=value_cache,
            output=out,
            query_start_loc=starts,
            seq_lens=lengths,
            scale=D**-0.5,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=table,
            softcap=0.0,
            scheduler_metadata=metadata,
            s_aux=None,
        )
        return out

    return run


def check(case: Case, ours: dict[str, Any], timed: dict[str, Callable[[], object]]) -> None:
    """All rivals must compute the same before they are compared."""
    expected = timed["sdpa_gather"]()
    assert isinstance(expected, Tensor)
    for name in ("exact", "fast"):
        if name in timed:
            timed[name]()
            worst = float((ours["out"].transpose(0, 1)[None].float() - expected.float()).abs().max())
            assert worst < 3e-2, f"{case} {name} differs from sdpa by {worst}"
    worst = float((timed["vllm"]().transpose(0, 1)[None].float() - expected.float()).abs().max())  # type: ignore[attr-defined]
    assert worst < 3e-2, f"{case} vllm differs from sdpa by {worst}"


def medians(timed: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of each, taken in turns for `seconds` (at least 15 rounds) after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for run in timed.values():
        for _ in range(3):
            run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["exact"]) < 15:
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def rows_of(case: Case, dtype: torch.dtype, seconds: float) -> list[dict[str, Any]]:
    """Result rows of one case; ratios above 1 mean that ours is faster."""
    times = medians(rivals(case, dtype), seconds)
    label = f"{case.name} {case.query_heads}/{case.heads} D{case.head_size} ctx{case.context} rows{case.rows}"
    return [
        {
            "case": label,
            "dtype": str(dtype).removeprefix("torch."),
            "variant": name,
            "ms": round(ms, 4),
            "ratio_to_sdpa_gather": round(times["sdpa_gather"] / ms, 3),
            "ratio_to_vllm": round(times["vllm"] / ms, 3),
        }
        for name, ms in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases, a second each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    print(f"{'case':44}{'dtype':10}{'variant':13}{'ms':>9}{'x sdpa_gather':>15}{'x vllm':>8}")
    for case in QUICK if options.quick else CASES:
        for dtype in (torch.bfloat16, torch.float32):
            for row in rows_of(case, dtype, seconds=1.0 if options.quick else 4.0):
                results.append(row)
                print(
                    f"{row['case']:44}{row['dtype']:10}{row['variant']:13}{row['ms']:9.3f}"
                    f"{row['ratio_to_sdpa_gather']:15.2f}{row['ratio_to_vllm']:8.2f}",
                    flush=True,
                )
    if options.json:
        features = ops.cpu_features()
        place = {
            **machine(),
            "threads": options.threads,
            "kernels": features.variant,
            "arithmetic": features.arithmetic,
        }
        document = {
            "machine": place,
            "versions": versions(),
            "mode": "op alone",
            "date": datetime.date.today().isoformat(),
            "rows": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
