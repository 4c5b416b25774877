"""The op's rows equal vLLM's own decoding of each path, bit for bit, under each of vLLM's x86 builds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kernels.arithmetic import Choices, row
from tests.kernels.case import DTYPES, Call, Shape, build, random_parents, tree
from vllm_specvlm import ops
from vllm_specvlm.ops import library

pytest.importorskip("vllm._custom_ops")
if not hasattr(torch.ops._C, "cpu_attention_with_kv_cache"):
    pytest.skip("this vLLM has no CPU kernels", allow_module_level=True)

from tests.kernels import stock

AVX512 = ops.cpu_features().arithmetic != "avx2"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    library.choose()


@pytest.mark.parametrize("variant", ops.cpu_features().variants)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits(variant: str, dtype: torch.dtype) -> None:
    calls = stock.calls((dtype,))
    library.choose(variant=variant)
    assert stock.differing(calls) == 0


@pytest.mark.slow
@pytest.mark.parametrize("build_name", ["avx512", "avx2"])
def test_equal_bits_of_vllms_other_builds(build_name: str) -> None:
    if build_name == "avx512" and not AVX512:
        pytest.skip("this CPU has no AVX-512")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.stock", build_name],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split()[-2:] == ["differing", "0"], done.stdout + done.stderr


# Negative controls: the comparison notices every deviation.


def small_tree(dtype: torch.dtype) -> Call:
    return build(Shape(2, 3, 64, 32, dtype), [tree(217, random_parents(12, random.Random(1)))])


@pytest.mark.parametrize("arithmetic", library.ARITHMETICS)
def test_another_builds_arithmetic_differs(arithmetic: str) -> None:
    if arithmetic == ops.cpu_features().arithmetic:
        pytest.skip("the arithmetic in use")
    call = small_tree(torch.bfloat16)
    library.choose(arithmetic=arithmetic)
    assert stock.differing([call]) > 0


def test_another_tile_differs() -> None:
    call = small_tree(torch.float32)
    library.choose(half_l2=8 * 8 * 64 + 32 * 64)
    assert stock.differing([call]) > 0


@pytest.mark.skipif(not ops.cpu_features().fast, reason="this CPU has no bfloat16 dot products")
def test_the_fast_variant_differs() -> None:
    call = small_tree(torch.bfloat16)
    assert int((stock.listed(call, call.run(fast=True)) != stock.expected(call)).sum()) > 0


def emulated(call: Call, choices: Choices) -> torch.Tensor:
    """The listed rows computed by tests/kernels/arithmetic.py."""
    request, shape, arguments = call.requests[0], call.shape, call.arguments
    context_keys, context_values = call.contexts[0]
    out = []
    for r in range(request.rows):
        path = [i for i in range(request.rows) if request.masks[r] >> i & 1]
        tokens = [1 + i for i in path]
        keys = torch.cat([context_keys, arguments["key"][tokens]]).float().numpy()
        values = torch.cat([context_values, arguments["value"][tokens]]).float().numpy()
        # Lane by number in the tree instead of by place on the path: what a careless kernel would do.
        lanes = np.array([*range(len(context_keys)), *(len(context_keys) + i for i in path)]) % 16
        heads = [
            row(
                arguments["query"][1 + r, h].float().numpy(),
                keys[:, kv],
                values[:, kv],
                arguments["scale"],
                lanes,
                choices,
            )
            for h in range(shape.heads * shape.group)
            for kv in [h // shape.group]
        ]
        out.append(torch.from_numpy(np.stack(heads)).to(shape.dtype))
    return torch.stack(out)


@pytest.mark.skipif(not AVX512, reason="the emulation follows vLLM's AVX-512 builds")
@pytest.mark.parametrize(
    "choice", [None, "fused", "lane_by_position", "multiply_by_inverse", "scale_queries", "library_exp"]
)
def test_each_rule_of_the_arithmetic_matters(choice: str | None) -> None:
    # A scale that is no power of two: otherwise where it is applied would not matter.
    call = build(Shape(1, 2, 80, 32), [tree(150, random_parents(12, random.Random(1)))])
    choices = Choices() if choice is None else replace(Choices(), **{choice: not getattr(Choices(), choice)})
    same = torch.equal(emulated(call, choices), stock.expected(call))
    assert same == (choice is None)
