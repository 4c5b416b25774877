"""Recording steps: the answer stays what it is, and what is written down is what happened."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams

from tests.exactness.engines import GREEDY, answers, engine, runner, tally, target_of, tokens
from tests.exactness.grammars import grammar
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import Prompt, many, prompt
from tests.tiny.sizes import DRAFT
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine.runner_cpu import TreeCPUModelRunner
from vllm_specvlm.engine.tracing_runner import TracingRunner
from vllm_specvlm.schedule import lookup_merit
from vllm_specvlm.timeline.sight import Patch, Sight
from vllm_specvlm.timeline.step import Step

FAMILY = "llava"
ONE = prompt(FAMILY, "one picture")


def speculative(drafter: str, **more: Any) -> dict[str, Any]:
    model = {
        "draft": lambda: {"model": str(build(FAMILY, seed=7, size=DRAFT))},
        "itself": lambda: {"model": str(target_of(FAMILY))},
        "head": lambda: {"model": str(build_head(FAMILY, CompressorConfig("pool", ratio=4)))},
        "exit": lambda: {"model": str(build_exit(FAMILY))},
        "lookup": dict,
    }[drafter]()
    return {**model, **more}


def traced(llm: LLM, asked: Sequence[Prompt], params: Any = GREEDY) -> tuple[list[RequestOutput], list[dict[str, Any]]]:
    """Answers, and what was noted of each request."""
    assert llm.reset_prefix_cache()
    llm.collective_rpc("specvlm_trace")
    try:
        outputs = answers(llm, asked, params)
    finally:
        noted = llm.collective_rpc("specvlm_traced")[0]
    return outputs, noted


def force(llm: LLM, nodes: int | None) -> None:
    """Where trees are planned, trees of so many nodes: tiny models are too fast for the planner to want any."""
    if runner(llm).drafter.options.plans:
        llm.collective_rpc("specvlm_force", args=(nodes,))


def steps_of(noted: dict[str, Any]) -> list[Step]:
    return [Step.from_dict(step) for step in noted["steps"]]


def joined(steps: Sequence[Step]) -> list[int]:
    return [token for step in steps for token in step.tokens]


@pytest.mark.parametrize(
    "config",
    [
        speculative("draft"),
        speculative("draft", tree="chain", num_speculative_tokens=5),
        speculative("draft", planner=True, num_speculative_tokens=16),
        speculative("head", num_speculative_tokens=12),
        speculative("exit"),
        speculative("lookup"),
        speculative("draft", paths=((0,), (1,), (0, 0), (1, 0), (0, 0, 0))),
    ],
    ids=["tree", "chain", "planned", "head", "exit", "lookup", "fixed"],
)
def test_answers_are_plain_vllms_and_the_record_adds_up(config: dict[str, Any]) -> None:
    asked = many(FAMILY, 4)
    plain = tokens(answers(engine(target_of(FAMILY)), asked))
    llm = engine(target_of(FAMILY), config)
    force(llm, 8 if config.get("planner") else None)
    before = tally(llm)
    outputs, noted = traced(llm, asked)
    assert tokens(outputs) == plain
    after = tally(llm)
    force(llm, None)
    assert len(noted) == len(asked)
    for output, found in zip(outputs, noted, strict=True):
        steps, answer = steps_of(found), list(output.outputs[0].token_ids)
        assert found["prompt_tokens"] == len(output.prompt_token_ids or ())
        assert joined(steps)[: len(answer)] == answer
        assert len(joined(steps)) - len(answer) < len(steps[-1].tokens)
        assert [step.mode for step in steps].index("prompt") == 0
    every = [step for found in noted for step in steps_of(found)]
    # What the engine itself counted.
    for name, recorded in (
        ("trees", sum(len(step.tree) > 0 for step in every)),
        ("nodes", sum(len(step.tree) for step in every)),
        ("accepted", sum(len(step.path) for step in every)),
    ):
        assert after[name] - before[name] == recorded, name
    assert sum(len(step.path) for step in every) > 10, "nothing was accepted"
    assert after["drafter_failures"] == 0


def test_what_a_draft_sees_is_asked_when_it_has_read_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trees need no draft, lookup knows them; nobody knows then what the draft sees."""
    config = speculative("head", with_lookup=True, num_speculative_tokens=10)
    llm = engine(target_of(FAMILY), config)
    left = [3]

    def suffices(*_: Any) -> bool:
        left[0] -= 1
        return left[0] >= 0

    monkeypatch.setattr(lookup_merit.LookupMerit, "suffices", suffices)
    monkeypatch.setattr(lookup_merit, "PAYS", -1e9)
    outputs, (noted,) = traced(llm, [ONE])
    assert tokens(outputs) == tokens(answers(engine(target_of(FAMILY)), [ONE]))
    assert tally(llm)["drafter_failures"] == 0 and left[0] < 0
    (sight,) = noted["sights"]
    assert Sight.from_dict(sight).how == "pool", "it was asked too early"


def test_what_a_grammar_dictates_is_written_down() -> None:
    """Its nodes were drafted by nobody, and are certain."""
    options = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
    llm = engine(target_of(FAMILY), speculative("lookup", lookup_min_match=16), **options)
    params = SamplingParams(temperature=0.0, max_tokens=40, structured_outputs=grammar("json"))
    before = tally(llm)
    outputs, (noted,) = traced(llm, [ONE], params)
    steps, answer = steps_of(noted), list(outputs[0].outputs[0].token_ids)
    assert joined(steps)[: len(answer)] == answer
    assert tally(llm)["trees"] - before["trees"] == sum(len(step.tree) > 0 for step in steps) > 2
    assert all(log_prob == 0 for step in steps for log_prob in step.log_probs)
    assert sum(len(step.path) for step in steps) > 3


def test_control_a_record_of_other_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that mistakes the accepted rows by one writes down nothing that could be read."""
    llm = engine(target_of(FAMILY), speculative("draft", depth=4))  # an engine of its own: it stops in mid-step
    stock = TracingRunner.propose_draft_token_ids

    def shifted(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = self._kept_rows
        self._kept_rows = {i: np.append(rows[:1], rows[1:] + 1) for i, rows in kept.items()}
        try:
            return stock(self, *args, **kwargs)
        finally:
            self._kept_rows = kept

    with monkeypatch.context() as patch:
        patch.setattr(TracingRunner, "propose_draft_token_ids", shifted)
        with pytest.raises(ValueError, match="path"):
            traced(llm, [ONE])


@pytest.mark.parametrize("drafter", ["draft", "head"])
def test_sampled_requests(drafter: str) -> None:
    llm = engine(target_of(FAMILY), speculative(drafter))
    params = SamplingParams(temperature=0.8, seed=11, max_tokens=30, ignore_eos=True)
    untraced = tokens(answers(llm, [ONE], params))
    outputs, (noted,) = traced(llm, [ONE], params)
    assert tokens(outputs) == untraced
    assert joined(steps_of(noted))[:30] == list(untraced[0])


def test_off_is_off() -> None:
    """Before and after, runner and drafter are the very same; a trace that never began is an error."""
    llm = engine(target_of(FAMILY), speculative("draft"))
    found = runner(llm)
    drafter = found.drafter._drafter
    traced(llm, [ONE])
    assert type(found) is TreeCPUModelRunner
    assert found.drafter._drafter is drafter
    assert not hasattr(found, "recorder")
    llm.collective_rpc("specvlm_trace")
    with pytest.raises(Exception, match="already"):
        llm.collective_rpc("specvlm_trace")
    assert llm.collective_rpc("specvlm_traced") == [[]]
    assert found.drafter._drafter is drafter
    with pytest.raises(Exception, match="specvlm_trace"):
        llm.collective_rpc("specvlm_traced")


@pytest.mark.parametrize("planned", [False, True])
def test_probabilities_are_the_drafts_own(planned: bool) -> None:
    """A draft with the target's weights is as sure of a token as vLLM says that the target is, planner or not."""
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0)
    (plain,) = answers(engine(target_of(FAMILY)), [ONE], params)
    given = [next(iter(at.values())).logprob for at in plain.outputs[0].logprobs]
    llm = engine(target_of(FAMILY), speculative("itself", planner=planned, num_speculative_tokens=10))
    force(llm, 8 if planned else None)
    _, (noted,) = traced(llm, [ONE])
    force(llm, None)
    at, seen = 0, []
    for step in steps_of(noted):
        for place, node in enumerate(step.path):
            if at + place < len(given):
                seen.append((step.log_probs[node], given[at + place]))
        at += len(step.tokens)
    assert len(seen) > 20
    recorded, wanted = np.array(seen).T
    np.testing.assert_allclose(recorded, wanted, atol=2e-3)
    assert np.ptp(wanted) > 0.1  # the control: they are not all the same
    assert abs(recorded - np.roll(wanted, 1)).max() > 0.1


def test_modes_are_what_was_decided() -> None:
    llm = engine(target_of(FAMILY), speculative("draft", planner=True, num_speculative_tokens=16))
    for nodes, mode in ((0, "plain"), (3, "trees")):
        force(llm, nodes)
        steps = steps_of(traced(llm, [ONE])[1][0])
        assert {step.mode for step in steps[1:-1]} == {mode}
        assert {len(step.tree) for step in steps[1:-2]} == {nodes}
    force(llm, None)
    before = tally(llm)["plans"]
    steps = steps_of(traced(llm, [ONE])[1][0])
    after = tally(llm)["plans"]
    for mode in ("plain", "probe", "trees"):
        # The last drafting of all comes after the last step.
        assert 0 <= after[mode] - before[mode] - sum(step.mode == mode for step in steps) <= 1, mode
    fixed = steps_of(traced(engine(target_of(FAMILY), speculative("draft")), [ONE])[1][0])
    assert {step.mode for step in fixed[1:-1]} == {"fixed"}
    assert fixed[-1].mode in ("fixed", "none")  # a last token needs no draft


def test_times_are_where_they_were_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naps in a drafter, in the target and in the scheduler turn up in their own columns, and once each."""
    llm = engine(target_of(FAMILY), speculative("draft"))
    traced(llm, [ONE])
    found = runner(llm)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    naps = {"draft": 0.011, "verify": 0.007, "other": 0.005}
    counts = dict.fromkeys(naps, 0)

    def napping(where: Any, name: str, kind: str) -> None:
        stock = getattr(where, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(naps[kind])
            counts[kind] += 1
            return stock(*args, **kwargs)

        monkeypatch.setattr(where, name, call)

    napping(found.drafter._drafter, "propose_level", "draft")
    napping(found.tree_sampler, "sample", "verify")
    napping(scheduler, "update_from_output", "other")
    began = time.perf_counter()
    _, (noted,) = traced(llm, [ONE])
    whole = time.perf_counter() - began
    steps = steps_of(noted)
    spent = {kind: sum(getattr(step, kind) for step in steps) for kind in naps}
    # The last drafting and the last output come after the last step.
    levels = sum(step.levels for step in steps)
    assert 0 < levels <= counts["draft"]
    assert spent["draft"] >= levels * naps["draft"]
    assert spent["verify"] >= counts["verify"] * naps["verify"] > 0
    assert spent["other"] >= (counts["other"] - 1) * naps["other"] > 0
    assert sum(spent.values()) == pytest.approx(sum(step.seconds for step in steps))
    assert sum(spent.values()) <= whole
    for step in steps[1:]:
        assert step.draft >= step.levels * naps["draft"]
        assert step.draft >= step.draft_model > 0 or not len(step.tree)
        assert step.other >= naps["other"]


def test_pictures_as_the_draft_sees_them() -> None:
    def sights(config: dict[str, Any], name: str = "two pictures", family: str = FAMILY) -> list[Sight]:
        llm = engine(target_of(family), config)
        return [Sight.from_dict(saved) for saved in traced(llm, [prompt(family, name)])[1][0]["sights"]]

    whole = sights(speculative("draft"))
    assert [sight.how for sight in whole] == ["all", "all"]
    for sight in whole:
        assert sight.grid is not None
        assert sight.kept == sight.visual_tokens == sight.grid[0] * sight.grid[1]
    assert sights(speculative("draft"), "text only") == []
    pooled = sights(speculative("head"))
    for sight, full in zip(pooled, whole, strict=True):
        assert (sight.how, sight.visual_tokens, sight.grid) == ("pool", full.visual_tokens, full.grid)
        assert sight.kept == -(-full.visual_tokens // 4)
        assert sight.patches[0] == Patch(0, (0.25,) * 4)
    shared = sights(speculative("exit"))
    assert [sight.how for sight in shared] == ["shared", "shared"]
    assert [sight.kept for sight in shared] == [sight.visual_tokens for sight in whole]
    assert [sight.how for sight in sights(speculative("lookup"))] == ["blind", "blind"]
    qwen = sights({"model": str(build("qwen2_5_vl", seed=7, size=DRAFT))}, "tall picture", "qwen2_5_vl")
    assert qwen[0].how == "all" and qwen[0].grid is not None
    assert qwen[0].grid[0] > qwen[0].grid[1]  # a tall picture


def test_a_drafter_that_fails_leaves_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tokens(answers(engine(target_of(FAMILY)), [ONE]))
    llm = engine(target_of(FAMILY), speculative("draft", depth=5))  # an engine of its own: it stays without a drafter
    drafter = runner(llm).drafter._drafter
    assert drafter is not None
    stock, calls = drafter.propose_level, []

    def failing(*args: Any) -> Any:
        calls.append(0)
        if len(calls) > 12:
            raise RuntimeError("no more")
        return stock(*args)

    monkeypatch.setattr(drafter, "propose_level", failing)
    outputs, (noted,) = traced(llm, [ONE])
    assert tokens(outputs) == plain
    steps = steps_of(noted)
    assert joined(steps)[: len(plain[0])] == list(plain[0])
    assert tally(llm)["drafter_failures"] == 1
    assert {step.mode for step in steps[-5:]} == {"none"}
    assert type(runner(llm)) is TreeCPUModelRunner
