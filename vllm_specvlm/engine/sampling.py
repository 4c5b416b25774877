"""The target's own token at every verified row, and which requests may have trees at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import copy

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import MinPLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from vllm_specvlm import ops
from vllm_specvlm.tree.noise import position_keys
from vllm_specvlm.tree.race import NO_LAW

# vLLM's own bound between greedy and sampled requests (vllm/v1/sample/sampler.py).
GREEDY_BELOW = 1e-5
_CHUNK_ELEMENTS = 1 << 23
Race = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Laws float32 [n, V] and keys int64 [n] give tokens int64 [n], as `tree.race.race`."""
_GREEDY_ELEMENTS = 1 << 26


def plain_reason(params: SamplingParams, logprobs_mode: str, *, grammars: bool) -> str | None:
    """Why a request with these parameters is decoded without drafts, or None when trees are exact for it.

    Args:
        params: the request's sampling parameters.
        logprobs_mode: vLLM's `--logprobs-mode`.
        grammars: whether the scheduler's process masks every node of a tree (`engine.tree_grammars`).
    """
    features = {
        "structured_outputs without the plugin's entry point": params.structured_outputs is not None and not grammars,
        "logprob_token_ids": params.logprob_token_ids is not None,
        f"logprobs with --logprobs-mode {logprobs_mode}": params.logprobs is not None
        and logprobs_mode != "raw_logprobs",
        "trace_decode_token_ids": params.trace_decode_token_ids is not None,
    }
    used = [name for name, on in features.items() if on]
    return ", ".join(used) if used else None


def request_seed(params: SamplingParams, engine_seed: int, number: int) -> int:
    """int64 seed of a request's noise: its own seed, else one from the engine's seed and its running number.

    The same on every tensor-parallel rank, independent between requests, and the same in the next run.
    """
    if params.seed is not None:
        text = f"seed/{params.seed}"
    else:
        text = f"request/{engine_seed}/{number}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def target_tokens(
    logits: torch.Tensor,
    request_of_row: torch.Tensor,
    metadata: SamplingMetadata,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    draw: Race = ops.race,
    drawn: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token per row: vLLM's arg-max for greedy requests, else a draw from the request's processed distribution.

    The draw at output position p of a request is a race (`tree.race`) with the noise that belongs to (seed, p). So the
    text of a sampled request is a function of its seed and the target's law, whatever trees were drafted.

    Args:
        logits: [rows, vocabulary].
        request_of_row: int64 [rows], index into `metadata`'s per-request tensors.
        metadata: vLLM's sampling metadata of the batch.
        seeds: int64 [rows].
        positions: int64 [rows], position of the token being chosen.
        draw: runs the races; the same one for all tokens of an engine.
        drawn: int64, rows for which sampled requests draw; others get the arg-max. None: all.

    Returns:
        int64 [rows].
    """
    if metadata.all_greedy:
        return greedy_tokens(logits)
    assert metadata.temperature is not None
    temperature = metadata.temperature[request_of_row]
    everyone = torch.arange(len(logits), device=logits.device) if drawn is None else drawn
    # Finding them makes the CPU wait for a GPU.
    rows = everyone if metadata.all_random else everyone[temperature[everyone] >= GREEDY_BELOW]
    tokens = torch.full((len(logits),), NO_LAW, dtype=torch.int64, device=logits.device)
    # A few rows at a time: a batch of large trees has thousands, each with a copy of the vocabulary per operation.
    for chunk in rows.split(sampled_at_once(logits)):
        requests = request_of_row[chunk]
        scaled = apply_top_k_top_p(
            _above_min_p(logits[chunk].float() / temperature[chunk].unsqueeze(-1), requests, metadata),
            None if metadata.top_k is None else metadata.top_k[requests],
            None if metadata.top_p is None else metadata.top_p[requests],
        )
        tokens[chunk] = draw(scaled.softmax(dim=-1), position_keys(seeds[chunk], positions[chunk]))
    # Greedy rows are left, and rows of overflowed logits: without a law to draw from they keep their arg-max.
    left = tokens == NO_LAW
    if logits.device.type != "cpu":  # looking which they are would make the CPU wait
        return torch.where(left, greedy_tokens(logits), tokens)
    if left.any():
        tokens[left] = greedy_tokens(logits[left])
    return tokens


def sampled_at_once(logits: torch.Tensor) -> int:
    """Rows of [rows, vocabulary] that are drawn for together: few where memory is small, more where launches cost."""
    elements = _CHUNK_ELEMENTS if logits.device.type == "cpu" else 2 * _CHUNK_ELEMENTS
    return max(1, elements // logits.shape[1])


def greedy_tokens(logits: torch.Tensor) -> torch.Tensor:
    """int64 [rows]: vLLM's arg-max, in float32, of logits [rows, vocabulary]; some rows at a time, to save memory."""
    size = max(1, _GREEDY_ELEMENTS // logits.shape[1])
    return torch.cat([Sampler.greedy_sample(part.float()).long() for part in logits.split(size)])


def _above_min_p(scaled: torch.Tensor, requests: torch.Tensor, metadata: SamplingMetadata) -> torch.Tensor:
    """float32 [rows, vocabulary] without the tokens below the request's `min_p`: vLLM's own rule, row by row."""
    for processor in metadata.logitsprocs.argmax_invariant:
        if isinstance(processor, MinPLogitsProcessor) and processor.min_p_count:
            of_rows = copy(processor)
            of_rows.min_p = processor.min_p[requests]
            scaled = of_rows.apply(scaled)
    return scaled
