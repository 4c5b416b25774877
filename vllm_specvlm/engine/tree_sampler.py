"""From the logits of a step's rows to the tokens each request emits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from vllm_specvlm.engine import row_features
from vllm_specvlm.engine.row_features import FeatureRow
from vllm_specvlm.engine.sampling import request_seed, target_tokens
from vllm_specvlm.engine.thinking_budget import ThinkingBudgets, Thoughts
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_walks import TreeWalks
from vllm_specvlm.engine.verification import Verification
from vllm_specvlm.tree.accept import Accepted

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.metadata import SamplingMetadata

    from vllm_specvlm.engine.runner import TreeModelRunner
    from vllm_specvlm.tree.token_tree import TokenTree

_FEATURED_ELEMENTS = 1 << 23
"""Logits that penalties and the like are applied to at once: what that takes is some thirty bytes for each."""


class TreeSampler:
    """Chooses the target's token at every row, walks the trees, and collects what the requests asked to know.

    Requests outside our support are sampled by vLLM itself, from their one row.
    """

    def __init__(self, runner: TreeModelRunner) -> None:
        """`runner` owns the batch and vLLM's sampler."""
        self._runner = runner
        self._seeds: dict[str, int] = {}
        self._admitted = 0
        reasoning = runner.vllm_config.reasoning_config
        self._budgets = None if reasoning is None else ThinkingBudgets(reasoning, runner.device)

    def admit(self, request_id: str, params: SamplingParams | None) -> None:
        """A request starts; requests are admitted in the scheduler's order, the same on every rank."""
        self._admitted += 1
        self._forget_thoughts(request_id)
        if params is not None:
            self._seeds[request_id] = request_seed(params, self._runner.model_config.seed, self._admitted)

    def forget(self, request_id: str) -> None:
        """The request is over."""
        self._seeds.pop(request_id, None)
        self._forget_thoughts(request_id)

    def _forget_thoughts(self, request_id: str) -> None:
        if self._budgets is not None:
            self._budgets.forget(request_id)

    def seed(self, request_id: str) -> int:
        """int64 seed of the noise that draws this request's tokens. Raises KeyError if it was not admitted."""
        return self._seeds[request_id]

    def sample(
        self,
        logits: torch.Tensor,
        verification: Verification | None,
        ours: Sequence[bool],
        commit: Callable[[list[torch.Tensor]], None],
    ) -> tuple[SamplerOutput, dict[int, Accepted]]:
        """Emit tokens for all requests, and commit what was accepted.

        Args:
            logits: [rows, vocabulary]; each request's root row, then its nodes' rows.
            verification: the step's trees, if there are any.
            ours: per request, whether we choose its tokens.
            commit: writes dense rows to the slots (per KV cache group, int64 [dense rows], -1 for none).

        Returns:
            vLLM's output, int32 [requests, longest] padded with -1, and the walk of each tree by request index. The
            tokens are on the CPU: reading them is the one time that a step waits for a GPU, as vLLM's own does.
        """
        metadata = self._runner.input_batch.sampling_metadata
        # Beside a request that asks for given tokens' log-probs, vLLM returns those for the whole batch, one row per
        # request: whoever wants log-probs then gets one token in this step, its own.
        single = [bool(metadata.logprob_token_ids) and self._params(i).logprobs is not None for i in range(len(ours))]
        rows_of = np.ones(len(ours), dtype=np.int64)
        for place in verification.places if verification is not None else ():
            rows_of[place.request] += len(place.tree)
        first_row = np.concatenate(([0], np.cumsum(rows_of)[:-1]))

        featured = self._feature_rows(verification, first_row, ours)
        tokens = self._tokens(logits, verification, rows_of, first_row, featured)
        if verification is not None and self._decides_on_device(ours, featured):
            return self._accept_on_device(verification, tokens, first_row.tolist(), commit)
        stock = None
        if not all(ours):
            device = self._runner.device
            stock = self._runner.sampler(
                logits=logits[upload(first_row, device)], sampling_metadata=self._of_plain(metadata, ours)
            )
            theirs = np.flatnonzero(~np.asarray(ours))
            chosen = stock.sampled_token_ids[upload(theirs, device), 0].to(tokens.dtype)
            tokens[upload(first_row[theirs], device)] = chosen

        row_tokens = tokens.tolist()
        emitting = [[int(row)] for row in first_row]
        accepted: dict[int, Accepted] = {}
        if verification is not None:
            with self._runner.drafter.tally.clock("verify"):
                walks = [mine and not alone for mine, alone in zip(ours, single, strict=True)]
                accepted = verification.accept(row_tokens, first_row.tolist(), walks)
                if verification.dense_rows:
                    commit(verification.commit_slots(accepted))
            for request, walked in accepted.items():
                emitting[request] += [int(first_row[request]) + 1 + node for node in walked.path]
        emitted = [[row_tokens[row] for row in rows] for rows in emitting]
        logprobs = self._logprobs(logits, tokens, emitting, metadata, stock)
        return _output(emitted, logprobs), accepted

    def _decides_on_device(self, ours: Sequence[bool], featured: Sequence[FeatureRow]) -> bool:
        """Whether nothing but the trees and the rows' tokens says what is emitted."""
        return self._runner.decides_on_device and all(ours) and not featured

    def _accept_on_device(
        self,
        verification: Verification,
        tokens: torch.Tensor,
        first_rows: Sequence[int],
        commit: Callable[[list[torch.Tensor]], None],
    ) -> tuple[SamplerOutput, dict[int, Accepted]]:
        """As `sample`; everything is queued before the tokens are waited for."""
        with self._runner.drafter.tally.clock("verify"):
            walks = TreeWalks(verification, tokens, first_rows)
            if verification.dense_rows:
                commit(walks.commit_slots())
        emitted, accepted = walks.wait()
        return SamplerOutput(torch.from_numpy(emitted).int(), logprobs_tensors=None), accepted

    def _of_plain(self, metadata: SamplingMetadata, ours: Sequence[bool]) -> SamplingMetadata:
        """For vLLM's sampler, which takes one row of each request: with budgets of thoughts as without speculation."""
        states = {i: self._thoughts(i, None)[0] for i, mine in enumerate(ours) if not mine and self._thinks(i)}
        holder = self._budgets.holder(states) if self._budgets is not None and states else None
        return replace(metadata, thinking_budget_state_holder=holder)

    def _thinks(self, request: int) -> bool:
        return self._budgets is not None and self._params(request).thinking_token_budget is not None

    @property
    def has_budgets(self) -> bool:
        """Whether a request of the batch has a budget of thoughts, with which vLLM's own way is wrong beside drafts."""
        requests = range(len(self._runner.input_batch.req_ids))
        return self._budgets is not None and any(self._thinks(request) for request in requests)

    def _params(self, request: int) -> SamplingParams:
        params: SamplingParams = self._runner.requests[self._runner.input_batch.req_ids[request]].sampling_params
        return params

    def _tokens(
        self,
        logits: torch.Tensor,
        verification: Verification | None,
        rows_of: np.ndarray,
        first_row: np.ndarray,
        featured: Sequence[FeatureRow],
    ) -> torch.Tensor:
        """int64 [rows]: the target's own token at every row (see `sampling.target_tokens`)."""
        batch, metadata = self._runner.input_batch, self._runner.input_batch.sampling_metadata
        request_of_row = np.repeat(np.arange(len(rows_of)), rows_of)
        # The token chosen at a row stands one position behind the row.
        positions = self._runner.optimistic_seq_lens_cpu.numpy()[: len(rows_of)].astype(np.int64)[request_of_row]
        for place in verification.places if verification is not None else ():
            depths = np.asarray((0, *place.tree.depths))
            positions[first_row[place.request] :][: len(depths)] = place.root_position + 1 + depths
        of_requests = np.asarray([self._seeds.get(request_id, 0) for request_id in batch.req_ids], dtype=np.int64)
        device = self._runner.device
        requests, seeds = upload(request_of_row, device), upload(of_requests[request_of_row], device)
        stand = upload(positions, device)
        drawn = None
        if featured:
            drawn = upload(np.setdiff1d(np.arange(len(logits)), [row.row for row in featured]), device)
        tokens = target_tokens(logits, requests, metadata, seeds, stand, self._runner.race, drawn)
        # Rows that have features are copied, and no others: those beside them pay nothing.
        at_once = max(1, _FEATURED_ELEMENTS // logits.shape[-1])
        for some in (featured[i : i + at_once] for i in range(0, len(featured), at_once)):
            processed = row_features.process(self._runner.sampler, logits, some, metadata, self._budgets)
            rows = upload(np.asarray([row.row for row in some]), device)
            tokens[rows] = target_tokens(
                processed, requests[rows], metadata, seeds[rows], stand[rows], self._runner.race
            )
        return tokens

    def _feature_rows(
        self, verification: Verification | None, first_row: np.ndarray, ours: Sequence[bool]
    ) -> list[FeatureRow]:
        """Rows of the requests whose logits depend on their path."""
        trees = {p.request: p.tree for p in verification.places} if verification is not None else {}
        rows = []
        for request, request_id in enumerate(self._runner.input_batch.req_ids):
            params = self._params(request)
            if not ours[request] or not row_features.uses_path(params):
                continue
            tree = trees.get(request)
            paths = self._paths(request_id, tree)
            thoughts = self._thoughts(request, tree) if self._thinks(request) else [None] * len(paths)
            rows += [
                FeatureRow(int(first_row[request]) + i, request, params, path, thought)
                for i, (path, thought) in enumerate(zip(paths, thoughts, strict=True))
            ]
        return rows

    def _paths(self, request_id: str, tree: TokenTree | None) -> list[list[int]]:
        """The answer so far, and with the path to each node."""
        paths: list[list[int]] = [list(self._runner.requests[request_id].output_token_ids)]
        for token, parent in zip(tree.tokens, tree.parents, strict=True) if tree is not None else ():
            paths.append([*paths[parent + 1], token])
        return paths

    def _thoughts(self, request: int, tree: TokenTree | None) -> list[Thoughts]:
        """At the root and at each node, of a request with a budget."""
        assert self._budgets is not None
        request_id = self._runner.input_batch.req_ids[request]
        prompt = self._runner.requests[request_id].prompt_token_ids
        paths = self._paths(request_id, tree)
        parents = () if tree is None else tree.parents
        return self._budgets.along(request_id, self._params(request), prompt, paths, parents)

    def _logprobs(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        emitting: Sequence[Sequence[int]],
        metadata: SamplingMetadata,
        stock: SamplerOutput | None,
    ) -> LogprobsTensors | None:
        """One row per request and emission place (vLLM's parser of padded outputs takes them so), or None."""
        width = max(len(rows) for rows in emitting)
        raw = self._runner.sampler.logprobs_mode == "raw_logprobs"
        if metadata.logprob_token_ids or not raw:
            theirs = None if stock is None else stock.logprobs_tensors
            if theirs is None:
                return None
            if raw:
                first = [rows[0] for rows in emitting]
                theirs = row_features.with_sampled(self._runner.sampler, theirs, logits[first], tokens[first])
            return LogprobsTensors(*(None if t is None else t.repeat_interleave(width, dim=0) for t in theirs))
        wants = [self._params(request).logprobs is not None for request in range(len(emitting))]
        asked = [rows if wanted else () for rows, wanted in zip(emitting, wants, strict=True)]
        return row_features.logprobs(self._runner.sampler, logits, tokens, asked, width, metadata)


def _output(emitted: Sequence[Sequence[int]], logprobs: LogprobsTensors | None) -> SamplerOutput:
    width = max(len(tokens) for tokens in emitted)
    out = torch.full((len(emitted), width), -1, dtype=torch.int32)
    for row, tokens in enumerate(emitted):
        out[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    return SamplerOutput(sampled_token_ids=out, logprobs_tensors=logprobs)
