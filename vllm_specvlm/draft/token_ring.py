"""The latest tokens of finished answers, with the places where each n-gram occurred, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_specvlm.draft.gram import BARRIER, RollingGram


class TokenRing:
    """A buffer of the last `capacity` tokens added, barriers included, and never more indexed places than tokens.

    Positions count all tokens ever added; a place is the position after an n-gram. A barrier follows each text and
    takes a position, so no n-gram and no continuation crosses from one text to another. O(n) per token.
    """

    __slots__ = ("_before", "_capacity", "_end", "_gram", "_latest", "_n", "_tokens")

    def __init__(self, capacity: int, n: int) -> None:
        """capacity: tokens kept; n: length of the n-grams. Raises ValueError if not one n-gram fits."""
        if capacity < n:
            raise ValueError(f"A buffer of {capacity} tokens holds no n-gram of {n}; make it larger.")
        self._capacity = capacity
        self._n = n
        self._tokens = [BARRIER] * capacity
        self._before = [-1] * capacity  # by place modulo capacity: the gram's place before that one
        self._latest: dict[int, int] = {}
        self._gram = RollingGram(n)
        self._end = 0

    def __len__(self) -> int:
        """Tokens held now, barriers included."""
        return min(self._end, self._capacity)

    def add(self, text: Sequence[int]) -> None:
        """Take in a text; of one longer than the buffer the end remains."""
        for token in [*text, BARRIER] if len(text) else ():
            if self._end >= self._capacity:
                self._forget(self._end - self._capacity)
            self._tokens[self._end % self._capacity] = token
            self._end += 1
            key = self._gram.read(token)
            if key >= 0:
                self._before[self._end % self._capacity] = self._latest.get(key, -1)
                self._latest[key] = self._end

    def token(self, position: int) -> int:
        """The token at a position; BARRIER outside the buffer."""
        inside = max(0, self._end - self._capacity) <= position < self._end
        return self._tokens[position % self._capacity] if inside else BARRIER

    def before(self, place: int, most: int) -> list[int]:
        """Up to `most` tokens that lead up to a place, back to the start of their text at the furthest."""
        found: list[int] = []
        while len(found) < most and (token := self.token(place - 1 - len(found))) != BARRIER:
            found.append(token)
        return found[::-1]

    def places(self, gram: Sequence[int]) -> Iterator[int]:
        """Where these n tokens occurred, latest first."""
        place = self._latest.get(self._key(gram), -1)
        while place - self._n >= max(0, self._end - self._capacity):
            yield place
            place = self._before[place % self._capacity]

    def _key(self, gram: Sequence[int]) -> int:
        reader = RollingGram(self._n)
        return [reader.read(token) for token in gram][-1]

    def _forget(self, start: int) -> None:
        """Drop the n-gram that starts at a position about to be overwritten, unless it occurred again since."""
        key = self._key([self.token(start + i) for i in range(self._n)])
        if key >= 0 and self._latest.get(key) == start + self._n:
            del self._latest[key]
