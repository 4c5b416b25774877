"""Converted heads compute what vLLM's own classes compute from the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.convert.checkpoints import DRAFT, HIDDEN, LLAMA, VOCABULARY, eagle1, eagle3, speculators, write
from tests.train.convert.comparison import assert_same, features, of_head, play
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]


def of_vllm(kind: str, folder: Path) -> Tensor:
    pytest.importorskip("vllm")
    out = folder / "out.pt"
    command = [sys.executable, "-m", "tests.train.convert.vllm_layers", kind, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


def test_eagle1(tmp_path: Path) -> None:
    source = write(tmp_path, eagle1(bias=False))  # vLLM's class has no such bias
    head = convert(source, Wishes()).head
    got = play(of_head(head, torch.empty(0)), features(HIDDEN), lambda state: state)
    assert_same(got, of_vllm("eagle1", source))


@pytest.mark.parametrize("before", [False, True])
def test_eagle3(tmp_path: Path, before: bool) -> None:
    if before:
        config = speculators(
            "eagle3", norm_before_residual=True, draft_vocab_size=DRAFT, eagle_aux_hidden_state_layer_ids=[2, 6, 9]
        )
    else:
        config = LLAMA | {"draft_vocab_size": DRAFT}
    source = write(tmp_path, eagle3(prefix="layers.0" if before else "midlayer"), config)
    head = convert(source, Wishes(layers=(2, 6, 9))).head
    logits = play(of_head(head, torch.empty(0)), head.state(features(3 * HIDDEN)), head.logits)
    theirs = of_vllm("eagle3", source)
    assert_same(logits, theirs[:, head.vocabulary])
    others = torch.ones(VOCABULARY, dtype=torch.bool)
    others[head.vocabulary] = False
    assert theirs[:, others].isneginf().all()
