"""A feature head: one decoder layer that continues the target's own features (EAGLE; SpecVLM's EagleVLM).

Slot `p` of a text joins the target's feature at `p` with the embedding of the token at `p + 1`, and its output predicts
the feature at `p + 1`, so the token at `p + 2`. Where no target feature exists yet, the head's own output of the slot
before stands in. Slots of a picture hold its compressed visual tokens instead.

Attention is passed in, so that this one definition serves training (scaled dot products over a whole text) and serving
(paged cache and tree).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vllm_specvlm.compress.compressor import build
from vllm_specvlm.draft.head_config import HeadConfig

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries [..., heads, head_dim], keys and values [..., key-value heads, head_dim] to [..., heads, head_dim]."""


class FeatureHead(nn.Module):
    """The network; parameters are named as in the checkpoint. All shapes below start with the same `...` of slots."""

    vocabulary: torch.Tensor
    inverse_frequencies: torch.Tensor

    def __init__(self, config: HeadConfig) -> None:
        """Random weights, except that the head starts by passing the target's feature on."""
        super().__init__()
        self.config = config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim

        def norm(wanted: bool) -> nn.Module:
            return nn.RMSNorm(hidden, eps=eps) if wanted else nn.Identity()

        wide = config.fusion == "wide"
        self.reduce = nn.Linear(config.features, hidden, bias=False) if config.reduces else nn.Identity()
        self.norm_embedding = norm(wide or config.input_norm)
        self.norm_feature = norm(not wide and config.input_norm)
        self.fuse = nn.Identity() if wide else nn.Linear(2 * hidden, hidden, bias=config.fusion_bias)
        self.norm_attention = norm(config.layer_norm)
        width = 2 * hidden if wide else hidden
        self.q_proj = nn.Linear(width, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.norm_mlp = norm(True)
        self.gate_proj = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, hidden, bias=False)
        self.norm_output = norm(config.output_norm)
        if config.vocabulary is not None:
            self.lm_head = nn.Linear(hidden, config.vocabulary, bias=False)
            self.register_buffer("vocabulary", torch.arange(config.vocabulary))
        if config.own_embedding:
            self.embed_tokens = nn.Embedding(config.target_vocabulary, hidden)
        self.compressor = build(config.compressor, hidden)
        self.sees = config.compressor.kind != "text"
        if self.sees:
            self.visual = nn.Linear(hidden, hidden, bias=False)
            nn.init.eye_(self.visual.weight)
        if isinstance(self.fuse, nn.Linear):
            with torch.no_grad():
                self.fuse.weight.mul_(0.1)
                self.fuse.weight[:, hidden:] += torch.eye(hidden)
        rope = LlamaConfig(
            hidden_size=hidden,
            num_attention_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
        )
        with torch.device("cpu"):  # real numbers, also where the rest of the network is sizes alone
            rotary = LlamaRotaryEmbedding(rope)
        self._frequencies = rotary.inv_freq.float().clone()
        self.register_buffer("inverse_frequencies", self._frequencies.clone(), persistent=False)
        self._rotary_scale: float = rotary.attention_scaling

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """As any module is moved and cast, but rotary frequencies stay float32: in bfloat16 they are off by turns."""
        super()._apply(fn, recurse)
        self.inverse_frequencies = self._frequencies.to(self.inverse_frequencies.device)
        return self

    def state(self, features: torch.Tensor) -> torch.Tensor:
        """The target's features [..., features] as states [..., hidden], what `forward` takes and gives."""
        reduced: torch.Tensor = self.reduce(features)
        return reduced

    def forward(
        self,
        state: torch.Tensor,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        visual: torch.Tensor | None = None,
        is_visual: torch.Tensor | None = None,
        vectors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pass over some slots: `attended`, then `finished`.

        Args:
            state: [..., hidden]: of the target's feature at the slot, or this head's output one slot before.
            embeddings: [..., hidden]: of the token behind the slot; zeros where that stands for a picture.
            positions: int64 [...]: the slots.
            attend: see `Attend`.
            visual: [n, hidden]: compressed visual tokens, for the slots marked in `is_visual`, in order.
            is_visual: bool [...].
            vectors: [..., hidden]: the global vector of the last picture before the slot, zeros without one.

        Returns:
            [..., hidden]: per slot the state that predicts the feature of the next one.
        """
        return self.finished(self.attended(state, embeddings, positions, attend, visual, is_visual, vectors))

    def attended(
        self,
        state: torch.Tensor,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        visual: torch.Tensor | None = None,
        is_visual: torch.Tensor | None = None,
        vectors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[..., hidden]: the state in the middle of the layer, behind its attention; arguments as of `forward`."""
        config = self.config
        wide = config.fusion == "wide"
        if vectors is not None and not config.reads_ahead:
            embeddings = embeddings + vectors
        embedded = self.norm_embedding(embeddings)
        joined = state if wide else self.fuse(torch.cat((embedded, self.norm_feature(state)), dim=-1))
        if vectors is not None and config.reads_ahead:
            joined = joined + vectors
        if visual is not None and is_visual is not None:
            joined = joined.masked_scatter(is_visual[..., None], self.visual(visual).to(joined.dtype))
        normed = self.norm_attention(joined)
        if config.norm_before_residual:
            joined = normed
        if wide:
            normed = torch.cat((embedded, normed), dim=-1)
        cosine, sine = self._rotations(positions, normed.dtype)
        queries = _rotated(self.q_proj(normed).unflatten(-1, (-1, config.head_dim)), cosine, sine)
        keys = _rotated(self.k_proj(normed).unflatten(-1, (-1, config.head_dim)), cosine, sine)
        values = self.v_proj(normed).unflatten(-1, (-1, config.head_dim))
        middle: torch.Tensor = joined + self.o_proj(attend(queries, keys, values).flatten(-2))
        return middle

    def finished(self, middle: torch.Tensor) -> torch.Tensor:
        """[..., hidden]: what the rest of the layer makes of `attended`."""
        normed = self.norm_mlp(middle)
        hidden: torch.Tensor = middle + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return hidden

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """float32 [..., draft vocabulary], of the tokens `self.vocabulary`, from what `forward` gave."""
        scores: torch.Tensor = self.lm_head(self.norm_output(state))
        return scores.float()

    def _rotations(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [..., 1, head_dim / 2] of slots [...]; the angles are float32."""
        angles = (positions[..., None].float() * self.inverse_frequencies)[..., None, :]
        return (angles.cos() * self._rotary_scale).to(dtype), (angles.sin() * self._rotary_scale).to(dtype)


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [..., heads, head_dim], halves as in Llama."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
