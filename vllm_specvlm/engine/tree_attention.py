"""Ways to attend the rows of trees on a GPU: our kernel, and what stands in for it where it cannot run."""

from __future__ import annotations

from typing import Protocol

from vllm_specvlm import ops
from vllm_specvlm.engine.attention_call import AttentionCall


class TreeAttention(Protocol):
    """One way."""

    name: str
    """For people to read."""

    def attend(self, call: AttentionCall) -> None:
        """Writes the listed rows of the call's `out`."""
        ...


class KernelAttention:
    """Our operator."""

    name = "tree attention kernel"

    def attend(self, call: AttentionCall) -> None:
        """As described there."""
        call.through(ops.tree_attention, "rows")
