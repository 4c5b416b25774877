"""Whether lookup beside a drafter is worth its nodes, and whether it is enough by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAYS = 0.2
"""Tokens per tree that lookup's suggestions have to gain over the drafter's next choices: asking for them at every node
costs a few hundredths of a step."""
SPARED = 0.15
"""Tokens that a pass of the drafter is worth: a level of a small one takes a twentieth of the target's check or more,
and a check gives three or four tokens."""
_REQUEST = 1 / 8
_TRAFFIC = 1 / 64
"""Weights of one tree in a request's running mean and in that of all requests."""
_FIRST = 4
"""The first of all weigh more in the latter, as they are all there is: a quarter, a fifth and so on."""
_PROBE_FIRST = 8
_PROBE_EVERY = 4
"""Trees that are compared while lookup is left out and the text echoes itself: the first eight, then one in four."""
_ECHOES = 1 / 8
"""Share of the latest tokens that the text had to foretell before anything is compared: below it there is not so much
to gain that it pays."""
_TOKEN = 1 / 16
"""Weight of one token in that share."""
FAR = 16
"""Tokens of a continuation that are looked at."""
ALONE = 0.9
"""How probable lookup's first token has to be for a tree without the drafter. The drafter's first pass, which that
saves, is worth a few tenths of a token, and where the first token is wrong the drafter's whole tree is lost."""
_ROW = 1 / 16
_ROW_TRAFFIC = 1 / 64
"""Weights of one of the drafter's choices in a request's running mean and in that of all requests."""


@dataclass(slots=True)
class Merit:
    """What lookup gained lately in one request."""

    gain: float
    """Running mean, tokens per tree."""
    trees: int = 0
    """Of text that echoes itself."""
    echo: float = 0.0
    """Running mean, share of the answer's tokens that were what had followed when the text last ran like that."""
    drafter: float = 1.0
    """Running mean, share of the drafter's first choices on the target's path that were right."""
    misled: bool = False
    """Whether lookup drafted the last tree alone, and its first token was wrong."""

    @property
    def pays(self) -> bool:
        """Whether to merge lookup's suggestions."""
        return self.gain > PAYS


class LookupMerit:
    """Compares lookup's suggestions with what they displace, also while there are none in the trees.

    A suggestion that is not the drafter's first choice anyway takes the place of another node, at best as good as the
    drafter's next choice there. So the gain of a tree is counted at the nodes on the target's path: how often lookup's
    suggestion was right, less how often the drafter's next choice was. Where both say the same, lookup spares the
    drafter's pass, if it is sure (`SPARED`). A request begins with what lookup gained in others; it is merged while
    the gain pays. Otherwise it is probed, while its own text foretells some of it.

    Where lookup knows how the text goes on, a tree may do without the drafter (`suffices`). The drafter says nothing
    there, so what it would have given is taken from how often its choices were right where it was asked (`usual`).
    """

    def __init__(self) -> None:
        """Nothing was gained yet."""
        self.traffic = 0.0
        self._drafter = 1.0
        self._trees = self._rows = 0

    def begin(self) -> Merit:
        """A request's."""
        return Merit(self.traffic, drafter=self._drafter)

    def heard(self, merit: Merit, tokens: int, echoed: int | None) -> None:
        """So many tokens were confirmed; the text had foretold `echoed` of them, None: nobody knows, it may be all."""
        share = 1.0 if echoed is None else echoed / max(tokens, 1)
        merit.echo += (1.0 - (1.0 - _TOKEN) ** tokens) * (share - merit.echo)

    def due(self, merit: Merit) -> bool:
        """Whether to compare the next tree."""
        if not merit.pays and merit.echo < _ECHOES:
            return False
        merit.trees += 1
        return merit.pays or merit.trees <= _PROBE_FIRST or merit.trees % _PROBE_EVERY == 0

    def suffices(self, merit: Merit, stretch: Sequence[float]) -> bool:
        """Whether lookup's own continuation is worth a tree without the drafter.

        It has to be sure of the first token, must not have misled the last tree, and what it is expected to give has to
        be no less than what the drafter usually does: a short stretch, however sure, would end the tree too soon.

        Args:
            merit: the request's.
            stretch: per token of the continuation, at most `FAR`, how probable it is after the one before.
        """
        if not merit.pays or merit.misled or not stretch or stretch[0] < ALONE:
            return False
        reach, expected = 1.0, 0.0
        for probability in stretch:
            reach *= probability
            expected += reach
        return expected >= self.usual(merit)

    def usual(self, merit: Merit, depth: int = FAR) -> float:
        """Tokens that would be accepted of the drafter's own chains of so many tokens on the mean."""
        return sum(merit.drafter**i for i in range(1, depth + 1))

    def drafted(self, merit: Merit, right: bool) -> None:
        """The drafter's first choice at a node on the target's path was right, or not."""
        merit.drafter += _ROW * (right - merit.drafter)
        self._drafter += max(_ROW_TRAFFIC, 1 / (_FIRST + self._rows)) * (right - self._drafter)
        self._rows += 1

    def learn(self, merit: Merit, gain: float) -> None:
        """What lookup gained at the nodes of one tree."""
        merit.gain += _REQUEST * (gain - merit.gain)
        self.traffic += max(_TRAFFIC, 1 / (_FIRST + self._trees)) * (gain - self.traffic)
        self._trees += 1
