from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from tests.engine import vllm_sources
from vllm_specvlm.engine import compat
from vllm_specvlm.engine.attention_cpu import TreeCPUAttentionImpl
from vllm_specvlm.engine.attention_gpu import TreeFlashAttentionImpl
from vllm_specvlm.engine.ledger import LEDGER, Symbol
from vllm_specvlm.engine.runner import TreeModelRunner
from vllm_specvlm.engine.runner_cpu import TreeCPUModelRunner
from vllm_specvlm.engine.runner_gpu import TreeGPUModelRunner
from vllm_specvlm.engine.tree_dispatcher import TreeDispatcher
from vllm_specvlm.engine.tree_grammars import TreeGrammars
from vllm_specvlm.engine.worker_cpu import TreeCPUWorker
from vllm_specvlm.engine.worker_gpu import TreeGPUWorker


def test_installed_vllm_fits() -> None:
    assert [finding for finding in compat.check() if not finding.ok] == []


def test_installed_sources_fit() -> None:
    import vllm

    assert vllm_sources.problems(Path(vllm.__file__).parents[1]) == []


@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        (Symbol("vllm.no.such.module:x", "called", ""), "is missing"),
        (Symbol("vllm.v1.worker.gpu_model_runner:GPUModelRunner.no_such_method", "overridden", ""), "is missing"),
        (
            Symbol("vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample", "overridden", "", ("spec", "logits")),
            "not ['spec', 'logits']",
        ),
    ],
)
def test_a_missing_or_changed_symbol_is_found(symbol: Symbol, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    monkeypatch.setattr(compat, "LEDGER", (symbol,))
    monkeypatch.setattr(vllm_sources, "LEDGER", (symbol,))
    found = compat.check()[1]
    assert not found.ok and says in found.detail
    assert len(vllm_sources.problems(Path(vllm.__file__).parents[1])) == 1


OURS = [
    TreeModelRunner,
    TreeCPUModelRunner,
    TreeGPUModelRunner,
    TreeCPUWorker,
    TreeGPUWorker,
    TreeCPUAttentionImpl,
    TreeFlashAttentionImpl,
    TreeDispatcher,
    TreeGrammars,
]


@pytest.mark.parametrize("ours", OURS)
def test_every_override_is_in_the_ledger(ours: type) -> None:
    """A method of ours that hides one of vLLM's is one that vLLM may change."""
    listed = {symbol.where.rpartition(".")[2] for symbol in LEDGER if symbol.use == "overridden"}
    stock = [base for base in ours.__mro__ if base.__module__.startswith("vllm.")]
    hidden = {
        name
        for name in vars(ours)
        if inspect.isroutine(vars(ours)[name])
        and not name.startswith("__")
        and any(hasattr(base, name) for base in stock)
    }
    assert hidden and hidden <= listed


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0.0", "unknown"])
def test_other_versions_are_refused(version: str) -> None:
    assert "install vLLM 0.32" in (compat.version_problem(version) or "")


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0"])
def test_supported_versions(version: str) -> None:
    assert compat.version_problem(version) is None


@pytest.mark.nightly
@pytest.mark.skipif("SPECVLM_VLLM_SOURCES" not in os.environ, reason="set SPECVLM_VLLM_SOURCES to an unpacked wheel")
def test_sources_of_another_version_fit() -> None:
    assert vllm_sources.problems(Path(os.environ["SPECVLM_VLLM_SOURCES"])) == []
