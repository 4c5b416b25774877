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
        with draft_pass(self._config, self.layers, len(ids), step, block_table, slots):
            if not self.sees:
                hidden = self._model(input_ids=ids, positions=positions)
            else:
                embeds = (
                    self._model.embed_input_ids(ids, multimodal_embeddings=list(pictures), is_multimodal=is_picture)
                    if len(pictures)
                    else self._model.embed_input_ids(ids)
                )
                hidden = self._model(input_ids=None, positions=positions, inputs_embeds=embeds)
        assert isinstance(hidden, torch.Tensor)
        return hidden

    def logits(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """float32 [rows, vocabulary]: of the first `vocabulary` ids (the rest is padding)."""
        logits: torch.Tensor = self._model.compute_logits(hidden)[:, :vocabulary].float()
        return logits
