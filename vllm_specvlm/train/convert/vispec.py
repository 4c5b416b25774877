"""The layout of ViSpec heads (Kang et al., arXiv 2509.15235; repository KangJialiang/ViSpec, cnets_ours.py).

EAGLE-1's tensors (see eagle1.py), and of the picture:

    imadpt.q [queries, heads, head_dim], imadpt.{k,v,o}_proj.weight   learned queries over a picture's visual tokens
    imadpt.{k,v}_proj.bias                                            if `qkv_bias`
    img_fc.weight [H, 2H], img_fc.bias                                of cat(state, image vector)

A slot whose next token is a picture's belongs to the picture: the answers to all queries but the last enter the layer
in the last of the picture's slots, as they are, and its other slots do not exist. At text, img_fc(cat(state, vector))
takes the place of the state in `fc`, the vector being the last query's answer for the last picture before, zero before
the first. Positions are the slots' numbers, also where slots are missing.

All of that is linear but the attention, so it becomes an EAGLE-1 head with a compressor `adaptor`: with `fc` = [E, S]
and `img_fc` = [A, V], b, the matrix S A reads the state, S V the vector, and S b joins the bias. A bias of the keys
adds the same to all scores of a query and falls out of the softmax; one of the values adds o_proj times it to every
answer.
"""

from __future__ import annotations

import dataclasses

import torch

from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.train.convert import eagle1, layer_config
from vllm_specvlm.train.convert.parts import Parts, Wishes
from vllm_specvlm.train.convert.source import Source, Tensors

LAYOUT = "ViSpec"


def recognises(source: Source) -> bool:
    """Whether there is ViSpec's image adaptor."""
    return "imadpt.q" in source.tensors


def read(source: Source, wishes: Wishes) -> Parts:
    """Take the head apart. Raises ValueError, in one sentence, if it is not as described above."""
    layer = layer_config.read(source.config, ("bias", "qkv_bias"), wishes.ignored)
    hidden = layer.hidden_size
    tensors = Tensors(source, LAYOUT)
    compressor, adaptor = _adaptor(source, tensors, hidden)
    image = tensors.take("img_fc.weight", hidden, 2 * hidden)
    image_bias = tensors.maybe("img_fc.bias", hidden)
    parts = eagle1.read_tensors(tensors, layer, fusion="fc", prefix="layers.0.", layout=LAYOUT)
    tensors.finish()
    of_state, of_vector = image.split(hidden, dim=1)
    state = _absorb(parts.state, of_state, image_bias)
    network = parts.network | {"fusion_bias": "fuse.bias" in state}
    if wishes.text_only:
        note = "Its image adaptor is left out: drafts after a picture are those of a head that does not see it."
        return dataclasses.replace(parts, state=state, network=network, notes=(*parts.notes, note))
    fuse = parts.state["fuse.weight"]
    adaptor["compressor.vector.weight"] = (fuse[:, hidden:].double() @ of_vector.double()).to(fuse.dtype)
    adaptor["visual.weight"] = torch.eye(hidden, dtype=fuse.dtype)
    return dataclasses.replace(parts, state=state | adaptor, network=network, compressor=compressor)


def _adaptor(source: Source, tensors: Tensors, hidden: int) -> tuple[CompressorConfig, dict[str, torch.Tensor]]:
    """The image adaptor as a compressor and its tensors, named as in `FeatureHead`, but for the vector's matrix."""
    shape = tuple(source.tensors["imadpt.q"].shape)
    if len(shape) != 3 or shape[0] < 2 or shape[1] * shape[2] != hidden:
        raise ValueError(
            f"The tensor 'imadpt.q' of '{source.name}' has shape {shape}; a {LAYOUT} head {hidden} wide has two or "
            f"more queries whose heads are {hidden} wide together: download it again, or pass another head."
        )
    queries = tensors.take("imadpt.q", *shape).flatten(1)
    key, value, out = (tensors.take(f"imadpt.{name}_proj.weight", hidden, hidden) for name in "kvo")
    tensors.maybe("imadpt.k_proj.bias", hidden)
    bias = tensors.maybe("imadpt.v_proj.bias", hidden)
    added = torch.zeros_like(out[:, 0]) if bias is None else (out.double() @ bias.double()).to(out.dtype)
    prefix = "compressor.attention"
    return CompressorConfig("adaptor", queries=shape[0], heads=shape[1]), {
        f"{prefix}.queries": queries,
        f"{prefix}.key.weight": key,
        f"{prefix}.value.weight": value,
        f"{prefix}.out.weight": out,
        f"{prefix}.out.bias": added,
    }


def _absorb(state: dict[str, torch.Tensor], image: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """fc(cat(e, A h + b)) as one fc(cat(e, h)); multiplied in float64, stored in fc's dtype."""
    dtype, hidden = state["fuse.weight"].dtype, image.shape[0]
    of_embedding, of_state = state["fuse.weight"].double().split(hidden, dim=1)
    joined = {"fuse.weight": torch.cat((of_embedding, of_state @ image.double()), dim=1).to(dtype)}
    if bias is not None or "fuse.bias" in state:
        total = torch.zeros(hidden, dtype=torch.float64)
        if "fuse.bias" in state:
            total += state["fuse.bias"].double()
        if bias is not None:
            total += of_state @ bias.double()
        joined["fuse.bias"] = total.to(dtype)
    return state | joined
