"""Counting checks, against the zoo's own counter and a hand-made tree."""

from __future__ import annotations

import random

import torch

from tests.train.made import DRAFTED, TableTarget, head, lesson, marks
from vllm_specvlm.train import acceptance
from vllm_specvlm.zoo.evaluate import verification_cycles


def test_chains_count_as_in_the_zoo() -> None:
    """There, whether a token matches does not depend on the draft's step; so here every step has the same ranks."""
    rng = random.Random(0)
    for _ in range(50):
        matches = [rng.random() < 0.7 for _ in range(rng.randint(2, 30))]
        ranks = [[0 if match else 1 for match in matches[1:]]] * 4
        tokens, cycles = verification_cycles(matches, 4)
        assert tokens == len(ranks[0])
        assert acceptance._checks(ranks, (1,) * 4) == cycles


def test_a_tree_by_hand() -> None:
    ranks = [[3, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    # From slot 0: rank 3 of 4, then 1 of 2, then 1 of 1 misses: two kept and one of the target's. Slots 3, 4: both.
    assert acceptance._checks(ranks, acceptance.TREE) == 2
    # A chain keeps nothing at slot 0, then slot 1, but slot 2 in its second step is right too: 1 + 4.
    assert acceptance._checks(ranks, (1,) * 5) == 2


def test_a_head_that_cannot_know_gets_no_more_than_the_targets_own_tokens() -> None:
    target, network = TableTarget(), head("pool")
    texts = [lesson(seed, marks(".aaaaaaaaaa"), [], target) for seed in range(3)]
    for text in texts:
        text.ids[2:] = DRAFTED  # the first token that the head does not draft
    found = acceptance.measure(network, target, texts, 5, batch=2)  # type: ignore[arg-type]
    assert (found.chain, found.tree, found.agreement) == (1.0, 1.0, 0.0)
    assert network.training


def test_a_head_that_knows_keeps_whole_chains(monkeypatch: object) -> None:
    target, network = TableTarget(), head("pool")
    text = lesson(0, marks(".aaaaaaaaaaaaa"), [], target)
    text.ids[2:] = 7
    with torch.no_grad():
        network.lm_head.weight.zero_()
    network.logits = lambda state: torch.eye(DRAFTED)[7].expand(*state.shape[:-1], DRAFTED)  # type: ignore[method-assign]
    found = acceptance.measure(network, target, [text], 5, batch=1)  # type: ignore[arg-type]
    assert found.chain == 12 / 2 and found.agreement == 1.0
