"""The shape that a tree may take while it grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_specvlm.tree.token_tree import MAX_NODES

RankPath = tuple[int, ...]
"""A node named by ranks: (0,) is the root's best child, (0, 1) that one's second best."""


@dataclass(frozen=True, slots=True)
class TreeShape:
    """Bounds of a tree: a dynamic one, grown where the draft is confident, or a fixed one if `paths` is given.

    nodes: most nodes in the tree (1 to 127). depth: most levels, hence most drafter calls. width: most nodes expanded
    per level and request. top_k: most children of an expanded node. paths: the nodes of a fixed tree, parents first;
    `TreeShape.fixed` derives the other fields from it. Raises ValueError for numbers out of range.
    """

    nodes: int
    depth: int
    width: int
    top_k: int
    paths: tuple[RankPath, ...] | None = None

    def __post_init__(self) -> None:
        for name, most in (("nodes", MAX_NODES), ("depth", MAX_NODES), ("width", None), ("top_k", None)):
            value = getattr(self, name)
            if value < 1 or (most is not None and value > most):
                raise ValueError(
                    f"{name} of a tree is {value}; it must be " + (f"1 to {most}." if most else "at least 1.")
                )
        if self.paths is not None:
            _check_paths(self.paths)
            if (self.nodes, self.depth, self.width, self.top_k) != _measure(self.paths):
                raise ValueError("A fixed tree's other sizes follow from its paths; build it with TreeShape.fixed.")

    @classmethod
    def chain(cls, n: int) -> TreeShape:
        """A chain of at most n nodes."""
        return cls(nodes=n, depth=n, width=1, top_k=1)

    @classmethod
    def fixed(cls, paths: Iterable[Iterable[int]]) -> TreeShape:
        """The tree of exactly these rank paths, as in Medusa (Cai et al. 2024); the order is the nodes' order."""
        ranks = tuple(tuple(path) for path in paths)
        _check_paths(ranks)
        nodes, depth, width, top_k = _measure(ranks)
        return cls(nodes, depth, width, top_k, ranks)


def _check_paths(paths: tuple[RankPath, ...]) -> None:
    known: set[RankPath] = {()}
    for path in paths:
        if not path or path in known or path[:-1] not in known or min(path) < 0:
            raise ValueError(
                f"Tree path {path} does not fit; list paths of ranks from 0 up, each once and after its parent."
            )
        known.add(path)
    if not paths:
        raise ValueError("A fixed tree needs at least one path; pass for example [(0,)].")


def _measure(paths: tuple[RankPath, ...]) -> tuple[int, int, int, int]:
    """nodes, depth, width and top_k of a fixed tree."""
    expanded = Counter(len(parent) for parent in {path[:-1] for path in paths})
    return len(paths), max(map(len, paths)), max(expanded.values()), 1 + max(map(max, paths))
