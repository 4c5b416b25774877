"""Which compressor a drafter has: the value under "compressor" in its config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_CONVOLUTION_RATIO: Final = 5
"""SpecVLM's cap: strided convolution is best at 3 and clearly worse from 10 on (table 4)."""

_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "text": {},
    "prune": {"ratio": 10.0},
    "pool": {"ratio": 10.0},
    "conv": {"ratio": 3.0},
    "resampler": {"queries": 2},
    "global": {"queries": 2},
    "adaptor": {"queries": 2, "heads": 0},
    "select": {"gate_hidden": 256},
    "weight": {"gate_hidden": 256, "ratio": 3.0},
    "concat": {},
}
"""By kind: its numbers. A field that is not listed here (or, for branches, below) is not of that kind."""

_BRANCHES: Final[dict[str, tuple[str, ...]]] = {
    "select": ("none", "text", "prune", "pool", "conv", "resampler", "global"),
    "weight": ("prune", "pool", "conv"),
    "concat": ("prune", "pool", "conv", "resampler"),
}
"""By kind: what its branches may be."""

KINDS: Final = tuple(_DEFAULTS)


@dataclass(frozen=True, slots=True)
class CompressorConfig:
    """A kind of compressor and its numbers. 0 or () stands for the kind's default, which the value then holds.

    The kinds are those of SpecVLM (arXiv 2509.11815, section 3.4), `global` and `adaptor`:

    - none: every visual token. text: not one, the drafter does not see.
    - prune, pool, conv: ceil(V / ratio) of V tokens; kept, averaged, or combined by a strided convolution.
    - resampler: `queries` tokens read by learned queries. global: `queries` - 1 such tokens, and the last query's
      vector for the drafter to add to text positions (after ViSpec, arXiv 2509.15235). adaptor: ViSpec's own, of
      converted heads; it cannot be trained here.
    - select: a gate runs one of the branches. weight: a gate mixes branches of one ratio. concat: all branches, one
      after the other.

    Raises:
        ValueError: a number out of range, or one that the kind does not have; in one sentence.
    """

    kind: str = "select"
    ratio: float = 0.0
    """Visual tokens in per visual token out, 1 or more: prune, pool (10), conv (3; whole, at most 5) and weight (3)."""
    queries: int = 0
    """Learned queries of resampler (2), global and adaptor (2, the last of which is the global vector)."""
    heads: int = 0
    """Attention heads of adaptor; 0 stands for heads of 64 channels."""
    branches: tuple[CompressorConfig, ...] = ()
    """Of select (prune 20, pool 20, conv 3, resampler 2, text), weight (prune, pool, and conv if it can have the ratio)
    and concat (prune 20, pool 20, conv 3, resampler 2): the best ratios of SpecVLM's table 4."""
    gate_hidden: int = 0
    """Width of the gate's hidden layer: select and weight (256)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"There is no compressor of kind {self.kind!r}; write one of {', '.join(KINDS)}.")
        defaults = _DEFAULTS[self.kind]
        for name in ("ratio", "queries", "heads", "gate_hidden"):
            value = getattr(self, name)
            whole = name != "ratio"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"'{name}' of a compressor is {value!r}; write a {'whole ' * whole}number.")
            if name not in defaults and value:
                raise ValueError(f"A compressor of kind '{self.kind}' has no '{name}' (given: {value}); leave it out.")
            if name in defaults:
                object.__setattr__(self, name, type(defaults[name])(value or defaults[name]))
        self._check_numbers()
        if self.kind in _BRANCHES:
            object.__setattr__(self, "branches", tuple(self.branches) or self._default_branches())
            self._check_branches()
        elif self.branches:
            raise ValueError(f"A compressor of kind '{self.kind}' has no 'branches'; leave them out.")

    @property
    def gives_vectors(self) -> bool:
        """Whether a compressed picture may have a global vector."""
        return self.kind in ("global", "adaptor") or any(branch.gives_vectors for branch in self.branches)

    def _check_numbers(self) -> None:
        if "ratio" in _DEFAULTS[self.kind] and not 1.0 <= self.ratio < float("inf"):
            raise ValueError(f"'ratio' of a compressor is {self.ratio}; write a number from 1 up.")
        if self.kind == "conv" and not _convolvable(self.ratio):
            raise ValueError(
                f"'ratio' of a 'conv' compressor is {self.ratio:g}; write a whole number from 1 to "
                f"{MAX_CONVOLUTION_RATIO}."
            )
        fewest = 2 if self.kind in ("global", "adaptor") else 1
        if "queries" in _DEFAULTS[self.kind] and self.queries < fewest:
            raise ValueError(f"'queries' of a '{self.kind}' compressor is {self.queries}; write {fewest} or more.")
        for name in ("heads", "gate_hidden"):
            if getattr(self, name) < 0:
                raise ValueError(f"'{name}' of a compressor is {getattr(self, name)}; write 1 or more.")

    def _default_branches(self) -> tuple[CompressorConfig, ...]:
        if self.kind == "weight":
            kinds = ("prune", "pool", "conv") if _convolvable(self.ratio) else ("prune", "pool")
            return tuple(CompressorConfig(kind, ratio=self.ratio) for kind in kinds)
        all_eyes = (
            CompressorConfig("prune", ratio=20.0),
            CompressorConfig("pool", ratio=20.0),
            CompressorConfig("conv", ratio=3.0),
            CompressorConfig("resampler", queries=2),
        )
        return (*all_eyes, CompressorConfig("text")) if self.kind == "select" else all_eyes

    def _check_branches(self) -> None:
        if len(self.branches) < 2:
            raise ValueError(f"A '{self.kind}' compressor has {len(self.branches)} branch; give it two or more.")
        for branch in self.branches:
            if not isinstance(branch, CompressorConfig):
                raise ValueError(f"A branch of a compressor is {branch!r}; write an object with a 'kind'.")
            if branch.kind not in _BRANCHES[self.kind]:
                raise ValueError(
                    f"A '{self.kind}' compressor cannot have a branch of kind '{branch.kind}'; write one of "
                    f"{', '.join(_BRANCHES[self.kind])}."
                )
            if self.kind == "weight" and branch.ratio != self.ratio:
                raise ValueError(
                    f"A 'weight' compressor of ratio {self.ratio:g} has a branch of ratio {branch.ratio:g}; they must "
                    "be the same to be mixed."
                )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressorConfig:
        """The value of a parsed config.json. Raises ValueError, in one sentence, for keys or values that are none."""
        if not isinstance(data, Mapping):
            raise ValueError(f"A compressor is {data!r}; write an object such as {{'kind': 'pool', 'ratio': 10}}.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in data if key not in known]
        if unknown:
            raise ValueError(f"A compressor has no {unknown[0]!r}; write {', '.join(known)}.")
        values = dict(data)
        if "branches" in values:
            if not isinstance(values["branches"], (list, tuple)):
                raise ValueError(f"'branches' of a compressor is {values['branches']!r}; write a list of objects.")
            values["branches"] = tuple(cls.from_dict(branch) for branch in values["branches"])
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` takes: plain values, only those that the kind has, its defaults written out."""
        values: dict[str, Any] = {"kind": self.kind}
        values |= {name: getattr(self, name) for name in _DEFAULTS[self.kind]}
        if self.branches:
            values["branches"] = [branch.as_dict() for branch in self.branches]
        return values


def _convolvable(ratio: float) -> bool:
    return ratio in range(1, MAX_CONVOLUTION_RATIO + 1)
