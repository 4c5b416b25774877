"""Do a draft and a target fit together: tokenizer, vocabulary, image processing, placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.tokenizers import cached_tokenizer_from_config

_PROBE = "The sign reads: 3.14 naïve façades?\n\t<b>Über</b> 雪が降る 🙂 def f(x): return x**2"


def draft_model_config(model: str, target: ModelConfig) -> ModelConfig:
    """The draft's configuration: its own architecture, everything else as the target's.

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
            tokenizer=target.tokenizer,
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


def problems(target: ModelConfig, draft: ModelConfig, *, text_only_draft: bool) -> list[str]:
    """What keeps this draft from drafting for this target, a sentence each; empty when they fit."""
    found = _tokenizer_problems(target, draft)
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
    pictures = target.multimodal_config
    if not found and pictures is not None and pictures.get_limit_per_prompt("image") > 0:
        found += _picture_problems(target, draft)
    return found


def _tokenizer_problems(target: ModelConfig, draft: ModelConfig) -> list[str]:
    theirs, ours = cached_tokenizer_from_config(target), _own_tokenizer(draft)
    if ours is None:
        return [f"The draft '{draft.model}' has no tokenizer of its own to compare; add the target's tokenizer files."]
    target_vocabulary, draft_vocabulary = theirs.get_vocab(), ours.get_vocab()
    if target_vocabulary != draft_vocabulary:
        differing = {k for k, v in target_vocabulary.items() if draft_vocabulary.get(k) != v}
        differing |= draft_vocabulary.keys() - target_vocabulary.keys()
        return [
            f"The draft '{draft.model}' has another tokenizer than the target: {len(differing)} tokens differ, such as "
            f"{sorted(differing)[0]!r}; give a draft trained with the target's tokenizer."
        ]
    if theirs.encode(_PROBE) != ours.encode(_PROBE):
        return [
            f"The draft '{draft.model}' shares the target's vocabulary but splits text otherwise; "
            "give a draft trained with the target's tokenizer."
        ]
    return []


def _own_tokenizer(draft: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(draft.model, trust_remote_code=draft.trust_remote_code)
    except Exception:
        return None


def _picture_problems(target: ModelConfig, draft: ModelConfig) -> list[str]:
    """Process one picture with both: prompt, placeholder ranges and pixels must come out the same."""
    ours, theirs = _processed(draft), _processed(target)
    if ours["prompt_token_ids"] != theirs["prompt_token_ids"]:
        return [
            f"The draft '{draft.model}' gives a picture {_visual_tokens(ours)} visual tokens and the target "
            f"{_visual_tokens(theirs)} (or other ids); give a draft with the target's image processor and placeholders."
        ]
    for theirs_item, ours_item in zip(theirs["mm_kwargs"]["image"], ours["mm_kwargs"]["image"], strict=True):
        theirs_data, ours_data = theirs_item.get_data(), ours_item.get_data()
        for name in sorted(theirs_data.keys() | ours_data.keys()):
            if not _same(theirs_data.get(name), ours_data.get(name)):
                return [
                    f"The draft '{draft.model}' processes a picture otherwise than the target ('{name}' differs); "
                    "copy the target's image processor configuration into the draft, if it was trained with it."
                ]
    return []


def _processed(config: ModelConfig) -> Any:
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    gradient = Image.linear_gradient("L").resize((84, 60))
    picture = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT), gradient))
    text = processor.dummy_inputs.get_dummy_text({"image": 1})
    return processor(text, processor.info.parse_mm_data({"image": [picture]}))


def _visual_tokens(processed: Any) -> int:
    return sum(span.length for span in processed["mm_placeholders"]["image"])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)
