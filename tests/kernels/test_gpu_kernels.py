"""The GPU kernels, emulated on the CPU, against the float64 reference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import emulated
from tests.kernels.case import (
    DTYPES,
    Call,
    Request,
    Shape,
    build,
    frontier,
    listed_rows,
    prefill,
    random_parents,
    tree,
)
from vllm_specvlm import ops

pytestmark = pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with")

RNG = random.Random(0)
HEAD_SIZES = (64, 80, 96, 128, 256)
# Output rounding decides below float32.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Orders of [blocks, heads, page] in memory, outermost first; vLLM's CUDA backends have used all of them.
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2))


@pytest.fixture(autouse=True)
def schedule(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs under a schedule of its own, the same each time."""
    emulated.schedule(1 + sum(request.node.name.encode()))
    yield
    emulated.schedule(0)


def reordered(cache: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same tensor with its dimensions in another order in memory and a gap after each block's slots."""
    wide = torch.nn.functional.pad(cache.permute(*order, 3), (0, 8), value=float("nan"))[..., : cache.shape[3]]
    return wide.permute(*[order.index(i) for i in range(3)], 3)


def attend(call: Call, order: tuple[int, ...] = ORDERS[0], **changes: Any) -> Tensor:
    """The emulated kernels' output."""
    emulated.library()
    arguments = call.copies() | {"kv_cache": reordered(call.arguments["kv_cache"], order)} | changes
    torch.ops.vllm_specvlm_emulated.tree_attention(**arguments, fast=False)
    return arguments["out"]


def assert_close(call: Call, out: Tensor, **changes: Any) -> None:
    arguments = call.copies() | changes
    arguments["out"] = arguments["out"].double()
    ops.tree_attention_reference(**arguments)
    expected = arguments["out"]
    assert not out.isnan().any(), "NaN: something unwritten was read"
    worst = float(((out.double() - expected).abs() / expected.abs().clamp(min=1.0)).max()) if out.numel() else 0.0
    assert worst <= TOLERANCE[call.shape.dtype], worst
    assert bool((out[~listed_rows(call)] == 7.0).all())


def shape(dtype: torch.dtype, head_size: int, heads: int = 2, group: int = 3, page: int = 16) -> Shape:
    return Shape(heads, group, head_size, page, dtype, "rows", spread=1.0)


def mixed_batch() -> list[Request]:
    """Trees, a draft level, a prompt chunk, holes, an empty context, rows that see nothing, no rows."""
    parents = random_parents(21, RNG)
    return [
        tree(70, parents),
        tree(0, random_parents(7, RNG)),
        frontier(45, parents, (17, 19, 20)),
        prefill(0, 37),
        Request(((0, 33),), ()),
        prefill(50, 14),
        tree(97, (-1,)),
        tree(330, random_parents(9, RNG), spans=((0, 3), (17, 64), (65, 65), (66, 319))),
        Request(((4, 40),), (2, 40, 17, 4)),
        Request((), (5,)),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_mixed_batch(dtype: torch.dtype, head_size: int) -> None:
    number = HEAD_SIZES.index(head_size)
    page, group = (16, 48, 32, 16, 64)[number], (3, 1, 7, 4, 2)[number]
    call = build(shape(dtype, head_size, group=group, page=page), mixed_batch())
    assert_close(call, attend(call, ORDERS[number % 3]))


@pytest.mark.parametrize("nodes", [1, 2, 63, 64, 65, 127, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_words(dtype: torch.dtype, nodes: int) -> None:
    for parents in (tuple(range(-1, nodes - 1)), random_parents(nodes, RNG, reach=70)):
        call = build(shape(dtype, 64, group=1), [tree(19, parents), tree(0, parents)])
        assert_close(call, attend(call))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_pieces(dtype: torch.dtype) -> None:
    """Contexts that are cut into several pieces beside some that are not."""
    requests = [tree(n, random_parents(12, RNG)) for n in (600, 128, 129, 5, 257)]
    call = build(shape(dtype, 64, page=32), [*requests, prefill(290, 20)])
    assert_close(call, attend(call))


@pytest.mark.parametrize("dtype", DTYPES)
def test_schedules(dtype: torch.dtype) -> None:
    """Results do not depend on the order in which threads and blocks run, not in one bit."""
    call = build(shape(dtype, 80, heads=1), [tree(300, random_parents(20, RNG)), prefill(10, 20)])
    outs = []
    for seed in range(4):
        emulated.schedule(seed)
        outs.append(attend(call))
    assert all(torch.equal(outs[0], out) for out in outs[1:])
    assert_close(call, outs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_many_requests(dtype: torch.dtype) -> None:
    """More requests than a warp has lanes; some without rows."""
    requests = []
    for i in range(70):
        requests.append(tree(5 * i % 40, random_parents(i % 4, RNG)))
    call = build(shape(dtype, 64, heads=1, group=1), requests, gap=0)
    assert_close(call, attend(call))


@pytest.mark.slow
def test_random_batches() -> None:
    for seed in range(40):
        emulated.schedule(seed)
        rng = random.Random(seed)
        requests = []
        for _ in range(rng.randrange(1, 5)):
            cuts = sorted(rng.sample(range(400), 2 * rng.randrange(1, 4)))
            spans = tuple(zip(cuts[::2], cuts[1::2], strict=True))
            parents = random_parents(rng.randrange(1, 60), rng)
            whole = tree(400, parents, spans)
            upto = tuple(rng.randrange(410) for _ in parents)
            requests.append(Request(spans, upto, whole.masks, whole.stores))
        case = Shape(
            rng.choice([1, 2, 3]),
            rng.choice([1, 3, 7]),
            rng.choice(HEAD_SIZES),
            rng.choice([16, 32, 48]),
            rng.choice(DTYPES),
            "rows",
            seed,
            spread=1.0,
        )
        call = build(case, requests, gap=rng.randrange(3))
        assert_close(call, attend(call, rng.choice(ORDERS)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_and_soft_caps(dtype: torch.dtype) -> None:
    call = build(shape(dtype, 64), [tree(200, random_parents(18, RNG)), prefill(60, 30), tree(3, (-1, 0))])
    upto = call.arguments["visible_upto"]
    window = (upto - torch.arange(len(upto)) % 50 - 16).clamp(min=0).to(torch.int32)
    assert_close(call, attend(call, visible_from=window), visible_from=window)
    capped = attend(call, soft_cap=1.5)
    assert_close(call, capped, soft_cap=1.5)
    assert not torch.allclose(capped, attend(call), atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_node_sees_only_its_ancestors(dtype: torch.dtype) -> None:
    """An infinite value in one branch stays there, in the paged part and in the dense part."""
    call = build(shape(dtype, 64), [tree(40, (-1, 0, 0, 1, 2)), prefill(30, 8)])
    clean = attend(call)
    value = call.arguments["value"].clone()
    value[1 + 2] = float("inf")
    out = attend(call, value=value)
    assert torch.equal(out[[1, 2, 4]], clean[[1, 2, 4]])
    assert not out[[3, 5]].isfinite().any()

    broken = call.arguments["kv_cache"].clone()
    block = int(call.arguments["block_table"][1, 35 // 16])
    broken[block, :, 35 % 16, 64:] = float("inf")  # position 35: the chunk's sixth row and later see it
    out = attend(call, kv_cache=broken)
    assert torch.equal(out[7:12], clean[7:12])
    assert not out[12].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_values_in_one_piece_of_several(dtype: torch.dtype) -> None:
    call = build(shape(dtype, 64), [tree(500, (-1, 0, 0))])
    clean = attend(call)
    value = call.arguments["value"].clone()
    value[3] = float("-inf")
    out = attend(call, value=value)
    assert torch.equal(out[:3], clean[:3])
    assert not out[3].isfinite().any()


def test_new_rows_are_stored_first() -> None:
    call = build(shape(torch.float16, 80), [tree(10, (-1, 0, 0, 2))])
    arguments = call.copies()
    attend(call, **{name: arguments[name] for name in ("dense_key", "dense_value")})
    start = int(arguments["requests"][0, 3])
    for dense, new in (("dense_key", "key"), ("dense_value", "value")):
        assert torch.equal(arguments[dense][start : start + 4], arguments[new][1:5])
        untouched = [i for i in range(arguments[dense].shape[0]) if not start <= i < start + 4]
        assert arguments[dense][untouched].isnan().all()


def test_pages_past_what_is_visible_are_not_looked_at() -> None:
    call = build(shape(torch.bfloat16, 64), [tree(64, (-1,))])
    table = torch.cat([call.arguments["block_table"], torch.tensor([[-1, 10**9]], dtype=torch.int32)], dim=1)
    spans = torch.tensor([[0, 96]], dtype=torch.int32)
    assert torch.equal(attend(call, block_table=table, spans=spans), attend(call))


def test_empty_calls() -> None:
    assert attend(build(shape(torch.float32, 64), [])).shape[0] == 0
    assert bool((attend(build(shape(torch.float32, 64), [Request(((0, 9),), ())])) == 7.0).all())


def committed(dtype: torch.dtype, layers: int, order: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(layers)
    caches = [torch.randn(5, 3, 16, 2 * 80, generator=rng).to(dtype) for _ in range(layers)]
    keys = [torch.randn(9, 3, 80, generator=rng).to(dtype) for _ in range(layers)]
    values = [torch.randn(9, 3, 80, generator=rng).to(dtype) for _ in range(layers)]
    slots = torch.tensor([17, -1, 3, 79, -1, 0, 33], dtype=torch.int64)
    expected = [cache.clone() for cache in caches]
    ops.commit_rows_reference(expected, keys, values, slots)
    caches = [reordered(cache, order) for cache in caches]
    emulated.library()
    torch.ops.vllm_specvlm_emulated.commit_rows(caches, keys, values, slots)
    assert all(torch.equal(a, b) for a, b in zip(caches, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_commit(dtype: torch.dtype) -> None:
    for order in ORDERS:
        committed(dtype, 3, order)
    committed(dtype, 130, ORDERS[0])  # more layers than a launch takes
    emulated.library()
    torch.ops.vllm_specvlm_emulated.commit_rows([], [], [], torch.empty(0, dtype=torch.int64))


def test_opcheck() -> None:
    emulated.library()
    arguments = build(shape(torch.bfloat16, 64), mixed_batch()[:4]).copies()
    torch.library.opcheck(torch.ops.vllm_specvlm_emulated.tree_attention.default, (*arguments.values(), False))
    lists = ([torch.zeros(2, 1, 16, 128)], [torch.ones(3, 1, 64)], [torch.ones(3, 1, 64)], torch.tensor([4, -1, 20]))
    torch.library.opcheck(torch.ops.vllm_specvlm_emulated.commit_rows.default, lists)
