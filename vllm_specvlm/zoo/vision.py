"""The eye of both reference models: a small CLIP tower and LLaVA's two-layer projector, and how pixels reach them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

IMAGE_SIDE = 96  # pixels, after the image processor
PATCH = 16
VISUAL_TOKENS = (IMAGE_SIDE // PATCH) ** 2  # 36; the class token is dropped
MEAN = STD = 0.5

IMAGE_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    "resample": 3,  # bicubic
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [MEAN] * 3,
    "image_std": [STD] * 3,
}


@dataclass(frozen=True)
class TowerSize:
    """Width, depth and heads of a CLIP tower."""

    width: int
    layers: int
    heads: int

    def config(self) -> dict[str, Any]:
        """The ``vision_config`` of this tower."""
        return {
            "model_type": "clip_vision_model",
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
            "projection_dim": self.width,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        }


def pixels(picture: Image.Image) -> torch.Tensor:
    """``picture`` as the image processor gives it to the tower: float32 ``[3, IMAGE_SIDE, IMAGE_SIDE]`` in [-1, 1]."""
    small = picture.convert("RGB").resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
    array = np.asarray(small, dtype=np.float32) / 255
    return torch.from_numpy((array - MEAN) / STD).permute(2, 0, 1).contiguous()


class Projector(nn.Module):
    """LLaVA's projector: linear, GELU, linear; named as in ``LlavaForConditionalGeneration``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[..., width]`` to ``[..., hidden]``."""
        return self.linear_2(nn.functional.gelu(self.linear_1(features)))


class Eye(nn.Module):
    """Tower and projector: pixels ``[B, 3, 96, 96]`` to visual tokens ``[B, 36, hidden]``.

    The features are the last layer's, without the final norm and without the class token: what LLaVA reads with
    ``vision_feature_layer=-1`` and ``vision_feature_select_strategy="default"``.
    """

    def __init__(self, size: TowerSize, hidden: int) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(CLIPVisionConfig(**size.config()))
        self.projector = Projector(size.width, hidden)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Patch features ``[B, 36, width]`` before the projector."""
        states: torch.Tensor = self.tower(pixel_values=images).last_hidden_state
        return states[:, 1:]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Visual tokens ``[B, 36, hidden]``."""
        tokens: torch.Tensor = self.projector(self.features(images))
        return tokens
