"""The whole engine with the emulated GPU kernels in place of the CPU's: same answers, token for token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.exactness.engines import Scenario, answers, engine, runner, tally, tokens
from tests.exactness.oracle import OracleDrafter
from tests.kernels import emulated
from tests.tiny.checkpoints import build
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT, TARGET
from vllm_specvlm import ops
from vllm_specvlm.tree.tree_shape import TreeShape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with"),
]

# The smallest head size that the GPU kernels have.
SIZE, DRAFT_SIZE = replace(TARGET, head_dim=64), replace(DRAFT, head_dim=64)
SCENARIO = Scenario("batch", {"num_gpu_blocks_override": 60, "max_num_batched_tokens": 200})


class Emulated:
    """Stands in for `ops.tree_attention`: turns the CPU's cache into a GPU's and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: Any) -> None:
        self.calls += 1
        emulated.schedule(self.calls)
        out, query, key, value, kv_cache, *tables, scale, layout, fast = arguments
        assert layout in ("vec", "vec16")
        blocks, heads, page, twice = kv_cache.shape
        keys, values = kv_cache.view(blocks, heads, 2, page * twice // 2).unbind(2)
        keys = keys.unflatten(2, (twice // 2, page)).transpose(2, 3)
        cache = torch.cat([keys, values.unflatten(2, (page, twice // 2))], dim=3)
        torch.ops.vllm_specvlm_emulated.tree_attention(out, query, key, value, cache, *tables, scale, "rows", fast)


@pytest.mark.parametrize("drafter", ["oracle", "small draft"])
def test_answers_are_those_of_plain_vllm(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.library()
    batch = prompts("llava")
    target = build("llava", size=SIZE)
    plain = answers(engine(target, **SCENARIO.options), batch, SCENARIO.params())
    speculative: dict[str, Any] = {"num_speculative_tokens": 12}
    if drafter == "small draft":
        speculative["model"] = str(build("llava", seed=7, size=DRAFT_SIZE))
    llm = engine(target, speculative, **SCENARIO.options)
    if drafter == "oracle":
        known = {tuple(o.prompt_token_ids or ()): tuple(o.outputs[0].token_ids) for o in plain}
        monkeypatch.setattr(runner(llm).drafter, "_drafter", OracleDrafter(known, 500))
        monkeypatch.setattr(runner(llm).drafter, "shape", TreeShape(nodes=12, depth=5, width=3, top_k=3))
        monkeypatch.setattr(runner(llm).drafter, "_known", {})
    stand_in, before = Emulated(), tally(llm)
    monkeypatch.setattr(ops, "tree_attention", stand_in)
    assert tokens(answers(llm, batch, SCENARIO.params())) == tokens(plain)
    emulated.schedule(0)
    after = tally(llm)
    assert stand_in.calls > 20, "the emulated kernels were not used"
    assert after["trees"] - before["trees"] > 10
    if drafter == "oracle":
        assert after["accepted"] - before["accepted"] > after["trees"] - before["trees"]
