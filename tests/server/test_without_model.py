"""`{"method": "specvlm"}` alone: drafts come from the prompt and the answer so far."""

from __future__ import annotations

import pytest

from tests.server.client import ask, metrics
from tests.server.hall import Reference
from tests.server.process import Server
from tests.server.questions import good

pytestmark = pytest.mark.slow  # two servers of three processes


def test_answers_and_counters(lookup_server: Server, reference: Reference) -> None:
    names = list(good())
    answers = ask(lookup_server, *(good()[name] for name in names * 2))
    assert answers == [reference.good[name] for name in names * 2]
    counted = metrics(lookup_server)
    accepted = counted["vllm:spec_decode_num_accepted_tokens_total"]
    assert 0 < accepted <= counted["vllm:spec_decode_num_draft_tokens_total"]
    assert lookup_server.complaints() == []
