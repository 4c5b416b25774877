"""Growing and accepting trees by the operators: the same decisions on every device, and those of the Python."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import astuple

import torch

from vllm_specvlm import ops
from vllm_specvlm.selftest.check import Check
from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.noise import position_keys
from vllm_specvlm.tree.token_tree import TokenTree

CPU = torch.device("cpu")


def check(device: torch.device | None) -> Iterable[Check]:
    """The CPU's operators against the Python, and those of `device`, if there is one, against the CPU's."""
    yield _walks(CPU)
    if device is None:
        return
    yield _walks(device)
    yield _races(device)
    yield _growth(device)


def _walks(device: torch.device) -> Check:
    """Random trees of few different tokens, so that walks are long."""
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
    wrong = 0
    for i, (tree, row) in enumerate(zip(trees, rows, strict=True)):
        accepted = walk(tree, row)
        count = len(accepted.path)
        path, emitted = found.path[i, :count].tolist(), found.emitted[i, : count + 1].tolist()
        wrong += path != list(accepted.path) or emitted != list(accepted.tokens) or int(found.counts[i]) != count
    return Check.judged(f"walks on {device.type}", not wrong, f"{wrong} of {len(trees)} trees differ from the Python's")


def _races(device: torch.device) -> Check:
    """Winners of races, which must be the CPU's."""
    noise = torch.Generator().manual_seed(6)
    probs = (3 * torch.randn(64, 32000, generator=noise)).softmax(-1)
    keys = position_keys(torch.arange(64) * 7919, torch.arange(64))
    mine, theirs = ops.race(probs, keys), ops.race(probs.to(device), keys.to(device)).cpu()
    wrong = int((mine != theirs).sum())
    return Check.judged(f"races on {device.type}", not wrong, f"{wrong} of 64 winners differ from the CPU's")


def _growth(device: torch.device) -> Check:
    """Trees grown of random proposals, and their descriptions."""
    noise = torch.Generator().manual_seed(7)
    requests, width, top_k, capacity = 20, 8, 6, 64
    budgets = torch.randint(1, capacity + 1, (requests,), generator=noise, dtype=torch.int32)
    grown = [ops.GrowingTrees.empty(budgets.to(place), capacity, width) for place in (CPU, device)]
    for level in range(6):
        tokens = torch.randint(0, 50, (requests, width, top_k), generator=noise)
        values = torch.randn(requests, width, top_k, generator=noise).log_softmax(-1)
        values = values.sort(dim=-1, descending=True).values
        for trees, place in zip(grown, (CPU, device), strict=True):
            trees.grow(tokens.to(place), values.to(place), level)
    pairs = [*zip(*(astuple(trees) for trees in grown), strict=True)]
    pairs += zip(*(trees.describe(17) for trees in grown), strict=True)
    wrong = sum(not torch.equal(one, other.cpu()) for one, other in pairs)
    return Check.judged(f"growth on {device.type}", not wrong, f"{wrong} of {len(pairs)} tables differ from the CPU's")
