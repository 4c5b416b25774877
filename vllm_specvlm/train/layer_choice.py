"""Which layers of a language model a smaller one is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """In a recipe a list of layers, or how many; the value of neither stands for all."""

    count: int = 0
    """The first half of so many and the last half: what lies between changes least. 0: see `named`."""
    named: tuple[int, ...] = ()
    """Ascending, from 0."""

    @classmethod
    def from_dict(cls, given: object) -> Self:
        """From a recipe's value. Raises ValueError: it is neither a count nor a list of layers."""
        if type(given) is int and given > 0:
            return cls(count=given)
        numbers = given if isinstance(given, list) else []
        if numbers and all(type(each) is int and each >= 0 for each in numbers) and numbers == sorted(set(numbers)):
            return cls(named=tuple(numbers))
        raise ValueError(f"it is {given!r}; write a number above 0, or a list of layers, ascending from 0.")

    def of(self, layers: int) -> list[int]:
        """Of a model with so many layers. Raises ValueError: it has fewer."""
        if self.count:
            chosen = [*range((self.count + 1) // 2), *range(layers - self.count // 2, layers)]
        else:
            chosen = list(self.named) or list(range(layers))
        if chosen[-1] >= layers or self.count > layers:
            raise ValueError(f"'layers' asks for {self.count or chosen[-1] + 1} layers, and there are {layers}.")
        return chosen
