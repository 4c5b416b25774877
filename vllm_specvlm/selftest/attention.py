"""Tree attention on this machine against its definition in float64, over a grid of shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.gathered_attention import GatheredAttention
from vllm_specvlm.engine.tree_attention import TreeAttention
from vllm_specvlm.engine.trial import DRAFTING, TOLERANCE, VERIFYING, LayerKind, Trial, commit_is_right
from vllm_specvlm.selftest.check import Check

_LENGTHS = {"verifying": VERIFYING, "drafting": DRAFTING}


class CpuAttention:
    """The CPU's kernel, over the same trials: pages are laid out anew as CPUs keep them."""

    name = "CPU kernel"

    def attend(self, call: AttentionCall) -> None:
        """See `TreeAttention`."""
        keys, values = call.kv_cache.split(call.dense_key.shape[2], dim=3)
        planes = torch.cat([keys.transpose(2, 3).flatten(2), values.flatten(2)], dim=2).view(call.kv_cache.shape)
        replace(call, kv_cache=planes).through(ops.tree_attention, "vec")


def kinds(sizes: Sequence[int], page: int, *, quick: bool) -> list[LayerKind]:
    """The grid: dtypes, head sizes and groups; fewer when `quick`."""
    heads = ((4, 4), (7, 1)) if quick else ((4, 4), (7, 1), (28, 4), (16, 2))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [LayerKind(*h, size, dtype, page) for dtype in dtypes for size in sizes for h in heads]


def check(way: TreeAttention, grid: Sequence[LayerKind], device: torch.device, seeds: int) -> Iterable[Check]:
    """A check for each dtype and head size, over the grid's groups, requests of all sorts and random trees."""
    by_kind: dict[tuple[torch.dtype, int], list[LayerKind]] = {}
    for kind in grid:
        by_kind.setdefault((kind.dtype, kind.head_size), []).append(kind)
    for (dtype, size), alike in by_kind.items():
        worst = max(
            Trial(kind, shapes, device, seed).error(way)
            for kind in alike
            for shapes in _LENGTHS.values()
            for seed in range(seeds)
        )
        name = f"{way.name}, {str(dtype).removeprefix('torch.')}, heads of {size}"
        bound = TOLERANCE[dtype]
        detail = f"largest error {worst:.1e}, allowed {bound:.1e}"
        yield Check.judged(name, worst <= bound, detail, error=worst, allowed=bound)


def check_commit(grid: Sequence[LayerKind], device: torch.device) -> Iterable[Check]:
    """Accepted rows into the paged caches."""
    wrong = [str(kind) for kind in grid if not commit_is_right(kind, device)]
    detail = f"wrong for {', '.join(wrong)}" if wrong else f"the same bits for {len(grid)} kinds of layers"
    yield Check.judged("commit of accepted rows", not wrong, detail)


def plain_torch() -> TreeAttention:
    """The fallback that runs wherever torch does."""
    return GatheredAttention()
