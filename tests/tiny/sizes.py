"""How large a tiny model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

POSITIONS = 2048
"""Longest text of every tiny model."""


@dataclass(frozen=True)
class Size:
    """Sizes of a language model and its vision tower. Heads are even in number, so that two ranks can share them."""

    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    layers: int = 2
    mlp: int = 256
    vision_hidden: int = 64
    vision_heads: int = 2
    vision_layers: int = 2
    vision_mlp: int = 128

    def text(self, tokenizer: Any, vocab_size: int) -> dict[str, Any]:
        """Arguments of a transformers text configuration."""
        return {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": POSITIONS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        }

    def vision(self, **changes: Any) -> dict[str, Any]:
        """Arguments of a CLIP-like vision configuration."""
        return {
            "hidden_size": self.vision_hidden,
            "intermediate_size": self.vision_mlp,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": 56,
            "patch_size": 14,
            **changes,
        }

    def mrope(self, *, interleaved: bool = False) -> list[int]:
        """Shares of a head's rotary pairs for time, height and width, in Qwen's proportions."""
        pairs = self.head_dim // 2
        third = pairs * 5 // 16 if interleaved else pairs * 3 // 8
        return [pairs - 2 * third, third, third]


TARGET = Size()
DRAFT = Size(hidden=64, heads=2, layers=1, mlp=96, vision_hidden=32, vision_layers=1, vision_mlp=64)
"""A drafter for TARGET: nothing but head size, KV heads and token counts per picture in common."""
