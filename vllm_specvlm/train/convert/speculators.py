"""The layout of the speculators library (vllm-project/speculators), for its EAGLE-1 and EAGLE-3 heads.

config.json has `speculators_model_type`, the layer's configuration in `transformer_layer_config`, and the target's name
in `speculators_config.verifier.name_or_path`.

`eagle3`: tensors as in EAGLE-3 with `layers.0.` (see eagle3.py); `norm_before_residual` may be true; the ids in
`eagle_aux_hidden_state_layer_ids` are of the layers that the states enter. vLLM reads it the same way
(transformers_utils/configs/speculators/algos.py, model_executor/models/llama_eagle3.py).

`eagle`: tensors as in EAGLE-1 with `fusion_fc` for `fc` and `transformer.` for `layers.0.`; `fusion_bias`. Its variant
with `layernorms` has norms at other places than a feature head, and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm_specvlm.train.convert import eagle1, eagle3, layer_config
from vllm_specvlm.train.convert.parts import Parts, Wishes
from vllm_specvlm.train.convert.source import Source, Tensors

# Of the outer configuration, of every kind of head.
_KEYS = """
speculators_model_type speculators_config speculators_version transformer_layer_config architectures auto_map dtype
torch_dtype transformers_version model_type tie_word_embeddings embed_requires_grad base_model_ep_plan
has_no_defaults_at_init enable_sp_ulysses _name_or_path
"""


def recognises(source: Source) -> bool:
    """Whether config.json was written by the library."""
    return "speculators_model_type" in source.config


def read(source: Source, wishes: Wishes) -> Parts:
    """Take the head apart. Raises ValueError, in one sentence, for anything that is not as described above."""
    kind = source.config["speculators_model_type"]
    inner = source.config.get("transformer_layer_config")
    if kind not in ("eagle", "eagle3") or not isinstance(inner, dict):
        raise ValueError(
            f"'{source.name}' is a head of the speculators library of kind {kind!r}; only 'eagle' and 'eagle3' with a "
            "'transformer_layer_config' can be converted."
        )
    if inner.get("model_type", "llama") not in ("llama", "qwen3"):
        raise ValueError(
            f"The layer of '{source.name}' is of type {inner['model_type']!r}; only 'llama' and 'qwen3' can be "
            "converted."
        )
    parts = _eagle1(source, inner, wishes) if kind == "eagle" else _eagle3(source, inner, wishes)
    found = source.config.get("speculators_config") or {}
    name = (found.get("verifier") or {}).get("name_or_path")
    return dataclasses.replace(parts, layout=f"speculators {parts.layout}", target_name=name)


def _eagle1(source: Source, inner: Mapping[str, Any], wishes: Wishes) -> Parts:
    own = {"layernorms", "fusion_bias", "transformer_layer_architecture"}
    _refuse_unknown(source, own, wishes)
    if source.config.get("layernorms"):
        raise ValueError(
            f"'{source.name}' normalises embeddings and outputs at places where a feature head does not (layernorms);"
            " it cannot be converted."
        )
    architecture = source.config.get("transformer_layer_architecture", "LlamaDecoderLayer")
    if architecture != "LlamaDecoderLayer":
        raise ValueError(
            f"The layer of '{source.name}' is a {architecture}; only a LlamaDecoderLayer can be converted."
        )
    layer = layer_config.read(inner, (), wishes.ignored)
    tensors = Tensors(source, eagle1.LAYOUT)
    parts = eagle1.read_tensors(tensors, layer, fusion="fusion_fc", prefix="transformer.", layout=eagle1.LAYOUT)
    tensors.finish()
    eagle1.check_bias(source, "fusion_bias", "fusion_fc.bias", "fuse.bias" in parts.state)
    return parts


def _eagle3(source: Source, inner: Mapping[str, Any], wishes: Wishes) -> Parts:
    config = source.config
    own = {"draft_vocab_size", "target_hidden_size", "norm_before_residual", "eagle_aux_hidden_state_layer_ids"}
    own |= {"norm_before_fc", "fc_norm", "norm_output"}
    _refuse_unknown(source, own, wishes)
    for key in ("norm_before_fc", "fc_norm", "norm_output"):
        if config.get(key):
            raise ValueError(f"'{source.name}' has {key}, a norm that a feature head has not; it cannot be converted.")
    if not isinstance(config.get("norm_before_residual"), bool):
        raise ValueError(
            f"The config.json of '{source.name}' does not say norm_before_residual, which vLLM takes for true and the "
            "speculators library for false; write into it what the head was trained with."
        )
    layer = layer_config.read(inner, (), wishes.ignored)
    return eagle3.read_parts(source, config, layer, wishes, config["norm_before_residual"])


def _refuse_unknown(source: Source, own: set[str], wishes: Wishes) -> None:
    for key in sorted(source.config.keys() - set(_KEYS.split()) - own - wishes.ignored):
        if source.config[key]:
            raise ValueError(
                f"The config.json of '{source.name}' has the unknown key '{key}' ({str(source.config[key])[:60]}); if "
                f"it does not change the network, pass --ignore {key}."
            )
