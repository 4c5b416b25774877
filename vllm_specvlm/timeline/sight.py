"""What a drafter sees of one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

BLIND = "blind"
ALL = "all"
SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Patch:
    """One visual token of the drafter: the shares that the picture's own tokens have in it, from `first` on."""

    first: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a drafter sees of one picture.

    Raises:
        ValueError: patches that are not of the picture.
    """

    visual_tokens: int
    """What the target sees of it."""
    how: str
    """`all`: the drafter has as many tokens, from its own tower. `shared`: the target's own. `blind`: none. Else the
    compressor's primitive."""
    patches: tuple[Patch, ...] = ()
    """A compressor's tokens, in their order."""
    grid: tuple[int, int] | None = None
    """Rows and columns in which the picture's tokens lie over it; None where a model lays them out otherwise."""

    def __post_init__(self) -> None:
        if self.grid is not None and (min(self.grid) < 1 or self.grid[0] * self.grid[1] != self.visual_tokens):
            raise ValueError(f"A grid of {self.grid} does not hold {self.visual_tokens} visual tokens.")
        for patch in self.patches:
            if not 0 <= patch.first < patch.first + len(patch.shares) <= self.visual_tokens:
                raise ValueError(f"A patch from {patch.first} on is not within {self.visual_tokens} visual tokens.")

    @property
    def kept(self) -> int:
        """Visual tokens that the drafter reads."""
        return self.visual_tokens if self.how in (ALL, SHARED) else len(self.patches)

    def on(self, grid: tuple[int, int] | None) -> Sight:
        """The same on a grid; a grid that does not hold its tokens is none."""
        fits = grid is not None and min(grid) >= 1 and grid[0] * grid[1] == self.visual_tokens
        return replace(self, grid=grid if fits else None)

    @classmethod
    def compressed(cls, how: str, origins: Sequence[Sequence[float]], visual_tokens: int) -> Sight:
        """From `compress.origins.origins`, as lists; shares below a thousandth of a patch's largest are left out."""
        patches = []
        for shares in origins:
            floor = max(shares) / 1000
            counted = [i for i, share in enumerate(shares) if share > floor]
            first, last = counted[0], counted[-1]
            patches.append(Patch(first, tuple(round(share, 4) for share in shares[first : last + 1])))
        return cls(visual_tokens, how, tuple(patches))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "visual_tokens": self.visual_tokens,
            "how": self.how,
            "patches": [[patch.first, list(patch.shares)] for patch in self.patches],
            "grid": None if self.grid is None else list(self.grid),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Sight:
        """The value of plain values. Raises ValueError, KeyError or TypeError if they are none."""
        patches = tuple(Patch(first, tuple(shares)) for first, shares in saved["patches"])
        grid = saved["grid"]
        return cls(saved["visual_tokens"], saved["how"], patches, None if grid is None else (grid[0], grid[1]))
