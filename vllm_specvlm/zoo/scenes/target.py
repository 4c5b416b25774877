"""The scenes target while it is trained: DINOv2 and SmolLM2, both frozen, low-rank adapters on every linear layer of
both, and a projector between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vllm_specvlm.zoo.language_model import IMAGE_TOKEN_ID, TEXT_CONFIG
from vllm_specvlm.zoo.scenes.settings import (
    COARSE,
    HIDDEN,
    LANGUAGE_RANK,
    LANGUAGE_SCALE,
    MEAN,
    SETTINGS,
    STD,
    TOWER_RANK,
    TOWER_SCALE,
    WIDTH,
    Setting,
)
from vllm_specvlm.zoo.scenes.tower import Tensors, position_table


def pixels(picture: Image.Image, setting: Setting) -> torch.Tensor:
    """``picture`` as the image processor gives it to the tower: float32 ``[3, side, side]``."""
    small = picture.convert("RGB").resize((setting.side, setting.side), Image.Resampling.BICUBIC)
    array = (np.asarray(small, dtype=np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


class Adapter(nn.Module):
    """A frozen bfloat16 linear layer plus ``scale * up @ down``, with float32 factors."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear = linear.to(torch.bfloat16).requires_grad_(False)
        self.scale = scale
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` of any dtype to bfloat16 ``[..., out]``."""
        x = x.to(torch.bfloat16)
        low = F.linear(x, self.down.to(torch.bfloat16))
        return self.linear(x) + F.linear(low, (self.scale * self.up).to(torch.bfloat16))


def adapt(module: nn.Module, rank: int, scale: float) -> None:
    """Replace every linear layer under ``module`` by an :class:`Adapter`."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Adapter(child, rank, scale))
        else:
            adapt(child, rank, scale)


def adapters(module: nn.Module) -> Tensors:
    """The factors of all adapters under ``module``, by name (``....up``, ``....down``)."""
    return {name: p for name, p in module.named_parameters() if name.endswith((".up", ".down"))}


class Eye(nn.Module):
    """Tower and projector: pixels ``[B, 3, side, side]`` to visual tokens ``[B, tokens, HIDDEN]``.

    ``mean`` and ``spread`` [WIDTH] whiten the features; the checkpoint folds them into the projector.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, weights: Tensors) -> None:
        super().__init__()
        config = SiglipVisionConfig(**COARSE.vision_config())
        config._attn_implementation = "eager"
        tower = SiglipVisionModel(config)
        kept = dict(weights)
        native = kept["embeddings.position_embedding.weight"]
        kept["embeddings.position_embedding.weight"] = position_table(native, COARSE.grid)
        body = tower.vision_model if hasattr(tower, "vision_model") else tower
        body.load_state_dict(kept)
        self.patch = body.embeddings.patch_embedding.requires_grad_(False)
        self.layers = body.encoder.layers.requires_grad_(False)
        adapt(self.layers, TOWER_RANK, TOWER_SCALE)
        self._tables = {setting.grid: position_table(native, setting.grid) for setting in SETTINGS.values()}
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("spread", torch.ones(WIDTH))
        self.linear_1 = nn.Linear(WIDTH, HIDDEN)
        self.linear_2 = nn.Linear(HIDDEN, HIDDEN)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Whitened features ``[B, tokens, WIDTH]`` of the last layer."""
        states = self.patch(images)
        states = states.flatten(2).transpose(1, 2) + self._tables[states.shape[-1]]
        for layer in self.layers:
            out = layer(states, None)
            states = out[0] if isinstance(out, tuple) else out
        whitened: torch.Tensor = (states.float() - self.mean) / self.spread
        return whitened

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features to visual tokens, float32."""
        first = F.linear(
            features.to(torch.bfloat16), self.linear_1.weight.to(torch.bfloat16), self.linear_1.bias.to(torch.bfloat16)
        )
        second = F.linear(F.gelu(first), self.linear_2.weight.to(torch.bfloat16), self.linear_2.bias.to(torch.bfloat16))
        return second.float()

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Measure ``mean`` and ``spread`` on ``images``, once, before training."""
        self.mean.zero_()
        self.spread.fill_(1.0)
        features = self.features(images).flatten(0, 1)
        self.mean.copy_(features.mean(0))
        self.spread.copy_(features.std(0).clamp(min=1e-3))

    def projector(self) -> Tensors:
        """The projector's own parameters and the whitening."""
        return {
            "mean": self.mean,
            "spread": self.spread,
            **{f"linear_1.{name}": value for name, value in self.linear_1.named_parameters()},
            **{f"linear_2.{name}": value for name, value in self.linear_2.named_parameters()},
        }

    def trained(self) -> Tensors:
        """Everything of the eye that training changes."""
        parts = {f"tower.{name}": value.detach() for name, value in adapters(self.layers).items()}
        return parts | {f"projector.{name}": value.detach() for name, value in self.projector().items()}

    def load_trained(self, parts: Tensors) -> None:
        """Take over what :meth:`trained` gave."""
        own = {f"tower.{name}": value for name, value in adapters(self.layers).items()}
        own |= {f"projector.{name}": value for name, value in self.projector().items()}
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(parts[name])


class SceneTarget(nn.Module):
    """Eye and language model."""

    def __init__(self, language: Tensors, tower: Tensors) -> None:
        super().__init__()
        self.eye = Eye(tower)
        # At these lengths plain attention trains nearly twice as fast on a CPU as the fused one.
        self.lm = LlamaForCausalLM(LlamaConfig(**TEXT_CONFIG, attn_implementation="eager")).to(torch.bfloat16)
        self.lm.load_state_dict(language, strict=False)
        self.lm.tie_weights()
        self.lm.requires_grad_(False)
        adapt(self.lm.model.layers, LANGUAGE_RANK, LANGUAGE_SCALE)

    def trained(self) -> Tensors:
        """Everything that training changes: ``tower.*``, ``projector.*``, ``language.*``."""
        return self.eye.trained() | {
            f"language.{name}": value.detach() for name, value in adapters(self.lm.model.layers).items()
        }

    def load_trained(self, parts: Tensors) -> None:
        """Take over what :meth:`trained` gave; parts of the eye alone leave the language model as it is."""
        self.eye.load_trained(parts)
        with torch.no_grad():
            for name, value in adapters(self.lm.model.layers).items():
                if f"language.{name}" in parts:
                    value.copy_(parts[f"language.{name}"])

    def embed(self, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, T, HIDDEN]`` of ``ids [B, T]`` with visual ``tokens [B, tokens, HIDDEN]`` in place."""
        embedded: torch.Tensor = self.lm.get_input_embeddings()(ids)
        mask = (ids == IMAGE_TOKEN_ID)[..., None].expand_as(embedded)
        return embedded.masked_scatter(mask, tokens.to(embedded.dtype))

    def states(self, embedded: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Final hidden states ``[B, T, HIDDEN]``; ``mask`` bool ``[B, 1, T, T]``, True where a row may look."""
        added = torch.zeros(mask.shape, dtype=embedded.dtype).masked_fill(~mask, torch.finfo(embedded.dtype).min)
        hidden: torch.Tensor = self.lm.model(
            inputs_embeds=embedded, attention_mask=added, position_ids=positions, use_cache=False
        ).last_hidden_state
        return hidden

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[..., vocabulary]``."""
        scores: torch.Tensor = self.lm.lm_head(states)
        return scores.float()


def stack(pictures: Sequence[Image.Image], setting: Setting) -> torch.Tensor:
    """Pixels ``[B, 3, side, side]`` of several pictures."""
    return torch.stack([pixels(picture, setting) for picture in pictures])
