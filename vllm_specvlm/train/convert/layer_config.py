"""The decoder layer of a public head, from its Llama-like configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vllm_specvlm.train.convert.source import Tensors

_READ = """
hidden_size num_attention_heads num_key_value_heads head_dim intermediate_size vocab_size rope_theta rope_scaling
rope_parameters max_position_embeddings rms_norm_eps
"""

_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "num_hidden_layers": (1,),
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, None),
    "logit_scale": (1, None),
    "quantization_config": (None,),
    "norm_before_fc": (False, None),
    "fc_norm": (False, None),
    "norm_output": (False, None),
}
"""By key: the values with which a layer computes what this project's does."""

# What training, tokenization and loading need, and the options of generation that old configurations are full of;
# whether there are biases is seen in the tensors.
_HARMLESS = """
_name_or_path name_or_path architectures attention_bias attention_dropout attn_implementation _attn_implementation
auto_map base_model_ep_plan base_model_pp_plan base_model_tp_plan bos_token_id chunk_size_feed_forward
cross_attention_hidden_size dtype embed_requires_grad eos_token_id hidden_dropout id2label initializer_range
is_decoder is_encoder_decoder label2id max_window_layers model_type output_attentions output_hidden_states
pad_token_id pretraining_tp problem_type qkv_bias resid_pdrop return_dict sep_token_id tie_word_embeddings
tokenizer_class torch_dtype transformers_version unk_token_id use_cache use_sliding_window has_no_defaults_at_init
bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
num_return_sequences output_scores prefix pruned_heads remove_invalid_values repetition_penalty
return_dict_in_generate suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
top_k top_p torchscript typical_p use_bfloat16
"""

_ROPES = ("default", "linear", "llama3", "yarn")
"""The rotary positions whose frequencies do not depend on the length of the text."""


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """Sizes and constants, named as in `HeadConfig`."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    """Rows of the embedding table."""
    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    rms_norm_eps: float
    notes: tuple[str, ...] = ()
    """Sentences for the user."""

    def network(self) -> dict[str, Any]:
        """As arguments of `HeadConfig`."""
        return {
            name: getattr(self, name)
            for name in (
                "hidden_size",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "intermediate_size",
                "rope_parameters",
                "max_position_embeddings",
                "rms_norm_eps",
            )
        }


def read(config: Mapping[str, Any], also_known: Collection[str], ignored: Collection[str]) -> LayerConfig:
    """Check and read the configuration of a head's only layer.

    Args:
        config: as in a Llama's `config.json`.
        also_known: keys that the layout itself understands.
        ignored: further keys that the user says do not matter.

    Raises:
        ValueError: a key is missing, unknown, or has a value with which the layer computes something else.
    """
    _refuse_what_differs(config, also_known, ignored)
    hidden = _whole(config, "hidden_size")
    heads = _whole(config, "num_attention_heads")
    rope, notes = _rope(config)
    return LayerConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=_whole(config, "num_key_value_heads", heads),
        head_dim=_whole(config, "head_dim", hidden // heads),
        intermediate_size=_whole(config, "intermediate_size"),
        vocabulary=_whole(config, "vocab_size"),
        rope_parameters=rope,
        max_position_embeddings=_whole(config, "max_position_embeddings", 2048),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        notes=notes,
    )


def _refuse_what_differs(config: Mapping[str, Any], also_known: Collection[str], ignored: Collection[str]) -> None:
    for key, allowed in _MUST_BE.items():
        if key in config and key not in ignored and config[key] not in allowed:
            raise ValueError(
                f"Its config.json has {key} = {config[key]!r}, and the layer of a feature head has {allowed[0]!r}; "
                "this head cannot be converted."
            )
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        raise ValueError(
            f"Its config.json has a sliding window of {config['sliding_window']} tokens, which a feature head has not; "
            "this head cannot be converted."
        )
    other = set(config.get("layer_types") or ()) - {"full_attention"}
    if other:
        raise ValueError(
            f"Its config.json has a layer of type {min(other)!r}, and a feature head's is 'full_attention'; this head "
            "cannot be converted."
        )
    known = (
        {*_READ.split(), *_HARMLESS.split(), *_MUST_BE}
        | {"layer_types", "sliding_window"}
        | set(also_known)
        | set(ignored)
    )
    for key in sorted(config.keys() - known):
        if config[key]:  # what is absent, off or empty changes nothing
            raise ValueError(
                f"Its config.json has the unknown key '{key}' ({str(config[key])[:60]}); if it does not change the "
                f"network, pass --ignore {key}."
            )


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Its config.json has {key} = {value!r}, not a whole number from 1 up; download it again.")
    return value


def _rope(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`rope_parameters` as transformers 5 writes them, from those or from `rope_theta` and `rope_scaling`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"Its config.json has rotary positions {given!r}, not an object; download it again.")
    rope = dict(given)
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    notes: tuple[str, ...] = ()
    if "mrope_section" in rope or kind == "mrope":
        rope = {key: value for key, value in rope.items() if not key.startswith("mrope_")}
        kind = "default" if kind == "mrope" else kind
        notes = (
            "Its positions count in three directions within pictures (M-RoPE); a feature head's count slots, which is "
            "the same until the first picture and a larger distance across one.",
        )
    if kind not in _ROPES:
        raise ValueError(
            f"Its rotary positions are of type {kind!r}, and a feature head's of {', '.join(_ROPES)}; this head cannot "
            "be converted."
        )
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    return {"rope_type": kind, "rope_theta": float(theta), **rope}, notes


def layer_tensors(tensors: Tensors, prefix: str, layer: LayerConfig, width: int) -> dict[str, torch.Tensor]:
    """Attention and feed-forward network under their names in a `FeatureHead`.

    Args:
        tensors: of the source.
        prefix: of the layer's names, with its dot.
        layer: its sizes.
        width: of what the attention's projections read.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    hidden, inner = layer.hidden_size, layer.intermediate_size
    queries, keys = layer.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
    shapes = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found = {
        f"{name.partition('.')[2]}.weight": tensors.take(f"{prefix}{name}.weight", *shape)
        for name, shape in shapes.items()
    }
    found["norm_mlp.weight"] = tensors.take(f"{prefix}post_attention_layernorm.weight", hidden)
    if (bias := tensors.maybe(f"{prefix}self_attn.q_proj.bias", queries)) is not None:
        found["q_proj.bias"] = bias
        for name in ("k_proj", "v_proj"):
            found[f"{name}.bias"] = tensors.take(f"{prefix}self_attn.{name}.bias", keys)
    return found
