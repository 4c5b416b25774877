"""Sampling features that change a node's logits, most of them by the path to it: penalties, bad words, biases, ...

vLLM's sampler applies them once per request, to the request's own history. Here every row of a tree is such a request
of its own: its history is the request's answer followed by the tokens on the row's path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitBiasLogitsProcessor,
    LogitsProcessors,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from vllm_specvlm.engine.thinking_budget import ThinkingBudgets, Thoughts
from vllm_specvlm.engine.transfer import upload


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """A row whose request uses such features."""

    row: int
    """Row of the logits."""
    request: int
    """Index in the batch."""
    params: SamplingParams
    history: list[int]
    """The answer so far and the path's tokens: what plain decoding would have emitted before this row's token."""
    thoughts: Thoughts | None = None
    """Of a request with a budget for them."""


def uses_path(params: SamplingParams) -> bool:
    """Whether the logits at a node are changed, most often by the tokens of its path, or wanted back."""
    return (
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
        or bool(params.bad_words)
        or params.min_tokens > 0
        or params.allowed_token_ids is not None
        or bool(params.logit_bias)
        or params.logprobs is not None
        or params.thinking_token_budget is not None
    )


def process(
    sampler: Sampler,
    logits: torch.Tensor,
    rows: Sequence[FeatureRow],
    metadata: SamplingMetadata,
    budgets: ThinkingBudgets | None,
) -> torch.Tensor:
    """The rows' logits after everything vLLM applies before temperature, each row with its own history.

    Args:
        sampler: vLLM's sampler.
        logits: [all rows, vocabulary]; not changed.
        rows: the rows to process.
        metadata: vLLM's sampling metadata of the batch, indexed by request.
        budgets: what gave the rows their `thoughts`; None in an engine that knows of none.

    Returns:
        float32 [len(rows), vocabulary].
    """
    picked = logits[upload(np.asarray([row.row for row in rows]), logits.device)].float()
    requests = upload(np.asarray([row.request for row in rows]), logits.device)
    bad_words = metadata.bad_words_token_ids
    thoughts = {i: row.thoughts for i, row in enumerate(rows) if row.thoughts is not None}
    per_row = replace(
        metadata,
        prompt_token_ids=_of_rows(metadata.prompt_token_ids, requests),
        frequency_penalties=_of_rows(metadata.frequency_penalties, requests),
        presence_penalties=_of_rows(metadata.presence_penalties, requests),
        repetition_penalties=_of_rows(metadata.repetition_penalties, requests),
        output_token_ids=[row.history for row in rows],
        allowed_token_ids_mask=_of_rows(metadata.allowed_token_ids_mask, requests),
        bad_words_token_ids={i: bad_words[row.request] for i, row in enumerate(rows) if row.request in bad_words},
        logitsprocs=_processors(rows, logits.device),
        spec_token_ids=None,
        thinking_budget_state_holder=budgets.holder(thoughts) if budgets is not None and thoughts else None,
    )
    processed: torch.Tensor = sampler.apply_logits_processors(picked, per_row, predict_bonus_token=False)
    return processed


def _processors(rows: Sequence[FeatureRow], device: torch.device) -> LogitsProcessors:
    """vLLM's minimum lengths and biases, told that every row is a request."""
    nothing: Any = None  # neither reads the configuration
    added = [(i, row.params, None, row.history) for i, row in enumerate(rows)]
    processors = [MinTokensLogitsProcessor(nothing, device, False), LogitBiasLogitsProcessor(nothing, device, False)]
    for processor in processors:
        processor.update_state(BatchUpdate(batch_size=len(rows), removed=(), added=added, moved=()))
    return LogitsProcessors(processors)


def _of_rows(per_request: torch.Tensor | None, requests: torch.Tensor) -> torch.Tensor | None:
    return None if per_request is None else per_request[requests]


def logprobs(
    sampler: Sampler,
    logits: torch.Tensor,
    tokens: torch.Tensor,
    emitting_rows: Sequence[Sequence[int]],
    width: int,
    metadata: SamplingMetadata,
) -> LogprobsTensors | None:
    """Log-probabilities of emitted tokens and of the likeliest ones, from the unprocessed logits as vLLM gives them.

    Args:
        sampler: vLLM's sampler.
        logits: [all rows, vocabulary], unprocessed.
        tokens: int64 [all rows], the target's token at each row.
        emitting_rows: per request the rows whose tokens are emitted, in order; empty where nobody asked.
        width: places per request in the output.
        metadata: says how many log-probabilities are wanted at most.

    Returns:
        `width` rows per request; places without an emitted token repeat some other row. None when nobody asked.
    """
    if metadata.max_num_logprobs is None or not any(emitting_rows):
        return None
    wanted = sorted({row for rows in emitting_rows for row in rows})
    raw = sampler.compute_logprobs(logits[wanted])
    gathered = sampler.gather_logprobs(raw, metadata.max_num_logprobs, token_ids=tokens[wanted])
    place = {row: i for i, row in enumerate(wanted)}
    index = [place[rows[i]] if i < len(rows) else 0 for rows in emitting_rows for i in range(width)]
    return LogprobsTensors(
        gathered.logprob_token_ids[index], gathered.logprobs[index], gathered.selected_token_ranks[index]
    )


def with_sampled(
    sampler: Sampler, found: LogprobsTensors, logits: torch.Tensor, tokens: torch.Tensor
) -> LogprobsTensors:
    """vLLM's log-probs of its own sampled tokens, made those of ours: the first column and the rank.

    Args:
        sampler: vLLM's sampler.
        found: [requests, columns], the sampled token's first.
        logits: [requests, vocabulary], unprocessed.
        tokens: int64 [requests], the tokens really emitted.
    """
    own = sampler.gather_logprobs(sampler.compute_logprobs(logits), 0, token_ids=tokens)
    ids, values = found.logprob_token_ids.clone(), found.logprobs.clone()
    ids[:, 0], values[:, 0] = own.logprob_token_ids[:, 0], own.logprobs[:, 0]
    return LogprobsTensors(ids, values, own.selected_token_ranks)
