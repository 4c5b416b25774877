"""Wrong calls of the GPU operators are refused in one sentence, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels import emulated
from tests.kernels.case import Shape, build, tree
from vllm_specvlm import ops

needs_compiler = pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with")

CALL = build(Shape(page=16, dtype=torch.bfloat16, layout="rows"), [tree(40, (-1, 0, 0))])
A = CALL.arguments
SMALL = build(Shape(head_size=48, page=16, layout="rows"), [tree(4, (-1,))]).arguments
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kv_cache": A["kv_cache"].to(torch.float8_e4m3fn)}, "quantised caches (fp8) are not supported"),
    ({"kv_cache": A["kv_cache"].float()}, "kv_cache must be of the same dtype"),
    ({"kv_cache": A["kv_cache"].transpose(2, 3).contiguous().transpose(2, 3)}, "last dimension of kv_cache"),
    ({"kv_cache": A["kv_cache"][:, :, :8].clone()}, "page size 8 is not a multiple of 16"),
    ({"kv_cache": A["kv_cache"].flatten()[4:-124].as_strided((1, 2, 16, 128), (4096, 2048, 128, 1))}, "16 bytes"),
    ({"query": A["query"].double()}, "float32, bfloat16 or float16"),
    ({"layout": "vec"}, "layout 'vec' is a CPU's"),
    ({"soft_cap": float("inf")}, "soft_cap must be finite"),
    ({"visible_from": A["visible_upto"][1:]}, "visible_from has shape"),
    ({"ancestors": A["ancestors"].int()}, "ancestors must be int64"),
    (SMALL, "head size 48 has no CUDA kernel"),
]


@needs_compiler
@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_calls(changes: dict[str, Any], words: str) -> None:
    emulated.library()
    arguments = CALL.copies() | changes
    written = {name: arguments[name].clone() for name in ("out", "dense_key", "dense_value")}
    with pytest.raises(RuntimeError) as caught:
        torch.ops.vllm_specvlm_emulated.tree_attention(**arguments, fast=False)
    message = str(caught.value)
    assert words in message
    assert message.splitlines()[0].endswith(".")
    for name, before in written.items():
        assert torch.equal(arguments[name].nan_to_num(), before.nan_to_num())


COMMIT = (torch.zeros(2, 3, 16, 128), torch.ones(4, 3, 64), torch.ones(4, 3, 64), torch.tensor([1, 2]))
WRONG_COMMITS = [
    (([COMMIT[0]], [], [COMMIT[2]], COMMIT[3]), "1 caches need as many"),
    (([COMMIT[0]], [COMMIT[1]], [COMMIT[2]], COMMIT[3].int()), "slots must be int64"),
    (([COMMIT[0]], [COMMIT[1][:1]], [COMMIT[2]], COMMIT[3]), "do not fit each other"),
    (([COMMIT[0], COMMIT[0][:1]], [COMMIT[1]] * 2, [COMMIT[2]] * 2, COMMIT[3]), "layer 1 differs"),
    (([COMMIT[0].half()], [COMMIT[1]], [COMMIT[2]], COMMIT[3]), "same dtype"),
]


@needs_compiler
@pytest.mark.parametrize(("arguments", "words"), WRONG_COMMITS, ids=[words for _, words in WRONG_COMMITS])
def test_wrong_commits(arguments: tuple[Any, ...], words: str) -> None:
    emulated.library()
    with pytest.raises(RuntimeError, match=words):
        torch.ops.vllm_specvlm_emulated.commit_rows(*arguments)


def test_the_cpu_refuses_what_only_gpus_have() -> None:
    arguments = build(Shape(), [tree(4, (-1,))]).copies()
    with pytest.raises(RuntimeError, match="exist on GPUs only"):
        ops.tree_attention(**arguments, soft_cap=1.0)
    with pytest.raises(RuntimeError, match="exist on GPUs only"):
        ops.tree_attention(**arguments, visible_from=arguments["visible_upto"])
    with pytest.raises(RuntimeError, match="layout 'rows'"):
        ops.tree_attention(**(arguments | {"layout": "rows"}))
    with pytest.raises(NotImplementedError, match="commit_rows"):
        ops.commit_rows(*[[part] for part in COMMIT[:3]], COMMIT[3])


def test_every_operator_is_there_for_gpus() -> None:
    ops.load()
    for name in ("tree_attention", "commit_rows", "walk_trees", "race", "grow_level", "describe_trees"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vllm_specvlm::{name}", "CUDA"), name
