"""An early exit inside vLLM: the target's own first layers, and the imitation network behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config

from vllm_specvlm.draft import exit_checkpoint
from vllm_specvlm.engine.draft_pass import draft_pass
from vllm_specvlm.engine.head_fit import check_loaded
from vllm_specvlm.engine.served_linear import served
from vllm_specvlm.engine.tree_step import TreeStep


class ExitNetwork:
    """Runs the layers where they stand, in the loaded target; the imitation network is whole on every rank.

    The layers are called one by one, outside the graph that a compiled target runs in.
    """

    def __init__(self, vllm_config: VllmConfig, folder: str, target: Any) -> None:
        """Load the weights; `target` is vLLM's loaded model.

        Raises:
            ValueError: the exit was made for another target, its files are damaged, or vLLM's class of the target has
                layers that cannot be called like this.
        """
        self._config = vllm_config
        self._target = target
        network, wanted = exit_checkpoint.load(folder)
        check_loaded("early exit", folder, wanted, vllm_config, target)
        model = vllm_config.model_config
        self.network = network.to(device=vllm_config.device_config.device, dtype=model.dtype).eval()
        self.network.requires_grad_(False)
        with set_current_vllm_config(vllm_config):
            for module in (self.network, *self.network.blocks):
                for name, layer in list(module.named_children()):
                    if isinstance(layer, nn.Linear):
                        setattr(module, name, served(layer))
        decoder = decoder_of(target)
        if decoder is None:
            raise ValueError(
                f"The early exit '{folder}' runs the target's first layers, and vLLM's {type(target).__name__} is not "
                "built of Llama's or Qwen2's; give another drafter."
            )
        self._layers: list[Any] = list(decoder.layers[: network.config.layers])
        self.layers: list[str] = [layer.self_attn.attn.layer_name for layer in self._layers]

    @property
    def vocabulary(self) -> torch.Tensor:
        """int64: the tokens that `logits` are of."""
        return self.network.vocabulary

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: TreeStep | None,
        block_table: torch.Tensor | None,
        slots: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the target's final norm might give for some tokens.

        Args:
            ids: int32 [rows].
            positions: int64 [rows], or [axes, rows] with M-RoPE.
            step: the attention arguments; None runs without attention (warm-up).
            block_table: int32 [requests, blocks] of the KV cache group of the target's layers.
            slots: int64 [rows]: all -1, nothing is written to the paged cache.

        Returns:
            [rows, hidden].
        """
        with draft_pass(self._config, self.layers, len(ids), step, block_table, slots):
            hidden = self._target.embed_input_ids(ids)
            residual = None
            for layer in self._layers:
                hidden, residual = layer(positions, hidden, residual)
            found: torch.Tensor = self.network(hidden + residual)
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, draft vocabulary]."""
        with torch.inference_mode():
            return self.network.logits(hidden)


def decoder_of(target: Any) -> Any:
    """The language model's layers and embeddings, if they are such as `ExitNetwork` can call; else None."""
    from vllm.model_executor.models.llama import LlamaModel
    from vllm.model_executor.models.qwen2 import Qwen2Model

    language = target.get_language_model() if hasattr(target, "get_language_model") else target
    decoder = getattr(language, "model", language)
    return decoder if isinstance(decoder, LlamaModel | Qwen2Model) else None
