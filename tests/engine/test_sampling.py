from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata

from vllm_specvlm.engine.sampling import plain_reason, request_seed, target_tokens


def metadata(temperature: list[float]) -> SamplingMetadata:
    nothing = torch.zeros(len(temperature))
    return SamplingMetadata(
        temperature=torch.tensor(temperature),
        all_greedy=False,
        all_random=min(temperature) > 0,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=nothing,
        presence_penalties=nothing,
        repetition_penalties=nothing,
        output_token_ids=[],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(()),
    )


def draw(logits: torch.Tensor, temperature: list[float]) -> list[int]:
    rows = torch.arange(len(logits))
    return target_tokens(logits, rows, metadata(temperature), rows * 7, rows).tolist()


def test_an_overflowed_row_harms_nobody() -> None:
    """A request whose logits are not numbers gets some token; its neighbours get the token they would have had."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    clean = draw(logits, [1.0, 1.0, 1.0])
    for bad in (float("nan"), float("inf")):
        broken = logits.clone()
        broken[1] = bad
        tokens = draw(broken, [1.0, 1.0, 1.0])
        assert [tokens[0], tokens[2]] == [clean[0], clean[2]]
        assert 0 <= tokens[1] < 50


def test_extreme_temperatures() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    assert draw(logits, [2e-5, 0.0]) == logits.argmax(dim=-1).tolist()


def test_seeds() -> None:
    """A request's own seed decides alone; without one, the engine's seed and the running number do."""
    own, none = SamplingParams(seed=3), SamplingParams()
    assert request_seed(own, 0, 1) == request_seed(own, 9, 5)
    assert request_seed(none, 0, 1) == request_seed(none, 0, 1)
    others = {request_seed(none, seed, number) for seed in range(4) for number in range(50)}
    assert len(others) == 200


@pytest.mark.parametrize(
    ("params", "mode", "reason"),
    [
        ({}, "raw_logprobs", None),
        ({"temperature": 0.7, "top_p": 0.9, "logprobs": 3, "min_tokens": 4}, "raw_logprobs", None),
        ({"thinking_token_budget": 10}, "raw_logprobs", None),
        ({"logprob_token_ids": [3]}, "raw_logprobs", "logprob_token_ids"),
        ({"logprobs": 1}, "processed_logprobs", "logprobs with --logprobs-mode processed_logprobs"),
        ({"trace_decode_token_ids": [1, 2]}, "raw_logprobs", "trace_decode_token_ids"),
    ],
)
def test_what_is_decoded_plainly(params: dict[str, Any], mode: str, reason: str | None) -> None:
    assert plain_reason(SamplingParams(**params), mode, grammars=True) == reason


def test_grammars_are_decoded_plainly_where_the_scheduler_knows_no_trees() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    assert plain_reason(params, "raw_logprobs", grammars=True) is None
    assert "entry point" in (plain_reason(params, "raw_logprobs", grammars=False) or "")
