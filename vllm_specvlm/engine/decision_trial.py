"""Random trees and races, decided by a device's operators and by those of the CPU, which must agree to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import astuple

import torch

from vllm_specvlm import ops
from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.noise import position_keys
from vllm_specvlm.tree.token_tree import TokenTree

_CPU = torch.device("cpu")


def trouble(device: torch.device) -> str | None:
    """Why trees cannot be grown and accepted by the operators on this device; None if they can."""
    trials: Mapping[str, Callable[[torch.device], tuple[int, int]]] = {
        "walks": wrong_walks,
        "races": wrong_races,
        "grown trees": wrong_growths,
    }
    for name, trial in trials.items():
        try:
            wrong, of = trial(device)
        except Exception as error:
            return f"{name} fail: {type(error).__name__}: {error}"
        if wrong:
            return f"{wrong} of {of} {name} are wrong"
    return None


def wrong_walks(device: torch.device) -> tuple[int, int]:
    """How many of so many trees are walked otherwise than by the Python. Of few different tokens, so walks are long."""
    choose = random.Random(5)
    trees, rows = [], []
    for _ in range(40):
        count = choose.randrange(1, 100)
        parents = tuple(choose.randrange(-1, i) for i in range(count))
        trees.append(TokenTree(tuple(choose.choice((-1, 0, 1, 2)) for _ in parents), parents))
        rows.append([choose.choice((0, 1, 2)) for _ in range(count + 1)])
    sizes = [len(tree) for tree in trees]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    arguments = (
        torch.tensor([token for tree in trees for token in tree.tokens]),
        torch.tensor([parent for tree in trees for parent in tree.parents], dtype=torch.int32),
        starts.int(),
        torch.tensor([token for row in rows for token in row]),
        (starts[:-1] + torch.arange(len(trees))).int(),
        torch.arange(int(starts[-1]))[None],
    )
    node_tokens, node_parents, nodes, draws, firsts, slots = (argument.to(device) for argument in arguments)
    found = ops.walk_trees(node_tokens, node_parents, nodes, draws, firsts, slots, most=128)
    emitted, paths, counts, to = (part.cpu() for part in found)
    wrong = 0
    for i, (tree, row) in enumerate(zip(trees, rows, strict=True)):
        accepted = walk(tree, row)
        count, first = len(accepted.path), int(starts[i])
        expected = torch.full((len(tree),), -1)
        expected[list(accepted.path)] = first + torch.arange(count)
        wrong += (
            int(counts[i]) != count
            or paths[i, :count].tolist() != list(accepted.path)
            or emitted[i, : count + 1].tolist() != list(accepted.tokens)
            or not torch.equal(to[0, first : first + len(tree)], expected)
        )
    return wrong, len(trees)


def wrong_races(device: torch.device) -> tuple[int, int]:
    """How many of so many races have another winner than on the CPU."""
    noise = torch.Generator().manual_seed(6)
    probs = (3 * torch.randn(64, 32000, generator=noise)).softmax(-1)
    keys = position_keys(torch.arange(64) * 7919, torch.arange(64))
    mine, theirs = ops.race(probs, keys), ops.race(probs.to(device), keys.to(device)).cpu()
    return int((mine != theirs).sum()), len(probs)


def wrong_growths(device: torch.device) -> tuple[int, int]:
    """How many of so many trees, grown of random proposals and described, differ from the CPU's."""
    noise = torch.Generator().manual_seed(7)
    requests, width, top_k, capacity = 20, 8, 6, 64
    budgets = torch.randint(1, capacity + 1, (requests,), generator=noise, dtype=torch.int32)
    grown = [ops.GrowingTrees.empty(budgets.to(place), capacity, width) for place in (_CPU, device)]
    for level in range(6):
        tokens = torch.randint(0, 50, (requests, width, top_k), generator=noise)
        values = torch.randn(requests, width, top_k, generator=noise).log_softmax(-1)
        values = values.sort(dim=-1, descending=True).values
        for trees, place in zip(grown, (_CPU, device), strict=True):
            trees.grow(tokens.to(place), values.to(place), level)
    pairs = [*zip(*(astuple(trees) for trees in grown), strict=True)]
    pairs += zip(*(trees.describe(17) for trees in grown), strict=True)
    differs = torch.zeros(requests, dtype=torch.bool)
    for one, other in pairs:
        differs |= (one != other.cpu()).view(requests, -1).any(dim=1)
    return int(differs.sum()), requests
