"""Does a feature head fit a target: the model it was made for, and whether it can see pictures."""

from __future__ import annotations

from vllm.config import ModelConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from vllm_specvlm.draft import head_config, target_id


def problems(target: ModelConfig, folder: str, *, text_only_draft: bool) -> list[str]:
    """What keeps the head in `folder` from drafting for this target, a sentence each; empty when it fits.

    The target's weights are compared once they are loaded (`engine.feature_network`).
    """
    try:
        head, wanted = head_config.read_config(folder)
    except ValueError as error:
        return [str(error)]
    difference = wanted.differs(target_id.of_config(target.model, target.hf_config.to_dict(), None))
    if difference is not None:
        return [
            f"The feature head '{folder}' was made for '{wanted.name}' and the target is '{target.model}': "
            f"{difference}; give a head of this target."
        ]
    beyond = [layer for layer in head.feature_layers if wanted.layers is not None and layer >= wanted.layers]
    if beyond:
        return [f"The feature head '{folder}' reads layer {beyond[0]}, and its target has {wanted.layers}; restore it."]
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head.head_dim not in sizes:
        return [f"The feature head '{folder}' has heads of {head.head_dim}; vLLM's CPU attention takes {sizes}."]
    sees = head.compressor.kind != "text"
    if target.is_multimodal_model and not sees and not text_only_draft:
        return [
            f"The feature head '{folder}' drops all visual tokens; give one with a compressor that keeps some, or set "
            "'text_only_draft': true to let it draft blind."
        ]
    if sees and text_only_draft:
        return [f"The feature head '{folder}' sees pictures; leave 'text_only_draft' out."]
    return []
