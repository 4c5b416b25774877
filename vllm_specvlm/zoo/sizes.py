"""The sizes of the two reference models, in one place: the parts on disk fit these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_specvlm.zoo.vision import TowerSize


@dataclass(frozen=True)
class ModelSize:
    """A LLaVA: its tower, and width, depth, heads of its decoder."""

    tower: TowerSize
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int


TARGET = ModelSize(
    TowerSize(width=192, layers=4, heads=3), hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536
)
DRAFT = ModelSize(
    TowerSize(width=128, layers=2, heads=2), hidden=192, layers=2, heads=3, kv_heads=3, head_dim=64, intermediate=512
)
LORA_RANK = 16
LORA_SCALE = 2.0
