"""The counters of speculation at /metrics move, and agree with each other and with the answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.client import ask, metric_types, metrics
from tests.server.hall import Hall, Reference
from tests.server.process import Server
from tests.server.questions import good
from tests.tiny.checkpoints import DRAFT, build
from vllm_specvlm.engine.metric import METRICS

pytestmark = pytest.mark.slow  # two servers of three processes

_SPEC = "vllm:spec_decode_num_"
_COUNTS = ("drafts", "draft_tokens")


def test_counters(always_server: Server) -> None:
    before = metrics(always_server)
    questions = list(good().values())
    tokens = sum(answer.completion_tokens for answer in ask(always_server, *questions, *questions))
    after = metrics(always_server)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    drafts = grown[f"{_SPEC}drafts_total"]
    drafted = grown[f"{_SPEC}draft_tokens_total"]
    accepted = grown[f"{_SPEC}accepted_tokens_total"]
    depths = [grown[f'{_SPEC}accepted_tokens_per_pos_total{{position="{depth}"}}'] for depth in range(8)]
    assert 0 < accepted <= drafted <= 8 * drafts
    assert sum(depths) == accepted
    assert depths == sorted(depths, reverse=True) and depths[0] <= drafts
    assert grown["vllm:generation_tokens_total"] == tokens == 40 * 2 * len(questions)
    # A step with a tree yields what was accepted and one more; vLLM counts a last step before it cuts the answer.
    surplus = drafts + accepted - tokens
    assert surplus < 8 * 2 * len(questions)
    assert drafts < tokens, "no step brought more than one token"


def test_a_plain_request_drafts_nothing(always_server: Server) -> None:
    """What is decoded plainly counts no drafts."""
    before = metrics(always_server)
    (answer,) = ask(always_server, {**good()["picture"], "logprobs": True, "logprob_token_ids": [40, 41]})
    after = metrics(always_server)
    assert after[f"{_SPEC}drafts_total"] == before[f"{_SPEC}drafts_total"]
    assert after["vllm:generation_tokens_total"] == before["vllm:generation_tokens_total"] + answer.completion_tokens


def test_a_request_says_how_much_it_wants(always_server: Server, reference: Reference) -> None:
    """`vllm_xargs` reach the drafter; a value that means nothing is ignored."""
    for wish, most in (({"specvlm": "off"}, 0), ({"specvlm_nodes": 2}, 2), ({"specvlm_nodes": "lots"}, 8)):
        before = metrics(always_server)
        (answer,) = ask(always_server, {**good()["picture"], "vllm_xargs": wish})
        after = metrics(always_server)
        assert answer == reference.good["picture"]
        drafts, drafted = (after[f"{_SPEC}{name}_total"] - before[f"{_SPEC}{name}_total"] for name in _COUNTS)
        assert (drafts > 0) == (most > 0) and drafted <= most * drafts


def _grown(server: Server, act: Callable[[], object]) -> dict[str, float]:
    """How much each sample grew while something was done, and the drafting after it."""
    before = metrics(server)
    act()
    time.sleep(1)  # drafting goes on when the answer is out
    return {name: value - before.get(name, 0.0) for name, value in metrics(server).items()}


def _total(grown: dict[str, float], name: str, *labels: str) -> float:
    """The sum over the series with these labels."""
    return sum(
        value
        for sample, value in grown.items()
        if sample.partition("{")[0] == name and all(label in sample for label in labels)
    )


def test_our_metrics(always_server: Server) -> None:
    """Counted in the engine's process, shown by the API server's, and equal to what vLLM counts."""
    questions = list(good().values())
    grown = _grown(always_server, lambda: ask(always_server, *questions, *questions))
    trees = grown[f"{_SPEC}drafts_total"]
    assert trees > 0
    for name in ("specvlm_tree_nodes", "specvlm_acceptance_length"):
        assert _total(grown, f"{name}_count") == _total(grown, f"{name}_bucket", 'le="+Inf"') == trees
    assert _total(grown, "specvlm_tree_nodes_bucket", 'le="8.0"') == trees, "a tree above the engine's bound"
    assert _total(grown, "specvlm_tree_nodes_sum") == grown[f"{_SPEC}draft_tokens_total"]
    assert _total(grown, "specvlm_acceptance_length_sum") == trees + grown[f"{_SPEC}accepted_tokens_total"]
    assert 0 < _total(grown, "specvlm_steps_total", 'kind="tree"') <= trees
    assert _total(grown, "specvlm_plans_total") > 0
    assert 0 < grown["specvlm_draft_pass_seconds_total"] < grown["specvlm_draft_seconds_total"] < 60
    assert 0 < grown["specvlm_verify_seconds_total"] < 60
    assert metrics(always_server)["specvlm_drafter_off"] == 0


def test_what_grammars_forbid(always_server: Server) -> None:
    """Counted in the process of the scheduler; what is left is what vLLM has verified."""
    question = {**good()["picture"], "structured_outputs": {"regex": "[a-z ]{200,}"}}
    free = _grown(always_server, lambda: ask(always_server, good()["picture"]))
    assert free["specvlm_forbidden_nodes_total"] == 0
    bound = _grown(always_server, lambda: ask(always_server, question))
    assert bound["specvlm_forbidden_nodes_total"] > 0
    assert _total(bound, "specvlm_tree_nodes_sum") == bound[f"{_SPEC}draft_tokens_total"]


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
def test_labels(modality: str, sampling: str, always_server: Server) -> None:
    """A request moves its own series and no other."""
    chosen: dict[str, Any] = {"text": good()["text"], "image": good()["picture"]}[modality]
    question = {**chosen, "temperature": 0.8 if sampling == "sampled" else 0, "max_tokens": 200}
    grown = _grown(always_server, lambda: ask(always_server, *[question] * 4))
    name = "specvlm_acceptance_length_count"
    mine = _total(grown, name, f'modality="{modality}"', f'sampling="{sampling}"')
    assert mine == _total(grown, name) == grown[f"{_SPEC}drafts_total"] > 0


def test_vllms_own_metrics_are_untouched(always_server: Server, reference: Reference) -> None:
    """The same names and types as without us, and gauges that tell of now."""
    types = metric_types(always_server)
    added = {name: kind for name, kind in types.items() if name not in reference.metric_types}
    assert {name: kind for name, kind in types.items() if name not in added} == reference.metric_types
    ours = {name: kind for name, kind in added.items() if name.startswith("specvlm_")}
    assert ours == {metric.name: metric.kind for metric in METRICS}
    assert all(name.startswith(_SPEC) for name in added.keys() - ours.keys())
    ask(always_server, *good().values())
    shown = metrics(always_server)
    assert shown["vllm:num_requests_running"] == shown["vllm:num_requests_waiting"] == 0
    assert shown["process_resident_memory_bytes"] > 0


def test_several_front_ends(hall: Hall, tmp_path: Path) -> None:
    """Whichever of them answers `/metrics` shows what the one worker counts, beside what vLLM gathers of all."""
    hall.clear()  # one engine at a time
    speculative = {"model": str(build("llava", seed=7, size=DRAFT)), "num_speculative_tokens": 8, "planner": False}
    server = Server(build("llava"), speculative, tmp_path / "log", options=("--api-server-count", "2"))
    try:
        server.wait_until_healthy()
        questions = list(good().values())
        assert {answer.status for answer in ask(server, *questions, *questions)} == {200}
        time.sleep(1)
        for _ in range(20):  # each from a new connection
            shown = metrics(server)
            trees = shown[f"{_SPEC}drafts_total"]
            assert _total(shown, "specvlm_tree_nodes_count") == trees > 0
        assert "cache miss" not in server.log.read_text(errors="replace")
    finally:
        server.stop()
