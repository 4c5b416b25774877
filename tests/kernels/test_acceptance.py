"""Walks and races: the operators, on the CPU and emulated, against the plain Python."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import emulated
from tests.kernels.case import random_parents
from vllm_specvlm import ops
from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.noise import exponentials, position_keys
from vllm_specvlm.tree.race import race
from vllm_specvlm.tree.token_tree import TokenTree

needs_compiler = pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with")


def random_trees(count: int, rng: random.Random) -> tuple[list[TokenTree], list[Tensor]]:
    """Trees of few different tokens, so that walks are long, and the target's tokens of their rows."""
    trees, rows = [], []
    for _ in range(count):
        parents = random_parents(rng.randrange(0, 60), rng)
        # One node hangs on the root as node 0 of random_parents does; others may too.
        parents = tuple(-1 if p == 0 and rng.random() < 0.3 else p for p in parents)
        tokens = tuple(rng.choice([-1, 0, 1, 2, 2]) for _ in parents)
        trees.append(TokenTree(tokens, parents))
        rows.append(torch.tensor([rng.choice([0, 1, 2]) for _ in range(len(parents) + 1)], dtype=torch.int64))
    return trees, rows


def walk_arguments(trees: list[TokenTree], rows: list[Tensor], groups: int) -> dict[str, Any]:
    nodes, first_nodes, first_rows = [0], [0], []
    row_count = 2  # rows of somebody else come first
    for tree in trees:
        first_nodes.append(first_nodes[-1] + len(tree))
        first_rows.append(row_count)
        row_count += len(tree) + 1
    nodes = first_nodes[-1]
    return {
        "tokens": torch.tensor([t for tree in trees for t in tree.tokens], dtype=torch.int64),
        "parents": torch.tensor([p for tree in trees for p in tree.parents], dtype=torch.int32),
        "first_nodes": torch.tensor(first_nodes, dtype=torch.int32),
        "row_tokens": torch.cat([torch.tensor([7, 7]), *rows]),
        "first_rows": torch.tensor(first_rows, dtype=torch.int32),
        "linear_slots": torch.randperm(groups * nodes).view(groups, nodes),
    }


def check_walks(trees: list[TokenTree], rows: list[Tensor], arguments: dict[str, Any], walks: ops.Walks) -> None:
    slots = torch.full_like(arguments["linear_slots"], -1)
    for t, (tree, row_tokens) in enumerate(zip(trees, rows, strict=True)):
        accepted = walk(tree, row_tokens.tolist())
        count, first = len(accepted.path), int(arguments["first_nodes"][t])
        assert int(walks.counts[t]) == count
        assert tuple(walks.path[t, :count].tolist()) == accepted.path
        assert tuple(walks.emitted[t, : count + 1].tolist()) == accepted.tokens
        assert (walks.path[t, count:] == -1).all() and (walks.emitted[t, count + 1 :] == -1).all()
        for depth, node in enumerate(accepted.path):
            slots[:, first + node] = arguments["linear_slots"][:, first + depth]
    assert torch.equal(walks.slots, slots)


def test_walks() -> None:
    for seed in range(30):
        trees, rows = random_trees(seed % 7, random.Random(seed))
        arguments = walk_arguments(trees, rows, groups=seed % 3)
        check_walks(trees, rows, arguments, ops.walk_trees(**arguments, most=60))


@needs_compiler
def test_emulated_walks() -> None:
    emulated.library()
    trees, rows = random_trees(150, random.Random(1))  # more than a block of threads
    arguments = walk_arguments(trees, rows, groups=2)
    walks = ops.Walks(*[torch.full_like(x, 99) for x in ops.walk_trees(**arguments, most=60)])
    torch.ops.vllm_specvlm_emulated.walk_trees(*arguments.values(), *walks)
    check_walks(trees, rows, arguments, walks)
    torch.library.opcheck(torch.ops.vllm_specvlm_emulated.walk_trees.default, (*arguments.values(), *walks))


def test_a_long_path_is_cut() -> None:
    arguments = walk_arguments([TokenTree((1, 1, 1), (-1, 0, 1))], [torch.tensor([1, 1, 1, 5])], groups=1)
    walks = ops.walk_trees(**arguments, most=2)
    assert walks.emitted.tolist() == [[1, 1, 1]] and walks.path.tolist() == [[0, 1]] and walks.counts.tolist() == [2]
    assert int(walks.slots[0, 2]) == -1


def test_wrong_walks() -> None:
    arguments = walk_arguments(*random_trees(3, random.Random(3)), groups=1)
    wrong = [
        ({"tokens": arguments["tokens"].int()}, "tokens must be int64"),
        ({"parents": arguments["parents"][1:]}, "parents must be int32"),
        ({"first_nodes": arguments["first_nodes"] + 1}, "lie outside the"),
        ({"row_tokens": arguments["row_tokens"][:-1]}, "of tree 2 lie outside"),
    ]
    for changes, words in wrong:
        with pytest.raises(RuntimeError, match=words):
            ops.walk_trees(**(arguments | changes), most=4)


def laws(rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    probs = torch.softmax(torch.randn(rows, vocabulary, generator=rng) * 3, dim=1)
    probs[:, ::3] = 0
    return probs, position_keys(torch.arange(rows) // 2, torch.arange(rows) % 2)


def speeds(probs: Tensor, keys: Tensor) -> Tensor:
    """Of all tokens, with torch's logarithm, in float64 from there on."""
    return probs.double() / exponentials(keys, torch.arange(probs.shape[1])).double()


def test_races() -> None:
    probs, keys = laws(400, 5000)
    winners, expected = ops.race(probs, keys), race(probs, keys)
    other = (winners != expected).nonzero()[:, 0]
    assert len(other) < 4
    best = speeds(probs[other], keys[other]).topk(2).values
    assert ((best[:, 0] - best[:, 1]) <= 1e-6 * best[:, 0]).all()
    assert (probs[torch.arange(400), winners] > 0).all()


def test_the_exponential_variable_is_that_of_the_python() -> None:
    """Of two tokens, one of which has a probability that makes it a tie, the rounding of the variable decides."""
    keys = position_keys(torch.arange(3000), torch.zeros(3000, dtype=torch.int64))
    both = exponentials(keys, torch.arange(2)).double()
    for factor, winner in ((1 + 1e-6, 0), (1 - 1e-6, 1)):
        probs = torch.stack([both[:, 0] / both[:, 1] * factor, torch.ones(3000)], dim=1).float()
        usable = probs[:, 0] < 1e30
        assert (ops.race(probs, keys)[usable] == winner).all()


def test_rows_that_are_no_law() -> None:
    probs, keys = laws(5, 300)
    probs[1] = 0
    probs[2, 17] = float("nan")
    probs[3, 17] = float("inf")
    expected = ops.race(laws(5, 300)[0], keys)
    expected[1:4] = -1
    assert torch.equal(ops.race(probs, keys), expected)
    with pytest.raises(RuntimeError, match="probs must be float32"):
        ops.race(probs.double(), keys)
    with pytest.raises(RuntimeError, match="keys must be int64"):
        ops.race(probs, keys[1:])
    assert ops.race(probs[:0], keys[:0]).shape == (0,)


@needs_compiler
def test_emulated_races_have_the_same_winners() -> None:
    emulated.library()
    for rows, vocabulary in ((60, 3000), (3, 5), (2, 129)):
        probs, keys = laws(rows, vocabulary)
        probs[1, 1] = float("nan")
        padded = torch.nn.functional.pad(probs, (0, 7))[:, :vocabulary]
        assert torch.equal(torch.ops.vllm_specvlm_emulated.race(padded, keys), ops.race(probs, keys))
    # A token far behind the threads of the first warp wins alone.
    one = torch.zeros(4, 1000)
    one[:, 999] = 1e-30
    assert (torch.ops.vllm_specvlm_emulated.race(one, keys.new_tensor([1, 2, 3, 4])) == 999).all()
    torch.library.opcheck(torch.ops.vllm_specvlm_emulated.race.default, laws(3, 50))
