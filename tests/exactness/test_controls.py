"""Negative controls: each part of the step, taken away, must change answers, so the identity tests can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.exactness.engines import Scenario
from tests.exactness.test_identity import plain, play, with_oracle
from vllm_specvlm.engine import verification
from vllm_specvlm.engine.verification import Verification


def _no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Verification.commit_slots

    def nowhere(self: Verification, accepted: Any) -> list[torch.Tensor]:
        return [torch.full_like(slots, -1) for slots in stock(self, accepted)]

    monkeypatch.setattr(Verification, "commit_slots", nowhere)


def _no_depth_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verification, "position_shift", lambda self: np.zeros(self.dense_rows, dtype=np.int64))


def _causal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = verification._tree_rows

    def causal(place: Any) -> Any:
        rows = stock(place)
        for i in range(1, len(rows.ancestors)):
            rows.ancestors[i, 0] = np.uint64((1 << i) - 1)
        return rows

    monkeypatch.setattr(verification, "_tree_rows", causal)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("control", [_no_commit, _no_depth_positions, _causal_mask], ids=lambda f: f.__name__[1:])
def test_without_it_answers_differ(family: str, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario("long answers", max_tokens=150)
    llm = with_oracle(family, scenario, monkeypatch)
    control(monkeypatch)
    ours, theirs = play(llm, scenario, family)[0], plain(family, scenario)[0]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert same <= len(theirs) // 2, f"{same} of {len(theirs)} answers survived the control"
