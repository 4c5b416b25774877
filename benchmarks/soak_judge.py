"""What became of the requests of a soak: none lost, none answered twice, none answered otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NEAR = 1e-3
"""Log-probabilities no further apart are a tie that rounding decides."""


@dataclass(frozen=True)
class PlainAnswer:
    """Plain vLLM's answer, and of each of its tokens the runner-up and how much less likely that was."""

    tokens: tuple[int, ...]
    seconds: tuple[int, ...]
    gaps: tuple[float, ...]

    @classmethod
    def read(cls, choice: dict[str, Any]) -> PlainAnswer:
        """From a choice with two top log-probabilities, tokens as ids."""
        seconds, gaps = [], []
        for token, place in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True):
            best, second = place["top_logprobs"][:2]
            other = second if _id(best) == token else best
            seconds.append(_id(other))
            gaps.append(place["logprob"] - other["logprob"])
        return cls(tuple(choice["token_ids"]), tuple(seconds), tuple(gaps))

    def difference(self, tokens: Sequence[int]) -> int | None:
        """The first place at which an answer, or the beginning of one, says something else; None if it does not."""
        pairs = zip(tokens, self.tokens, strict=False)
        return next((at for at, (theirs, mine) in enumerate(pairs) if theirs != mine), None)

    def near_tie(self, tokens: Sequence[int], at: int) -> bool:
        """Whether what was said instead at this place was as likely, to rounding."""
        return tokens[at] == self.seconds[at] and abs(self.gaps[at]) <= _NEAR


def _id(place: dict[str, Any]) -> int:
    return int(place["token"].removeprefix("token_id:"))


class Judge:
    """Counts."""

    def __init__(self, plain: Sequence[PlainAnswer]) -> None:
        """`plain`: the answers by question."""
        self._plain = plain
        self._sampled: dict[int, tuple[int, ...]] = {}
        self.requests = self.unhealthy = 0
        self._count = dict.fromkeys(
            ("answered", "left", "lost", "retries", "twice", "different", "near_ties", "sampled", "sampled_different"),
            0,
        )
        self._examples: list[str] = []

    def hear(self, request: Any, heard: Any) -> None:
        """What one client (`soak.Request`) heard (`soak.Heard`)."""
        self.requests += 1
        count = self._count
        count["retries"] += heard.retries
        if heard.left:
            count["left"] += 1
        elif heard.error or not heard.ends or len(heard.tokens) < request.tokens:
            count["lost"] += 1
            self._note(f"lost: {request}, {len(heard.tokens)} tokens, ended {heard.ends} times, {heard.error}")
        else:
            count["answered"] += 1
        if heard.ends > 1 or len(heard.tokens) > request.tokens or (heard.ends and heard.counted != len(heard.tokens)):
            count["twice"] += 1
            self._note(
                f"twice: {request}, {len(heard.tokens)} tokens, counted {heard.counted}, ended {heard.ends} times"
            )
        if request.seed is None:
            self._compare(request, heard.tokens)
        else:
            self._compare_sampled(request, tuple(heard.tokens))

    def _compare(self, request: Any, tokens: Sequence[int]) -> None:
        plain = self._plain[request.question]
        at = plain.difference(tokens)
        if at is None:
            return
        if plain.near_tie(tokens, at):
            self._count["near_ties"] += 1
        else:
            self._count["different"] += 1
            self._note(
                f"different: {request}, token {at} is {tokens[at]}, not {plain.tokens[at]} (gap {plain.gaps[at]})"
            )

    def _compare_sampled(self, request: Any, tokens: tuple[int, ...]) -> None:
        """Answers with one seed are beginnings of one another."""
        self._count["sampled"] += 1
        known = self._sampled.get(request.seed, ())
        shared = min(len(known), len(tokens))
        if known[:shared] != tokens[:shared]:
            self._count["sampled_different"] += 1
            self._note(f"sampled otherwise: {request}")
        self._sampled[request.seed] = max(known, tokens, key=len)

    def _note(self, example: str) -> None:
        if len(self._examples) < 10:
            self._examples.append(example)
            print(f"  {example}", flush=True)

    def row(self) -> dict[str, Any]:
        """The counts, and the first things that were wrong."""
        return {"requests": self.requests, **self._count, "unhealthy": self.unhealthy, "examples": self._examples}
