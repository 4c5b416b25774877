"""Sampled text is a function of seed and target: the same for every tree that is drafted on the way, or none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from tests.tree.random_tree import paths, random_tree
from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.draw import PURPOSE_ACCEPT, draw, uniforms
from vllm_specvlm.tree.token_tree import TokenTree

VOCAB, LENGTH, EMPTY = 5, 40, TokenTree((), ())


def target_law(text: tuple[int, ...]) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(repr(text).encode()).digest()[:8], "big")
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([0.5] * VOCAB)).float()


def step(text: tuple[int, ...], seed: int, tree: TokenTree, keyed_by_row: bool = False) -> tuple[int, ...]:
    """One verification: all rows in one call, each with the uniform of its output position."""
    # A placeholder's row is computed, from any token; nothing of it is used.
    rows = [(*text, *(max(token, 0) for token in path)) for path in [(), *paths(tree)]]
    positions = torch.tensor([len(row) for row in rows])
    if keyed_by_row:  # the wrong key: the number of the row in the batch
        positions = torch.arange(len(rows))
    u = uniforms(torch.full((len(rows),), seed), positions, PURPOSE_ACCEPT)
    tokens = draw(torch.stack([target_law(row) for row in rows]), u)
    return (*text, *walk(tree, tokens.tolist()).tokens)


def generate(seed: int, rng: np.random.Generator | None, wrong: bool = False) -> tuple[tuple[int, ...], int]:
    text: tuple[int, ...] = ()
    steps = 0
    while len(text) < LENGTH:
        tree = EMPTY if rng is None else random_tree(rng, VOCAB, nodes=20)
        text = step(text, seed, tree, wrong)
        steps += 1
    return text[:LENGTH], steps


@pytest.mark.parametrize("seed", range(6))
def test_text_is_the_same_for_every_tree(seed: int) -> None:
    plain, plain_steps = generate(seed, None)
    assert plain_steps == LENGTH
    for tree_seed in range(4):
        text, steps = generate(seed, np.random.default_rng(tree_seed))
        assert text == plain
        assert steps < plain_steps  # something was accepted


def test_seeds_give_different_texts() -> None:
    assert len({generate(seed, None)[0] for seed in range(20)}) == 20


def test_control_uniforms_keyed_by_row_depend_on_the_tree() -> None:
    plain, _ = generate(0, None, wrong=True)
    assert any(generate(0, np.random.default_rng(seed), wrong=True)[0] != plain for seed in range(4))
