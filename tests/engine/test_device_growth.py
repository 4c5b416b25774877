"""Trees grown with nobody looking are those that the host grows: nodes, masks, dense rows, probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from vllm_specvlm.engine.acceptance_on_device import AcceptanceOnDevice
from vllm_specvlm.engine.device_growth import GrownTrees, can_grow, grow_on_device, levels
from vllm_specvlm.engine.device_trees import DeviceLevel
from vllm_specvlm.engine.growing_trees import GrowingTrees
from vllm_specvlm.schedule.acceptance import FEATURES, AcceptanceModel, features
from vllm_specvlm.tree.grow import Frontier, Grown, LevelProposal, grow_scored
from vllm_specvlm.tree.tree_shape import TreeShape

CPU = torch.device("cpu")
SHAPES = {
    "16 nodes": TreeShape(nodes=16, depth=6, width=4, top_k=4),
    "127 nodes": TreeShape(nodes=127, depth=7, width=16, top_k=8),
    "few nodes": TreeShape(nodes=5, depth=4, width=8, top_k=4),
    "full segments": TreeShape(nodes=127, depth=12, width=24, top_k=3),
    "chain": TreeShape.chain(9),
}
_NOTHING = float("-inf")
Path = tuple[int, ...]


class Both:
    """A drafter of random laws, asked as the host asks and as nobody waits; what it says depends on the path alone."""

    def __init__(self, seed: int, shape: TreeShape, requests: int, behind: Sequence[int] = ()) -> None:
        self.device = CPU
        self.rooted = [i for i in range(requests) if i not in behind]
        self.noted: list[torch.Tensor] = []
        self.trees = GrowingTrees(shape, dense_root=bool(seed % 2))
        self.trees.clear(requests)
        for i in self.rooted:
            self.trees.add(i, row=i, root=50 + i, spans=((0, 20), (30, 50 + i)))
        self.seed = seed
        self.attended: dict[tuple[int, Path], tuple[int, int, tuple[int, ...]]] = {}
        self._paths: list[list[Path]] = []

    def law(self, request: int, path: Path, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities as real ones are: some certain, some twice, rows that end early, NaN."""
        digest = hashlib.sha256(repr((self.seed, request, path)).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        law = np.sort(np.log(rng.dirichlet([0.5] * 9)))[::-1][:top_k]
        tokens, log_probs = rng.permutation(9)[:top_k].astype(np.int64), law.astype(np.float32)
        kind = rng.integers(6)
        if kind == 0 and top_k > 1:
            tokens[1] = tokens[0]
        elif kind == 1:
            log_probs[top_k // 2 + 1 :] = _NOTHING
        elif kind == 2:
            log_probs = (0.25 - np.arange(len(log_probs))).astype(np.float32)
        elif kind == 3 and top_k > 2:
            log_probs[2] = np.nan
        return tokens, log_probs

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        found = LevelProposal(
            np.zeros((len(frontier.node), top_k), dtype=np.int64),
            np.full((len(frontier.node), top_k), _NOTHING, dtype=np.float32),
        )
        above = self._paths[0] if self._paths else []
        paths = [
            () if parent < 0 else (*above[parent], token)
            for parent, token in zip(frontier.parent_row.tolist(), frontier.token.tolist(), strict=True)
        ]
        self._paths = [paths]
        if int(frontier.depth[0]) == 0:
            taken, _ = self.trees.roots(frontier)
        else:
            rows, taken = self.trees.level(frontier)
            for tree in rows:
                for i in range(len(tree.dense_at)):
                    at = int(taken[tree.first_row + i])
                    self.attended[int(frontier.request[at]), paths[at]] = (
                        int(tree.dense_at[i]),
                        int(tree.visible_upto[i]),
                        tuple(tree.ancestors[i].view(np.int64).tolist()),
                    )
        for row in taken.tolist():
            tokens, log_probs = self.law(int(frontier.request[row]), paths[row], top_k)
            found.tokens[row, : len(tokens)], found.log_probs[row, : len(tokens)] = tokens, log_probs
        return found

    def settle(self, noted: Sequence[np.ndarray]) -> None:
        assert not len(noted)

    def open_levels(self, widths: Sequence[int]) -> None:
        self._on_device = self.trees.on_device(CPU, widths, fast=False)

    def propose_on_device(self, level: DeviceLevel, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        lines, width = level.live.shape
        taken = level.live
        paths: list[list[Path]] = [[() for _ in range(width)] for _ in range(lines)]
        if level.depth:
            step, taken = self._on_device.level(level)
            assert [tuple(row) for row in step.requests.tolist()] == [
                (line * width, width, i, self.trees[i].dense_start, 2 * line, 2) for line, i in enumerate(self.rooted)
            ]
            assert step.spans.tolist() == [span for i in self.rooted for span in ([0, 20], [30, 50 + i])]
        tokens = torch.zeros(lines, width, top_k, dtype=torch.int64)
        log_probs = torch.full((lines, width, top_k), _NOTHING)
        for line, request in enumerate(self.rooted):
            for place in range(width):
                row = line * width + place
                if level.depth and not level.live[line, place]:
                    assert (int(step.dense_at[row]), int(step.visible_upto[row])) == (-1, 0)
                    assert step.ancestors[row].tolist() == [0, 0]
                    continue
                if level.depth:
                    parent = int(level.parent_rows[line, place])
                    paths[line][place] = (*self._paths[line][parent], int(level.tokens[line, place]))
                if level.depth and taken[line, place]:
                    self.attended[request, paths[line][place]] = (
                        int(step.dense_at[row]),
                        int(step.visible_upto[row]),
                        tuple(step.ancestors[row].tolist()),
                    )
                if taken[line, place]:
                    said = self.law(request, paths[line][place], top_k)
                    tokens[line, place, : len(said[0])] = torch.from_numpy(said[0])
                    log_probs[line, place, : len(said[1])] = torch.from_numpy(said[1])
        self._paths = paths
        return tokens.view(-1, top_k), log_probs.view(-1, top_k)


def both(seed: int, shape: TreeShape, behind: Sequence[int] = ()) -> tuple[dict[int, Grown], GrownTrees, Both, Both]:
    """The same trees by the host and by nobody."""
    budgets = [shape.nodes, 1 + seed % shape.nodes, max(1, shape.nodes // 2), shape.nodes]
    depths = [shape.depth, shape.depth, 1 + seed % shape.depth, max(1, shape.depth - 1)]
    host, device = Both(seed, shape, 4, behind), Both(seed, shape, 4, behind)
    expected = grow_scored(host, shape, budgets, range(4), depths)
    found = grow_on_device(device, shape, budgets, depths, levels(shape, budgets, depths))
    return expected, found, host, device


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_trees_are_the_hosts(seed: int, shape: TreeShape) -> None:
    expected, found, host, device = both(seed, shape)
    assert list(found.trees) == list(expected)
    for request, grown in expected.items():
        mine = found.trees[request]
        assert (mine.tree, mine.log_probs, mine.passes) == (grown.tree, grown.log_probs, grown.passes)
        # Each origin is the entry of what was proposed for the node given its parent.
        above = [0.0 if parent < 0 else mine.log_probs[parent] for parent in mine.tree.parents]
        proposed = found.proposed.reshape(-1)[list(mine.origins)].astype(np.float64)
        assert [a + min(p, 0.0) for a, p in zip(above, proposed.tolist(), strict=True)] == list(mine.log_probs)
    assert device.attended == host.attended, "nodes lie in other dense rows, or see others"
    assert len(device.attended) > 5 or shape.nodes < 6


def test_full_segments_are_reached() -> None:
    """The case of that name does what it is there for."""
    _, _, host, _ = both(3, SHAPES["full segments"])
    assert max(at % 128 for at, _, _ in host.attended.values()) == 127


def test_requests_without_a_root_get_no_tree() -> None:
    expected, found, _, _ = both(1, SHAPES["16 nodes"], behind=(0, 2))
    assert list(found.trees) == [1, 3]
    assert all(found.trees[i].tree == expected[i].tree for i in found.trees)
    _, found, _, _ = both(1, SHAPES["16 nodes"], behind=(0, 1, 2, 3))
    assert found.trees == {} and found.reach == []


def test_narrow_levels_expand_the_best() -> None:
    shape = SHAPES["16 nodes"]
    device, host = Both(2, shape, 2), Both(2, shape, 2)
    found = grow_on_device(device, shape, [16, 16], [6, 6], (1, 2, 1))
    narrow = TreeShape(nodes=16, depth=3, width=2, top_k=4)
    expected = grow_scored(_Narrowing(host), narrow, [16, 16], range(2))
    assert [g.tree for g in found.trees.values()] == [g.tree for g in expected.values()]
    assert len(found.reach) == 2 and all(0 < reach <= 4 for reach in found.reach)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_grows_below_what_ends_an_answer(seed: int) -> None:
    """Where everybody fits into a level the trees are the host's again; else a node that ends keeps its place."""
    shape = TreeShape(nodes=20, depth=3, width=81, top_k=9)
    ends: list[tuple[int, ...]] = [(), (1,), (2, 3, 400)]
    host, device = Both(seed, shape, 3), Both(seed, shape, 3)
    expected = grow_scored(host, shape, [20] * 3, range(3), ends=ends)
    found = grow_on_device(device, shape, [20] * 3, [3] * 3, (1, 20, 20), ends)
    ended = 0
    for request, grown in found.trees.items():
        assert (grown.tree, grown.log_probs) == (expected[request].tree, expected[request].log_probs)
        above = {grown.tree.tokens[parent] for parent in grown.tree.parents if parent >= 0}
        assert not above & set(ends[request])
        ended += len(set(grown.tree.tokens) & set(ends[request]))
    assert ended, "no tree ended anywhere"
    assert device.attended == host.attended


class _Narrowing:
    """Answers the first of a request's rows in the third level alone."""

    def __init__(self, drafter: Both) -> None:
        self._drafter = drafter

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        found = self._drafter.propose_level(frontier, top_k)
        if int(frontier.depth[0]) == 2:
            later = np.append([False], frontier.request[1:] == frontier.request[:-1])
            found.log_probs[later] = _NOTHING
        return found


def test_what_the_operator_cannot_grow() -> None:
    assert not can_grow(TreeShape.fixed([[0], [1], [0, 0]]))
    assert not can_grow(TreeShape(nodes=100, depth=3, width=100, top_k=20))
    assert all(can_grow(shape) for shape in SHAPES.values())


def test_levels() -> None:
    shape = SHAPES["16 nodes"]
    assert levels(shape, [16, 3], [2, 9]) == (1, 4, 4, 4, 4, 4)
    assert levels(shape, [3, 1], [2, 1]) == (1, 3)
    assert levels(shape, [1], [1]) == (1,)
    assert levels(shape, [], []) == ()


def test_probabilities_of_being_accepted_are_the_planners() -> None:
    """To a rounding of float32, after it has learned something too; ends of rows stay ends."""
    rng = np.random.default_rng(1)
    model = AcceptanceModel()
    sampled, picture = np.array([True, False, True]), np.array([False, False, True])
    for _ in range(2):
        shares = np.log([1.0, 0.5, 0.1])
        law = AcceptanceOnDevice(model, sampled, picture, CPU, shares)
        for depth in (1, 2, 7):
            values = np.sort(np.log(rng.dirichlet([0.3] * 5, size=12)).astype(np.float32), axis=1)[:, ::-1].copy()
            values[3, 2:], values[4], values[5, 0] = _NOTHING, _NOTHING, 0.0
            level = features(values.astype(np.float64), depth, sampled.repeat(4), picture.repeat(4))
            expected = model.log_probs(level) + shares.repeat(4)[:, None]
            found = law(torch.from_numpy(values), depth).numpy()
            assert (np.isinf(found) == np.isinf(expected)).all()
            seen = np.isfinite(expected)
            assert np.abs(found[seen] - expected[seen]).max() <= 1e-6 * np.abs(expected[seen]).max()
        inputs = rng.normal(size=(400, len(FEATURES)))
        model.observe(inputs, (rng.random(400) < 0.4).tolist())
        assert model.weights != AcceptanceModel().weights
