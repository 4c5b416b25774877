"""One step of a request: what was drafted, what the target kept of it, what came out, and what it took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_specvlm.schedule.plan import Mode
from vllm_specvlm.tree.token_tree import TokenTree

PROMPT = "prompt"
"""The step, or steps, that computed the prompt and gave the first token."""
FIXED = "fixed"
"""A tree of the options' own size: no planner decides."""
NONE = "none"
"""Nobody asked for a draft: the request cannot have one, or is one token from its end, or the drafter failed."""
EMPTY = TokenTree((), ())
MODES = (PROMPT, FIXED, NONE, *(mode.value for mode in Mode))


@dataclass(frozen=True, slots=True)
class Step:
    """From the moment the tokens before were known to the moment these were.

    Raises:
        ValueError: values that do not fit together.
    """

    mode: str
    """One of MODES: for a planned step what the planner decided for the whole batch."""
    tokens: tuple[int, ...]
    """What the step gave: the accepted path's tokens, then the target's own one."""
    tree: TokenTree = EMPTY
    """As it was verified."""
    log_probs: tuple[float, ...] = ()
    """Of each node given its parent, under the draft."""
    path: tuple[int, ...] = ()
    """The accepted nodes, from the root on."""
    levels: int = 0
    """Levels of the tree's growth that the drafter was asked for."""
    draft: float = 0.0
    """Seconds in drafting, `draft_model` included."""
    draft_model: float = 0.0
    """Seconds in the draft's passes and logits."""
    verify: float = 0.0
    """Seconds from the runner's first look at the step to its tokens: the target's pass, its draw, acceptance."""
    other: float = 0.0
    """Seconds in all else: vLLM's scheduler and its handling of text, and this record."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"A step has mode {self.mode!r}; known are {', '.join(MODES)}.")
        if len(self.log_probs) != len(self.tree) or not all(lp <= 0 for lp in self.log_probs):
            raise ValueError(f"A tree of {len(self.tree)} nodes needs as many log-probabilities of at most 0.")
        above = -1
        for node in self.path:
            if not 0 <= node < len(self.tree) or self.tree.parents[node] != above:
                raise ValueError(f"The path {list(self.path)} is none from the root of the tree.")
            above = node
        if self.tokens[:-1] != tuple(self.tree.tokens[node] for node in self.path):
            raise ValueError(f"The tokens {list(self.tokens)} are not those of the path and one more.")
        times = (self.draft, self.draft_model, self.verify, self.other)
        if not all(0 <= seconds < math.inf for seconds in times) or self.draft_model > self.draft:
            raise ValueError(
                f"The seconds {times} of a step must be finite, not negative, and passes a part of drafting."
            )

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.draft + self.verify + self.other

    def as_dict(self) -> dict[str, Any]:
        """Plain values, seconds to the microsecond."""
        return {
            "mode": self.mode,
            "tokens": list(self.tokens),
            "nodes": list(self.tree.tokens),
            "parents": list(self.tree.parents),
            "log_probs": [round(lp, 4) for lp in self.log_probs],
            "path": list(self.path),
            "levels": self.levels,
            "draft": round(self.draft, 6),
            "draft_model": round(min(self.draft_model, self.draft), 6),
            "verify": round(self.verify, 6),
            "other": round(self.other, 6),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Step:
        """The step of plain values. Raises ValueError, KeyError or TypeError if they are none."""
        values = dict(saved)
        tree = TokenTree(tuple(values.pop("nodes")), tuple(values.pop("parents")))
        lists: dict[str, Any] = {name: tuple(values.pop(name)) for name in ("tokens", "log_probs", "path")}
        return cls(tree=tree, **lists, **values)
