"""Draft and target, checked by name without starting an engine: what `specvlm doctor --target --draft` runs."""

from __future__ import annotations


def check(target: str, draft: str, *, text_only_draft: bool = False) -> list[str]:
    """Problems of a pair, a sentence each; empty when the draft can draft for the target."""
    from vllm.config import ModelConfig

    from vllm_specvlm.engine import pair

    try:
        target_config = ModelConfig(model=target)
        draft_config = pair.draft_model_config(draft, target_config)
    except ValueError as error:
        return [str(error).strip().splitlines()[0]]
    return pair.problems(target_config, draft_config, text_only_draft=text_only_draft)
