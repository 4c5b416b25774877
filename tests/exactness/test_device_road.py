"""Trees grown and accepted by operators with nobody waiting, through the whole engine: the same trees and answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm import SamplingParams

from tests.engine.nobody_waits import NobodyWaits
from tests.exactness.engines import answers, engine, runner, tally, tokens
from tests.exactness.gpu_engines import flash_attention, gpu_engine
from tests.exactness.gpu_stand_ins import Kernels
from tests.exactness.recorded_graphs import RecordedGraph
from tests.exactness.test_gpu_path import CHUNKS, SCENARIO, speculative
from tests.tiny.checkpoints import build
from tests.tiny.prompts import prompts
from tests.tiny.sizes import TARGET
from vllm_specvlm import ops
from vllm_specvlm.draft.calibration import Calibration
from vllm_specvlm.engine import decision_trial, device_growth, tree_walks
from vllm_specvlm.engine.feature_drafter import FeatureDrafter
from vllm_specvlm.engine.mixed_drafter import MixedDrafter
from vllm_specvlm.engine.model_drafter import ModelDrafter
from vllm_specvlm.engine.runner_gpu import TreeGPUModelRunner
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs

Codes = list[dict[str, list[int]]]
SAMPLED = [
    SamplingParams(temperature=0.8, seed=1, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=2, top_p=0.8, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=1.3, seed=3, top_k=9, max_tokens=24, ignore_eos=True),
]


def drafted(llm: Any, batch: Any, params: Any, patch: pytest.MonkeyPatch) -> tuple[list[tuple[int, ...]], Codes]:
    """The answers, and the trees of every step by the request's number."""
    codes: Codes = []
    with patch.context() as here:
        speculator = runner(llm).drafter
        # What was learned of the draft's law goes into the trees of sampled requests.
        here.setattr(speculator._model._choice, "_calibration", Calibration())  # type: ignore[union-attr]
        stock = speculator.draft

        def noted(*args: Any) -> dict[str, list[int]]:
            found = stock(*args)
            codes.append({name.split("-")[0]: code for name, code in found.items()})
            return found

        here.setattr(speculator, "draft", noted)
        found = tokens(answers(llm, batch, params))
    first = min(int(number) for step in codes for number in step)  # vLLM counts on
    return found, [{str(int(number) - first): code for number, code in step.items()} for step in codes]


@pytest.mark.parametrize(
    ("family", "drafter", "scenario"),
    [
        ("llava", "draft", SCENARIO),
        ("llava", "head", SCENARIO),
        ("llava", "head with a global vector", SCENARIO),
        ("llava", "exit", SCENARIO),
        ("qwen2_5_vl", "itself", CHUNKS),
        pytest.param("qwen2_5_vl", "head", CHUNKS, marks=pytest.mark.slow),
    ],
)
def test_trees_and_answers(family: str, drafter: str, scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step the trees that the host grows, for greedy and sampled requests; greedy answers are plain vLLM's."""
    target, batch = build(family), prompts(family)
    params = [SAMPLED[i % len(SAMPLED)] for i in range(len(batch))]
    greedy = [i for i, each in enumerate(params) if each.temperature == 0.0]
    plain = tokens(answers(engine(target, **scenario.options), batch, SAMPLED[2]))
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(target, speculative(drafter, family), monkeypatch, **scenario.options)
        grown = _count(monkeypatch, ModelDrafter, "propose_on_device")
        walked = _count(monkeypatch, ops, "walk_trees")
        found, codes = drafted(llm, batch, params, monkeypatch)
        assert len(grown) > 20 and len(walked) > 5, "the device's road was not taken"
        before = len(grown), len(walked)
        assert llm.reset_prefix_cache()
        monkeypatch.setattr(TreeGPUModelRunner, "grows_on_device", lambda self, layers: False)
        monkeypatch.setattr(runner(llm), "decides_on_device", False)
        by_host, codes_of_host = drafted(llm, batch, params, monkeypatch)
        assert (len(grown), len(walked)) == before
    assert found == by_host
    assert [found[i] for i in greedy] == [plain[i] for i in greedy]
    assert codes == codes_of_host
    assert sum(len(step) for step in codes) > 10
    assert tally(llm)["drafter_failures"] == 0


@pytest.mark.parametrize(
    ("family", "drafter"),
    [
        ("llava", "head"),
        ("llava", "head with a global vector"),
        ("llava", "exit"),
        pytest.param("qwen2_5_vl", "exit", marks=pytest.mark.slow),
    ],
)
def test_levels_in_graphs(family: str, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step the trees that eager passes draft. A graph that is fed with nothing is noticed."""
    batch = prompts(family)
    params = [SAMPLED[i % len(SAMPLED)] for i in range(len(batch))]
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(build(family), speculative(drafter, family), monkeypatch, **SCENARIO.options)
        graphs = runner(llm).drafter._model.graphs  # type: ignore[union-attr]
        before, levels = RecordedGraph.replays, tally(llm)["levels"]
        in_graphs = drafted(llm, batch, params, monkeypatch)
        replays, levels = RecordedGraph.replays - before, tally(llm)["levels"] - levels
        assert levels > 20
        # Two of a level behind the roots, whose logits are of the pass that feeds.
        assert replays > levels
        with monkeypatch.context() as here:
            here.setattr(graphs, "fitting", lambda rows: None)
            assert llm.reset_prefix_cache()
            before = RecordedGraph.replays
            eager = drafted(llm, batch, params, monkeypatch)
            assert RecordedGraph.replays == before
        assert in_graphs == eager
        with monkeypatch.context() as here:
            # Inputs are not put in their places.
            place = graphs.place
            here.setattr(
                graphs,
                "place",
                lambda name, values, *args, **more: place(name, torch.zeros_like(values), *args, **more),
            )
            assert llm.reset_prefix_cache()
            answered, codes = drafted(llm, batch, params, monkeypatch)
    assert answered == eager[0]
    assert codes != eager[1]


def test_lookup_leaves_the_road_to_the_device_until_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny target's answers are new at first, and run in circles later."""
    target, batch = build("llava"), prompts("llava")
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    plain = tokens(answers(engine(target, **SCENARIO.options), batch, params))
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        llm = gpu_engine(target, {**speculative("head"), "with_lookup": True}, monkeypatch, **SCENARIO.options)
        grown = _count(monkeypatch, ModelDrafter, "propose_on_device")
        looked = _count(monkeypatch, MixedDrafter, "open")
        assert tokens(answers(llm, batch, params)) == plain
    assert len(grown) > 5 and len(looked) > 5
    assert tally(llm)["drafter_failures"] == 0


def _count(patch: pytest.MonkeyPatch, where: Any, name: str) -> list[None]:
    stock, calls = getattr(where, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return stock(*args, **kwargs)

    patch.setattr(where, name, counted)
    return calls


@pytest.mark.parametrize("drafter", ["draft", "head", "head with a global vector", "exit"])
def test_nobody_waits_between_levels(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first level to the one copy at the end nothing looks into a tensor, nor from the walks to theirs, nor
    while a head is fed."""
    kernels = Kernels()
    kernels.install(monkeypatch)
    batch = prompts("llava")
    params = [SAMPLED[i % len(SAMPLED)] for i in range(len(batch))]
    with flash_attention(monkeypatch):
        llm = gpu_engine(build("llava", size=TARGET), speculative(drafter), monkeypatch, **SCENARIO.options)
        expected = tokens(answers(llm, batch, params))
        assert llm.reset_prefix_cache()
        with monkeypatch.context() as here:
            guard = NobodyWaits(here)
            copies = _listen(here, guard, kernels)
            assert tokens(answers(llm, batch, params)) == expected
    assert copies["growths"] > 5 and copies["walks"] > 5
    assert guard.calls > 500
    assert guard.waited == []


def test_control_what_waits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        guard = NobodyWaits(here)
        guard.begin()
        tensor = torch.arange(3)
        _ = bool((tensor > 1).any())
        _ = tensor[tensor > 1]
        _ = tensor.tolist()
        guard.end()
        _ = tensor.tolist()
    assert {"__bool__", "_local_scalar_dense", "tolist"} <= set(guard.waited)
    assert {"nonzero", "index"} & set(guard.waited)


def _listen(patch: pytest.MonkeyPatch, guard: NobodyWaits, kernels: Kernels) -> dict[str, int]:
    """Listen from the first level to the copy of the trees, and from the walks to the copy of the tokens."""
    copies = {"growths": 0, "walks": 0}
    for module, name in ((device_growth, "growths"), (tree_walks, "walks")):
        stock = module.download_all

        def copied(tensors: Any, stock: Any = stock, name: str = name) -> Any:
            guard.end()
            copies[name] += 1
            return stock(tensors)

        patch.setattr(module, "download_all", copied)
    opened, walked, attend = ModelDrafter.open_levels, ops.walk_trees, kernels.tree_attention
    committed, fed = kernels.commit_rows, FeatureDrafter._run_feeds

    def run_feeds(self: Any, feeds: Any) -> None:
        guard.begin()
        fed(self, feeds)
        guard.end()

    def open_levels(self: Any, widths: Any) -> None:
        guard.begin()
        opened(self, widths)

    def walk_trees(*args: Any) -> Any:
        guard.begin()
        return walked(*args)

    def tree_attention(*args: Any) -> None:
        with guard.paused():
            attend(*args)

    def commit_rows(*args: Any) -> None:
        with guard.paused():
            committed(*args)

    patch.setattr(FeatureDrafter, "_run_feeds", run_feeds)
    patch.setattr(ModelDrafter, "open_levels", open_levels)
    patch.setattr(ops, "walk_trees", walk_trees)
    patch.setattr(ops, "tree_attention", tree_attention)
    patch.setattr(ops, "commit_rows", commit_rows)
    return copies


def test_the_planner_lays_levels_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are plain's under the planner too, whose trees are laid out beforehand, and it learns from them."""
    batch = prompts("llava") * 3
    target = build("llava", size=TARGET)
    params = SamplingParams(temperature=0.0, max_tokens=80, ignore_eos=True)
    plain = tokens(answers(engine(target, **SCENARIO.options), batch, params))
    Kernels().install(monkeypatch)
    with flash_attention(monkeypatch):
        given = {**speculative("itself"), "planner": True}
        llm = gpu_engine(target, given, monkeypatch, **SCENARIO.options)
        planner = runner(llm).drafter._planning.growth.planner  # type: ignore[union-attr]
        # What drafting costs here would forbid it, as the stand-ins for kernels are slow: it is told of a GPU.
        step, draft = CostCurve({1: 0.010, 64: 0.012}), CostCurve({1: 0.001, 64: 0.002})
        monkeypatch.setattr(planner, "costs", Costs(step, step, draft, draft))
        monkeypatch.setattr(planner, "achieved", lambda *args: None)
        monkeypatch.setattr(runner(llm).drafter._planning.clock, "overhead", 1e-3)
        laid: list[tuple[int, ...] | None] = []
        stock = planner.layout

        def layout(*args: Any) -> Any:
            laid.append(stock(*args))
            return laid[-1]

        monkeypatch.setattr(planner, "layout", layout)
        curve = runner(llm).drafter._planning.costs.draft
        observed = curve.seen_between(1, 8192)
        before = tally(llm)
        assert tokens(answers(llm, batch, params)) == plain
        after = tally(llm)
    assert after["drafter_failures"] == 0
    assert after["accepted"] - before["accepted"] > 50
    assert sum(widths is not None and len(widths) > 2 for widths in laid) > 5
    assert any(widths is None for widths in laid), "nothing was probed"
    assert runner(llm).drafter._planning.growth.acceptance.observed > 100  # type: ignore[union-attr]
    assert curve.seen_between(1, 8192) > observed + 20, "no pass was timed"


def test_operators_that_fail_their_trial_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says so, and the host decides as ever."""
    assert decision_trial.trouble(torch.device("cpu")) is None
    batch, target = prompts("llava"), build("llava", size=TARGET)
    plain = tokens(answers(engine(target, **SCENARIO.options), batch, SCENARIO.params()))
    Kernels().install(monkeypatch)
    stock = ops.walk_trees
    with flash_attention(monkeypatch), monkeypatch.context() as here:
        here.setattr(ops, "walk_trees", lambda *a, **k: stock(*a, **k)._replace(counts=torch.zeros(40).int()))
        assert "walks are wrong" in str(decision_trial.trouble(torch.device("cpu")))
        here.setattr(ops, "race", None)
        options = {**SCENARIO.options, "num_gpu_blocks_override": 67}
        llm = gpu_engine(target, speculative("itself"), here, **options)
        assert not runner(llm).decides_on_device
        before = tally(llm)
        assert tokens(answers(llm, batch, SCENARIO.params())) == plain
        after = tally(llm)
    assert after["accepted"] - before["accepted"] > 20 and after["drafter_failures"] == 0
