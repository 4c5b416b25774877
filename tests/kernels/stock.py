"""vLLM's own decoding of every path of a call, one token and one thread, to compare bits with.

Run as a module it compares a fixed set of calls under one of vLLM's builds and prints the number of differing values:
a process can load only one of them.
"""

from __future__ import annotations

import random
import sys

import torch
from torch import Tensor

from tests.kernels.case import DTYPES, Call, Request, Shape, build, prefill, random_parents, tree
from vllm_specvlm import ops


def decode(call: Call, index: int, row: int) -> Tensor:
    """What vLLM computes for this row when its path is the whole sequence: [query heads, D]."""
    import vllm._custom_ops as stock

    shape, request, arguments = call.shape, call.requests[index], call.arguments
    first = int(arguments["requests"][index, 0])
    positions = [p for start, end in request.spans for p in range(start, end)]
    seen = [i for i, p in enumerate(positions) if p < request.upto[row]]
    mask = request.masks[row] if request.masks else 0
    path = [first + r for r, bit in enumerate(request.stores) if mask >> bit & 1]
    keys, values = (
        torch.cat([paged[seen], new[path]])
        for paged, new in zip(call.contexts[index], (arguments["key"], arguments["value"]), strict=True)
    )
    n, heads, page, D = keys.shape[0], shape.heads, 64, shape.head_size
    blocks = -(-n // page)
    cache = torch.zeros(blocks, heads, page, 2 * D, dtype=shape.dtype)
    key_cache, value_cache = cache.view(blocks, heads, 2 * page, D).chunk(2, dim=2)
    stock.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, torch.arange(n), shape.layout)
    lengths, starts = torch.tensor([n], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    query_heads = heads * shape.group
    metadata = stock.cpu_attn_get_scheduler_metadata(
        1, query_heads, heads, D, lengths, shape.dtype, starts, True, -1, shape.layout, False
    )
    out = torch.empty(1, query_heads, D, dtype=shape.dtype)
    stock.cpu_attention_with_kv_cache(
        query=arguments["query"][first + row][None].contiguous(),
        key_cache=key_cache,
        value_cache=value_cache,
        output=out,
        query_start_loc=starts,
        seq_lens=lengths,
        scale=arguments["scale"],
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=torch.arange(blocks, dtype=torch.int32)[None],
        softcap=0.0,
        scheduler_metadata=metadata,
        s_aux=None,
    )
    return out[0]


def expected(call: Call) -> Tensor:
    """vLLM's results for all listed rows, [N, query heads, D]."""
    return torch.stack([decode(call, i, row) for i, r in enumerate(call.requests) for row in range(r.rows)])


def listed(call: Call, out: Tensor) -> Tensor:
    """The listed rows of an output, [N, query heads, D]."""
    return torch.cat([out[first : first + rows] for first, rows, *_ in call.arguments["requests"].tolist()])


def calls(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Call]:
    """Trees, prompt chunks and holes over several head shapes, contexts and both vector layouts."""
    rng = random.Random(3)
    made = []
    for dtype in dtypes:
        for layout in ("vec", "vec16"):
            for heads, group, head_size in ((3, 3, 64), (4, 7, 128), (2, 1, 64), (1, 16, 64), (2, 2, 96)):
                requests: list[Request] = [tree(rng.randrange(1, 700), random_parents(rng.randrange(2, 24), rng))]
                requests.append(tree(0, random_parents(9, rng)))
                requests.append(tree(120, random_parents(5, rng), spans=((0, 17), (40, 90), (95, 120))))
                requests.append(prefill(rng.randrange(60), 7))
                made.append(build(Shape(heads, group, head_size, 32, dtype, layout, seed=len(made)), requests))
            if layout == "vec":  # at 128 channels a tile holds about 16,000 keys
                made.append(build(Shape(1, 2, 128, 64, dtype, layout), [tree(17_000, (-1, 0, 0))]))
            else:
                made.append(build(Shape(1, 2, 256, 64, dtype, layout), [tree(8_200, (-1, 0, 0))]))
    return made


def differing(all_calls: list[Call]) -> int:
    """How many output values differ from vLLM's."""
    return sum(int((listed(call, call.run()) != expected(call)).sum()) for call in all_calls)


def main() -> None:
    """Loads the build named on the command line the way vLLM would on a lesser CPU, and compares."""
    build_name = sys.argv[1]
    if build_name != "avx512_bf16":
        torch.cpu._is_avx512_bf16_supported = lambda: False
    if build_name == "avx2":
        torch.cpu._is_avx512_supported = lambda: False
    torch.set_num_threads(1)
    assert ops.cpu_features().arithmetic == build_name
    print("differing", differing(calls()))


if __name__ == "__main__":
    main()
