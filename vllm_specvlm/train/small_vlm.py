"""A draft VLM while it is trained (Spec-LLaVA, arXiv 2509.11961; MASSV, arXiv 2505.10526): a small language model
behind the target's vision tower.

The tower stays as it is, so training needs no pixels: lessons hold what came of it. Either the target's projector
stays, too, and a linear map behind it learns, which the checkpoint has in the projector's last layer
(`draft_checkpoint`); or, where the class ties the projector's width to the language model's, one of its own learns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.activations import ACT2FN

from vllm_specvlm.compress.compressor import CompressorConfig, build


@dataclass(frozen=True, slots=True)
class SmallVLMConfig:
    """What it is made of."""

    text: dict[str, Any]
    """transformers' configuration of the language model, its `model_type` included."""
    target_hidden: int
    """Channels of the target's visual tokens."""
    projector_bias: bool = True
    """Whether map or projector have biases, as the target's projector has."""
    tower_hidden: int = 0
    """Channels of what a projector of its own reads; 0: there is a map behind the target's."""
    projector_act: str = "gelu"
    """Of a projector of its own."""
    train_tables: bool = False
    """Whether embeddings and output layer learn."""
    compressor: CompressorConfig = field(default_factory=lambda: CompressorConfig("none"))


class SmallVLM(nn.Module):
    """The network. Parameters are float32 but tables that do not learn, which may be of the target's dtype."""

    vocabulary: Tensor

    def __init__(self, config: SmallVLMConfig) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        text = AutoConfig.for_model(**config.text)
        self.language: Any = AutoModel.from_config(text, dtype=torch.float32)
        self.hidden_size: int = text.hidden_size
        bias = config.projector_bias
        self.projector = (
            nn.Sequential(
                nn.Linear(config.tower_hidden, text.hidden_size, bias=bias),
                ACT2FN[config.projector_act],
                nn.Linear(text.hidden_size, text.hidden_size, bias=bias),
            )
            if config.tower_hidden
            else nn.Linear(config.target_hidden, text.hidden_size, bias=bias)
        )
        self.compressor = build(config.compressor, text.hidden_size)
        if not text.tie_word_embeddings:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.register_buffer("vocabulary", torch.arange(text.vocab_size), persistent=False)
        for table in self.tables:
            table.requires_grad_(config.train_tables)

    @property
    def tables(self) -> list[Tensor]:
        """The embeddings [V, H], and the output layer [V, H], which may be the same."""
        found: list[Tensor] = [self.language.embed_tokens.weight]
        if hasattr(self, "lm_head"):
            found.append(self.lm_head.weight)
        return found

    def look(self, visual: Tensor) -> Tensor:
        """What it reads of one picture: [k, H] of `Lesson.visual`, float32 [n, target_hidden or tower_hidden]."""
        mapped: Tensor = self.projector(visual)
        tokens: Tensor = self.compressor(mapped, mapped.new_zeros(mapped.shape[-1])).tokens
        return tokens

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        seen: Tensor,
        visual: Tensor | None = None,
        is_visual: Tensor | None = None,
    ) -> Tensor:
        """States behind the final norm, [B, T, H].

        Args:
            ids: int64 [B, T], padded on the right.
            positions: int64 [B, T], or [3, B, T] with M-RoPE.
            seen: bool [B, T]: rows that are no padding.
            visual: [n, H]: what `look` gave, for the rows marked in `is_visual`, in order.
            is_visual: bool [B, T].
        """
        embeddings = self.language.embed_tokens(ids).float()
        if visual is not None and is_visual is not None:
            embeddings = embeddings.masked_scatter(is_visual[..., None], visual.to(embeddings.dtype))
        # A mask, though right padding needs none: without one transformers takes gaps in positions for new texts.
        found = self.language(
            inputs_embeds=embeddings, attention_mask=seen.long(), position_ids=positions, use_cache=False
        )
        states: Tensor = found.last_hidden_state
        return states

    def logits(self, states: Tensor) -> Tensor:
        """float32 [..., V] of states [..., H]."""
        table = self.tables[-1]
        return F.linear(states.to(table.dtype), table).float()
