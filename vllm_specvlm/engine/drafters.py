"""The drafters there are, and which of them an engine's options ask for."""

from __future__ import annotations

from vllm.config import VllmConfig

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.draft.exit_config import is_exit
from vllm_specvlm.draft.head_config import is_head
from vllm_specvlm.draft.lookup import LookupDrafter
from vllm_specvlm.engine.draft_vlm import DraftVLM
from vllm_specvlm.engine.exit_drafter import ExitDrafter
from vllm_specvlm.engine.feature_drafter import FeatureDrafter
from vllm_specvlm.engine.mixed_drafter import MixedDrafter
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.tally import Tally


def drafter_for(
    vllm_config: VllmConfig, options: SpecVLMOptions, tally: Tally
) -> DraftVLM | ExitDrafter | FeatureDrafter | LookupDrafter:
    """The drafter that `options.model` names, not loaded yet; the lookup drafter without one."""
    if options.model is None:
        return _lookup(vllm_config, options)
    if is_head(options.model):
        return FeatureDrafter(vllm_config, options, tally)
    if is_exit(options.model):
        return ExitDrafter(vllm_config, options, tally)
    return DraftVLM(vllm_config, options, tally)


def with_lookup(drafter: Drafter, vllm_config: VllmConfig, options: SpecVLMOptions) -> Drafter:
    """The drafter, with lookup's continuations in its trees if the options want that."""
    return MixedDrafter(drafter, _lookup(vllm_config, options)) if options.with_lookup else drafter


def _lookup(vllm_config: VllmConfig, options: SpecVLMOptions) -> LookupDrafter:
    return LookupDrafter(
        min_match=options.lookup_min_match,
        max_match=options.lookup_max_match,
        shared_tokens=options.lookup_shared_tokens,
        barrier_tokens=_placeholder_ids(vllm_config),
        vocabulary=vllm_config.model_config.get_vocab_size(),
    )


def _placeholder_ids(vllm_config: VllmConfig) -> set[int]:
    """Token ids that stand for pictures and videos: a long run of them is no text to draw on."""
    config = vllm_config.model_config.hf_config
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return {token for name in names if isinstance(token := getattr(config, name, None), int)}
