"""The draft's network inside vLLM: loading, one forward pass, and the logits of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.compilation.backends import set_model_tag
from vllm.config import ModelConfig, VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.models.interfaces import supports_multimodal

from vllm_specvlm.draft import picture_compressor
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.draft_pass import draft_pass
from vllm_specvlm.engine.tree_step import TreeStep

# Layer names of the draft start with this, so that they do not collide with the target's.
PREFIX = "draft_model"


class DraftNetwork:
    """A model that vLLM builds beside the target; its attention layers get KV cache from vLLM like any other."""

    def __init__(self, vllm_config: VllmConfig, model_config: ModelConfig) -> None:
        """Load the weights.

        Raises:
            ValueError: the draft has a compressor of pictures that cannot be read.
        """
        self._config = vllm_config
        self.model_config = model_config
        layers = vllm_config.compilation_config.static_forward_context
        before = set(layers)
        # The draft's compiled code names its own layers, so it needs a cache entry of its own even when draft and
        # target are one checkpoint; `additional_config` is part of the key.
        marked = {**vllm_config.additional_config, "specvlm_compiles": PREFIX}
        with set_model_tag(PREFIX):
            load = vllm_config.load_config
            if load.load_format in ("auto", "hf"):  # which would also open pickles, where there is nothing else
                load = replace(load, load_format="safetensors")
            # Adapters are the target's.
            config = replace(
                vllm_config,
                model_config=model_config,
                quant_config=None,
                lora_config=None,
                additional_config=marked,
                load_config=load,
            )
            self._model: Any = get_model(vllm_config=config, prefix=PREFIX)
        self.layers = [name for name in layers if name not in before]
        self.sees = supports_multimodal(self._model)
        compressor = picture_compressor.load(model_config.model, model_config.get_hidden_size())
        device = vllm_config.device_config.device
        self.compressor = None if compressor is None else compressor.to(device=device, dtype=model_config.dtype)
        self.graphs = DraftGraphs()

    def encode(self, **pixels: Any) -> Sequence[torch.Tensor]:
        """Visual tokens of pictures, [tokens, hidden] each: the model's own vision tower and projector."""
        encoded: Sequence[torch.Tensor] = self._model.embed_multimodal(**pixels)
        return encoded

    def compress(self, tokens: torch.Tensor) -> torch.Tensor:
        """[k, hidden]: what the model reads of a picture's visual tokens [tokens, hidden]."""
        if self.compressor is None:
            return tokens
        with torch.inference_mode():
            few: torch.Tensor = self.compressor(tokens, tokens.new_zeros(tokens.shape[-1])).tokens
        return few

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: TreeStep | None,
        block_table: torch.Tensor | None,
        slots: torch.Tensor | None,
        pictures: Sequence[torch.Tensor] = (),
        is_picture: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the final norm.

        Args:
            ids: int32 [rows].
            positions: int64 [rows], or [3, rows] with M-RoPE.
            step: the attention arguments; None runs without attention (warm-up).
            block_table: int32 [requests, blocks] of the draft's KV cache group.
            slots: int64 [rows]; -1 for rows whose K/V stay dense.
            pictures: embeddings of the rows marked in `is_picture`, in row order.
            is_picture: bool [rows], on the CPU.

        Returns:
            [rows, hidden].
        """
        graph = self.graphs.fitting(len(ids))
        return self._pass(ids, positions, step, block_table, slots, pictures, is_picture, graph)[: len(ids)]

    def capture(self, descriptor: Any, mrope: int | None, device: torch.device) -> None:
        """Capture a CUDA graph of a pass; to be called while vLLM captures its own.

        Args:
            descriptor: vLLM's `BatchDescriptor`.
            mrope: axes of positions, None for one.
            device: of the model.
        """
        rows = descriptor.num_tokens
        self.graphs.add(descriptor)
        ids = torch.zeros(rows, dtype=torch.int32, device=device)
        positions = torch.zeros((mrope, rows) if mrope else rows, dtype=torch.int64, device=device)
        slots = torch.full((rows,), -1, dtype=torch.int64, device=device)
        # What is captured must have run before: libraries set themselves up then.
        for graph in (None, None, descriptor):
            self._pass(ids, positions, None, None, slots, (), None, graph)

    def _pass(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: TreeStep | None,
        block_table: torch.Tensor | None,
        slots: torch.Tensor | None,
        pictures: Sequence[torch.Tensor],
        is_picture: torch.Tensor | None,
        graph: Any | None,
    ) -> torch.Tensor:
        """As `forward`, in a CUDA graph or without; with one, rows behind the inputs' mean nothing."""
        embeds, rows = None, len(ids)
        with torch.inference_mode():
            if self.sees and len(pictures):
                found = list(pictures)
                embeds = self._model.embed_input_ids(ids, multimodal_embeddings=found, is_multimodal=is_picture)
            elif self.sees:
                embeds = self._model.embed_input_ids(ids)
            if graph is not None:
                rows = graph.num_tokens
                positions = self.graphs.place("positions", positions, positions.dim() - 1, rows)
                if embeds is None:
                    ids = self.graphs.place("ids", ids, 0, rows)
                else:
                    embeds = self.graphs.place("embeds", embeds, 0, rows)
                if slots is not None:
                    slots = self.graphs.place("slots", slots, 0, rows, padding=-1)
        with draft_pass(self._config, self.layers, rows, step, block_table, slots, graph):
            if embeds is None:
                hidden = self._model(input_ids=ids, positions=positions)
            else:
                hidden = self._model(input_ids=None, positions=positions, inputs_embeds=embeds)
        assert isinstance(hidden, torch.Tensor)
        return hidden

    def logits(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """float32 [rows, vocabulary]: of the first `vocabulary` ids (the rest is padding)."""
        logits: torch.Tensor = self._model.compute_logits(hidden)[:, :vocabulary].float()
        return logits
