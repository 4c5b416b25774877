"""The GPU's road through the engine, on the CPU device: vLLM's own FlashAttention classes, our runner, every fallback.

What stands in are the functions that only a GPU has; see `gpu_stand_ins`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.forward_context import BatchDescriptor
from vllm.v1.attention.backends import flash_attn
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, tokens
from tests.exactness.gpu_engines import flash_attention, gpu_engine, ways
from tests.exactness.gpu_stand_ins import Kernels
from tests.exactness.oracle import OracleDrafter
from tests.exactness.recorded_graphs import RecordedGraph
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT, TARGET
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.draft_vlm import DraftVLM
from vllm_specvlm.engine.model_drafter import ModelDrafter
from vllm_specvlm.engine.runner import attending
from vllm_specvlm.engine.runner_gpu import TreeGPUModelRunner
from vllm_specvlm.engine.tree_step import TreeStep
from vllm_specvlm.tree.tree_shape import TreeShape

(CHUNKS,) = (scenario for scenario in SCENARIOS if scenario.name == "chunked prefill and prefix hits")
SCENARIO = Scenario("batch", {"num_gpu_blocks_override": 62, "max_num_batched_tokens": 200})


def speculative(drafter: str, family: str = "llava") -> dict[str, Any]:
    given: dict[str, Any] = {"num_speculative_tokens": 12}
    if drafter == "draft":
        given["model"] = str(build("llava", seed=7, size=DRAFT))
    elif drafter == "itself":
        given["model"] = str(build(family, size=TARGET))
    elif drafter == "head":
        given["model"] = str(build_head(family, CompressorConfig()))
    elif drafter == "head with a global vector":
        given["model"] = str(build_head(family, CompressorConfig(kind="global")))
    elif drafter == "exit":
        given["model"] = str(build_exit(family))
    return given


def check(llm: Any, plain: Any, patch: pytest.MonkeyPatch, *, oracle: bool) -> dict[str, Any]:
    """Answers of `llm` are those of `plain`, and there were trees; what the engine counted."""
    if oracle:
        known = {tuple(o.prompt_token_ids or ()): tuple(o.outputs[0].token_ids) for o in plain}
        patch.setattr(runner(llm).drafter, "_drafter", OracleDrafter(known, 500))
        patch.setattr(runner(llm).drafter, "shape", TreeShape(nodes=12, depth=5, width=3, top_k=3))
        patch.setattr(runner(llm).drafter._text, "_told", {})
    before = tally(llm)
    assert tokens(answers(llm, prompts("llava"), SCENARIO.params())) == tokens(plain)
    after = tally(llm)
    counted = {name: after[name] - before[name] for name in ("trees", "nodes", "accepted", "drafter_failures")}
    assert counted["trees"] > 10 and counted["drafter_failures"] == 0, counted
    return counted


@pytest.fixture
def plain() -> Any:
    return answers(engine(build("llava", size=TARGET), **SCENARIO.options), prompts("llava"), SCENARIO.params())


@pytest.mark.parametrize("drafter", ["oracle", "itself"])
def test_with_our_kernels(drafter: str, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their references compute; the commit is one call for all layers, drafts go through padded passes."""
    kernels = Kernels()
    kernels.install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(build("llava", size=TARGET), speculative(drafter), monkeypatch, **SCENARIO.options)
        assert ways(llm) == {"tree attention kernel"}
        attended, committed = kernels.attended, kernels.committed
        counted = check(llm, plain, monkeypatch, oracle=drafter == "oracle")
    assert counted["accepted"] > counted["trees"]
    assert kernels.attended - attended > 20
    assert 0 < kernels.committed - committed <= counted["trees"]


@pytest.mark.parametrize(
    ("family", "drafter", "scenario"),
    [("llava", "head", SCENARIO), ("llava", "exit", SCENARIO), ("qwen2_5_vl", "itself", CHUNKS)],
)
def test_other_drafters_and_families(
    family: str, drafter: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads and exits, M-RoPE, prompts in chunks beside trees, prefixes found in the cache."""
    target, batch = build(family), prompts(family)
    plain = [
        tokens(answers(engine(target, **scenario.options), batch, scenario.params())) for _ in range(scenario.rounds)
    ]
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(target, speculative(drafter, family), monkeypatch, **scenario.options)
        before = tally(llm)
        found = [tokens(answers(llm, batch, scenario.params())) for _ in range(scenario.rounds)]
        after = tally(llm)
    assert found == plain
    assert after["trees"] - before["trees"] > 10
    assert after["drafter_failures"] == 0


@pytest.mark.parametrize("way", ["FlashAttention for the prefix, merged with the nodes", "plain torch"])
def test_without_our_kernels(way: str, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without CUDA kernels falls back, and further where FlashAttention does not give its weights."""
    with flash_attention(monkeypatch):
        if way == "plain torch":
            stand_in = flash_attn.flash_attn_varlen_func

            def without_weights(*args: Any, return_softmax_lse: bool = False, **kwargs: Any) -> Any:
                if return_softmax_lse:
                    raise RuntimeError("no weights here")
                return stand_in(*args, **kwargs)

            monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", without_weights)
        options = {**SCENARIO.options, "num_gpu_blocks_override": 63 if way == "plain torch" else 64}
        llm = gpu_engine(build("llava", size=TARGET), speculative("itself"), monkeypatch, **options)
        assert ways(llm) == {way}
        check(llm, plain, monkeypatch, oracle=False)
        counted = check(llm, plain, monkeypatch, oracle=True)
    assert counted["accepted"] > counted["trees"]


def test_control_a_commit_that_forgets_a_layer_is_noticed(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels()
    kernels.install(monkeypatch)
    with flash_attention(monkeypatch):
        options = {**SCENARIO.options, "num_gpu_blocks_override": 65}
        llm = gpu_engine(build("llava", size=TARGET), speculative("oracle"), monkeypatch, **options)
        whole = kernels.commit_rows
        monkeypatch.setattr(
            "vllm_specvlm.ops.commit_rows",
            lambda caches, keys, values, slots: whole(caches[1:], keys[1:], values[1:], slots),
        )
        with pytest.raises(AssertionError):
            check(llm, plain, monkeypatch, oracle=True)


def test_memory_bounds_the_trees(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest bound: few nodes a step, exact all the same; the tensors exist before the KV cache does."""
    kernels = Kernels()
    kernels.install(monkeypatch)
    monkeypatch.setattr("vllm_specvlm.engine.tree_memory.TreeMemory.rows", lambda self, names: 7)
    with flash_attention(monkeypatch):
        options = {**SCENARIO.options, "num_gpu_blocks_override": 66}
        llm = gpu_engine(build("llava", size=TARGET), speculative("oracle"), monkeypatch, **options)
        store = runner(llm).tree_store
        assert store.limit == 7
        assert {tensor.shape[0] for pair in store._layers.values() for tensor in pair} == {7}
        nodes: list[int] = []
        build_step = runner(llm).tree_store.reserve
        monkeypatch.setattr(store, "reserve", lambda rows: (nodes.append(rows), build_step(rows)))
        counted = check(llm, plain, monkeypatch, oracle=True)
    assert 0 < max(nodes) <= 7
    assert counted["accepted"] > 0


@pytest.mark.parametrize("drafter", ["itself", "head"])
def test_what_stays_is_there_before_passes_are_measured(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM takes the peak of these passes for that of all later ones, beside which trees keep their memory."""
    Kernels().install(monkeypatch)
    order: list[str] = []

    def noted(where: Any, name: str, event: str) -> None:
        stock = getattr(where, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            order.append(event)
            return stock(*args, **kwargs)

        monkeypatch.setattr(where, name, method)

    noted(DenseStore, "allocate", "trees")
    noted(TreeStep, "room", "tables")
    noted(TreeGPUModelRunner, "_dummy_run", "pass")
    noted(ModelDrafter, "profile_run", "draft's pass")
    with flash_attention(monkeypatch):
        options = {**SCENARIO.options, "num_gpu_blocks_override": 68}
        gpu_engine(build("llava", size=TARGET), speculative(drafter), monkeypatch, **options)
    first = order[: order.index("draft's pass") + 1]
    assert first[:3] == ["trees", "trees", "tables"]
    assert set(first[3:-1]) == {"pass"}
    assert "trees" not in order[3:]


@pytest.mark.parametrize("call", ["profile_run", "capture"])
def test_a_draft_that_fails_at_start_is_switched_off(call: str, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its widest pass may be more than the device has room for."""
    Kernels().install(monkeypatch)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("injected")

    with flash_attention(monkeypatch), monkeypatch.context() as here:
        here.setattr(ModelDrafter if call == "profile_run" else DraftVLM, call, fails)
        options = {**SCENARIO.options, "num_gpu_blocks_override": 69 + (call == "capture")}
        llm = gpu_engine(build("llava", size=TARGET), speculative("itself"), here, **options)
        assert tokens(answers(llm, prompts("llava"), SCENARIO.params())) == tokens(plain)
    counted = tally(llm)
    assert counted["drafter_failures"] == 1 and counted["trees"] == 0


def test_graphs_that_were_only_measured_are_forgotten(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM throws them away; a pass before they are captured again is eager."""
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(build("llava", size=TARGET), speculative("exit"), monkeypatch, **SCENARIO.options)
        found = runner(llm)
        graphs = found.drafter._model.graphs
        sizes = list(graphs._sizes)
        monkeypatch.setattr(GPUModelRunner, "profile_cudagraph_memory", lambda self: 12345)
        assert graphs.fitting(3) is not None
        assert found.profile_cudagraph_memory() == 12345
        assert graphs.fitting(3) is None
        before = RecordedGraph.replays
        check(llm, plain, monkeypatch, oracle=False)
        assert RecordedGraph.replays == before
        for size in sizes:
            graphs.add(BatchDescriptor(num_tokens=size))
        assert llm.reset_prefix_cache()
        check(llm, plain, monkeypatch, oracle=False)
        assert RecordedGraph.replays > before


def test_only_layers_that_attend_are_ours() -> None:
    """vLLM keeps mixtures of experts among them."""
    assert attending({"experts": torch.nn.Linear(1, 1)}) == {}


def test_graphs_are_those_of_plain_decoding() -> None:
    """FULL graphs hold one token a request; a step with trees is sent to PIECEWISE ones or to none."""
    from vllm.config import CUDAGraphMode

    from vllm_specvlm.engine.tree_dispatcher import TreeDispatcher

    dispatcher = TreeDispatcher.__new__(TreeDispatcher)
    config = type("Config", (), {})()
    config.scheduler_config = type("Scheduler", (), {"max_num_seqs": 8})()
    config.lora_config = None
    dispatcher.vllm_config = config
    dispatcher.compilation_config = type(
        "Compilation",
        (),
        {"max_cudagraph_capture_size": 8, "cudagraph_capture_sizes": [1, 2, 4, 8], "compile_sizes": []},
    )()
    dispatcher.uniform_decode_query_len = 1
    dispatcher.specialize_lora_count = False
    dispatcher.cudagraph_keys = {CUDAGraphMode.PIECEWISE: set(), CUDAGraphMode.FULL: set()}
    for mode in (CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL):
        for keys in dispatcher.cudagraph_keys.values():
            keys.clear()
        dispatcher.initialize_cudagraph_keys(mode, 1)
        dispatcher.has_trees = False
        assert dispatcher.dispatch(num_tokens=3, uniform_decode=True)[0] == CUDAGraphMode.FULL
        assert dispatcher.dispatch(num_tokens=3, uniform_decode=True)[1].num_reqs == 4
        dispatcher.has_trees = True
        found, descriptor = dispatcher.dispatch(num_tokens=6, uniform_decode=False)
        assert found == (CUDAGraphMode.PIECEWISE if mode == CUDAGraphMode.FULL_AND_PIECEWISE else CUDAGraphMode.NONE)
        assert isinstance(descriptor, BatchDescriptor)


def test_the_runner_asks_for_graphs_of_one_token(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(build("llava", size=TARGET), speculative("itself"), monkeypatch, **SCENARIO.options)
        found = runner(llm)
        assert isinstance(found, TreeGPUModelRunner)
        assert found.uniform_decode_query_len == found.cudagraph_dispatcher.uniform_decode_query_len == 1
        sizes: list[tuple[bool, bool]] = []
        dispatcher = found.cudagraph_dispatcher
        stock = dispatcher.dispatch

        def noted(num_tokens: int, *args: Any, **kwargs: Any) -> Any:
            sizes.append((dispatcher.has_trees, num_tokens == found.input_batch.num_reqs))
            return stock(num_tokens, *args, **kwargs)

        monkeypatch.setattr(dispatcher, "dispatch", noted)
        check(llm, plain, monkeypatch, oracle=False)
    # A step of one token a request has no trees; steps with trees say so.
    assert (True, False) in sizes and (True, True) not in sizes


def test_passes_of_a_draft_are_padded_for_graphs(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a graph would read changes place; rows behind the inputs write nothing."""
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(build("llava", size=TARGET), speculative("itself"), monkeypatch, **SCENARIO.options)
        model = runner(llm).drafter._model
        network = model._network
        rows: list[int] = []
        stock = network._model.forward

        def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
            hidden = stock(*args, **kwargs)
            rows.append(len(hidden))
            return hidden

        monkeypatch.setattr(network._model, "forward", noted)
        check(llm, plain, monkeypatch, oracle=False)
    assert {4, 16} & set(rows)
    assert all(n in (4, 16, 64) or n > 64 for n in rows)
