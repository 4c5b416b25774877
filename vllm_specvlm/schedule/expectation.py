"""What a drafter is expected to give before it serves: from what passes cost and what was accepted when it was trained.

One request at a time, chains of d tokens: with a token accepted r times out of one after accepted ones, a check gives
1 + r + ... + r^d tokens and takes the draft's d passes, our own Python and the target's pass over d + 1 rows (Leviathan
et al. 2023, arXiv 2211.17192, section 3, with measured times in the place of one cost ratio). Trees and the planner do
better; which of two drafters is the better one, chains tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_specvlm.schedule.profile import Profile

_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Expectation:
    """Of the best length of chains. Times are seconds of one step."""

    depth: int
    tokens: float
    """A check."""
    plain: float
    """The target's pass without drafts."""
    check: float
    """With them."""
    passes: float
    """The draft's."""
    overhead: float
    """Of drafting beside them: our own Python."""

    @property
    def speedup(self) -> float:
        """Against plain decoding."""
        return self.tokens * self.plain / (self.check + self.passes + self.overhead)


def rate(tokens: float, depth: int) -> float:
    """The r for which 1 + r + ... + r^depth is `tokens`; 0 to 1, whatever they are."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _tokens(middle, depth) < tokens else (low, middle)
    return high


def expect(profile: Profile, accepted: float, context: float) -> Expectation:
    """The best of chains of 1 to 8, where a token is accepted `accepted` times out of one, behind `context` tokens."""
    return max(_chains(profile, accepted, context), key=lambda each: each.speedup)


def _chains(profile: Profile, accepted: float, context: float) -> list[Expectation]:
    costs = profile.costs.copy()
    costs.attend(1, context)
    found = []
    for depth in range(1, _DEEPEST + 1):
        tokens = _tokens(accepted, depth)
        # The first pass also reads what the last step confirmed.
        passes = costs.feed.at(round(tokens)) + (depth - 1) * costs.draft.at(1)
        found.append(Expectation(depth, tokens, costs.plain.at(1), costs.tree.at(depth + 1), passes, profile.overhead))
    return found


def _tokens(rate: float, depth: int) -> float:
    return sum(rate**i for i in range(depth + 1))
