"""The layout of EAGLE-1 and EAGLE-2 heads (Li et al., arXiv 2401.15077 and 2406.16858; repository SafeAILab/EAGLE).

config.json is a Llama's with one layer, and `bias`, `qkv_bias`. Tensors, H hidden, V vocabulary:

    embed_tokens.weight                         [V, H]   the target's, usually
    fc.weight, fc.bias (if `bias`)              [H, 2H]  of cat(embedding of token p + 1, feature of slot p)
    layers.0.self_attn.{q,k,v}_proj.weight, .bias (if `qkv_bias`), o_proj.weight
    layers.0.mlp.{gate,up,down}_proj.weight
    layers.0.post_attention_layernorm.weight    [H]

The layer's input is not normalised, nor is what leaves it: the feature behind the target's final norm is what the head
imitates, and the target's own output layer reads it. vLLM's loader (llama_eagle.py) also takes an `lm_head.weight`.
"""

from __future__ import annotations

import torch

from vllm_specvlm.train.convert import layer_config
from vllm_specvlm.train.convert.parts import Parts, Wishes
from vllm_specvlm.train.convert.source import Source, Tensors

LAYOUT = "EAGLE-1"


def recognises(source: Source) -> bool:
    """Whether the tensors are named as in EAGLE-1."""
    return "fc.weight" in source.tensors and "layers.0.self_attn.q_proj.weight" in source.tensors


def read(source: Source, wishes: Wishes) -> Parts:
    """Take the head apart. Raises ValueError, in one sentence, for anything that is not as described above."""
    layer = layer_config.read(source.config, ("bias", "qkv_bias"), wishes.ignored)
    tensors = Tensors(source, LAYOUT)
    parts = read_tensors(tensors, layer, fusion="fc", prefix="layers.0.", layout=LAYOUT)
    tensors.finish()
    check_bias(source, "bias", "fc.bias", "fuse.bias" in parts.state)
    check_bias(source, "qkv_bias", "layers.0.self_attn.q_proj.bias", "q_proj.bias" in parts.state)
    return parts


def read_tensors(tensors: Tensors, layer: layer_config.LayerConfig, fusion: str, prefix: str, layout: str) -> Parts:
    """The same network under other names: `fusion` the joining layer's, `prefix` the decoder layer's with its dot."""
    hidden = layer.hidden_size
    state = {"fuse.weight": tensors.take(f"{fusion}.weight", hidden, 2 * hidden)}
    if (bias := tensors.maybe(f"{fusion}.bias", hidden)) is not None:
        state["fuse.bias"] = bias
    state |= layer_config.layer_tensors(tensors, prefix, layer, width=hidden)
    output = tensors.maybe("lm_head.weight", layer.vocabulary, hidden)
    return Parts(
        layout=layout,
        layer=layer,
        network={
            "fusion": "linear",
            "input_norm": False,
            "layer_norm": False,
            "output_norm": False,
            "fusion_bias": "fuse.bias" in state,
            "attention_bias": "q_proj.bias" in state,
        },
        state=state,
        embedding=tensors.maybe("embed_tokens.weight", layer.vocabulary, hidden),
        output=output,
        tokens=None if output is None else torch.arange(layer.vocabulary),
        notes=layer.notes,
    )


def check_bias(source: Source, key: str, tensor: str, found: bool) -> None:
    """Raise ValueError if config.json has `key` and it contradicts whether `tensor` was found."""
    if key in source.config and bool(source.config[key]) != found:
        raise ValueError(
            f"The config.json of '{source.name}' has {key} = {source.config[key]!r}, but there is "
            f"{'a' if found else 'no'} tensor '{tensor}'; download both again."
        )
