"""Notes what every step did for every request, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from vllm_specvlm.engine.recording_drafter import RecordingDrafter
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.timeline.sight import Sight
from vllm_specvlm.timeline.step import EMPTY, FIXED, NONE, PROMPT, Step
from vllm_specvlm.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class _Spent:
    """Counters since the start of the record: seconds, and levels grown."""

    draft: float = 0.0
    draft_model: float = 0.0
    verify: float = 0.0
    unseen: float = 0.0
    """Spent on the record where that takes long, and no part of any step."""
    levels: int = 0


@dataclass(slots=True)
class RecordedRequest:
    """What is known of one request."""

    prompt_tokens: int
    since: float
    """When its last tokens came, or its first row was scheduled; of `time.perf_counter`."""
    spent: _Spent
    """The counters at that time."""
    steps: list[Step] = field(default_factory=list)
    sights: list[Sight] | None = None
    """Of its pictures; None until a tree of it has been drafted."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "steps": [step.as_dict() for step in self.steps],
            "sights": None if self.sights is None else [sight.as_dict() for sight in self.sights],
        }


class StepRecorder:
    """Told by the runner what happens; times of a step are those of the whole batch."""

    def __init__(self, tally: Tally, drafter: RecordingDrafter | None) -> None:
        """`tally` counts plans and the draft's time; no `drafter` where it was switched off."""
        self.requests: dict[str, RecordedRequest] = {}
        self._tally = tally
        self._drafter = drafter
        self._draft = self._verify = self._unseen = 0.0
        self._began = 0.0
        self._mode = NONE

    def admit(self, request_id: str, prompt_tokens: int) -> None:
        """A request's first row is about to be computed."""
        self.requests[request_id] = RecordedRequest(prompt_tokens, time.perf_counter(), self._spent())

    def step_begins(self) -> None:
        """The runner got a step to execute."""
        self._began = time.perf_counter()

    def step_ends(
        self,
        request_ids: Sequence[str],
        tokens: Sequence[Sequence[int]],
        trees: Mapping[str, TokenTree],
        kept_rows: Mapping[int, np.ndarray],
    ) -> None:
        """Its tokens are known.

        Args:
            request_ids: in batch order.
            tokens: per request; none in the middle of a prompt.
            trees: the verified ones by request id.
            kept_rows: by place in the batch, rows of the root and the accepted nodes (see `Verification.kept_rows`).
        """
        now = time.perf_counter()
        self._verify += now - self._began
        spent = self._spent()
        for i, (request_id, given) in enumerate(zip(request_ids, tokens, strict=True)):
            request = self.requests.get(request_id)
            if request is None or not given:
                continue
            tree, path = trees.get(request_id), ()
            if tree is None or self._drafter is None or tree.tokens[0] < 0:  # vLLM's placeholders were never drafted
                tree = EMPTY
            elif i in kept_rows:
                path = tuple((kept_rows[i][1:] - kept_rows[i][0] - 1).tolist())
            draft, draft_model, verify, unseen, levels = (
                after - before for after, before in zip(astuple(spent), astuple(request.spent), strict=True)
            )
            request.steps.append(
                Step(
                    mode=self._mode if request.steps else PROMPT,
                    tokens=tuple(given),
                    tree=tree,
                    log_probs=self._drafter.log_probs(request_id, tree) if self._drafter and len(tree) else (),
                    path=path,
                    levels=levels,
                    draft=draft,
                    draft_model=min(draft_model, draft),
                    verify=verify,
                    other=max(now - request.since - draft - verify - unseen, 0.0),
                )
            )
            request.since, request.spent = now, spent

    def drafting(self, began: float, plans: Mapping[str, int], drafted: bool) -> None:
        """Drafting that began then has just ended.

        Args:
            began: of `time.perf_counter`.
            plans: the planner's decisions (`Tally.plans`) before it.
            drafted: whether there are trees.
        """
        self._draft += time.perf_counter() - began
        made = [mode for mode, count in self._tally.plans.items() if count > plans[mode]]
        self._mode = made[0] if made else FIXED if drafted else NONE

    def unseen(self, request_id: str) -> bool:
        """Whether `saw` is still to be called for a request that was just drafted for: the drafter has read it."""
        request = self.requests.get(request_id)
        spared = self._drafter is not None and request_id in self._drafter.spared
        return request is not None and request.sights is None and not spared

    def saw(self, request_id: str, sights: list[Sight], began: float) -> None:
        """What the draft sees of a request's pictures; looking, which began then, is part of no step."""
        self.requests[request_id].sights = sights
        self._unseen += time.perf_counter() - began

    def _spent(self) -> _Spent:
        levels = 0 if self._drafter is None else self._drafter.levels
        return _Spent(self._draft, self._tally.seconds["draft_model"], self._verify, self._unseen, levels)
