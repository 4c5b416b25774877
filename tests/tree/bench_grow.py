"""Time of growing and walking, without a drafter's own: `python -m tests.tree.bench_grow`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.grow import Frontier, LevelProposal, TreeShape, grow
from vllm_specvlm.tree.token_tree import TokenTree


class _Bank:
    """Proposals made beforehand."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        laws = -np.sort(-rng.dirichlet([0.3] * 8, (64, 1024)), axis=-1)
        self.log_probs = np.log(np.maximum(laws, 1e-9)).astype(np.float32)
        self.tokens = np.broadcast_to(np.arange(8), laws.shape)
        self.calls = 0

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The next proposal of the bank."""
        self.calls += 1
        at, rows = self.calls % 64, len(frontier.node)
        return LevelProposal(self.tokens[at, :rows, :top_k], self.log_probs[at, :rows, :top_k])


def microseconds(work: Callable[[], object], repeat: int = 500) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def main() -> None:
    """Print one line per case."""
    for shape in (TreeShape.chain(4), TreeShape(32, 6, 4, 4), TreeShape(60, 7, 10, 8)):
        for batch in (1, 8, 32):
            bank = _Bank()
            budgets, roots = [shape.nodes] * batch, list(range(batch))
            us = microseconds(lambda b=bank, s=shape, n=budgets, r=roots: grow(b, s, n, r))  # type: ignore[misc]
            levels = bank.calls / 500
            print(
                f"grow nodes {shape.nodes:3d} depth {shape.depth} width {shape.width:2d} top_k {shape.top_k} "
                f"batch {batch:2d}: {us:7.1f} us, {us / levels:6.1f} us per level"
            )
    tree = TokenTree.chain(range(127))
    code = FlatCode(32000)
    codes = code.encode(tree)
    rows = list(range(128))
    print(f"walk 127 nodes, all accepted: {microseconds(lambda: walk(tree, rows)):.1f} us")
    print(f"encode 127 nodes: {microseconds(lambda: code.encode(tree)):.1f} us")
    print(f"decode 127 nodes: {microseconds(lambda: code.decode(codes)):.1f} us")
    print(f"ancestor masks of 127 nodes: {microseconds(tree.ancestor_masks):.1f} us")


if __name__ == "__main__":
    main()
