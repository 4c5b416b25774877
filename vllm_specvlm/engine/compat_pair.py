"""Draft and target, checked before an engine starts; `specvlm doctor --target --draft` runs this by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_specvlm.draft.exit_config import is_exit
from vllm_specvlm.draft.head_config import is_head

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def problems(target: ModelConfig, draft: str, *, text_only_draft: bool) -> list[str]:
    """What keeps a draft, a VLM, a feature head or an early exit, from drafting for this target; a sentence each.

    Raises:
        ValueError: there is no usable draft of that name.
    """
    from vllm_specvlm.engine import head_fit, pair

    if is_head(draft):
        return head_fit.head_problems(target, draft, text_only_draft=text_only_draft)
    if is_exit(draft):
        return head_fit.exit_problems(target, draft, text_only_draft=text_only_draft)
    return pair.problems(target, pair.draft_model_config(draft, target), text_only_draft=text_only_draft)


def check(target: str, draft: str, *, text_only_draft: bool = False) -> list[str]:
    """Problems of a pair, a sentence each; empty when the draft can draft for the target."""
    from vllm.config import ModelConfig

    try:
        return problems(ModelConfig(model=target), draft, text_only_draft=text_only_draft)
    except ValueError as error:
        return [str(error).strip().splitlines()[0]]
