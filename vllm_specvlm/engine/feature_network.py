"""A feature head's network inside vLLM: its weights, its attention layer, and the target's parts that it shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.compress.origins import origins
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.engine.attention_break import AttentionBreak, graphed
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.draft_pass import draft_pass
from vllm_specvlm.engine.head_fit import check_loaded
from vllm_specvlm.engine.served_linear import served
from vllm_specvlm.engine.tree_step import TreeStep

LAYER = "draft_model.layers.0.self_attn.attn"


class FeatureNetwork:
    """The head, whole on every tensor-parallel rank; its layer gets KV cache from vLLM like any other."""

    def __init__(self, vllm_config: VllmConfig, folder: str, target: Any) -> None:
        """Load the weights; `target` is vLLM's loaded model.

        Raises:
            ValueError: the head was made for another target, or its files are damaged.
        """
        self._config = vllm_config
        self._target = target
        head, wanted = head_checkpoint.load(folder)
        check_loaded("feature head", folder, wanted, vllm_config, target)
        model = vllm_config.model_config
        device = vllm_config.device_config.device
        self.head = head.to(device=device, dtype=model.dtype).eval().requires_grad_(False)
        self.config = head.config
        # As in vLLM's loader: backends are chosen by the default dtype, a layer's scales lie on the default device.
        with set_current_vllm_config(vllm_config), set_default_torch_dtype(model.dtype), torch.device(device):
            for name, layer in list(self.head.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(self.head, name, served(layer))
            attention = Attention(
                head.config.num_attention_heads,
                head.config.head_dim,
                head.config.head_dim**-0.5,
                num_kv_heads=head.config.num_key_value_heads,
                cache_config=vllm_config.cache_config,
                prefix=LAYER,
            )
        attention.process_weights_after_loading(model.dtype)
        self._attention = AttentionBreak(attention)
        self.layers = [LAYER]
        self.graphs = DraftGraphs()
        self._text_layer = graphed(self._without_pictures, vllm_config)

    @property
    def vocabulary(self) -> torch.Tensor | None:
        """int64: the tokens that `logits` are of; None for all."""
        return None if self.config.vocabulary is None else self.head.vocabulary

    @property
    def gated(self) -> bool:
        """Whether the compressor asks for the text before a picture."""
        return self.config.compressor.kind in ("select", "weight")

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[n, hidden] of token ids [n]."""
        if self.config.own_embedding:
            embedded: torch.Tensor = self.head.embed_tokens(ids)
        else:
            embedded = self._target.embed_input_ids(ids)
        return embedded

    def compress(self, tokens: torch.Tensor, before: torch.Tensor) -> Compressed:
        """A picture's visual tokens [n, hidden], fewer; `before` [hidden] is the mean embedding of the text before."""
        with torch.inference_mode():
            dtype = self._config.model_config.dtype
            compressed: Compressed = self.head.compressor(tokens.to(dtype), before.to(dtype))
        return compressed

    def origins(self, tokens: torch.Tensor, before: torch.Tensor) -> tuple[str, torch.Tensor]:
        """The primitive that `compress` runs, and what its tokens are made of: float32 [k, n]."""
        dtype = self._config.model_config.dtype
        with torch.inference_mode():
            shares = origins(self.head.compressor, tokens.to(dtype), before.to(dtype))
        return self.primitive(self.compress(tokens, before)), shares

    def primitive(self, compressed: Compressed) -> str:
        """The name of the compressor that made it: the branch that the gate chose, or the only one."""
        config = self.config.compressor
        return config.kind if compressed.choice is None else config.branches[compressed.choice].kind

    def state(self, features: torch.Tensor) -> torch.Tensor:
        """[n, hidden] from the target's features [n, features]."""
        with torch.inference_mode():
            return self.head.state(features)

    def forward(
        self,
        state: torch.Tensor,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        step: TreeStep | None,
        block_table: torch.Tensor | None,
        slots: torch.Tensor | None,
        visual: torch.Tensor | None = None,
        is_visual: torch.Tensor | None = None,
        vectors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `FeatureHead.forward`, over rows of several requests.

        Args:
            state, embeddings: [rows, hidden].
            positions: int64 [rows].
            step: the attention arguments; None runs without attention (warm-up).
            block_table: int32 [requests, blocks] of the draft's KV cache group.
            slots: int64 [rows]; -1 for rows whose K/V stay dense.
            visual, is_visual: compressed visual tokens, and the rows they stand in (bool [rows]).
            vectors: [rows, hidden]: global vectors; None without any.

        Returns:
            [rows, hidden].
        """
        rows = len(positions)
        graph = None if visual is not None else self.graphs.fitting(rows)
        if graph is None:
            with draft_pass(self._config, self.layers, rows, step, block_table, slots):
                hidden: torch.Tensor = self.head(state, embeddings, positions, self._attend, visual, is_visual, vectors)
            return hidden
        return self._in_graph(graph, state, embeddings, positions, step, block_table, slots, vectors)[:rows]

    def capture(self, descriptor: Any) -> None:
        """Capture a CUDA graph of a pass without pictures; to be called while vLLM captures its own.

        Args:
            descriptor: vLLM's `BatchDescriptor`.
        """
        rows, device = descriptor.num_tokens, self._config.device_config.device
        self.graphs.add(descriptor)
        state = torch.zeros((rows, self.config.hidden_size), dtype=self._config.model_config.dtype, device=device)
        positions = torch.zeros(rows, dtype=torch.int64, device=device)
        slots = torch.full((rows,), -1, dtype=torch.int64, device=device)
        # What is captured must have run before: libraries set themselves up then.
        for _ in range(2):
            with draft_pass(self._config, self.layers, rows, None, None, slots):
                self._without_pictures(state, state, positions, state if self.config.compressor.gives_vectors else None)
        self._in_graph(descriptor, state, state, positions, None, None, slots, None)

    def _in_graph(
        self,
        graph: Any,
        state: torch.Tensor,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        step: TreeStep | None,
        block_table: torch.Tensor | None,
        slots: torch.Tensor | None,
        vectors: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `forward`; rows behind the inputs' mean nothing, and the result is overwritten by the next pass."""
        rows, place = graph.num_tokens, self.graphs.place
        with torch.inference_mode():
            if self.config.compressor.gives_vectors and vectors is None:
                vectors = torch.zeros_like(embeddings)
            state, embeddings = place("state", state, 0, rows), place("embeddings", embeddings, 0, rows)
            positions = place("positions", positions, 0, rows)
            if vectors is not None:
                vectors = place("vectors", vectors, 0, rows)
            if slots is not None:
                slots = place("slots", slots, 0, rows, padding=-1)
        with draft_pass(self._config, self.layers, rows, step, block_table, slots, graph):
            return self._text_layer(state, embeddings, positions, vectors)

    def _without_pictures(
        self, state: torch.Tensor, embeddings: torch.Tensor, positions: torch.Tensor, vectors: torch.Tensor | None
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.head(state, embeddings, positions, self._attend, vectors=vectors)
        return hidden

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """float32 [rows, draft vocabulary]."""
        with torch.inference_mode():
            if self.config.vocabulary is not None:
                return self.head.logits(state)
            scores: torch.Tensor = self._target.compute_logits(self.head.norm_output(state))
            return scores[:, : self.config.target_vocabulary].float()

    def _attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self._attention(queries.flatten(1), keys.flatten(1), values.flatten(1))
        return mixed.view_as(queries)


def feature_layers_trouble(target: Any, layers: Sequence[int]) -> str | None:
    """Why the loaded `target` cannot show what enters these layers; None if it can."""
    from vllm.model_executor.models.interfaces import supports_eagle3

    if not layers or supports_eagle3(target):
        return None
    return (
        f"The feature head reads layers {list(layers)} of the target, and vLLM's {type(target).__name__} shows only "
        "what leaves its last one; give a head of last-layer features."
    )
