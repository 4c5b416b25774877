"""Wrong calls are refused in one sentence, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.case import Request, Shape, build, tree
from vllm_specvlm import ops
from vllm_specvlm.ops import library


def change(tensor: torch.Tensor, index: tuple[int, ...], value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


CALL = build(Shape(), [tree(40, (-1, 0, 0)), Request(((0, 50), (60, 64)), (64,))])
A = CALL.arguments
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"query": A["query"].double()}, "float32, bfloat16 or float16"),
    ({"query": A["query"][0]}, "query has shape"),
    ({"query": A["query"][..., :40], "out": A["out"][..., :40].clone()}, "head size 40"),
    ({"query": A["query"][:, :5], "out": A["out"][:, :5].clone()}, "5 query heads cannot share 2"),
    ({"query": A["query"].transpose(1, 2).contiguous().transpose(1, 2)}, "last dimension of query"),
    ({"out": A["out"].half()}, "out must be of the same dtype"),
    ({"out": A["out"][:-1].clone()}, "out has shape"),
    ({"key": A["key"][:-1]}, "key has shape"),
    ({"kv_cache": A["kv_cache"][:, :, :16].clone()}, "page size 16"),
    ({"kv_cache": A["kv_cache"].transpose(2, 3).contiguous().transpose(2, 3)}, "kv_cache must be contiguous"),
    ({"dense_value": A["dense_value"][:-1].clone()}, "dense_value has shape"),
    ({"block_table": A["block_table"].long()}, "block_table must be int32"),
    ({"requests": A["requests"][:, :5].clone()}, "requests has shape"),
    ({"requests": A["requests"].t().contiguous().t()}, "requests must be contiguous"),
    ({"ancestors": A["ancestors"].int()}, "ancestors must be int64"),
    ({"dense_at": A["dense_at"][1:]}, "dense_at has shape"),
    ({"layout": "neon"}, "layout 'neon'"),
    ({"layout": "amx"}, "bfloat16 only"),
    ({"scale": float("nan")}, "scale must be finite"),
    ({"requests": change(A["requests"], (0, 1), 4)}, "requests list 5 rows but visible_upto has 4"),
    ({"requests": change(A["requests"], (0, 1), 2**31 - 1)}, "request 0: rows"),
    ({"requests": change(A["requests"], (1, 0), -1)}, "request 1: rows"),
    ({"requests": change(A["requests"], (1, 2), 2)}, "block_table has no row 2"),
    ({"requests": change(A["requests"], (0, 3), 2**31 - 1)}, "ancestors reach dense row 214748364"),
    ({"requests": change(A["requests"], (0, 3), -1)}, "ancestors reach dense row -1"),
    ({"requests": change(A["requests"], (1, 5), 3)}, "spans [1, 4) lie outside"),
    ({"spans": change(A["spans"], (2, 0), 49)}, "spans must ascend"),
    ({"spans": change(A["spans"], (1, 1), -4)}, "spans must ascend"),
    (
        {"spans": change(A["spans"], (2, 1), 2**31 - 1), "visible_upto": change(A["visible_upto"], (3,), 2**31 - 1)},
        "past the 2 pages",
    ),
    ({"block_table": change(A["block_table"], (1, 1), 99)}, "block 99 of"),
    ({"block_table": change(A["block_table"], (0, 0), -1)}, "block -1 of"),
    ({"dense_at": change(A["dense_at"], (0,), 2**20)}, "dense_at 1048576"),
    ({"dense_at": change(A["dense_at"], (0,), -2)}, "dense_at -2"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_calls(changes: dict[str, Any], words: str) -> None:
    arguments = CALL.copies() | changes
    written = {name: arguments[name].clone() for name in ("out", "dense_key", "dense_value")}
    with pytest.raises(RuntimeError) as caught:
        ops.tree_attention(**arguments)
    message = str(caught.value)
    assert words in message
    assert message.splitlines()[0].endswith(".")
    for name, before in written.items():
        assert torch.equal(arguments[name].nan_to_num(), before.nan_to_num())


def test_pages_past_what_is_visible_are_not_looked_at() -> None:
    """A block table holds garbage behind a sequence's end."""
    call = build(Shape(), [tree(64, (-1,))])
    table = torch.cat([call.arguments["block_table"], torch.tensor([[-1, 10**9]], dtype=torch.int32)], dim=1)
    spans = torch.tensor([[0, 128]], dtype=torch.int32)
    assert torch.equal(call.run(block_table=table, spans=spans), call.run())


def test_unknown_variant_and_arithmetic() -> None:
    with pytest.raises(ValueError, match="'sse'"):
        library.choose(variant="sse")
    with pytest.raises(ValueError, match="'x87'"):
        library.choose(arithmetic="x87")


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(library, "_PATH", tmp_path / "libspecvlm.so")
    with pytest.raises(ops.LibraryNotFoundError, match="is missing"):
        library._library.__wrapped__()


def test_broken_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "libspecvlm.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "_PATH", broken)
    with pytest.raises(ops.LibraryNotFoundError, match="does not load"):
        library._library.__wrapped__()
