"""Every way of attending tree rows gives what the definition gives, and the trial that chooses among them can fail."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.attention.backends import flash_attn

from tests.exactness import gpu_stand_ins
from vllm_specvlm import ops
from vllm_specvlm.engine import attention_choice, attention_gpu
from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.gathered_attention import GatheredAttention
from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.engine.prefix_attention import PrefixAttention
from vllm_specvlm.engine.tree_attention import KernelAttention, TreeAttention
from vllm_specvlm.engine.trial import DRAFTING, TOLERANCE, VERIFYING, LayerKind, Trial, commit_is_right

CPU = torch.device("cpu")
KINDS = [
    LayerKind(4, 2, 64, torch.float32),
    LayerKind(6, 1, 80, torch.bfloat16),
    LayerKind(3, 3, 128, torch.float16, page=32),
]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", gpu_stand_ins.flash_attn_varlen_func, raising=False)
    gpu_stand_ins.Kernels().install(monkeypatch)


def all_ways() -> list[TreeAttention]:
    return [KernelAttention(), PrefixAttention(attention_gpu._flash(2)), GatheredAttention()]


@pytest.mark.parametrize("way", all_ways(), ids=lambda way: way.name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shapes", [VERIFYING, DRAFTING], ids=["verifying", "drafting"])
def test_the_definition(way: TreeAttention, kind: LayerKind, shapes: Any) -> None:
    for seed in range(3):
        assert Trial(kind, shapes, CPU, seed).error(way) <= TOLERANCE[kind.dtype]


def test_a_prefix_is_attended_by_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """In verification; not where a draft's context has holes."""
    calls: list[int] = []
    stand_in = gpu_stand_ins.flash_attn_varlen_func

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stand_in(*args, **kwargs)

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", counted)
    way = PrefixAttention(attention_gpu._flash(2))
    Trial(KINDS[0], VERIFYING, CPU).error(way)
    assert len(calls) == 1
    Trial(KINDS[0], DRAFTING, CPU).error(way)
    assert len(calls) == 1


class _Wrong(GatheredAttention):
    """The last node of a tree sees the first one if it should not, and does not if it should."""

    name = "wrong"

    def attend(self, call: AttentionCall) -> None:
        rows = []
        for request in call.step.rows:
            ancestors = request.ancestors.copy()
            if len(ancestors) > 2 and (request.dense_at >= 0).any():
                ancestors[-1, 0] ^= np.uint64(1)
            rows.append(replace(request, ancestors=ancestors))
        super().attend(replace(call, step=replace(call.step, rows=tuple(rows))))


def alone(trouble: str | None) -> str | None:
    return trouble


def test_ranks_take_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that passes on all of them: where another's trial fails, what passed here is not used either."""
    ways, others = all_ways(), iter([False, True])
    peers = Peers.__new__(Peers)
    peers._group = SimpleNamespace(world_size=2)
    monkeypatch.setattr(Peers, "_vote", lambda self, well: well and next(others))
    assert attention_choice.choose(KINDS[0], CPU, ways, peers.verdict) is ways[1]
    assert peers.verdict("it fails here") == "it fails here"
    peers._group = SimpleNamespace(world_size=1)
    assert peers.verdict(None) is None


def test_the_first_that_passes_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = all_ways()
    assert attention_choice.choose(KINDS[0], CPU, ways, alone) is ways[0]
    monkeypatch.setattr(attention_choice, "kernel_trouble", lambda kind, device: "there is none")
    assert attention_choice.choose(KINDS[0], CPU, ways, alone) is ways[1]
    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", None)
    assert "TypeError" in str(attention_choice.trouble(ways[1], KINDS[0], CPU))
    assert attention_choice.choose(KINDS[0], CPU, ways, alone) is ways[2]


def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "wrong by" in str(attention_choice.trouble(_Wrong(), KINDS[0], CPU))
    with pytest.raises(RuntimeError, match="No way of attending tree rows"):
        attention_choice.choose(KINDS[0], CPU, [_Wrong()], alone)
    stock = ops.commit_rows
    monkeypatch.setattr(ops, "commit_rows", lambda caches, keys, values, slots: stock(caches, keys, values, slots - 1))
    assert not commit_is_right(KINDS[0], CPU)
    assert "commit" in str(attention_choice.trouble(KernelAttention(), KINDS[0], CPU))


def test_what_a_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kind = LayerKind(4, 2, 64, torch.bfloat16)
    monkeypatch.setattr(ops, "has_cuda_kernels", lambda: False)
    assert "without CUDA kernels" in str(attention_choice.kernel_trouble(kind, CPU))
    monkeypatch.setattr(ops, "has_cuda_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5 is below 8.0" in str(attention_choice.kernel_trouble(kind, CPU))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert attention_choice.kernel_trouble(kind, CPU) is None
    assert "heads of 72" in str(attention_choice.kernel_trouble(LayerKind(4, 2, 72, torch.bfloat16), CPU))


def test_values_that_are_no_numbers_stay_where_they_are() -> None:
    """An infinite value in another branch reaches nobody; in a row's own path it does."""
    from vllm_specvlm.engine.dense_store import DenseStore
    from vllm_specvlm.engine.tree_step import TreeRows, TreeStep

    masks = np.array([[0, 0], [1, 0], [2, 0]], dtype=np.uint64)  # a root and two children
    at = np.array([-1, 0, 1], dtype=np.int32)
    rows = TreeRows(0, 0, [(0, 5)], np.full(3, 5, dtype=np.int32), 0, at, masks)
    step = TreeStep.build([rows], DenseStore(), CPU, covers_batch=True, fast=False)
    for way in (PrefixAttention(attention_gpu._flash(2)), GatheredAttention()):
        query, key, value = (torch.randn(3, 2, 64) for _ in range(3))
        value[2] = torch.inf
        out = torch.zeros(3, 2, 64)
        dense = torch.zeros(2, 2, 64), torch.zeros(2, 2, 64)
        cache = torch.randn(2, 2, 16, 128)
        table = torch.zeros(1, 1, dtype=torch.int32)
        way.attend(AttentionCall(step, out, query, key, value, cache, table, *dense, 0.125))
        assert out[:2].isfinite().all()
        assert not out[2].isfinite().any()
