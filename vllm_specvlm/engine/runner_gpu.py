"""vLLM's GPU runner with trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.config import CUDAGraphMode

from vllm_specvlm import ops
from vllm_specvlm.engine import attention_gpu, decision_trial
from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.engine.runner import TreeModelRunner, attending
from vllm_specvlm.engine.sampling import greedy_tokens, sampled_at_once
from vllm_specvlm.engine.tree_attention import KernelAttention
from vllm_specvlm.engine.tree_dispatcher import TreeDispatcher
from vllm_specvlm.engine.tree_memory import TreeMemory
from vllm_specvlm.engine.tree_step import TreeStep
from vllm_specvlm.tree.race import race

logger = logger_for(__name__)

_REHEARSED_CONTEXT = 1024
"""Tokens: a picture and a question."""


class TreeGPUModelRunner(TreeModelRunner):
    """Verifies trees on an NVIDIA GPU: graphs, memory, and the commit in one launch."""

    def adopt(self) -> None:
        """As for every device; then let vLLM's FULL graphs be those of plain decoding, one token a request."""
        super().adopt()
        self.uniform_decode_query_len = 1
        self.cudagraph_dispatcher.__class__ = TreeDispatcher
        self.cudagraph_dispatcher.uniform_decode_query_len = 1

    def adopt_attention(self, layers: Mapping[str, Any]) -> None:
        """As described there; each kind of layer is tried on the device."""
        peers = Peers()
        attention_gpu.adopt(layers, self.device, peers.verdict)
        # A rank that drew tokens in another way than its peers would go on from another text.
        reason = peers.verdict(decision_trial.trouble(self.device))
        self.decides_on_device = reason is None
        if reason is not None:
            self.race = race
            logger.warning(
                "Trees are not grown and accepted on the device: %s. The CPU does it; answers stay right. Run `specvlm "
                "selftest` and send its report.",
                reason,
            )

    def grows_on_device(self, layers: Sequence[str]) -> bool:
        """See `Batch`: the fallbacks of attention want to know the nodes on the host."""
        found = self.compilation_config.static_forward_context
        kernels = all(isinstance(found[name].impl.tree_attention, KernelAttention) for name in layers)
        return self.decides_on_device and kernels

    def attention_ways(self) -> list[str]:
        """As described there."""
        layers = attending(self.compilation_config.static_forward_context).values()
        return sorted({layer.impl.tree_attention.name for layer in layers})

    @torch.inference_mode()
    def profile_run(self, *args: Any, **kwargs: Any) -> None:
        """vLLM measures what this takes: what is kept, and beside it the widest passes of target and draft.

        What stays comes first: passes run beside it later, and vLLM reads the peak.
        """
        memory = TreeMemory(self.compilation_config.static_forward_context, 0)
        memory.allocate(self.tree_store, memory.target(), self.device)
        self.drafter.allocate_trees()
        # Also of trees that are not verified: placeholders, and what finds no room.
        listed = min(self.max_num_tokens, self.max_num_reqs * (1 + self.drafter.shape.nodes))
        self.tree_tables = TreeStep.room(self.max_num_reqs, max(listed, self.max_num_reqs), self.device)
        kept = torch.empty(self.drafter.kept_bytes, dtype=torch.uint8, device=self.device)
        super().profile_run(*args, **kwargs)
        self._profile_verification()
        self.drafter.profile_run(self._largest_pictures())
        del kept

    def _profile_verification(self) -> None:
        """The logits of as many rows as a step of trees has, as the sampler takes them."""
        rows = min(self.max_num_tokens, self.max_num_reqs + (self.tree_store.limit or 0))
        hidden, _ = self._dummy_run(rows)
        logits = self.model.compute_logits(hidden[:rows])
        greedy_tokens(logits)
        law = logits[: sampled_at_once(logits)].float().softmax(dim=-1)
        self.race(law, torch.zeros(len(law), dtype=torch.int64, device=law.device))

    def _dummy_pass(self, rows: int) -> torch.Tensor:
        """As described there, with attention over a context.

        All its blocks are vLLM's empty one, so keys come out of a cache of the GPU's and cost less than they will; and
        each row has a context to itself, where a tree's rows share theirs. Steps correct both as they are measured.
        """
        context = min(_REHEARSED_CONTEXT, self.max_model_len)
        hidden: torch.Tensor = self._dummy_run(rows, force_attention=True, profile_seq_lens=context)[0]
        return hidden

    def _largest_pictures(self) -> Mapping[str, Any] | None:
        """Pixels of as many pictures of the largest size as vLLM encodes at once; None for a text model."""
        budget = self.mm_budget if self.supports_mm_inputs else None
        settings = self.model_config.multimodal_config
        skipped = settings is not None and settings.skip_mm_profiling
        if budget is None or skipped or not budget.mm_max_toks_per_item:
            return None
        modality = budget.get_modality_with_max_tokens()
        pictures: Mapping[str, Any] = self._get_mm_dummy_batch(modality, budget.mm_max_items_per_batch[modality])
        return pictures

    def _warmup_and_capture(self, desc: Any, cudagraph_runtime_mode: Any, *args: Any, **kwargs: Any) -> None:
        """Capture the target's graph, and the draft's of the same size."""
        super()._warmup_and_capture(desc, cudagraph_runtime_mode, *args, **kwargs)
        if cudagraph_runtime_mode == CUDAGraphMode.PIECEWISE and not desc.num_active_loras:
            self.drafter.capture(desc)

    def profile_cudagraph_memory(self) -> int:
        """As vLLM's, which counts the draft's graphs too and throws all away."""
        estimate: int = super().profile_cudagraph_memory()
        self.drafter.forget_graphs()
        return estimate

    def _determine_batch_execution_and_padding(self, *args: Any, **kwargs: Any) -> Any:
        """A step with trees takes PIECEWISE graphs; others take what vLLM would take without speculation."""
        self.cudagraph_dispatcher.has_trees = self._verification is not None
        return super()._determine_batch_execution_and_padding(*args, **kwargs)

    def _commit(self, slots: list[torch.Tensor]) -> None:
        """Write accepted rows to their linear slots, all layers of a kind in one launch where our kernels run."""
        layers = self.compilation_config.static_forward_context
        if not all(isinstance(layers[name].impl.tree_attention, KernelAttention) for name in self._verifying()):
            super()._commit(slots)
            return
        for group, group_slots in zip(self.kv_cache_config.kv_cache_groups, slots, strict=True):
            kinds: dict[Any, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
            for name in group.layer_names:
                stored = self.tree_store.stored(name)
                if stored is not None:
                    cache = layers[name].kv_cache
                    kind = (cache.shape, cache.stride(), cache.dtype, stored[0].shape)
                    kinds.setdefault(kind, []).append((cache, *stored))
            for alike in kinds.values():
                caches, keys, values = zip(*alike, strict=True)
                ops.commit_rows(caches, keys, values, group_slots)

    def _verifying(self) -> list[str]:
        """The layers that stored tree rows in this step."""
        layers = self.compilation_config.static_forward_context
        return [name for name in layers if self.tree_store.stored(name) is not None]
