"""Build the scenes target in either setting once, and find it ever after."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.zoo.errors import ZooError
from vllm_specvlm.zoo.scenes import parts
from vllm_specvlm.zoo.scenes.settings import (
    LANGUAGE_SCALE,
    PATCH,
    SETTINGS,
    TOWER_SCALE,
    Setting,
)

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]


def scenes_target(name: str, home: Path) -> Path:
    """The checkpoint folder of the setting ``name`` ("scenes-target" or "scenes-target-576") under ``home``.

    The first call downloads SmolLM2 (93 MB) and DINOv2 (90 MB) unless they are found, and writes about 310 MB in some
    seconds; later calls only look. Builds are keyed by the trained part. Safe to call from several processes at once.

    Raises
    ------
    ZooError
        In one sentence: an unknown setting, no network, a checksum that does not match, a missing part.
    """
    if name not in SETTINGS:
        raise ZooError(f"There is no reference model specvlm/{name}; there are {', '.join(sorted(SETTINGS))}.")
    folder = home / "scenes" / parts.fingerprint() / name
    if not folder.exists():
        _build(SETTINGS[name], home, folder)
    return folder


def _build(setting: Setting, home: Path, folder: Path) -> None:
    # Imported here: finding an existing checkpoint must not cost the import of transformers.
    from vllm_specvlm.zoo import checkpoint, language_model
    from vllm_specvlm.zoo.gguf_file import GgufFile
    from vllm_specvlm.zoo.scenes import tower
    from vllm_specvlm.zoo.scenes.onnx_file import OnnxFile

    trained = parts.load()
    gguf = GgufFile(language_model.find_gguf(home))
    onnx = OnnxFile(tower.find_onnx(home))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        print(f"zoo: writing {setting.name}", file=sys.stderr, flush=True)
        checkpoint.write(
            temporary / "made",
            config(setting),
            tensors(setting, language_model.load_tensors(gguf), tower.load_tensors(onnx), trained),
            language_model.load_tokenizer(gguf),
            image_processor=setting.image_processor(),
            processor=checkpoint.PROCESSOR
            | {
                "patch_size": PATCH,
                "vision_feature_select_strategy": "full",
                "num_additional_image_tokens": 0,
            },
        )
        try:
            (temporary / "made").rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first: its build is as good as ours
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tensors(setting: Setting, language: Tensors, tower: Tensors, trained: Tensors) -> Tensors:
    """The checkpoint's bfloat16 tensors under LLaVA's names: adapters merged (in float32, rounded once), the whitening
    folded into the projector, the position table interpolated.
    """
    from vllm_specvlm.zoo.checkpoint import rounded
    from vllm_specvlm.zoo.scenes.tower import position_table

    made = {"language_model." + name: value for name, value in language.items()}
    made |= {"vision_tower.vision_model." + name: value for name, value in tower.items()}
    places = {
        "tower.": ("vision_tower.vision_model.encoder.layers.", TOWER_SCALE),
        "language.": ("language_model.model.layers.", LANGUAGE_SCALE),
    }
    for name, up in trained.items():
        if not name.endswith(".up"):
            continue
        part = name[: name.index(".") + 1]
        prefix, scale = places[part]
        stem = name.removesuffix(".up")
        weight = prefix + stem.removeprefix(part) + ".weight"
        made[weight] = made[weight].float() + scale * up.float() @ trained[stem + ".down"].float()
    table = "vision_tower.vision_model.embeddings.position_embedding.weight"
    made[table] = position_table(made[table], setting.grid)
    first = trained["projector.linear_1.weight"].float() / trained["projector.spread"]
    shift = first @ trained["projector.mean"]
    made["multi_modal_projector.linear_1.weight"] = first
    made["multi_modal_projector.linear_1.bias"] = trained["projector.linear_1.bias"].float() - shift
    made["multi_modal_projector.linear_2.weight"] = trained["projector.linear_2.weight"]
    made["multi_modal_projector.linear_2.bias"] = trained["projector.linear_2.bias"]
    return rounded(made)


def config(setting: Setting) -> dict[str, Any]:
    """The checkpoint's ``config.json``."""
    from vllm_specvlm.zoo.checkpoint import target_config

    return target_config() | {
        "vision_config": setting.vision_config(),
        "image_seq_length": setting.tokens,
        "vision_feature_select_strategy": "full",
    }
