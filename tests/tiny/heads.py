"""Feature heads for the tiny targets: random, yet right about four tokens in ten."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open

from tests.tiny.checkpoints import build, cache_folder
from tests.tiny.sizes import POSITIONS, TARGET
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft import head_checkpoint, target_id
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import HeadConfig

VOCABULARY = 400
"""Of the target's 512 tokens: those beyond are never drafted."""

_SOURCE = Path(__file__).read_bytes()


def build_head(
    family: str,
    compressor: CompressorConfig,
    *,
    fusion: str = "linear",
    feature_layers: tuple[int, ...] = (),
    vocabulary: int | None = VOCABULARY,
    seed: int = 0,
) -> Path:
    """The folder of a head for `build(family)`, made unless it is there already."""
    config = HeadConfig(
        hidden_size=TARGET.hidden,
        num_attention_heads=TARGET.heads,
        num_key_value_heads=TARGET.kv_heads,
        head_dim=TARGET.head_dim,
        intermediate_size=TARGET.mlp,
        target_vocabulary=512,
        vocabulary=vocabulary,
        max_position_embeddings=POSITIONS,
        fusion=fusion,
        feature_layers=feature_layers,
        compressor=compressor,
    )
    target = build(family)
    made_for = target_id.of_folder(target)
    marks = hashlib.sha256(f"{made_for} {config} {seed}".encode() + _SOURCE).hexdigest()[:12]
    folder = cache_folder() / f"head-{family}-{marks}"
    if not folder.is_dir():
        head_checkpoint.save(folder, _make(config, target, seed), made_for, {"made": "for tests"})
    return folder


def _make(config: HeadConfig, target: Path, seed: int) -> FeatureHead:
    """Mostly the embedding of the last token, read by the target's output table: see `weights.randomize`."""
    torch.manual_seed(seed)
    head = FeatureHead(config)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if weight.dim() < 2:
                weight.add_(0.1 * torch.randn(weight.shape))
            elif not name.startswith("compressor"):
                weight.copy_(torch.randn(weight.shape) * 1.0 / weight.shape[-1] ** 0.5)
        head.o_proj.weight.mul_(0.7)
        head.down_proj.weight.mul_(0.3)
        if isinstance(head.fuse, torch.nn.Linear):
            head.fuse.weight.mul_(0.3)
            head.fuse.weight[:, : config.hidden_size] += torch.eye(config.hidden_size)
        if config.vocabulary is not None:
            head.vocabulary.copy_(torch.randperm(512)[: config.vocabulary].sort().values)
            head.lm_head.weight.copy_(output_table(target)[head.vocabulary])
    return head


def output_table(target: Path) -> torch.Tensor:
    """float32 [vocabulary, hidden]."""
    with safe_open(target / "model.safetensors", framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith("lm_head.weight"))  # noqa: SIM118 - not a dictionary
        table: torch.Tensor = file.get_tensor(name)
    return table[:512]
