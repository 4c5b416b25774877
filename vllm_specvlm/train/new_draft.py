"""A draft VLM before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.recipe import DraftRecipe
from vllm_specvlm.train.small_vlm import SmallVLM, SmallVLMConfig
from vllm_specvlm.train.target import Target
from vllm_specvlm.zoo import resolve


def create(recipe: DraftRecipe, target: Target, lessons: Sequence[Lesson], seed: int, folder: Path) -> SmallVLM:
    """The network that the recipe starts from.

    Args:
        recipe: whose language model, and which of its layers.
        target: its own language model, or the tokens that another must have.
        lessons: their visual tokens give the scale of the map in front of another language model.
        seed: of the random weights.
        folder: the recipe's; what it names is relative to it.

    Raises:
        RecipeError: the language model does not load, has other tokens, or not those layers.
    """
    torch.manual_seed(seed)
    own = not recipe.start
    decoder, output, text = _own(target) if own else _other(recipe.start, target, folder)
    if target.config.model_type == "llava_next" and text["hidden_size"] != target.hidden_size:
        raise RecipeError(
            f"[draft] start: '{recipe.start}' is {text['hidden_size']} wide and the target {target.hidden_size}; a "
            "LLaVA-NeXT puts its tiles together behind its projector, so give one as wide, or cut the target's own."
        )
    try:
        layers = recipe.layers.of(text["num_hidden_layers"])
    except ValueError as error:
        raise RecipeError(f"[draft]: {error}") from error
    text["num_hidden_layers"] = len(layers)
    if text.get("layer_types"):
        text["layer_types"] = [text["layer_types"][layer] for layer in layers]
    text["tie_word_embeddings"] = output is None
    network = SmallVLM(
        SmallVLMConfig(
            text=text,
            target_hidden=target.hidden_size,
            projector_bias=getattr(target.config, "multimodal_projector_bias", True),
            train_tables=recipe.train_tables,
            tower_hidden=target.config.vision_config.hidden_size if target.shows_tower else 0,
            projector_act=getattr(target.config, "projector_hidden_act", "gelu"),
            compressor=recipe.compressor,
        )
    )
    _fill(network, decoder, output, layers)
    if not recipe.train_tables:
        for table in network.tables:
            table.data = table.data.to(target.model.dtype)
    with torch.no_grad():
        _place(network, lessons, own)
    return network.to(target.device)


def _own(target: Target) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Any]]:
    """Weights by their names in the decoder, the output layer unless it is the embeddings, and the configuration."""
    output = target.model.get_output_embeddings().weight
    tied = output.data_ptr() == target.model.get_input_embeddings().weight.data_ptr()
    text = target.text_config.to_dict()
    return target.model.get_decoder().state_dict(), None if tied else output, _named(text, target)


def _other(start: str, target: Target, folder: Path) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Any]]:
    """The same of a language model of its own, in the form in which the target's class reads it."""
    import transformers

    near = folder / Path(resolve(start)).expanduser()
    name = str(near) if near.is_dir() else start
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RecipeError(
            f"[draft] start: '{start}' does not load ({said.rstrip('.')}); give a language model with its tokenizer."
        ) from error
    theirs = target.processor.tokenizer.get_vocab()
    other = sorted(token for token, number in tokenizer.get_vocab().items() if theirs.get(token) != number)
    if other:
        raise RecipeError(
            f"[draft] start: '{start}' has {len(other)} tokens that are not the target's, such as {other[0]!r}; give a "
            "language model with the target's tokenizer, or cut the target's own with 'layers'."
        )
    text = model.config.to_dict() | {"vocab_size": target.text_config.vocab_size}
    if target.text_config.model_type.startswith("qwen"):
        text = _with_axes(text, target)
    output = model.get_output_embeddings().weight
    tied = output.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    weights = model.get_decoder().state_dict()
    if "embed_tokens.weight" not in weights:
        raise RecipeError(
            f"[draft] start: '{start}' is of type {model.config.model_type}, whose embeddings are not called "
            "embed_tokens; give a language model built like a Llama or a Qwen2, or cut the target's own with 'layers'."
        )
    size = target.text_config.vocab_size
    weights["embed_tokens.weight"] = _fitted(weights["embed_tokens.weight"], size)
    return weights, None if tied else _fitted(output, size), _named(text, target)


def _named(text: dict[str, Any], target: Target) -> dict[str, Any]:
    """With the ids that texts begin and end with, as the target has them."""
    ends = {name: getattr(target.text_config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kept = {name: value for name, value in text.items() if name not in ("_name_or_path", "transformers_version")}
    return kept | ends


def _with_axes(text: dict[str, Any], target: Target) -> dict[str, Any]:
    """A Qwen2's configuration as that of a Qwen-VL's language model: rotary pairs shared among three axes."""
    if text["model_type"] not in ("qwen2", target.text_config.model_type):
        raise RecipeError(
            f"[draft] start: a draft for a target of type {target.config.model_type} is made of a Qwen2, not of a "
            f"{text['model_type']}; give one, or cut the target's own with 'layers'."
        )
    pairs = text["hidden_size"] // text["num_attention_heads"] // 2
    third = pairs * 3 // 8
    theta = (text.get("rope_parameters") or {}).get("rope_theta", 1e6)
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    return {
        **target.text_config.to_dict(),
        **{name: text[name] for name in kept},
        "layer_types": ["full_attention"] * text["num_hidden_layers"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": [pairs - 2 * third, third, third],
        },
    }


def _fitted(table: Tensor, size: int) -> Tensor:
    """[size, H] of [V, H]: rows that are missing are the mean of the others, which stands out for nothing."""
    missing = size - len(table)
    return table[:size] if missing <= 0 else torch.cat([table, table.mean(0, keepdim=True).expand(missing, -1)])


def _fill(network: SmallVLM, decoder: dict[str, Tensor], output: Tensor | None, layers: list[int]) -> None:
    """Copy a decoder's weights, of some of its layers only."""
    place = {str(layer): str(at) for at, layer in enumerate(layers)}
    kept = {}
    for name, value in decoder.items():
        parts = name.split(".")
        if parts[0] == "layers":
            if parts[1] not in place:
                continue
            parts[1] = place[parts[1]]
        kept[".".join(parts)] = value.detach().float().cpu()
    network.language.load_state_dict(kept)
    if output is not None:
        network.lm_head.weight.data.copy_(output.detach().float().cpu())


def _place(network: SmallVLM, lessons: Sequence[Lesson], own: bool) -> None:
    """Let the map pass the target's visual tokens on, or give another language model some of its embeddings' scale."""
    projector: Any = network.projector
    last = projector[-1] if network.config.tower_hidden else projector
    if last.bias is not None:
        last.bias.zero_()
    if own:
        torch.nn.init.eye_(last.weight)
        return
    pictures = [tokens for lesson in lessons for tokens in lesson.visual]
    visual = (
        torch.cat(pictures).float()
        if pictures
        else torch.ones(1, network.config.tower_hidden or network.config.target_hidden)
    )
    read = projector[:-1](visual) if network.config.tower_hidden else visual
    size = read.square().mean().sqrt().item()
    scale = network.tables[0].float().std().item()
    torch.nn.init.normal_(last.weight, std=scale / max(size, 1e-6) / last.in_features**0.5)
