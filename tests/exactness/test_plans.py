"""Plans that change every step, nothing included, change no answer; and the draft's cache survives being left out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from vllm import LLM, SamplingParams

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.test_identity import FAMILIES, plain, play
from tests.tiny.checkpoints import build
from tests.tiny.prompts import Prompt, prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.schedule.plan import Candidate, Mode, Plan
from vllm_specvlm.schedule.planner import Planner


class RandomPlanner(Planner):
    """Draws every decision: whom to draft for, which nodes to expand, how many to verify; some steps for nobody."""

    def __init__(self, stock: Planner, seed: int) -> None:
        super().__init__(stock.costs)
        self._random = random.Random(seed)
        self.plans: list[int] = []

    def plan(self, requests: int, candidates: Sequence[Candidate]) -> Plan:
        share = self._random.choice((0.0, 0.5, 1.0))
        chosen = tuple(i for i in range(len(candidates)) if self._random.random() < share)
        self.plans.append(len(chosen))
        return Plan(Mode.TREES if chosen else Mode.PLAIN, chosen)

    def admit(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        return [self._random.random() < 0.8 for _ in scores]

    def cut(self, trees: Mapping[int, tuple[Sequence[float], Sequence[int]]]) -> list[int]:
        return [self._random.randint(0, len(scores)) for scores, _ in trees.values()]


def _plan_for_all(requests: int, candidates: Sequence[Candidate]) -> Plan:
    return Plan(Mode.TREES if candidates else Mode.PLAIN, tuple(range(len(candidates))))


def with_random_plans(llm: LLM, seed: int, monkeypatch: pytest.MonkeyPatch) -> RandomPlanner:
    planned = runner(llm).drafter._planning.growth
    planner = RandomPlanner(planned.planner, seed)
    monkeypatch.setattr(planned, "planner", planner)
    return planner


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize("family", FAMILIES)
class TestRandomPlans:
    def test_small_draft(self, family: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
        draft = build(family, seed=7, size=DRAFT, vocab_padding=64)
        speculative = {"model": str(draft), "num_speculative_tokens": 12, "planner": True}
        llm = engine(target_of(family), speculative, **scenario.options)
        planner = with_random_plans(llm, 1, monkeypatch)
        before = tally(llm)
        assert play(llm, scenario, family) == plain(family, scenario)
        assert {0, len(prompts(family))} & set(planner.plans) and len(set(planner.plans)) > 2
        assert tally(llm)["trees"] > before["trees"]
        assert tally(llm)["drafter_failures"] == 0

    def test_draft_with_the_targets_weights_is_always_right(
        self, family: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Left out for any number of steps, through chunks, prefix hits and preemption, it has caught up when asked."""
        target = target_of(family)
        chain = {"num_speculative_tokens": 4, "width": 1, "top_k": 1, "planner": True}
        llm = engine(target, {"model": str(target), **chain}, **scenario.options)
        with_random_plans(llm, 2, monkeypatch)
        before = tally(llm)
        assert play(llm, scenario, family) == plain(family, scenario)
        after = tally(llm)
        nodes = after["nodes"] - before["nodes"]
        assert nodes > 20 and after["drafter_failures"] == 0
        assert after["accepted"] - before["accepted"] == nodes, "a draft equal to its target was rejected"


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_under_the_real_planner(family: str) -> None:
    """Three turns with prefix hits; the planner has its own mind about when to speculate."""
    draft = build(family, seed=7, size=DRAFT)
    ours = engine(target_of(family), {"model": str(draft), "planner": True})
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)

    def turns(llm: LLM) -> list[Any]:
        asked: Sequence[Prompt] = prompts(family)[:4]
        said = []
        for _ in range(3):
            outputs = answers(llm, asked, params)
            said.append(tokens(outputs))
            asked = [p.follow_up(o.outputs[0].text, "go on") for p, o in zip(asked, outputs, strict=True)]
        return said

    assert turns(ours) == turns(engine(target_of(family)))
    planned = tally(ours)["plans"]
    assert planned["probe"] >= 5, "the planner never looked"
    assert tally(ours)["drafter_failures"] == 0


def test_it_learns_what_the_drafter_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model of acceptance says on the average is what happened, for a drafter that is right and one that
    is not."""
    target = target_of("llava")
    right = engine(target, {"model": str(target), "width": 1, "top_k": 1, "planner": True}, seed=3)
    wrong = engine(target, {"model": str(build("llava", seed=11)), "width": 1, "top_k": 1, "planner": True}, seed=3)
    believed = {}
    for name, llm in (("right", right), ("wrong", wrong)):
        planner = with_random_plans(llm, 3, monkeypatch)
        answers(llm, prompts("llava") * 3)
        model = runner(llm).drafter._planning.growth.acceptance
        assert model.observed > 64 and planner.plans
        inputs, accepted = model._law._inputs[: model.observed, :-1], model._law._outcomes[: model.observed]
        believed[name] = float(np.exp(model.log_probs(inputs[:, None, :])).mean())
        assert believed[name] == pytest.approx(accepted.mean(), abs=0.1)
    assert believed["right"] > 0.9 > 0.6 > believed["wrong"]


def test_costs_are_learned_from_steps() -> None:
    llm = engine(target_of("llava"), {"planner": True, "num_speculative_tokens": 6})
    answers(llm, prompts("llava") * 2)
    costs = runner(llm).drafter._planning.growth.planner.costs
    assert sum(costs.plain.seen(n) for n in (1, 2, 4, 8)) > 0


@pytest.mark.parametrize(
    ("extra", "most_nodes"),
    [({"specvlm": "off"}, 0), ({"specvlm_nodes": 2}, 2), ({"specvlm_depth": "1"}, 4), ({"specvlm_nodes": 0}, 0)],
)
@pytest.mark.parametrize("planner", [True, False])
def test_a_request_bounds_its_own_trees(
    extra: dict[str, Any], most_nodes: int, planner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_of("llava")
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 12, "planner": planner})
    if planner:
        with_random_plans(llm, 4, monkeypatch)
    sizes = _sizes(llm, monkeypatch)
    bounded = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, extra_args=extra)
    free = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    batch = prompts("llava")[:4]
    said = tokens(answers(llm, batch, [bounded, free, bounded, free]))
    assert said == tokens(answers(engine(target), batch, free))
    mine = [n for request, n in sizes if int(request.split("-")[0]) % 2 == 0]
    theirs = [n for request, n in sizes if int(request.split("-")[0]) % 2 == 1]
    assert max(mine, default=0) <= most_nodes
    assert max(theirs) > 4


def _sizes(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Filled with (request id counted from 0, nodes) of every tree drafted from now on."""
    seen: list[tuple[str, int]] = []
    speculator = runner(llm).drafter
    stock = speculator._draft
    first: list[int] = []

    def draft(*args: Any) -> Any:
        codes = stock(*args)
        numbers = {int(request_id.split("-")[0]) for request_id in runner(llm).input_batch.req_ids}
        first.append(min([*numbers, *first]))
        seen.extend((str(int(r.split("-")[0]) - min(first)), len(c)) for r, c in codes.items())
        return codes

    monkeypatch.setattr(speculator, "_draft", draft)
    return seen


@pytest.mark.parametrize("extra", [{"specvlm": "maybe"}, {"specvlm_nodes": -1}, {"specvlm_node": 3}, {"specvlm": 1}])
def test_a_wish_nobody_understands_harms_nobody(extra: dict[str, Any]) -> None:
    target = target_of("llava")
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"})
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, extra_args=extra)
    before = tally(llm)["trees"]
    said = tokens(answers(llm, prompts("llava")[:2], params))
    assert said == tokens(
        answers(engine(target), prompts("llava")[:2], SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    )
    assert tally(llm)["trees"] > before


def test_a_draft_that_was_left_out_still_sees_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM hands over pixels once; a later request with the prompt in cache comes without, and the draft has seen
    nothing yet. It must not go blind."""
    target = target_of("llava")
    chain = {"num_speculative_tokens": 4, "width": 1, "top_k": 1, "planner": True}
    llm = engine(target, {"model": str(target), **chain}, max_num_seqs=5)
    off = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, extra_args={"specvlm": "off"})
    on = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    planner = with_random_plans(llm, 5, monkeypatch)
    monkeypatch.setattr(planner, "plan", _plan_for_all)
    first = answers(llm, prompts("llava"), off)
    before = tally(llm)
    second = answers(llm, prompts("llava"), on)
    after = tally(llm)
    assert sum(output.num_cached_tokens or 0 for output in second) > 0, "no prompt was in the cache"
    assert tokens(second) == tokens(first)
    assert after["accepted"] - before["accepted"] == after["nodes"] - before["nodes"] > 20
    vision = runner(llm).drafter._model._vision
    assert not vision._pixels and vision._pixel_bytes == 0 and vision._cache
