"""vLLM's budgets of thoughts at every row of a tree: what plain decoding would force there, after the row's path.

vLLM follows an answer token by token, and forces the end of its thoughts once the budget is spent. Here its own
bookkeeping follows each answer, and from there each node's path. (Its way with speculation counts drafts as a list.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.config import ReasoningConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

Thoughts = dict[str, Any]
"""vLLM's state of one request."""


class ThinkingBudgets:
    """Of the requests that have one."""

    def __init__(self, config: ReasoningConfig, device: torch.device) -> None:
        """`config` says how thoughts begin and end."""
        self._config = config
        self._device = device
        self._follower = ThinkingBudgetStateHolder(config, 1, 0, device, False)
        self._known: dict[str, tuple[int, Thoughts]] = {}

    def forget(self, request_id: str) -> None:
        """The request is over, or another one of this name starts."""
        self._known.pop(request_id, None)

    def along(
        self,
        request_id: str,
        params: SamplingParams,
        prompt: Sequence[int] | None,
        paths: Sequence[Sequence[int]],
        parents: Sequence[int],
    ) -> list[Thoughts]:
        """The states behind each of `paths`.

        Args:
            request_id: whose.
            params: with a budget.
            prompt: its token ids.
            paths: the answer so far, then for each node the answer with the node's path.
            parents: of each node, -1 for the root's.
        """
        length, state = self._known.get(request_id) or (-1, self._beginning(params, prompt))
        for upto in range(length + 1, len(paths[0]) + 1):
            state = self._told(state, paths[0][:upto])
        self._known[request_id] = len(paths[0]), state
        states = [state]
        for parent, path in zip(parents, paths[1:], strict=True):
            states.append(self._told(states[parent + 1], path))
        return states

    def holder(self, states: Mapping[int, Thoughts]) -> ThinkingBudgetStateHolder:
        """What vLLM's sampler applies to rows of logits, by the states of some of them."""
        return _Followed(self._config, states, self._device)

    def _beginning(self, params: SamplingParams, prompt: Sequence[int] | None) -> Thoughts:
        asked: Any = (0, params, None if prompt is None else list(prompt), [])
        self._follower.sync_batch(BatchUpdate(batch_size=1, removed=(), added=[asked], moved=()))
        return self._follower._state[0]

    def _told(self, state: Thoughts, answer: Sequence[int]) -> Thoughts:
        """A new state, behind one token more than `state`.

        Marks that ended before this token are known. vLLM would look for them in the whole answer again.
        """
        mark = max(len(self._follower.think_start_token_ids), len(self._follower.think_end_token_ids))
        offset = max(state["scan_offset"], len(answer) - mark)
        self._follower._state = {0: {**state, "scan_offset": offset}}
        self._follower.update_state([list(answer)], None)
        return self._follower._state[0]


class _Followed(ThinkingBudgetStateHolder):
    """Rows whose states are known."""

    def __init__(self, config: ReasoningConfig, states: Mapping[int, Thoughts], device: torch.device) -> None:
        super().__init__(config, max(states) + 1, 0, device, False)
        self._state = {row: dict(state) for row, state in states.items()}

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """They have been told."""
