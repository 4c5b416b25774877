"""Sampled text is a function of seed and target: the same for every tree, even one that knows the noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.tree.random_tree import paths, random_tree
from tests.tree.toy_law import ToyLaw
from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.noise import position_keys
from vllm_specvlm.tree.race import race
from vllm_specvlm.tree.token_tree import TokenTree

Context = tuple[int, ...]
Law = Callable[[Context], torch.Tensor]
Drafter = Callable[[Context, int], TokenTree]
"""A tree for the text so far and the seed."""

VOCAB, LENGTH, EMPTY = 5, 40, TokenTree((), ())


def target_law(text: Context) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(repr(text).encode()).digest()[:8], "big")
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([0.5] * VOCAB)).float()


def other_law(text: Context) -> torch.Tensor:
    """A draft's: half the target's, half another."""
    return (target_law(text) + target_law((*text, -1))) / 2


def won(law: Law, contexts: list[Context], seed: int) -> list[int]:
    """The winner of each context's race, all in one call."""
    positions = torch.tensor([len(context) for context in contexts])
    keys = position_keys(torch.full((len(contexts),), seed), positions)
    return race(torch.stack([law(context) for context in contexts]), keys).tolist()


def step(law: Law, text: Context, seed: int, tree: TokenTree, keyed_by_row: bool = False) -> Context:
    """One verification: all rows in one call, each with the noise of its output position."""
    # A placeholder's row is computed, from any token; nothing of it is used.
    rows = [(*text, *(max(token, 0) for token in path)) for path in [(), *paths(tree)]]
    if keyed_by_row:  # the wrong key: the number of the row in the batch
        keys = position_keys(torch.full((len(rows),), seed), torch.arange(len(rows)))
        tokens = race(torch.stack([law(row) for row in rows]), keys).tolist()
    else:
        tokens = won(law, rows, seed)
    return (*text, *walk(tree, tokens).tokens)


def generate(
    law: Law, seed: int, drafter: Drafter, length: int = LENGTH, keyed_by_row: bool = False
) -> tuple[Context, int]:
    """The text, and the number of steps."""
    text: Context = ()
    steps = 0
    while len(text) < length:
        text = step(law, text, seed, drafter(text, seed), keyed_by_row)
        steps += 1
    return text[:length], steps


def plainly(text: Context, seed: int) -> TokenTree:
    return EMPTY


def at_random(rng: np.random.Generator) -> Drafter:
    return lambda text, seed: random_tree(rng, VOCAB, nodes=20)


def chain_of(law: Law, depth: int = 4, shift: int = 0) -> Drafter:
    """A drafter that runs the race of its own law with the target's noise (or that of `shift` positions later)."""

    def draft(text: Context, seed: int) -> TokenTree:
        path: Context = ()
        for _ in range(depth):
            here = (*text, *path)
            keys = position_keys(torch.tensor([seed]), torch.tensor([len(here) + shift]))
            path = (*path, int(race(law(here)[None], keys)))
        return TokenTree.chain(list(path))

    return draft


@pytest.mark.parametrize("seed", range(6))
def test_text_is_the_same_for_every_tree(seed: int) -> None:
    plain, plain_steps = generate(target_law, seed, plainly)
    assert plain_steps == LENGTH
    drafters = [at_random(np.random.default_rng(tree_seed)) for tree_seed in range(4)]
    for drafter in (*drafters, chain_of(target_law), chain_of(other_law)):
        text, steps = generate(target_law, seed, drafter)
        assert text == plain
        assert steps < plain_steps  # something was accepted


def test_seeds_give_different_texts() -> None:
    assert len({generate(target_law, seed, plainly)[0] for seed in range(20)}) == 20


def test_control_noise_keyed_by_row_depends_on_the_tree() -> None:
    plain, _ = generate(target_law, 0, plainly, keyed_by_row=True)
    others = [at_random(np.random.default_rng(seed)) for seed in range(4)]
    assert any(generate(target_law, 0, drafter, keyed_by_row=True)[0] != plain for drafter in others)


def test_a_drafter_with_the_targets_law_and_noise_is_always_right() -> None:
    """A chain of four yields five tokens a step."""
    for seed in range(6):
        assert generate(target_law, seed, chain_of(target_law))[1] == LENGTH // 5


def test_control_with_the_noise_of_another_position_it_is_not() -> None:
    steps = sum(generate(target_law, seed, chain_of(target_law, shift=1))[1] for seed in range(6))
    assert steps > 6 * LENGTH // 3


def test_a_coupled_drafter_is_better_than_a_blind_one() -> None:
    coupled = sum(generate(target_law, seed, chain_of(other_law))[1] for seed in range(12))
    blind = sum(generate(target_law, seed, chain_of(other_law, shift=1000))[1] for seed in range(12))
    assert coupled < 0.8 * blind


def texts(drafter: Drafter, target: ToyLaw, count: int) -> np.ndarray:
    """How often each text of the target's length came, over seeds 0 to `count` - 1."""

    def law(context: Context) -> torch.Tensor:
        return torch.from_numpy(target.next[context[: target.length - 1]]).float()

    counts = np.zeros((target.vocab,) * target.length)
    for seed in range(count):
        counts[generate(law, seed, drafter, target.length)[0]] += 1
    return counts


def deviation(counts: np.ndarray, law: np.ndarray) -> float:
    """Chi-square against a law, in standard deviations; what the law excludes must not have come."""
    assert not counts[law == 0].any()
    expected = law[law > 0] * counts.sum()
    freedom = len(expected) - 1
    statistic = ((counts[law > 0] - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


def test_texts_follow_the_targets_law_with_a_drafter_that_knows_the_noise() -> None:
    target = ToyLaw(1, 3, 3)
    draft = ToyLaw(2, 3, 3)

    def draft_law(context: Context) -> torch.Tensor:
        return torch.from_numpy(draft.next[context[:2]]).float()

    counts = texts(chain_of(draft_law, depth=2), target, 3000)
    assert np.array_equal(counts, texts(plainly, target, 3000))
    assert abs(deviation(counts, target.texts())) < 5
    assert deviation(counts, ToyLaw(3, 3, 3).texts() * 0.5 + target.texts() * 0.5) > 5  # control: the test can fail
