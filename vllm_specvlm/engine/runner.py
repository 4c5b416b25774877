"""vLLM's V1 model runner with trees on any device: the methods that one step passes through (plan, steps 1 to 7).

What differs between devices is in `runner_cpu.py` and `runner_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.outputs import DraftTokenIds, SamplerOutput
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_specvlm import ops
from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.feature_network import feature_layers_trouble
from vllm_specvlm.engine.sampling import Race
from vllm_specvlm.engine.speculator import Speculator
from vllm_specvlm.engine.static_tables import StaticTables
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_memory import TreeMemory
from vllm_specvlm.engine.tree_sampler import TreeSampler
from vllm_specvlm.engine.verification import Verification
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class TreeModelRunner(GPUModelRunner):
    """vLLM's V1 runner (that of CPUs is built upon that of GPUs), verifying token trees.

    Overridden are only methods vLLM itself calls once a step; `engine/ledger.py` lists each with its reason.
    """

    drafter: Speculator
    race: Race = staticmethod(ops.race)
    """Draws tokens; one function for all rows, with trees and without."""
    tree_tables: StaticTables | None = None
    """Where a step's tables lie; None: anywhere."""
    decides_on_device = False
    """Whether trees are grown and accepted by operators, with nobody waiting for the device."""

    def adopt(self) -> None:
        """Finish the construction of a stock runner whose class has just become one of this family."""
        self.tree_code = FlatCode(self.model_config.get_vocab_size())
        self.tree_store = DenseStore()
        self.tree_sampler = TreeSampler(self)
        self._trees: dict[str, TokenTree] = {}
        self._verification: Verification | None = None
        self._sampled: list[int] | None = None
        self._kept_rows: dict[int, np.ndarray] = {}
        self.drafter.bind(self)

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """Load target and draft, then give their attention layers the tree implementation."""
        super().load_model(load_dummy_weights)
        if self.drafter.feature_layers:
            target = self.get_model()  # without the wrapper that replays graphs
            trouble = feature_layers_trouble(target, self.drafter.feature_layers)
            if trouble is not None:
                raise ValueError(trouble)
            target.set_aux_hidden_state_layers(self.drafter.feature_layers)
            self.use_aux_hidden_state_outputs = True
        layers = self.compilation_config.static_forward_context
        self.adopt_attention(attending(layers))
        memory = TreeMemory(layers, self.drafter.options.tree_memory_mib << 20)
        self.tree_store.limit = self.drafter.bound_trees(memory, self.max_num_reqs)

    def adopt_attention(self, layers: Mapping[str, Any]) -> None:
        """Give the loaded attention layers, by name, an implementation that knows trees.

        Raises:
            ValueError: a layer attends in a way that the tree op does not.
        """
        raise NotImplementedError

    def grows_on_device(self, layers: Sequence[str]) -> bool:
        """See `Batch`: on a CPU there is nothing to wait for."""
        return False

    def attention_ways(self) -> list[str]:
        """How the layers attend tree rows, for people to read."""
        raise NotImplementedError

    def initialize_kv_cache(self, kv_cache_config: Any, is_profiling: bool = False, *args: Any, **kwargs: Any) -> None:
        """Allocate the cache of target and draft, and the marks that go with the draft's part."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, *args, **kwargs)
        if not is_profiling:
            self.drafter.cache_allocated()

    def start_planning(self) -> None:
        """Let the speculator measure passes of target and draft; both are loaded, compiled and have their cache."""
        self.drafter.start_planning(self._rehearse, self.max_num_tokens)

    @torch.inference_mode()
    def _rehearse(self, rows: int) -> None:
        """A pass of the target over so many rows, for the planner's stopwatch."""
        hidden = self._dummy_pass(rows)
        if self.lora_config:
            # The dummy run says of fewer rows than these which adapter their logits take: none.
            self._set_active_loras((0,) * rows, (0,) * rows, set())
        self.model.compute_logits(hidden[:rows])

    def _dummy_pass(self, rows: int) -> torch.Tensor:
        """Hidden states of a pass that means nothing; on a CPU without attention."""
        hidden: torch.Tensor = self._dummy_run(rows)[0]
        return hidden

    def execute_model(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        """Decode the trees the scheduler carried as flat integers; vLLM sees plain token ids from here on."""
        self.drafter.observe_schedule(scheduler_output)
        for request_id in scheduler_output.finished_req_ids:
            self.tree_sampler.forget(request_id)
        for request in scheduler_output.scheduled_new_reqs:
            self.tree_sampler.admit(request.req_id, request.sampling_params)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self._trees = {request_id: self.tree_code.decode(codes) for request_id, codes in drafts.items() if codes}
        if self._trees:
            # A placeholder (-1) can be no input id; the tree keeps the -1, so the row is never accepted.
            tokens = {request_id: [max(t, 0) for t in tree.tokens] for request_id, tree in self._trees.items()}
            scheduler_output = replace(scheduler_output, scheduled_spec_decode_tokens=tokens)
        return super().execute_model(scheduler_output, *args, **kwargs)

    def _prepare_inputs(self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray) -> Any:
        """Bend the linear rows of the drafts into trees: positions root + depth, no slot in the paged cache."""
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        self._verification = None
        if not self._trees:
            return prepared
        with self.drafter.tally.clock("verify"):
            self._verification = self._bend()
        return prepared

    def _bend(self) -> Verification:
        """Turn the prepared linear step into trees."""
        requests = self.input_batch.num_reqs
        verification = Verification(
            self._trees,
            self.input_batch.req_id_to_index,
            self.query_start_loc.np[: requests + 1].copy(),
            self.input_batch.num_computed_tokens_cpu[:requests].copy(),
            self.tree_store.limit,
        )
        rows = upload(verification.node_rows, self.device)
        shift = upload(verification.position_shift(), self.device)
        self.positions[rows] += shift.to(self.positions.dtype)
        if self.uses_mrope:
            # Generated text advances all three axes together.
            self.mrope_positions.gpu[:, rows] += shift.to(self.mrope_positions.gpu.dtype)
        verification.divert_slots([table.slot_mapping.gpu for table in self.input_batch.block_table.block_tables])
        return verification

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the step's trees to the attention layers on top of vLLM's own metadata."""
        metadata, common = super()._build_attention_metadata(*args, **kwargs)
        if self._verification is not None:
            with self.drafter.tally.clock("verify"):
                fast = self.drafter.options.fast_attention
                step = self._verification.step(self.tree_store, self.device, fast=fast, tables=self.tree_tables)
                for layer_metadata in {id(m): m for m in metadata.values()}.values():
                    layer_metadata.tree_step = step
        return metadata, common

    def _sample(self, logits: torch.Tensor, spec_decode_metadata: SpecDecodeMetadata | None) -> SamplerOutput:
        """Accept trees and commit their paths; requests outside our support are sampled by vLLM itself."""
        verification, self._verification = self._verification, None
        metadata = self.input_batch.sampling_metadata
        ours = [self.drafter.verifies(request_id) for request_id in self.input_batch.req_ids]
        for request, mine in enumerate(ours):
            if mine:
                # Our draws need no generator; vLLM's clean-up after a seeded prompt chunk fails on those of CPUs.
                self.input_batch.generators.pop(request, None)
        self.drafter.observe_step(verification is not None)
        self._kept_rows = {}
        if verification is None and (metadata.all_greedy or not any(ours)) and not self.tree_sampler.has_budgets:
            # vLLM keeps the budget of a request that ended for whoever moves into its row.
            self.input_batch.sampling_metadata = replace(metadata, thinking_budget_state_holder=None)
            return super()._sample(logits, None)

        output, accepted = self.tree_sampler.sample(logits, verification, ours, self._commit)
        if verification is not None:
            with self.drafter.tally.clock("verify"):
                self._kept_rows = verification.kept_rows(accepted)
                self.drafter.observe_accepted(verification.places, accepted)
        return output

    def _commit(self, slots: list[torch.Tensor]) -> None:
        """Write accepted rows from the dense store to their linear slots, layer by layer."""
        layers = self.compilation_config.static_forward_context
        for group, group_slots in zip(self.kv_cache_config.kv_cache_groups, slots, strict=True):
            for name in group.layer_names:
                stored = self.tree_store.stored(name)
                if stored is None:
                    continue  # A draft layer: the drafter feeds its own cache.
                key, value = (tensor[: len(group_slots)] for tensor in stored)
                layer = layers[name]
                layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, group_slots)

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        """Always: one request near `max_model_len` must not stop drafting for the batch; budgets are per request."""
        return True

    def propose_draft_token_ids(
        self,
        scheduler_output: SchedulerOutput,
        sampled_token_ids: list[list[int]],
        sampling_metadata: Any,
        hidden_states: torch.Tensor,
        sample_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> list[list[int]]:
        """Only note what was sampled and computed; drafting waits until the step's output is on its way to the user."""
        # How many now: within one process the scheduler cuts these very lists where a request ends.
        self._sampled = [len(tokens) for tokens in sampled_token_ids]
        if self.drafter.feature_layers is not None:
            self.drafter.keep_features(
                self._confirmed_rows,
                lambda: torch.cat(aux_hidden_states, dim=-1) if aux_hidden_states else hidden_states,
                self.encoder_cache,
            )
        return [[] for _ in sampled_token_ids]

    def _confirmed_rows(self) -> dict[str, tuple[int, np.ndarray]]:
        """The first position of this step, and the batch rows of the confirmed ones from there on, by request.

        Requests that are always decoded plainly are left out.
        """
        starts = self.query_start_loc.np
        computed = self.input_batch.num_computed_tokens_cpu
        return {
            request_id: (
                int(computed[i]),
                np.append(np.arange(starts[i], self._kept_rows[i][0]), self._kept_rows[i])
                if i in self._kept_rows
                else np.arange(starts[i], starts[i + 1]),
            )
            for i, request_id in enumerate(self.input_batch.req_ids)
            if self.drafter.verifies(request_id)
        }

    @torch.inference_mode()
    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """Draft the next step's trees. The engine core asks after it has handed out this step's tokens."""
        sampled, self._sampled = self._sampled, None
        if sampled is None:
            return None
        codes = self.drafter.draft(sampled, self.tree_code)
        return DraftTokenIds(list(codes), list(codes.values()))


def attending(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of vLLM's static forward context that attend; mixtures of experts stand there too."""
    return {name: layer for name, layer in layers.items() if isinstance(layer, AttentionLayerBase)}
