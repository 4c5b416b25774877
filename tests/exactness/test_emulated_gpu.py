"""The GPU's road through the engine with the emulated CUDA kernels: same answers, token for token."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.exactness.engines import Scenario, answers, engine, runner, tally, tokens
from tests.exactness.gpu_engines import flash_attention, gpu_engine, ways
from tests.exactness.gpu_stand_ins import Kernels
from tests.exactness.oracle import OracleDrafter
from tests.kernels import emulated
from tests.tiny.checkpoints import build
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT, TARGET
from vllm_specvlm.tree.tree_shape import TreeShape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with"),
]

# The smallest head size that the GPU kernels have.
SIZE, DRAFT_SIZE = replace(TARGET, head_dim=64), replace(DRAFT, head_dim=64)
SCENARIO = Scenario("batch", {"num_gpu_blocks_override": 60, "max_num_batched_tokens": 200})


class Emulated(Kernels):
    """The emulated kernels, every call under another order of threads."""

    def __init__(self) -> None:
        emulated.library()
        super().__init__(torch.ops.vllm_specvlm_emulated)

    def tree_attention(self, *arguments: Any) -> None:
        emulated.schedule(self.attended)
        super().tree_attention(*arguments)


@pytest.mark.parametrize("drafter", ["oracle", "small draft"])
def test_answers_are_those_of_plain_vllm(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At start the engine tries the kernels, as on a GPU; then they attend, decide and commit, over its caches."""
    batch = prompts("llava")
    target = build("llava", size=SIZE)
    plain = answers(engine(target, **SCENARIO.options), batch, SCENARIO.params())
    speculative: dict[str, Any] = {"num_speculative_tokens": 12}
    if drafter == "small draft":
        speculative["model"] = str(build("llava", seed=7, size=DRAFT_SIZE))
    kernels = Emulated()
    kernels.install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(target, speculative, monkeypatch, **SCENARIO.options)
        assert ways(llm) == {"tree attention kernel"}
        if drafter == "oracle":
            known = {tuple(o.prompt_token_ids or ()): tuple(o.outputs[0].token_ids) for o in plain}
            monkeypatch.setattr(runner(llm).drafter, "_drafter", OracleDrafter(known, 500))
            monkeypatch.setattr(runner(llm).drafter, "shape", TreeShape(nodes=12, depth=5, width=3, top_k=3))
            monkeypatch.setattr(runner(llm).drafter._text, "_told", {})
        before, attended, committed = tally(llm), kernels.attended, kernels.committed
        decided = Counter(kernels.decided)
        assert tokens(answers(llm, batch, SCENARIO.params())) == tokens(plain)
    emulated.schedule(0)
    after = tally(llm)
    assert kernels.attended - attended > 20, "the emulated kernels were not used"
    assert kernels.committed - committed > 5
    assert kernels.decided["walk_trees"] - decided["walk_trees"] > 5
    if drafter == "small draft":
        assert kernels.decided["grow_level"] - decided["grow_level"] > 20
    assert after["trees"] - before["trees"] > 10
    if drafter == "oracle":
        assert after["accepted"] - before["accepted"] > after["trees"] - before["trees"]
