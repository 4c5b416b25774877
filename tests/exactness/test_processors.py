"""Custom logits processors: the request that one deals with is decoded plainly, its neighbours keep their trees."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from tests.exactness.engines import answers, engine, runner, tally, target_of, tokens
from tests.tiny.prompts import prompts


class EveryThird(AdapterLogitsProcessor):
    """Forbids, at every third token, whatever stands first: a function of the answer so far, per request."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        if not (params.extra_args or {}).get("every_third"):
            return None

        def forbid(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output_ids) % 3 == 2:
                logits[logits.argmax()] = -float("inf")
            return logits

        return forbid


class Counting(LogitsProcessor):
    """Likes another token in every step: its state is its own, and it deals with the whole batch."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._answers: dict[int, list[int]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._answers, batch_update, lambda params, prompt, output: output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, output in self._answers.items():
            logits[row, 40 + 7 * len(output)] += 6.0
        return logits


def params(**extra: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, extra_args=extra or None)


def test_per_request(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    target, batch = target_of("llava"), prompts("llava")
    options = {"logits_processors": [EveryThird]}
    asked = [params(every_third=True) if i in (1, 4) else params() for i in range(len(batch))]
    reference = tokens(answers(engine(target, **options), batch, asked))
    free = tokens(answers(engine(target), batch, params()))
    assert [i for i in range(len(batch)) if reference[i] != free[i]] == [1, 4]
    ours = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **options)
    reasons = spy(ours, monkeypatch)
    before = tally(ours)["accepted"]
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="vllm"):
        assert tokens(answers(ours, batch, asked)) == reference
    assert tally(ours)["accepted"] > before + 40
    assert sorted(reasons, key=str) == [None] * (len(batch) - 2) + ["the logits processor EveryThird"] * 2
    said = [record for record in caplog.records if "use the logits processor EveryThird" in record.getMessage()]
    assert len({id(record) for record in said}) == 1, "not said, or said again"


def test_whole_batch() -> None:
    target, batch = target_of("llava"), prompts("llava")
    options = {"logits_processors": [Counting]}
    reference = tokens(answers(engine(target, **options), batch, params()))
    assert reference != tokens(answers(engine(target), batch, params()))
    ours = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **options)
    before = tally(ours)["trees"]
    assert tokens(answers(ours, batch, params())) == reference
    assert tally(ours)["trees"] == before, "a tree was verified"


def test_other_methods_are_refused_as_before() -> None:
    """vLLM's own speculation is not exact with biases; only our engines admit them."""
    config = engine(target_of("llava"), {"num_speculative_tokens": 10}).llm_engine.vllm_config
    asked = SamplingParams(min_p=0.1, logit_bias={40: 1.0})
    with pytest.raises(VLLMValidationError, match="min_p and logit_bias"):
        asked.verify(config.model_config, SimpleNamespace(method="ngram", model="ngram"), None, None)
    asked.verify(config.model_config, config.speculative_config, None, None)


def spy(llm: Any, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Why requests are decoded plainly, from now on; None for those that are not."""
    reasons: list[str | None] = []
    speculator = runner(llm).drafter
    stock = speculator._eligible._reason

    def reason(*args: Any) -> str | None:
        reasons.append(stock(*args))
        return reasons[-1]

    monkeypatch.setattr(speculator._eligible, "_reason", reason)
    return reasons
