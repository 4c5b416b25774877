"""Random weights under which a tiny model's text can be guessed, yet depends on its picture."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_GAIN = 1.5


def successors(entries: int, specials: Collection[int]) -> Tensor:
    """A fixed map from an id to its usual next id, in cycles of three to seven: int64 [entries].

    It depends on nothing else, so that models of every seed and size share it.
    """
    plain = [token for token in range(entries) if token not in specials]
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(1234)).tolist()
    plain = [plain[at] for at in order]
    following = torch.arange(entries)
    start, length = 0, 3
    while start < len(plain):
        cycle = plain[start : start + length]
        for token, after in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            following[token] = after
        start, length = start + length, 3 + (length - 2) % 5
    return following


def randomize(model: Any, *, seed: int, scale: float, echo: float, entries: int, specials: Collection[int]) -> None:
    """Fill the model with weights that keep variances, so that both the picture and the text reach the logits.

    scale multiplies the gain of the linear layers. echo pulls the model towards the map of `successors`: at 0 its text
    is noise that no drafter guesses, at 1 mostly short cycles. At 0.6 a model of another size and seed guesses some
    four tokens in ten, has six in ten among its best four, and other pictures give other texts. Special tokens have
    small logits, so that answers hold no placeholders. Rows of the vocabulary from `entries` up are padding: their
    logits are 0, which no greedy text chooses.
    """
    generator = torch.Generator().manual_seed(seed)
    gain = _GAIN * scale

    def normal(weight: Tensor, std: float = 1.0) -> Tensor:
        return torch.randn(weight.shape, generator=generator) * std

    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight is embedding:
                weight.copy_(normal(weight))
            elif name.endswith("bias"):
                weight.copy_(normal(weight, 0.1))
            elif weight.dim() < 2 and "norm" in name.lower():
                weight.add_(normal(weight, 0.1))
            elif weight.dim() < 2 or ("embed" in name and weight.dim() == 2):
                weight.copy_(normal(weight))  # class token, image newline, position tables
            elif re.search(r"(o_proj|down_proj)", name) and "vision" not in name:
                weight.copy_(normal(weight, gain * (1 - 0.8 * echo) / weight[0].numel() ** 0.5))
            else:
                weight.copy_(normal(weight, gain / weight[0].numel() ** 0.5))
        following = successors(entries, specials)
        plain = [token for token in range(entries) if token not in specials]
        output[list(specials)] *= 0.1
        output[following[plain]] += 2 * echo * embedding[plain] / embedding.shape[1] ** 0.5
        output[entries:] = 0.0


def renumber(model: Any, old: Mapping[str, int], new: Mapping[str, int]) -> None:
    """Exchange rows of the vocabulary, so that each token that had an `old` id means the same under its `new` one."""
    before, after = torch.tensor(list(old.values())), torch.tensor([new[token] for token in old])
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            table[after] = table[before].clone()


def restore_names(folder: Path) -> None:
    """Give CLIP's and SigLIP's weights back the level of their names that transformers 5 drops and vLLM expects."""
    path = folder / "model.safetensors"
    pattern = re.compile(r"(^|\.)vision_tower\.(?!vision_model\.)")
    weights = {
        pattern.sub(r"\1vision_tower.vision_model.", name): value.contiguous()
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
