"""Identity in modes that need processes of their own: tensor parallel, the default multi-process engine, compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.exactness.engines import target_of
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from vllm_specvlm.compress.compressor import CompressorConfig

EQUAL_DRAFT = {"num_speculative_tokens": 4, "tree": "chain"}
TREE_DRAFT = {"num_speculative_tokens": 12}
PLANNED_DRAFT = {"planner": True, "num_speculative_tokens": 12}
TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@cache
def _play(family: str, options: str, speculative: str, environment: str, sampling: str, *more: str) -> Any:
    command = [sys.executable, "-m", "tests.exactness.play", family, "--options", options]
    done = subprocess.run(
        [*command, "--speculative", speculative, "--sampling", sampling, *more],
        env={**os.environ, **json.loads(environment)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert done.returncode == 0 and lines, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(lines[-1].removeprefix("ANSWERS "))


def play(
    family: str,
    options: dict[str, Any],
    speculative: dict[str, Any] | None,
    environment: dict[str, str],
    sampling: dict[str, Any] | None = None,
    *more: str,
) -> Any:
    """Answers of two rounds and the ranks' tallies."""
    if speculative is not None:
        speculative = {"model": str(target_of(family)), **speculative}
    words = [json.dumps(given) for given in (options, speculative, environment, sampling or {})]
    return _play(family, *words, *more)


def _check(family: str, options: dict[str, Any], environment: dict[str, str]) -> None:
    plain = play(family, options, None, environment)
    reference = plain["rounds"]
    chain = play(family, options, EQUAL_DRAFT, environment)
    assert chain["rounds"] == reference
    # vLLM compiles a small part of its own with the first picture; we may add nothing to that.
    assert chain["compiled_late"] == plain["compiled_late"]
    for tally in chain["tallies"]:
        assert tally["accepted"] == tally["nodes"] > 50
    tree = play(family, options, TREE_DRAFT, environment)
    assert tree["rounds"] == reference
    assert all(tally["accepted"] > tally["trees"] for tally in tree["tallies"])
    planned = play(family, options, PLANNED_DRAFT, environment)
    assert planned["rounds"] == reference
    first = planned["tallies"][0]
    # The first looks are certain; how many steps follow depends on how many tokens each one yields.
    assert first["plans"]["trees"] + first["plans"]["probe"] >= 5 and first["drafter_failures"] == 0
    # Ranks that planned otherwise would have waited for each other; here they did the same to the last count.
    assert all({**tally, "seconds": 0} == {**first, "seconds": 0} for tally in planned["tallies"])
    # One rank counts for /metrics, whatever their number, and the process that started it can read that.
    for played in (chain, tree, planned):
        tally, metrics = played["tallies"][0], played["metrics"]
        assert metrics["specvlm_acceptance_length_count"] == tally["trees"]
        assert metrics["specvlm_steps_total"] == tally["tree_steps"] + tally["plain_steps"]


def test_tensor_parallel() -> None:
    """Two ranks draft and accept alike."""
    _check("llava", TWO_RANKS, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})


@pytest.mark.slow  # three more engines of two processes; M-RoPE under tensor parallelism
def test_tensor_parallel_mrope() -> None:
    _check("qwen2_5_vl", TWO_RANKS, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})


def _head() -> str:
    return str(build_head("llava", CompressorConfig(kind="pool", ratio=4)))


def _exit() -> str:
    return str(build_exit("llava"))


@pytest.mark.parametrize("draft", [_head, pytest.param(_exit, marks=pytest.mark.slow)])
def test_tensor_parallel_with_the_targets_features(draft: Callable[[], str]) -> None:
    """Every rank has the whole head, or imitation network, and they draft alike."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    played = play("llava", TWO_RANKS, {"model": draft(), **TREE_DRAFT}, environment)
    assert played["rounds"] == play("llava", TWO_RANKS, None, environment)["rounds"]
    first = played["tallies"][0]
    assert first["drafter_failures"] == 0 and first["accepted"] > 20
    assert all({**tally, "seconds": 0} == {**first, "seconds": 0} for tally in played["tallies"])


@pytest.mark.slow  # compiling takes minutes
def test_compiled_feature_head() -> None:
    """The target is compiled, the head is not."""
    options, environment = {"enforce_eager": False}, {"TORCHDYNAMO_DISABLE": "0"}
    for layers in ((), (0, 1)):
        folder = build_head("llava", CompressorConfig(), feature_layers=layers)
        played = play("llava", options, {"model": str(folder), "num_speculative_tokens": 12}, environment)
        assert played["rounds"] == play("llava", options, None, environment)["rounds"]
        assert played["tallies"][0]["drafter_failures"] == 0 and played["tallies"][0]["accepted"] > 20


def grammars_in_processes(tmp_path: Path, environment: dict[str, str], options: dict[str, Any]) -> Any:
    """Played under a grammar, in processes that find the plugin's entry point whether the package is installed or not.

    Returns plain vLLM's answers and ours.
    """
    entry = tmp_path / "specvlm_tests-0.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: specvlm-tests\nVersion: 0\n")
    plugin = "[vllm.general_plugins]\nspecvlm = vllm_specvlm.engine.plugin:register\n"
    (entry / "entry_points.txt").write_text(plugin)
    paths = [str(tmp_path), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), **environment}
    sampling = {"structured_outputs": {"regex": "[a-z ]{200,}"}}
    return (play("llava", options, speculative, environment, sampling) for speculative in (None, TREE_DRAFT))


def test_tensor_parallel_grammars(tmp_path: Path) -> None:
    """The scheduler's process walks the trees, both ranks get the masks."""
    plain, ours = grammars_in_processes(tmp_path, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, TWO_RANKS)
    assert ours["rounds"] == plain["rounds"]
    first = ours["tallies"][0]
    assert first["accepted"] > 60 and first["drafter_failures"] == 0
    assert all({**tally, "seconds": 0} == {**first, "seconds": 0} for tally in ours["tallies"])


@pytest.mark.slow  # engines of several processes
def test_grammars_in_the_multi_process_engine(tmp_path: Path) -> None:
    plain, ours = grammars_in_processes(tmp_path, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, {})
    assert ours["rounds"] == plain["rounds"]
    assert ours["tallies"][0]["accepted"] > 60


@pytest.mark.slow  # engines of two processes
def test_grammars_where_the_ranks_load_no_plugins(tmp_path: Path) -> None:
    """What a rank cannot be sure of it does not do: requests with grammars are decoded plainly."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": ""}
    plain, ours = grammars_in_processes(tmp_path, environment, TWO_RANKS)
    assert ours["rounds"] == plain["rounds"]
    assert [tally["trees"] for tally in ours["tallies"]] == [0, 0]


@pytest.mark.slow  # compiling takes minutes
def test_compiled_early_exit() -> None:
    """The target is compiled, and its first layers are called one by one all the same."""
    options, environment = {"enforce_eager": False}, {"TORCHDYNAMO_DISABLE": "0"}
    played = play("llava", options, {"model": _exit(), **TREE_DRAFT}, environment)
    assert played["rounds"] == play("llava", options, None, environment)["rounds"]
    assert played["tallies"][0]["drafter_failures"] == 0 and played["tallies"][0]["accepted"] > 20


@pytest.mark.slow  # two engines of two processes each
def test_tensor_parallel_sampling() -> None:
    """Sampled texts are the same on one rank and on two: the noise depends on the seed alone."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    sampling = {"temperature": 1.0, "seed": 3}
    two = play("llava", TWO_RANKS, TREE_DRAFT, environment, sampling)["rounds"]
    one = play("llava", {}, TREE_DRAFT, environment, sampling)["rounds"]
    assert two == one


@pytest.mark.slow  # two engines of two processes
def test_a_drafter_that_fails_on_one_rank() -> None:
    """Both ranks stop drafting together; requests go on."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    reference = play("llava", TWO_RANKS, None, environment)["rounds"]
    for draft in (TREE_DRAFT, PLANNED_DRAFT, {"model": _head(), **TREE_DRAFT}, {"model": _exit(), **TREE_DRAFT}):
        broken = play("llava", TWO_RANKS, draft, environment, None, "--break-rank", "1")
        assert broken["rounds"] == reference
        assert [tally["drafter_failures"] for tally in broken["tallies"]] == [1, 1]


@pytest.mark.slow  # an engine of two processes each
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("call", ["observe_schedule", "_look", "_vision.embeddings", "_choice.learn", "backlog"])
def test_a_call_that_fails_on_one_rank(call: str, rank: str) -> None:
    """Outside drafting, before the vision tower, between passes: the other rank never waits for one that stopped."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    reference = play("llava", TWO_RANKS, None, environment)["rounds"]
    broken = play("llava", TWO_RANKS, PLANNED_DRAFT, environment, None, "--break-rank", rank, "--break-call", call)
    assert broken["rounds"] == reference
    assert [tally["drafter_failures"] for tally in broken["tallies"]] == [1, 1]


@pytest.mark.slow  # two engines
def test_unseeded_sampling_repeats_in_the_next_process() -> None:
    """As with plain vLLM, the engine's seed decides."""
    sampling = {"temperature": 1.0}
    first, second = (
        play("llava", {}, TREE_DRAFT, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "SPECVLM_TEST_RUN": run}, sampling)
        for run in ("1", "2")
    )
    assert first["rounds"] == second["rounds"]
    assert first["rounds"][0] != first["rounds"][1]


@pytest.mark.slow  # five engines of three processes
def test_default_multi_process_engine() -> None:
    _check("llava", {}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})


@pytest.mark.slow  # compiling takes minutes
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_compiled(family: str) -> None:
    """Target and draft are compiled at start: no request pays for it."""
    _check(family, {"enforce_eager": False}, {"TORCHDYNAMO_DISABLE": "0"})
