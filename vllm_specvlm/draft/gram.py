"""The n-gram just read, as one integer."""

from __future__ import annotations

BARRIER = -1
"""Stands in a text for what no n-gram may contain: an image placeholder, the end of another text."""

_TOKEN_BITS = 32


class RollingGram:
    """The last n tokens read, packed into one int: unlike tuples, ints in their thousands do not slow the collector."""

    __slots__ = ("_key", "_mask", "_n", "_run")

    def __init__(self, n: int) -> None:
        self._n = n
        self._mask = (1 << (_TOKEN_BITS * n)) - 1
        self._key = 0
        self._run = 0

    def read(self, token: int) -> int:
        """Take in a token (below 2**32, or BARRIER); the gram's key, or -1 if it has a barrier or is short."""
        if token == BARRIER:
            self._run = 0
            return -1
        self._key = (self._key << _TOKEN_BITS | token) & self._mask
        self._run += 1
        return self._key if self._run >= self._n else -1
