"""The reference target while it is trained: SmolLM2 with low-rank adapters, and an eye."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_specvlm.zoo.language_model import IMAGE_TOKEN_ID, TEXT_CONFIG
from vllm_specvlm.zoo.sizes import LORA_RANK, LORA_SCALE, TARGET
from vllm_specvlm.zoo.vision import Eye

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapter(nn.Module):
    """A frozen linear layer plus ``LORA_SCALE * up @ down``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(LORA_RANK, linear.in_features) * 0.02)
        self.up = nn.Parameter(torch.zeros(linear.out_features, LORA_RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of ``x``."""
        low = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        adapted: torch.Tensor = self.linear(x) + LORA_SCALE * low
        return adapted


def place_images(embedded: torch.Tensor, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """``embedded [B, T, H]`` with the rows of image tokens in ``ids [B, T]`` replaced by ``tokens [B, 36, H]``, in
    order.
    """
    mask = (ids == IMAGE_TOKEN_ID)[..., None].expand_as(embedded)
    return embedded.masked_scatter(mask, tokens.to(embedded.dtype))


class TargetModel(nn.Module):
    """SmolLM2 (bfloat16, frozen), adapters and eye (float32, trained).

    Parameters
    ----------
    weights:
        SmolLM2's tensors, from :func:`vllm_specvlm.zoo.language_model.load_tensors`.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.eye = Eye(TARGET.tower, TARGET.hidden)
        # At two hundred tokens a row, plain attention trains a fifth faster on a CPU than the fused one.
        self.lm = LlamaForCausalLM(LlamaConfig(**TEXT_CONFIG, attn_implementation="eager")).to(torch.bfloat16)
        self.lm.load_state_dict(weights, strict=False)
        self.lm.tie_weights()
        self.lm.requires_grad_(False)
        for layer in self.lm.model.layers:
            for name in ADAPTED:
                setattr(layer.self_attn, name, Adapter(getattr(layer.self_attn, name)))

    def adapters(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters, by name."""
        return {name: p for name, p in self.lm.named_parameters() if p.requires_grad}

    def trained(self) -> dict[str, torch.Tensor]:
        """Everything this project trains: ``eye.*`` and ``lora.*``."""
        parts = {f"eye.{name}": value.detach() for name, value in self.eye.state_dict().items()}
        return parts | {f"lora.{name}": value.detach() for name, value in self.adapters().items()}

    def load_trained(self, parts: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`trained` gave."""
        self.eye.load_state_dict({name.removeprefix("eye."): v for name, v in parts.items() if name.startswith("eye.")})
        with torch.no_grad():
            for name, parameter in self.adapters().items():
                parameter.copy_(parts[f"lora.{name}"])

    def embed(self, ids: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        """Input embeddings ``[B, T, 576]`` of ``ids [B, T]`` with ``images [B, 3, 96, 96]`` in place of the image
        tokens.
        """
        embedded: torch.Tensor = self.lm.get_input_embeddings()(ids)
        return embedded if images is None else place_images(embedded, ids, self.eye(images))

    def states(self, ids: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        """Final hidden states ``[B, T, 576]``, after the norm. Right padding needs no mask: attention is causal."""
        hidden: torch.Tensor = self.lm.model(inputs_embeds=self.embed(ids, images), use_cache=False).last_hidden_state
        return hidden

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[..., 49152]``."""
        scores: torch.Tensor = self.lm.lm_head(states)
        return scores.float()
