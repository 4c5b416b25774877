"""The sizes of the scenes target, in one place: the parts on disk fit these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTH = 384  # of the tower (DINOv2-small)
TOWER_LAYERS = 10  # of twelve: the last two were trained for saliency by the package the weights come from
TOWER_HEADS = 6
TOWER_INTERMEDIATE = 1536
PATCH = 14
NATIVE_GRID = 37  # of the position table
HIDDEN = 576  # of the language model

TOWER_RANK, TOWER_SCALE = 32, 1.0
LANGUAGE_RANK, LANGUAGE_SCALE = 8, 2.0

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Setting:
    """How finely the one model looks: ``grid * grid`` patches, each a visual token."""

    name: str
    grid: int

    @property
    def side(self) -> int:
        """Pixels of the tower's input."""
        return self.grid * PATCH

    @property
    def tokens(self) -> int:
        """Visual tokens a picture."""
        return self.grid * self.grid

    def image_processor(self) -> dict[str, Any]:
        """``preprocessor_config.json``."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": self.side, "width": self.side},
            "resample": 3,  # bicubic
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(MEAN),
            "image_std": list(STD),
        }

    def vision_config(self) -> dict[str, Any]:
        """The ``vision_config`` of the tower in this setting."""
        return {
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": TOWER_INTERMEDIATE,
            "num_hidden_layers": TOWER_LAYERS,
            "num_attention_heads": TOWER_HEADS,
            "image_size": self.side,
            "patch_size": PATCH,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
        }


SETTINGS = {setting.name: setting for setting in (Setting("scenes-target", 12), Setting("scenes-target-576", 24))}
COARSE, FINE = SETTINGS["scenes-target"], SETTINGS["scenes-target-576"]
