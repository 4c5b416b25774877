"""An early exit inside vLLM: the target's own first layers, and the imitation network behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config

from vllm_specvlm.draft import exit_checkpoint
from vllm_specvlm.engine.attention_break import broken_at_attention, graphed
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.draft_pass import draft_pass
from vllm_specvlm.engine.head_fit import check_loaded
from vllm_specvlm.engine.served_linear import served
from vllm_specvlm.engine.tree_step import TreeStep


class ExitNetwork:
    """Runs the layers where they stand, in the loaded target; the imitation network is whole on every rank.

    The layers are called one by one, outside the compiled code and the graphs that a target runs in.
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
        self.graphs = DraftGraphs()
        self._body = graphed(self._first_layers, vllm_config)

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
        rows = len(ids)
        graph = self.graphs.fitting(rows)
        if graph is None:
            with draft_pass(self._config, self.layers, rows, step, block_table, slots):
                return self._first_layers(ids, positions)
        return self._in_graph(graph, ids, positions, step, block_table, slots)[:rows]

    def capture(self, descriptor: Any, mrope: int | None) -> None:
        """Capture a CUDA graph of a pass; to be called while vLLM captures its own.

        Args:
            descriptor: vLLM's `BatchDescriptor`.
            mrope: axes of positions, None for one.
        """
        rows, device = descriptor.num_tokens, self._config.device_config.device
        self.graphs.add(descriptor)
        ids = torch.zeros(rows, dtype=torch.int32, device=device)
        positions = torch.zeros((mrope, rows) if mrope else rows, dtype=torch.int64, device=device)
        slots = torch.full((rows,), -1, dtype=torch.int64, device=device)
        # What is captured must have run before: libraries set themselves up then.
        for _ in range(2):
            with draft_pass(self._config, self.layers, rows, None, None, slots):
                self._first_layers(ids, positions)
        # Only now: the target's compiled code and its own graphs expect its layers as they are.
        with broken_at_attention([layer.self_attn for layer in self._layers]):
            self._in_graph(descriptor, ids, positions, None, None, slots)

    def _in_graph(
        self,
        graph: Any,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: TreeStep | None,
        block_table: torch.Tensor | None,
        slots: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `forward`; rows behind the inputs' mean nothing, and the result is overwritten by the next pass."""
        rows, place = graph.num_tokens, self.graphs.place
        with torch.inference_mode():
            ids, positions = place("ids", ids, 0, rows), place("positions", positions, positions.dim() - 1, rows)
            if slots is not None:
                slots = place("slots", slots, 0, rows, padding=-1)
        with draft_pass(self._config, self.layers, rows, step, block_table, slots, graph):
            return self._body(ids, positions)

    def _first_layers(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden, residual = self._target.embed_input_ids(ids), None
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
