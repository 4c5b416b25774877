"""Converted heads compute what vLLM's own classes compute from the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.convert.checkpoints import DRAFT, HIDDEN, LLAMA, VOCABULARY, eagle1, eagle3, speculators, write
from tests.train.convert.comparison import assert_same, features, of_head, play
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
LIBRARY = {"draft_vocab_size": DRAFT, "eagle_aux_hidden_state_layer_ids": [2, 6, 9]}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Public heads, with what vLLM's classes compute from them."""
    pytest.importorskip("vllm")
    root = tmp_path_factory.mktemp("heads")
    config = speculators("eagle3", norm_before_residual=True, **LIBRARY)
    found = {
        "eagle1": write(root / "eagle1", eagle1(bias=False)),  # vLLM's class has no such bias
        "eagle3": write(root / "eagle3", eagle3(), LLAMA | {"draft_vocab_size": DRAFT}),
        "library": write(root / "library", eagle3(prefix="layers.0"), config),
    }
    command = [sys.executable, "-m", "tests.train.convert.vllm_layers", *map(str, found.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def test_eagle1(heads: dict[str, Path]) -> None:
    head = convert(heads["eagle1"], Wishes()).head
    got = play(of_head(head, torch.empty(0)), features(HIDDEN), lambda state: state)
    assert_same(got, torch.load(heads["eagle1"] / "logits.pt"))


@pytest.mark.parametrize("name", ["eagle3", "library"])
def test_eagle3(heads: dict[str, Path], name: str) -> None:
    head = convert(heads[name], Wishes(layers=(2, 6, 9))).head
    logits = play(of_head(head, torch.empty(0)), head.state(features(3 * HIDDEN)), head.logits)
    theirs = torch.load(heads[name] / "logits.pt")
    assert_same(logits, theirs[:, head.vocabulary])
    others = torch.ones(VOCABULARY, dtype=torch.bool)
    others[head.vocabulary] = False
    assert theirs[:, others].isneginf().all()
