"""Draft and target, checked before an engine starts; `specvlm doctor --target --draft` runs this by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_specvlm.draft.exit_config import is_exit
from vllm_specvlm.draft.head_config import is_head

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def problems(target: ModelConfig, draft: str, *, text_only_draft: bool, token_map: bool = False) -> list[str]:
    """What keeps a draft, a VLM, a feature head or an early exit, from drafting for this target; a sentence each.

    Raises:
        ValueError: there is no usable draft of that name.
    """
    from vllm_specvlm.engine import head_fit, pair

    if token_map and (is_head(draft) or is_exit(draft)):
        return [f"'{draft}' drafts in the target's own tokens; leave 'token_map' out."]
    if is_head(draft):
        return head_fit.head_problems(target, draft, text_only_draft=text_only_draft)
    if is_exit(draft):
        return head_fit.exit_problems(target, draft, text_only_draft=text_only_draft)
    config = pair.draft_model_config(draft, target, token_map=token_map)
    return pair.problems(target, config, text_only_draft=text_only_draft, token_map=token_map)


def check(target: str, draft: str, *, text_only_draft: bool = False, token_map: bool = False) -> list[str]:
    """Problems of a pair, a sentence each; empty when the draft can draft for the target."""
    from vllm.config import ModelConfig

    try:
        return problems(ModelConfig(model=target), draft, text_only_draft=text_only_draft, token_map=token_map)
    except ValueError as error:
        return [str(error).strip().splitlines()[0]]
