"""Profiles and traces from real engines, on tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from tests.exactness.engines import answers, engine, runner, tally, target_of, tokens
from tests.tiny.prompts import many
from vllm_specvlm.cli.calibration import Grid, calibrate
from vllm_specvlm.engine import plugin
from vllm_specvlm.schedule.profile import Profile
from vllm_specvlm.schedule.simulator import simulate
from vllm_specvlm.schedule.trace import TracedRequest
from vllm_specvlm.tree.tree_shape import TreeShape

FAMILY = "llava"
DEPTH = 4


def speculative(**more: Any) -> dict[str, Any]:
    """The target drafts for itself: what it likes best is always accepted."""
    return {"model": str(target_of(FAMILY)), "num_speculative_tokens": 12, "depth": DEPTH, "planner": True, **more}


@pytest.fixture(scope="module")
def calibrated() -> tuple[LLM, Profile]:
    llm = engine(target_of(FAMILY), speculative())
    said: list[float] = []
    grid = Grid(contexts=(32, 96), batches=(1, 2, 3), nodes=(0, 1, 4, 12), steps=4)
    profile, left_out = calibrate(llm, grid, lambda share, _: said.append(share))
    assert said == sorted(said) and said[-1] == 1.0
    assert left_out == []
    return llm, profile


def test_every_size_was_seen(calibrated: tuple[LLM, Profile]) -> None:
    costs = calibrated[1].costs
    for batch in (1, 2, 3):
        assert costs.plain.seen(batch) >= 4
        assert costs.draft.seen(batch) >= 1
        for nodes in (1, 4, 12):
            assert costs.tree.seen(batch * (1 + nodes)) >= 4
    assert costs.plain.seen(64) == 0


def test_the_planner_is_back(calibrated: tuple[LLM, Profile]) -> None:
    llm, _ = calibrated
    before = tally(llm)
    answers(llm, many(FAMILY, 3))
    plans = {mode: count - before["plans"][mode] for mode, count in tally(llm)["plans"].items()}
    assert plans["probe"] > 0  # it looks before it leaps, as the real one does


def test_an_engine_starts_from_a_profile(calibrated: tuple[LLM, Profile], tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    calibrated[1].save(path)
    speculator = runner(engine(target_of(FAMILY), speculative(profile=str(path)))).drafter
    found = speculator.profile()
    assert found is not None
    assert found.as_dict() == json.loads(path.read_text())
    # The control: an engine that measures for itself knows less, and other times.
    measured = runner(engine(target_of(FAMILY), speculative(num_speculative_tokens=11))).drafter.profile()
    assert measured is not None
    assert measured.costs.plain.seen(1) == 0
    assert measured.costs.plain.at(1) != found.costs.plain.at(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"threads": 99}, "threads 99 and this engine has "), ({"model": "llama@0"}, "model 'llama@0'")],
)
def test_an_engine_refuses_a_profile_of_another(
    calibrated: tuple[LLM, Profile], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    saved = calibrated[1].as_dict()
    saved["key"] |= change
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="calibrate again") as refused:
        engine(target_of(FAMILY), speculative(profile=str(path)))
    assert says in str(refused.value)


def test_a_missing_profile_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    plugin.register()
    with pytest.raises(Exception, match="cannot be read"):
        engine(target_of(FAMILY), speculative(profile=str(tmp_path / "nothing.json")))


def test_a_trace_says_what_will_be_accepted(calibrated: tuple[LLM, Profile]) -> None:
    """Recording leaves answers as they are; real trees of the recorded size fare just as the simulated ones."""
    llm, profile = calibrated
    prompts = many(FAMILY, 3)
    plain = tokens(answers(engine(target_of(FAMILY)), prompts))
    # vLLM does not hand out the pictures of prompts that it remembers, and a draft that never saw them stays blind.
    assert llm.reset_prefix_cache()
    before = tally(llm)
    llm.collective_rpc("specvlm_record")
    assert tokens(answers(llm, prompts)) == plain
    found = [TracedRequest.from_dict(saved) for saved in llm.collective_rpc("specvlm_recorded")[0]]
    assert tally(llm)["trees"] == before["trees"]
    for request in found:
        assert (request.tokens, request.limit) == (40, 40)
        assert request.picture and not request.sampled and request.prompt > 10
        assert [tree.at for tree in request.trees] == list(range(1, request.tokens - 1))

    real = engine(target_of(FAMILY), speculative(planner=False))
    before = tally(real)
    assert tokens(answers(real, prompts)) == plain
    counted = {name: tally(real)[name] - before[name] for name in ("trees", "nodes", "accepted")}
    shape = TreeShape(nodes=12, depth=DEPTH, width=4, top_k=4)
    predicted = simulate(found, profile.costs, profile.overhead, "tree-12", 3, shape)
    assert counted == {"trees": predicted.trees, "nodes": predicted.nodes, "accepted": predicted.accepted}
    assert predicted.accepted > predicted.trees
    # The control: trees of another size fare otherwise.
    assert simulate(found, profile.costs, profile.overhead, "tree-6", 3, shape).accepted != predicted.accepted


def test_recording_ends_with_what_it_began(calibrated: tuple[LLM, Profile]) -> None:
    speculator = runner(calibrated[0]).drafter
    with pytest.raises(RuntimeError, match="specvlm_record"):
        speculator.planning.recorded()
    chain = runner(engine(target_of(FAMILY), {"num_speculative_tokens": 4, "tree": "chain"})).drafter
    assert chain.profile() is None
    with pytest.raises(RuntimeError, match="no planner"):
        chain.planning.force(3)
