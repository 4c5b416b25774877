"""What one request's drafts are worth under its grammar, in proportion to what they would be worth without."""

from __future__ import annotations

from collections.abc import Sequence

_PRIOR = 1.0
"""Tokens that are believed to have been expected, and to have come, before any was."""
_KEPT = 0.9
"""Of what earlier trees said, when another one comes back: the last ten or so count."""
_REMEMBERED = 1 - 1 / 64
"""Of it in every step: a share that is too low to draft is thought better of in some tens of steps."""


class GrammarShare:
    """Accepted tokens for each that the acceptance model had expected of this request's trees.

    A draft that knows no grammar proposes what the grammar forbids, and is never accepted there. With a_v what the
    model says of a node whose parent was accepted (the root counts as that), and n such nodes accepted,

        share = min(1, (1 + sum of n) / (1 + sum of a_v)),

    sums over the request's trees, the last ones counting most. A node's probability, given its parent, is a_v * share.
    """

    def __init__(self) -> None:
        """The request has no tree behind it: as any other's."""
        self._came = self._expected = 0.0

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return min((_PRIOR + self._came) / (_PRIOR + self._expected), 1.0)

    def observe(self, expected: Sequence[float], accepted: int) -> None:
        """A tree came back.

        Args:
            expected: the acceptance model's probabilities of the nodes that had their chance, the forbidden ones too.
            accepted: how many of these were.
        """
        self._came = _KEPT * self._came + accepted
        self._expected = _KEPT * self._expected + sum(expected)

    def rest(self) -> None:
        """The request made a step."""
        self._came *= _REMEMBERED
        self._expected *= _REMEMBERED
