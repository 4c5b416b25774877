"""How a model's visual tokens lie over the picture."""

from __future__ import annotations

import math
from typing import Any


def picture_grid(hf_config: Any, feature: Any) -> tuple[int, int] | None:
    """Rows and columns of a picture's tokens, which cover it in raster order.

    None for a video, and for models that cut pictures into tiles or put separators between rows.

    Args:
        hf_config: the model's.
        feature: vLLM's `MultiModalFeatureSpec`, with or without its data.
    """
    length = feature.mm_position.length
    if feature.modality != "image":
        return None
    if hf_config.model_type == "llava":
        side = math.isqrt(length)
        return (side, side) if side * side == length else None
    if feature.data is None or "image_grid_thw" not in feature.data:
        return None
    merge = hf_config.vision_config.spatial_merge_size  # neighbours that the Qwen-VL towers join in one token
    _, height, width = (int(size) for size in feature.data["image_grid_thw"].data.flatten())
    return height // merge, width // merge
