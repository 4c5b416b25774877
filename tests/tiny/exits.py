"""Early exits for the tiny targets: random, yet right about some tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from tests.tiny.checkpoints import build, cache_folder
from tests.tiny.heads import VOCABULARY, output_table
from tests.tiny.sizes import TARGET
from vllm_specvlm.draft import exit_checkpoint, target_id
from vllm_specvlm.draft.early_exit import EarlyExit
from vllm_specvlm.draft.exit_config import ExitConfig

_SOURCE = Path(__file__).read_bytes()


def build_exit(family: str, *, layers: int = 1, seed: int = 0) -> Path:
    """The folder of an early exit behind so many layers of `build(family)`, made unless it is there already."""
    config = ExitConfig(
        hidden_size=TARGET.hidden,
        layers=layers,
        blocks=2,
        intermediate_size=TARGET.mlp,
        target_vocabulary=512,
        vocabulary=VOCABULARY,
    )
    target = build(family)
    marks = hashlib.sha256(f"{target.name} {config} {seed}".encode() + _SOURCE).hexdigest()[:12]
    folder = cache_folder() / f"exit-{family}-{marks}"
    if not folder.is_dir():
        torch.manual_seed(seed)
        network = EarlyExit(config)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.dim() < 2:
                    weight.add_(0.1 * torch.randn(weight.shape))
                elif "down_proj" in name:
                    weight.copy_(0.2 * torch.randn(weight.shape) / weight.shape[-1] ** 0.5)
            network.vocabulary.copy_(torch.randperm(512)[:VOCABULARY].sort().values)
            network.lm_head.weight.copy_(output_table(target)[network.vocabulary])
        exit_checkpoint.save(folder, network, target_id.of_folder(target), {"made": "for tests"})
    return folder
