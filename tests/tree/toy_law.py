"""A target small enough to enumerate: one law for every context, in multiples of 1/64, hence without rounding."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

GRID = 64
Context = tuple[int, ...]


class ToyLaw:
    """Random next-token laws for all contexts of up to `length - 1` tokens: texts of `length` tokens in all."""

    def __init__(self, seed: int, vocab: int, length: int) -> None:
        rng = np.random.default_rng(seed)
        self.vocab, self.length = vocab, length
        self.next: dict[Context, npt.NDArray[np.float64]] = {
            context: rng.multinomial(GRID, rng.dirichlet([0.8] * vocab)) / GRID
            for size in range(length)
            for context in product(range(vocab), repeat=size)
        }

    def texts(self) -> npt.NDArray[np.float64]:
        """The law of whole texts under autoregressive sampling, one axis per position."""
        law = np.zeros((self.vocab,) * self.length)
        self.complete(law, (), 1.0)
        return law

    def complete(self, law: npt.NDArray[np.float64], start: Context, weight: float) -> None:
        """Add `weight` times the autoregressive law of the texts that begin with `start`."""
        if weight == 0.0:
            return
        if len(start) >= self.length:
            law[start[: self.length]] += weight
            return
        for token, probability in enumerate(self.next[start]):
            self.complete(law, (*start, token), weight * float(probability))
