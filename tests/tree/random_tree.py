"""Arbitrary trees for the tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from vllm_specvlm.tree.token_tree import MAX_NODES, TokenTree


def random_tree(rng: np.random.Generator, vocab: int, nodes: int, depth: int = MAX_NODES) -> TokenTree:
    """Up to `nodes` nodes in any topological order, duplicates among siblings and a few placeholders included."""
    tokens: list[int] = []
    parents: list[int] = []
    depths = [0]
    for node in range(int(rng.integers(0, nodes + 1))):
        open_nodes = [at - 1 for at in range(node + 1) if depths[at] < depth]
        parent = int(rng.choice(open_nodes))
        tokens.append(-1 if rng.random() < 0.05 else int(rng.integers(0, vocab)))
        parents.append(parent)
        depths.append(depths[parent + 1] + 1)
    return TokenTree(tuple(tokens), tuple(parents))


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    """Each node's tokens from the root on."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@st.composite
def trees(draw: st.DrawFn, vocab: int = 1000, nodes: int = MAX_NODES, placeholders: bool = True) -> TokenTree:
    """Trees of every form; a placeholder only right after its parent, as the flat code demands."""
    parents: list[int] = []
    tokens: list[int] = []
    for node in range(draw(st.integers(0, nodes))):
        back = draw(st.integers(0, node))
        parents.append(node - 1 - back)
        tokens.append(draw(st.integers(-1 if placeholders and not back else 0, vocab - 1)))
    return TokenTree(tuple(tokens), tuple(parents))
