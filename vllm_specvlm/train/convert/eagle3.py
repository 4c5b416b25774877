"""The layout of EAGLE-3 heads (Li et al., arXiv 2503.01840; repository SafeAILab/EAGLE; SpecForge, AngelSlim).

config.json is a Llama's with one layer, and `draft_vocab_size` (or `truncated_vocab_size`). Tensors, H hidden, V
vocabulary, D draft vocabulary, M the layer's prefix, `midlayer.` or `layers.0.`:

    embed_tokens.weight                [V, H]    may be missing, then the target's
    fc.weight                          [H, 3H]   of the hidden states entering three layers of the target
    M input_layernorm.weight           [H]       of the embedding
    M hidden_norm.weight               [H]       of the state; the residual passes by it, unless `norm_before_residual`
    M self_attn.{q,k,v}_proj.weight    [., 2H]   of cat(normalised embedding, normalised state); biases if any
    M self_attn.o_proj.weight, M post_attention_layernorm.weight, M mlp.{gate,up,down}_proj.weight
    norm.weight                        [H]       before the output layer, not before the next step
    lm_head.weight                     [D, H]    may be missing if D = V, then the target's
    d2t                                [D]       token of row i is i + d2t[i]; t2d [V]: whether a token is among them

The layers are 2, L/2 and L - 3 of the target's L in the authors' code, which captures the states before those layers,
as vLLM's `get_eagle3_default_aux_hidden_state_layers` does. `eagle_aux_hidden_state_layer_ids` counts the same way
(vLLM passes it to `set_aux_hidden_state_layers` as it is); inside an `eagle_config` not always: see `_feature_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vllm_specvlm.train.convert import layer_config
from vllm_specvlm.train.convert.parts import Parts, Wishes
from vllm_specvlm.train.convert.source import Source, Tensors

LAYOUT = "EAGLE-3"
_DRAFT_VOCABULARY = ("draft_vocab_size", "truncated_vocab_size")
_KEYS = (
    "bias",
    "eagle_aux_hidden_state_layer_ids",
    "eagle_config",
    "norm_before_residual",
    "num_aux_hidden_states",
    "target_hidden_size",
    "target_model_type",
    *_DRAFT_VOCABULARY,
)


def recognises(source: Source) -> bool:
    """Whether the tensors are named as in EAGLE-3."""
    return any(f"{prefix}hidden_norm.weight" in source.tensors for prefix in ("midlayer.", "layers.0."))


def read(source: Source, wishes: Wishes) -> Parts:
    """Take the head apart. Raises ValueError, in one sentence, for anything that is not as described above."""
    config = source.config
    layer = layer_config.read(config, _KEYS, wishes.ignored)
    return read_parts(source, config, layer, wishes, bool(config.get("norm_before_residual", False)))


def read_parts(
    source: Source,
    config: Mapping[str, Any],
    layer: layer_config.LayerConfig,
    wishes: Wishes,
    norm_before_residual: bool,
) -> Parts:
    """The same, for a configuration that says these things elsewhere.

    Args:
        source: whose tensors are read.
        config: with the keys above that are not the layer's.
        layer: its sizes.
        wishes: of the user.
        norm_before_residual: whether the residual is the normalised state.
    """
    hidden = layer.hidden_size
    if config.get("target_hidden_size") not in (None, hidden):
        raise ValueError(
            f"'{source.name}' is {hidden} wide and its target {config['target_hidden_size']}; a feature head is as wide"
            " as its target, this one cannot be converted."
        )
    tensors = Tensors(source, LAYOUT)
    for name in ("verifier_norm.weight", "verifier_lm_head.weight"):  # the target's, kept for training
        tensors.raw(name)
    prefix = "midlayer." if "midlayer.hidden_norm.weight" in source.tensors else "layers.0."
    feature_layers = _feature_layers(source, config, wishes)
    state = {"reduce.weight": tensors.take("fc.weight", hidden, len(feature_layers) * hidden)}
    state["norm_embedding.weight"] = tensors.take(f"{prefix}input_layernorm.weight", hidden)
    state["norm_attention.weight"] = tensors.take(f"{prefix}hidden_norm.weight", hidden)
    state |= layer_config.layer_tensors(tensors, prefix, layer, width=2 * hidden)
    state["norm_output.weight"] = tensors.take("norm.weight", hidden)
    output, tokens = _output(source, config, tensors, layer)
    embedding = tensors.maybe("embed_tokens.weight", layer.vocabulary, hidden)
    tensors.finish()
    return Parts(
        layout=LAYOUT,
        layer=layer,
        network={
            "fusion": "wide",
            "feature_layers": feature_layers,
            "norm_before_residual": norm_before_residual,
            "attention_bias": "q_proj.bias" in state,
        },
        state=state,
        embedding=embedding,
        output=output,
        tokens=tokens,
        notes=layer.notes,
    )


def _feature_layers(source: Source, config: Mapping[str, Any], wishes: Wishes) -> tuple[int, ...]:
    """Which hidden states the head reads, as the layers of the target that they enter.

    Ids inside `eagle_config` are taken only if they are the default ones: some trainers write the layers that the
    states enter there, others those that they leave (SGLang pull request 25454 tells them apart by the first id), and
    vLLM's two model runners do not read the same key.
    """
    inner = config.get("eagle_config") or {}
    if inner.get("use_aux_hidden_state", True) is False:
        raise ValueError(f"'{source.name}' reads no middle layers of its target; such a head cannot be converted.")
    default = None
    if wishes.target is not None and wishes.target.id.layers is not None:
        layers = wishes.target.id.layers
        default = (2, layers // 2, layers - 3)
    nested = inner.get("eagle_aux_hidden_state_layer_ids") or inner.get("layer_ids")
    given = wishes.layers or config.get("eagle_aux_hidden_state_layer_ids") or None
    if given is None and nested:
        if tuple(nested) != default:
            after = " ".join(str(layer + 1) for layer in nested)
            raise ValueError(
                f"'{source.name}' names the layers {nested} inside eagle_config, where some trainers mean the states "
                f"that enter them and others those that leave them; say --layers {' '.join(map(str, nested))} or "
                f"--layers {after}."
            )
        given = nested
    if given is None and default is None:
        raise ValueError(
            f"'{source.name}' does not say which layers of its target it reads; give --target, for the usual ones of a "
            "target of that depth, or --layers."
        )
    found = tuple(int(layer) for layer in given or default or ())
    if list(found) != sorted(set(found)) or found[0] < 0:
        raise ValueError(f"The layers {list(found)} are not ascending numbers from 0 up; correct --layers.")
    if wishes.target is not None and wishes.target.id.layers is not None and found[-1] > wishes.target.id.layers:
        raise ValueError(
            f"The head reads the state that enters layer {found[-1]} of a target of {wishes.target.id.layers} layers; "
            "give the target that the head was made for."
        )
    return found


def _output(
    source: Source, config: Mapping[str, Any], tensors: Tensors, layer: layer_config.LayerConfig
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The output layer and its tokens; None twice if they are the target's."""
    rows = next((config[key] for key in _DRAFT_VOCABULARY if config.get(key)), layer.vocabulary)
    offsets, among = tensors.raw("d2t"), tensors.raw("t2d")
    if "lm_head.weight" not in source.tensors and rows == layer.vocabulary:
        return None, None
    output = tensors.take("lm_head.weight", rows, layer.hidden_size)
    tokens = torch.arange(rows)
    if offsets is not None:
        if offsets.shape != tokens.shape or offsets.is_floating_point():
            raise ValueError(
                f"The tensor 'd2t' of '{source.name}' is {offsets.dtype} of shape {tuple(offsets.shape)}, not {rows} "
                "whole numbers; download the head again."
            )
        tokens = tokens + offsets.long()
    elif rows != layer.vocabulary:
        raise ValueError(
            f"'{source.name}' drafts {rows} of {layer.vocabulary} tokens and lacks the tensor 'd2t' that says which; "
            "download the head again."
        )
    if tokens.min() < 0 or tokens.max() >= layer.vocabulary or tokens.unique().numel() != rows:
        raise ValueError(
            f"The tensor 'd2t' of '{source.name}' leads to tokens twice or outside the vocabulary of "
            f"{layer.vocabulary}; download the head again."
        )
    if among is not None:
        expected = torch.zeros(layer.vocabulary, dtype=torch.bool)
        expected[tokens] = True
        if not torch.equal(among.bool(), expected):
            raise ValueError(
                f"The tensors 'd2t' and 't2d' of '{source.name}' contradict each other; download it again."
            )
    return output, tokens
