"""vLLM's own counters of speculation, and its summary per request, hold for trees of every size; ours agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from vllm import LLM

from tests.exactness.engines import answers, engine, runner, tally, target_of
from tests.tiny.checkpoints import DRAFT, build
from tests.tiny.prompts import prompts

_LABELS = {"model_name": "tiny", "engine": "0"}
_COUNTING = {"disable_log_stats": False, "per_request_spec_decode_metrics": "detailed", "served_model_name": "tiny"}
_BUDGETS = (1, 16, 60)


def _vllm(name: str, **labels: str) -> int:
    value = REGISTRY.get_sample_value(f"vllm:spec_decode_num_{name}_total", {**_LABELS, **labels})
    assert value is not None and value.is_integer()
    return int(value)


def _ours(name: str) -> float:
    """The sum over all series of a sample."""
    found = [sample.value for family in REGISTRY.collect() for sample in family.samples if sample.name == name]
    assert found
    return float(sum(found))


def _count(llm: LLM, nodes: int) -> list[dict[str, Any]]:
    """Answer all prompts at once and check every counter against every other; the requests' summaries.

    The engine's trees have at most so many `nodes`.
    """
    before = tally(llm)
    assert before["trees"] == 0
    outputs = answers(llm, prompts("llava"))
    counted = tally(llm)
    summaries = [output.outputs[0].spec_decode_metrics.to_dict() for output in outputs]

    per_position = [_vllm("accepted_tokens_per_pos", position=str(position)) for position in range(nodes)]
    assert REGISTRY.get_sample_value(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total", {**_LABELS, "position": str(nodes)}
    ) is None  # fmt: skip
    assert per_position == sorted(per_position, reverse=True)
    assert sum(per_position) == _vllm("accepted_tokens") == counted["accepted"]
    assert _vllm("drafts") == counted["trees"]
    assert _vllm("draft_tokens") == counted["nodes"]

    for summary, output in zip(summaries, outputs, strict=True):
        assert summary["num_spec_tokens"] == nodes
        assert len(summary["acceptance_histogram"]) == nodes + 1
        steps = list(zip(summary.get("per_step_accepted", ()), summary.get("per_step_drafted", ()), strict=True))
        assert all(0 <= accepted <= drafted <= nodes for accepted, drafted in steps)
        assert len(steps) == summary["num_spec_steps"] == sum(summary["acceptance_histogram"])
        assert summary["num_accepted_draft_tokens"] == sum(accepted for accepted, _ in steps)
        assert summary["mean_acceptance_length"] == 1 + summary["num_accepted_draft_tokens"] / max(len(steps), 1)
        # A step brings what was accepted and one more; the last may bring more than the answer still takes.
        assert summary["num_accepted_draft_tokens"] + len(steps) <= len(output.outputs[0].token_ids) + nodes
    for name, total in (
        ("num_spec_steps", "trees"),
        ("num_draft_tokens", "nodes"),
        ("num_accepted_draft_tokens", "accepted"),
    ):
        assert sum(summary[name] for summary in summaries) == counted[total]

    assert _ours("specvlm_tree_nodes_count") == _ours("specvlm_acceptance_length_count") == counted["trees"]
    assert _ours("specvlm_tree_nodes_sum") == counted["nodes"]
    assert _ours("specvlm_acceptance_length_sum") == counted["accepted"] + counted["trees"]
    assert _ours("specvlm_steps_total") == counted["tree_steps"] + counted["plain_steps"]
    assert _ours("specvlm_draft_seconds_total") == counted["seconds"]["draft"] > 0
    assert _ours("specvlm_draft_pass_seconds_total") == counted["seconds"]["draft_model"]
    return summaries


@pytest.mark.parametrize("nodes", _BUDGETS)
def test_chains_accepted_whole(nodes: int) -> None:
    """The longest path there can be: the draft is the target, so a chain of the whole budget is accepted."""
    target = target_of("llava")
    llm = engine(target, {"model": str(target), "num_speculative_tokens": nodes, "tree": "chain"}, **_COUNTING)
    for summary in _count(llm, nodes):
        whole = min(nodes, 38)  # of 40 tokens one comes with the prompt, and the last needs no draft
        assert max(summary["per_step_accepted"]) == max(summary["per_step_drafted"]) == whole
        assert summary["draft_acceptance_rate"] == 1
    plans = _plans()
    assert plans.pop("fixed") > 0 and set(plans.values()) == {0}


@pytest.mark.parametrize("nodes", _BUDGETS)
def test_sizes_that_vary(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees cut to any size between two steps, none included, as a planner may."""
    draft = build("llava", seed=7, size=DRAFT)
    speculative = {"model": str(draft), "num_speculative_tokens": nodes, "planner": False}
    llm = engine(target_of("llava"), speculative, **_COUNTING)
    speculator = runner(llm).drafter
    stock, rng = speculator.draft, np.random.default_rng(nodes)

    def cut(*args: Any) -> dict[str, list[int]]:
        sizes = {request: (codes, rng.integers(len(codes) + 1)) for request, codes in stock(*args).items()}
        return {request: codes[:size] for request, (codes, size) in sizes.items() if size}

    monkeypatch.setattr(speculator, "draft", cut)
    sizes = {size for summary in _count(llm, nodes) for size in summary.get("per_step_drafted", ())}
    assert len(sizes) > nodes / 2
    assert tally(llm)["accepted"] > 20
    assert _plans()["fixed"] > 0


@pytest.mark.parametrize("nodes", _BUDGETS)
def test_the_planner_decides(nodes: int) -> None:
    """On a model this small it speculates to find out whether it should, and then rarely."""
    target = target_of("llava")
    llm = engine(target, {"model": str(target), "num_speculative_tokens": nodes, "planner": True}, **_COUNTING)
    _count(llm, nodes)
    plans = _plans()
    assert plans.pop("fixed") == 0
    assert plans == tally(llm)["plans"] and sum(plans.values()) > 0


def _plans() -> dict[str, float]:
    found = {
        mode: REGISTRY.get_sample_value("specvlm_plans_total", {**_LABELS, "mode": mode})
        for mode in ("plain", "trees", "probe", "fixed")
    }
    return {mode: count for mode, count in found.items() if count is not None}
