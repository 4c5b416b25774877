"""The layout of ViSpec heads (Kang et al., arXiv 2509.15235; repository KangJialiang/ViSpec, cnets_ours.py).

EAGLE-1's tensors (see eagle1.py), and of the picture:

    imadpt.q [queries, heads, head_dim], imadpt.{k,v,o}_proj.weight   learned queries over a picture's tokens
    img_fc.weight [H, 2H], img_fc.bias                                of cat(state, image vector)

At text, img_fc(cat(state, vector of the last picture)) takes the place of the state in `fc`, where a feature head has
nothing. Without pictures the vector is zero, and img_fc's first half is a linear map that `fc` can absorb: this much is
converted exactly, if the user asks for the text part alone.
"""

from __future__ import annotations

import dataclasses

import torch

from vllm_specvlm.train.convert import eagle1, layer_config
from vllm_specvlm.train.convert.parts import Parts, Wishes
from vllm_specvlm.train.convert.source import Source, Tensors

LAYOUT = "ViSpec"
_PICTURE = ("imadpt.q", "imadpt.k_proj.weight", "imadpt.v_proj.weight", "imadpt.o_proj.weight")
_PICTURE_BIASES = ("imadpt.k_proj.bias", "imadpt.v_proj.bias")


def recognises(source: Source) -> bool:
    """Whether there is ViSpec's image adaptor."""
    return "imadpt.q" in source.tensors


def read(source: Source, wishes: Wishes) -> Parts:
    """Take the text part of the head apart. Raises ValueError, in one sentence, if it is not as described above."""
    if not wishes.text_only:
        raise ValueError(
            f"'{source.name}' is a ViSpec head (it has the tensor 'imadpt.q'), whose image vector a feature head has "
            "not; pass --text-only to convert what it does without pictures, or train a head."
        )
    layer = layer_config.read(source.config, ("bias", "qkv_bias"), wishes.ignored)
    hidden = layer.hidden_size
    tensors = Tensors(source, LAYOUT)
    for name in (*_PICTURE, *_PICTURE_BIASES):
        if tensors.raw(name) is None and name in _PICTURE:
            raise ValueError(f"The {LAYOUT} head '{source.name}' lacks the tensor '{name}'; download it again.")
    image = tensors.take("img_fc.weight", hidden, 2 * hidden)
    image_bias = tensors.maybe("img_fc.bias", hidden)
    parts = eagle1.read_tensors(tensors, layer, fusion="fc", prefix="layers.0.", layout=LAYOUT)
    tensors.finish()
    state = _absorb(parts.state, image[:, :hidden], image_bias)
    note = "Its image adaptor is left out: drafts after a picture are those of a head that does not see it."
    network = parts.network | {"fusion_bias": "fuse.bias" in state}
    return dataclasses.replace(parts, state=state, network=network, notes=(*parts.notes, note))


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
