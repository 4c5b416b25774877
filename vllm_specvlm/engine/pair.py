"""Do a draft and a target fit together: tokenizer, vocabulary, image processing, placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.tokenizers import cached_tokenizer_from_config

from vllm_specvlm.draft import picture_compressor
from vllm_specvlm.draft.token_map import TokenMap

_PROBE = "The sign reads: 3.14 naïve façades?\n\t<b>Über</b> 雪が降る 🙂 def f(x): return x**2"


def draft_model_config(model: str, target: ModelConfig, *, token_map: bool) -> ModelConfig:
    """The draft's configuration: its own architecture, everything else as the target's; with `token_map` its tokenizer.

    Raises:
        ValueError: there is no usable model at `model`.
    """
    pictures = target.multimodal_config
    looks_like_path = model.startswith(("/", ".", "~"))
    if looks_like_path and not _is_folder(model):
        raise ValueError(f"There is no draft at '{model}'; give the directory or name of a model that vLLM loads.")
    if _is_folder(model) and _only_pickles(Path(model).expanduser()):
        raise ValueError(
            f"The draft '{model}' keeps its weights in pickles, which can run code; save it again as safetensors."
        )
    try:
        return ModelConfig(
            model=model,
            runner="draft",
            tokenizer=model if token_map else target.tokenizer,
            tokenizer_mode=target.tokenizer_mode,
            trust_remote_code=target.trust_remote_code,
            dtype=target.dtype,
            seed=target.seed,
            spec_target_max_model_len=target.max_model_len,
            enforce_eager=target.enforce_eager,
            mm_processor_kwargs=None if pictures is None else pictures.mm_processor_kwargs,
        )
    except Exception as error:
        raise ValueError(
            f"The draft '{model}' cannot be read ({_first_sentence(error)}); "
            "give the directory or name of a model that vLLM loads."
        ) from error


def _is_folder(model: str) -> bool:
    try:
        return Path(model).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long; "~nobody"
        return False


def _only_pickles(folder: Path) -> bool:
    stored = {path.suffix for path in folder.iterdir()}
    return ".safetensors" not in stored and bool(stored & {".bin", ".pt", ".pth", ".pkl"})


def _first_sentence(error: Exception) -> str:
    """What went wrong, without the frame that validation libraries put around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("Value error, ")] or lines or [type(error).__name__]
    return said[0].removeprefix("Value error, ").split(" [type=")[0].rstrip(".")


def problems(target: ModelConfig, draft: ModelConfig, *, text_only_draft: bool, token_map: bool) -> list[str]:
    """What keeps this draft from drafting for this target, a sentence each; empty when they fit."""
    found = _mapping_problems(target, draft) if token_map else _tokenizer_problems(target, draft)
    if not target.is_multimodal_model:
        return found
    if not draft.is_multimodal_model:
        if not text_only_draft:
            found.append(
                f"The draft '{draft.model}' is a text model and cannot see pictures; give a draft VLM, or set "
                "'text_only_draft': true to let it draft blind."
            )
        return found
    if text_only_draft:
        found.append(f"The draft '{draft.model}' is a VLM; leave 'text_only_draft' out.")
    if draft.uses_mrope and not target.uses_mrope:
        found.append(
            f"The draft '{draft.model}' uses M-RoPE positions and the target '{target.model}' does not; "
            "give a draft of the target's family."
        )
    tower = getattr(draft.hf_config, "vision_config", None)
    if getattr(tower, "deepstack_visual_indexes", None) and picture_compressor.is_there(draft.model):
        found.append(
            f"The draft '{draft.model}' has a compressor, and its visual tokens also carry features for deeper layers, "
            "which compressors were not made for; give a draft without its folder 'compressor'."
        )
    return found or _picture_problems(target, draft, same_ids=not token_map)


def _tokenizer_problems(target: ModelConfig, draft: ModelConfig) -> list[str]:
    theirs, ours = cached_tokenizer_from_config(target), _own_tokenizer(draft)
    if ours is None:
        return [_no_tokenizer(draft)]
    target_vocabulary, draft_vocabulary = theirs.get_vocab(), ours.get_vocab()
    if target_vocabulary != draft_vocabulary:
        differing = {k for k, v in target_vocabulary.items() if draft_vocabulary.get(k) != v}
        differing |= draft_vocabulary.keys() - target_vocabulary.keys()
        return [
            f"The draft '{draft.model}' has another tokenizer than the target: {len(differing)} tokens differ, such as "
            f"{sorted(differing)[0]!r}; give a draft trained with the target's tokenizer, or set 'token_map': true."
        ]
    if not _split_alike(theirs, ours):
        return [
            f"The draft '{draft.model}' shares the target's vocabulary but splits text otherwise; "
            "give a draft trained with the target's tokenizer, or set 'token_map': true."
        ]
    return []


def _mapping_problems(target: ModelConfig, draft: ModelConfig) -> list[str]:
    theirs, ours = cached_tokenizer_from_config(target), _own_tokenizer(draft)
    if ours is None:
        return [_no_tokenizer(draft)]
    if theirs.get_vocab() == ours.get_vocab() and _split_alike(theirs, ours):
        return [f"The draft '{draft.model}' has the target's tokenizer; leave 'token_map' out."]
    try:
        shared = len(map_tokens(target, draft).drafted)
    except ValueError as error:
        return [
            f"The tokens of the draft '{draft.model}' and the target cannot be compared ({error}); "
            "give a draft trained with the target's tokenizer."
        ]
    if shared:
        return []
    return [f"The draft '{draft.model}' shares no token with the target; give one whose tokenizer is more like its."]


def map_tokens(target: ModelConfig, draft: ModelConfig) -> TokenMap:
    """Between the vocabularies of both.

    Raises:
        ValueError: see `TokenMap.between`.
    """
    sizes = target.get_vocab_size(), draft.get_vocab_size()
    return TokenMap.between(cached_tokenizer_from_config(target), _own_tokenizer(draft), *sizes)


def _split_alike(theirs: Any, ours: Any) -> bool:
    return bool(theirs.encode(_PROBE) == ours.encode(_PROBE))


def _no_tokenizer(draft: ModelConfig) -> str:
    return f"The draft '{draft.model}' has no tokenizer of its own to compare; add the target's tokenizer files."


def _own_tokenizer(draft: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(draft.model, trust_remote_code=draft.trust_remote_code)
    except Exception:
        return None


def _picture_problems(target: ModelConfig, draft: ModelConfig, *, same_ids: bool) -> list[str]:
    """Process one of each thing that may be sent with both: placeholders and pixels must come out the same.

    `same_ids`: and the prompt, token for token.
    """
    theirs, ours = (MULTIMODAL_REGISTRY.create_processor(config) for config in (target, draft))
    for modality, probe in (("image", _picture), ("video", _video)):
        name = "picture" if modality == "image" else modality
        if not theirs.info.allowed_mm_limits.get(modality):
            continue
        if modality not in ours.info.supported_mm_limits:
            return [
                f"The draft '{draft.model}' takes no {name}s and the target does; give a draft of the target's family, "
                f"or none with --limit-mm-per-prompt '{{\"{modality}\": 0}}'."
            ]
        with_both = _processed(theirs, modality, probe()), _processed(ours, modality, probe())
        found = _processing_problems(draft.model, name, *with_both, same_ids=same_ids)
        if found:
            return found
    return []


def _processing_problems(draft: str, name: str, theirs: Any, ours: Any, *, same_ids: bool) -> list[str]:
    other_ids = same_ids and ours["prompt_token_ids"] != theirs["prompt_token_ids"]
    if other_ids or _placeholders(ours) != _placeholders(theirs):
        return [
            f"The draft '{draft}' gives a {name} {_visual_tokens(ours)} visual tokens and the target "
            f"{_visual_tokens(theirs)} (or other ids); give a draft with the target's image processor and placeholders."
        ]
    (theirs_item,), (ours_item,) = (processed["mm_kwargs"].values() for processed in (theirs, ours))
    theirs_data, ours_data = theirs_item[0].get_data(), ours_item[0].get_data()
    for field in sorted(theirs_data.keys() | ours_data.keys()):
        if not same_ids and field.endswith("_token_id"):  # each calls its placeholders by ids of its own (InternVL)
            continue
        if not _same(theirs_data.get(field), ours_data.get(field)):
            return [
                f"The draft '{draft}' processes a {name} otherwise than the target ('{field}' differs); "
                "copy the target's processor configuration into the draft, if it was trained with it."
            ]
    return []


def _processed(processor: Any, modality: str, probe: Any) -> Any:
    text = processor.dummy_inputs.get_dummy_text({modality: 1})
    return processor(text, processor.info.parse_mm_data({modality: [probe]}))


def _picture() -> Image.Image:
    gradient = Image.linear_gradient("L").resize((84, 60))
    return Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT), gradient))


def _video() -> tuple[np.ndarray, dict[str, Any]]:
    """Frames uint8 [frames, height, width, 3], and what vLLM's loaders say of them."""
    frames = np.stack([np.asarray(_picture()) // (1 + at) for at in range(4)])
    said = {
        "fps": 2.0,
        "duration": 2.0,
        "total_num_frames": 4,
        "frames_indices": [0, 1, 2, 3],
        "do_sample_frames": False,
    }
    return frames, {**said, "video_backend": "opencv"}


def _placeholders(processed: Any) -> list[list[bool]]:
    """Of each item's range, which tokens are visual."""
    spans = [span for spans in processed["mm_placeholders"].values() for span in spans]
    return [[True] * s.length if s.is_embed is None else s.is_embed.tolist() for s in spans]


def _visual_tokens(processed: Any) -> int:
    return sum(span.length for spans in processed["mm_placeholders"].values() for span in spans)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)
