"""The counters of speculation at /metrics move, and agree with each other and with the answers."""

from __future__ import annotations

import pytest

from tests.server.client import ask, metrics
from tests.server.process import Server
from tests.server.questions import good

pytestmark = pytest.mark.slow  # two servers of three processes

_SPEC = "vllm:spec_decode_num_"


def test_counters(server: Server) -> None:
    before = metrics(server)
    questions = list(good().values())
    tokens = sum(answer.completion_tokens for answer in ask(server, *questions, *questions))
    after = metrics(server)
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


def test_a_plain_request_drafts_nothing(server: Server) -> None:
    """What is decoded plainly counts no drafts."""
    before = metrics(server)
    (answer,) = ask(server, {**good()["picture"], "structured_outputs": {"regex": "[a-z]{30,35}"}})
    after = metrics(server)
    assert after[f"{_SPEC}drafts_total"] == before[f"{_SPEC}drafts_total"]
    assert after["vllm:generation_tokens_total"] == before["vllm:generation_tokens_total"] + answer.completion_tokens
