"""One request's tokens, with the places where each n-gram occurred."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vllm_specvlm.draft.gram import BARRIER, RollingGram


class IndexedText:
    """A growing text. O(1) per token: the index is, per n-gram, its latest place, and per place, the one before it.

    A place is the position after the n-gram. `tokens` may be read; BARRIER in it is matched by nothing. `echoed` counts
    the tokens that were what had followed when the n-gram before them last occurred.
    """

    __slots__ = ("_before", "_gram", "_key", "_latest", "_n", "echoed", "tokens")

    def __init__(self, n: int) -> None:
        self.tokens: list[int] = []
        self.echoed = 0
        self._n = n
        self._gram = RollingGram(n)
        self._key = -1
        self._latest: dict[int, int] = {}
        self._before: list[int] = [-1]  # by place: the gram's place before that one, -1 if none

    def extend(self, tokens: Iterable[int]) -> None:
        """Take in the next tokens."""
        latest, before, key, read = self._latest, self._before, self._key, self._gram.read
        for token in tokens:
            # Now that a token follows the last gram, its place is worth finding.
            if key >= 0:
                place, last = len(self.tokens), latest.get(key, -1)
                self.echoed += last >= 0 and self.tokens[last] == token != BARRIER
                before.append(last)
                latest[key] = place
            elif self.tokens:
                before.append(-1)
            self.tokens.append(token)
            key = read(token)
        self._key = key

    def places(self) -> Iterator[int]:
        """Where the text's last n tokens occurred before, latest first; the text's end is not one of them."""
        return self._places(self._key)

    def places_after(self, gram: Sequence[int]) -> Iterator[int]:
        """Where these n tokens occurred, latest first, but for the text's end."""
        reader = RollingGram(self._n)
        return self._places([reader.read(token) for token in gram][-1])

    def _places(self, key: int) -> Iterator[int]:
        place = self._latest.get(key, -1) if key >= 0 else -1
        while place >= 0:
            yield place
            place = self._before[place]
