"""Traces: what a drafter would have proposed along recorded answers, and what the target would have accepted of it.

A trace is a file of JSON lines, one request each (`TracedRequest`). As acceptance is lossless, an answer does not
depend on what is drafted; so a tree for every position of every answer is all there is to know, and no tree needs to be
verified to record it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_specvlm.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class RecordedTree:
    """A tree drafted for one position of an answer, children of a node in order of their probability."""

    at: int
    """Answer tokens that were confirmed, 1 or more."""
    parents: tuple[int, ...]
    """-1 for the root, else an earlier node."""
    log_probs: tuple[float, ...]
    """Of each node given its parent, under the draft."""
    path: tuple[int, ...]
    """The nodes that the answer runs through, from the root on."""

    def __post_init__(self) -> None:
        if self.at < 1 or len(self.parents) != len(self.log_probs) or not all(lp <= 0 for lp in self.log_probs):
            raise ValueError(f"The tree at {self.at} needs 'at' >= 1 and one log-probability per parent")
        TokenTree((0,) * len(self.parents), self.parents)
        above = -1
        for node in self.path:
            if not 0 <= node < len(self.parents) or self.parents[node] != above:
                raise ValueError(f"The path {list(self.path)} of the tree at {self.at} is no path from its root")
            above = node


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request: what it costs to begin with, how long its answer is, and trees along it by ascending position."""

    prompt: int
    """Rows of its prompt."""
    tokens: int
    """Of its answer."""
    trees: tuple[RecordedTree, ...] = ()
    limit: int | None = None
    """`max_tokens`; None if unknown."""
    arrival: float = 0.0
    """Seconds from the start."""
    prompt_seconds: float | None = None
    """Time to the first token when nothing else runs, pictures included; None: what a step over `prompt` rows costs."""
    sampled: bool = False
    picture: bool = False

    def __post_init__(self) -> None:
        if (
            type(self.prompt) is not int
            or type(self.tokens) is not int
            or min(self.prompt, self.tokens) < 1
            or max(self.prompt, self.tokens) >= 1 << 40
            or not all(0 <= t < math.inf for t in (self.arrival, self.prompt_seconds or 0))
        ):
            raise ValueError("'prompt' and 'tokens' must be whole numbers from 1 and times finite and not negative")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise ValueError(f"'limit' is {self.limit!r}, which is no number of tokens")
        if any(a.at >= b.at for a, b in zip(self.trees, self.trees[1:], strict=False)):
            raise ValueError("trees must be listed by ascending 'at', one per position")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> TracedRequest:
        """The request of plain values. Raises ValueError or TypeError if they are none."""
        trees = [
            RecordedTree(tree["at"], tuple(tree["parents"]), tuple(tree["log_probs"]), tuple(tree["path"]))
            for tree in saved.get("trees", ())
        ]
        return cls(**{**saved, "trees": tuple(trees)})


def write(path: Path, requests: Iterable[TracedRequest]) -> None:
    """Write a trace."""
    path.write_text("".join(json.dumps(request.as_dict(), separators=(",", ":")) + "\n" for request in requests))


def read(path: Path) -> list[TracedRequest]:
    """The requests of a trace.

    Raises:
        ValueError: the file cannot be read or is no trace; in one sentence with the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"The trace '{path}' cannot be read ({reason}); name a file of JSON lines.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(TracedRequest.from_dict(json.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Line {number} of '{path}' is no request of a trace ({error}); record it again."
            ) from error
    if not found:
        raise ValueError(f"The trace '{path}' has no requests; record one.")
    return found
