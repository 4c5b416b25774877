"""Two processes against one that has all lessons."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.train.made import TableTarget, head, lesson, marks
from tests.train.test_learning import TEXTS, recipe
from vllm_specvlm.train.learning import learn
from vllm_specvlm.train.ranks import Ranks


def step(rank: int, count: int, folder: str) -> None:
    values = {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29713"}
    os.environ |= values if count > 1 else {}
    torch.set_num_threads(1)
    ranks = Ranks()
    target, network = TableTarget(), head("resampler", seed=1 + rank).train()
    ranks.share(network.parameters())
    # Only the first process has lessons with pictures: the other's compressor has no gradient of its own.
    # The other's answers are too short for the last unrolled step, and both have as many figures to sum.
    lessons = [
        lesson(seed, marks(text), [(2, 6)] if seed < 2 else [], target)
        for seed, text in enumerate([*TEXTS[:2], "..PPPPPP..aa", TEXTS[3]])
        if count == 1 or seed // 2 == rank
    ]
    rows = target.output_rows(network.vocabulary)
    figures = learn(network, target, rows, lessons, recipe(), ranks, nullcontext())  # type: ignore[arg-type]
    gradients = {name: p.grad for name, p in network.named_parameters()}
    trouble = ranks.agree("full" if rank == 0 else None)
    torch.save((figures.loss, figures.tokens, gradients, trouble, figures.parts), Path(folder) / f"{count}-{rank}.pt")
    ranks.leave()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    spawn(step, args=(2, str(tmp_path)), nprocs=2)
    step(0, 1, str(tmp_path))
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("2-0", "2-1", "1-0"))
    assert first[1] == second[1] == alone[1]
    assert abs(first[0] - alone[0]) < 1e-5 and first[0] == second[0]
    assert first[4] == second[4] and first[4].keys() == alone[4].keys()
    for name, value in alone[4].items():
        assert abs(first[4][name] - value) < 1e-5, name
    assert "last_agreement" in alone[4]
    assert first[3] == second[3] == "full"
    for name, gradient in alone[2].items():
        assert torch.equal(first[2][name], second[2][name]), name
        torch.testing.assert_close(first[2][name], gradient, atol=1e-6, rtol=1e-4)
