"""The op against the float64 reference."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.case import (
    DTYPES,
    Call,
    Request,
    Shape,
    assert_close,
    build,
    frontier,
    prefill,
    random_parents,
    tree,
)
from vllm_specvlm import ops
from vllm_specvlm.ops import library

RNG = random.Random(0)
VARIANTS = ops.cpu_features().variants
LAYOUTS = [(d, layout) for d in DTYPES for layout in ("vec", "vec16", "amx") if layout != "amx" or d == torch.bfloat16]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    library.choose(variant=request.param)
    yield request.param
    library.choose()


def mixed_batch() -> list[Request]:
    """Trees, a draft level, a prompt chunk, holes, an empty context, rows that see nothing, no rows."""
    parents = random_parents(21, RNG)
    return [
        tree(70, parents),
        tree(0, random_parents(7, RNG)),
        frontier(45, parents, (17, 19, 20)),
        prefill(0, 37),
        prefill(50, 14),
        tree(97, (-1,)),
        tree(130, random_parents(9, RNG), spans=((0, 3), (17, 64), (65, 65), (66, 119))),
        Request(((4, 40),), (2, 40, 17, 4)),
        Request((), (5,)),
        Request(((0, 33),), ()),
    ]


@pytest.mark.parametrize(("dtype", "layout"), LAYOUTS)
@pytest.mark.parametrize(("heads", "group", "head_size", "page"), [(3, 3, 64, 32), (2, 7, 128, 128), (4, 1, 80, 96)])
def test_mixed_batch(
    variant: str, dtype: torch.dtype, layout: str, heads: int, group: int, head_size: int, page: int
) -> None:
    call = build(Shape(heads, group, head_size, page, dtype, layout), mixed_batch())
    assert_close(call, call.run())


@pytest.mark.parametrize("head_size", [32, 48, 96, 112, 160, 256])
@pytest.mark.parametrize("group", [1, 2, 5, 8, 16])
def test_head_sizes_and_groups(head_size: int, group: int) -> None:
    call = build(
        Shape(2, group, head_size, 64, torch.bfloat16, "vec16"), [tree(75, random_parents(12, RNG)), prefill(3, 9)]
    )
    assert_close(call, call.run())


@pytest.mark.parametrize("nodes", [1, 2, 63, 64, 65, 127, 128])
@pytest.mark.parametrize("chain", [True, False])
def test_mask_words(variant: str, nodes: int, chain: bool) -> None:
    parents = tuple(range(-1, nodes - 1)) if chain else random_parents(nodes, RNG, reach=70)
    call = build(Shape(head_size=32), [tree(19, parents), tree(0, parents)])
    assert_close(call, call.run())


def test_many_random_batches() -> None:
    for seed in range(25):
        rng = random.Random(seed)
        requests = []
        for _ in range(rng.randrange(1, 5)):
            cuts = sorted(rng.sample(range(300), 2 * rng.randrange(1, 4)))
            spans = tuple(zip(cuts[::2], cuts[1::2], strict=True))
            parents = random_parents(rng.randrange(1, 40), rng)
            upto = tuple(rng.randrange(310) for _ in parents)
            whole = tree(300, parents, spans)
            requests.append(Request(spans, upto, whole.masks, whole.stores))
        dtype = rng.choice(DTYPES)
        shape = Shape(rng.choice([1, 2, 3]), rng.choice([1, 3, 7]), rng.choice([32, 80, 128]), 32, dtype, seed=seed)
        call = build(shape, requests, gap=rng.randrange(3))
        assert_close(call, call.run())


def test_long_prompt_chunk() -> None:
    call = build(Shape(1, 7, 64, 128, torch.bfloat16), [prefill(130, 300)])
    assert_close(call, call.run())


def test_several_softmax_tiles(variant: str) -> None:
    library.choose(variant=variant, half_l2=8 * 8 * 64 + 32 * 64)  # tiles of 64 keys
    parents = random_parents(40, RNG)
    for dtype in DTYPES:
        requests = [tree(n, parents) for n in (20, 50, 64, 120, 128, 150)] + [prefill(0, 140)]
        call = build(Shape(head_size=64, dtype=dtype), requests)
        assert_close(call, call.run())


@pytest.mark.skipif(not ops.cpu_features().fast, reason="this CPU has no bfloat16 dot products")
@pytest.mark.parametrize(("heads", "group", "head_size", "page"), [(3, 3, 64, 32), (2, 7, 128, 128), (4, 1, 80, 96)])
@pytest.mark.parametrize("layout", ["vec", "vec16", "amx"])
def test_fast_variant(heads: int, group: int, head_size: int, page: int, layout: str) -> None:
    call = build(Shape(heads, group, head_size, page, torch.bfloat16, layout), mixed_batch())
    fast = call.run(fast=True)
    # Probabilities of 8 bits: twice the error of rounding the output alone.
    assert_close(call, fast, tolerance=2.4e-2)
    assert not torch.equal(fast, call.run()), "fast=True ran the plain kernel"


def test_fast_means_nothing_without_bfloat16() -> None:
    for dtype in (torch.float32, torch.float16):
        call = build(Shape(dtype=dtype), mixed_batch())
        assert torch.equal(call.run(fast=True), call.run())


def test_new_rows_are_stored_first() -> None:
    call = build(Shape(), [tree(10, (-1, 0, 0, 2))])
    arguments = call.copies()
    ops.tree_attention(**arguments)
    start = int(arguments["requests"][0, 3])
    assert torch.equal(arguments["dense_key"][start : start + 4], arguments["key"][1:5])
    assert torch.equal(arguments["dense_value"][start : start + 4], arguments["value"][1:5])
    untouched = [i for i in range(arguments["dense_key"].shape[0]) if not start <= i < start + 4]
    assert arguments["dense_key"][untouched].isnan().all()


def test_a_node_sees_only_its_ancestors() -> None:
    """An infinite value in one branch stays there, in the paged part and in the dense part."""
    call = build(Shape(), [tree(40, (-1, 0, 0, 1, 2)), prefill(30, 8)])
    clean = call.run()
    arguments = call.copies()
    value = arguments["value"].clone()
    value[1 + 2] = float("inf")
    ops.tree_attention(**(arguments | {"value": value}))
    out = arguments["out"]
    assert torch.equal(out[[1, 2, 4]], clean[[1, 2, 4]])
    assert not out[[3, 5]].isfinite().all()

    broken = call.arguments["kv_cache"].clone()
    table = call.arguments["block_table"]
    slot = torch.tensor([int(table[1, 1]) * 32 + 35 - 32])  # position 35: the chunk's sixth row and later see it
    k, v = ops.gather(broken, "vec", slot)
    ops.scatter(broken, "vec", slot, k, torch.full_like(v, float("inf")))
    out = call.run(kv_cache=broken)
    assert torch.equal(out[7:12], clean[7:12])
    assert not out[12].isfinite().any()


def test_empty_calls() -> None:
    call = build(Shape(), [])
    assert call.run().shape[0] == 0
    call = build(Shape(), [Request(((0, 9),), ())])
    assert bool((call.run() == 7.0).all())


def test_rows_that_see_nothing_are_zero() -> None:
    call = build(Shape(), [Request(((8, 20),), (8, 0))])
    assert bool((call.run()[1:] == 0).all())


def test_thread_count_changes_nothing() -> None:
    calls = [
        build(Shape(2, 7, 128, 64, torch.bfloat16), mixed_batch()),
        build(Shape(1, 7, 128, 128), [prefill(100, 200)]),
        build(Shape(1, 1, 64, 32), [tree(40, (-1,))]),
    ]
    before = torch.get_num_threads()
    try:
        for call in calls:
            outs = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                outs.append(call.run())
            assert all(torch.equal(outs[0], out) for out in outs[1:])
    finally:
        torch.set_num_threads(before)


def test_variants_agree_bit_for_bit() -> None:
    for arithmetic in library.ARITHMETICS:
        for dtype in DTYPES:
            call = build(Shape(2, 3, 80, 32, dtype), mixed_batch())
            outs = []
            for name in VARIANTS:
                library.choose(name, arithmetic)
                outs.append(call.run())
            library.choose()
            assert all(torch.equal(outs[0], out) for out in outs[1:]), (arithmetic, dtype)


def test_strides() -> None:
    """out and the dense store may be strided too."""
    call = build(Shape(), [tree(40, random_parents(9, RNG))])
    expected = call.run()
    arguments = call.copies()
    for name in ("out", "dense_key", "dense_value"):
        tensor = arguments[name]
        wide = torch.full((tensor.shape[0], tensor.shape[1] + 2, tensor.shape[2] + 8), 7.0)
        wide[:, 1:-1, :-8] = tensor
        arguments[name] = wide[:, 1:-1, :-8]
    ops.tree_attention(**arguments)
    assert torch.equal(arguments["out"], expected)


def test_opcheck() -> None:
    # torch's own check cannot copy empty tensors, hence no empty call here.
    arguments = build(Shape(), mixed_batch()).copies()
    torch.library.opcheck(torch.ops.vllm_specvlm.tree_attention.default, (*arguments.values(), False))


def test_reference_in_float32_is_near() -> None:
    call: Call = build(Shape(), mixed_batch())
    arguments = call.copies()
    ops.tree_attention_reference(**arguments, compute_dtype=torch.float32)
    assert_close(call, arguments["out"])
