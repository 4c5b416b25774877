"""Sampling options of requests: answered as by plain vLLM, or refused in words."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.client import ask
from tests.server.hall import Reference
from tests.server.process import NAME, Server
from tests.server.questions import FEATURES, REFUSED, good, with_options

pytestmark = pytest.mark.slow  # two servers of three processes


def test_the_reference_shows_the_options(reference: Reference) -> None:
    """A control: these options change the answer, so a server that forgot them would not pass."""
    usual = reference.good["picture"].choices
    changing = {
        "stop string",
        "one token",
        "repetition_penalty",
        "frequency_penalty",
        "allowed_token_ids",
        "choice",
        "json",
    }
    assert {name for name in changing if reference.options[name].choices == usual} == set()


@pytest.mark.parametrize("name", FEATURES)
def test_answered_like_plain(name: str, server: Server, reference: Reference) -> None:
    """Beside a request with a tree, which is not disturbed."""
    assert reference.options[name].status == 200, reference.options[name]
    answer, neighbour = ask(server, with_options(FEATURES[name]), good()["long"])
    assert answer == reference.options[name]
    assert neighbour == reference.good["long"]


def test_logprobs(server: Server, reference: Reference) -> None:
    """One entry a token, with plain vLLM's alternatives and values."""
    (answer,) = ask(server, with_options(FEATURES["logprobs"]))
    ours, plain = (each.logprobs[0]["content"] for each in (answer, reference.options["logprobs"]))
    assert len(ours) == len(plain) == 40
    for a, b in zip(ours, plain, strict=True):
        assert a["token"] == b["token"] and a["bytes"] == b["bytes"]
        assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-4)
        assert [each["token"] for each in a["top_logprobs"]] == [each["token"] for each in b["top_logprobs"]]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_like_plain(name: str, server: Server, reference: Reference) -> None:
    (answer,) = ask(server, with_options(REFUSED[name]))
    assert 400 <= answer.status < 500
    assert (answer.status, answer.error) == (reference.options[name].status, reference.options[name].error)


def test_refusals_have_the_type_of_the_openai_client(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages: Any = good()["picture"]["messages"]
    with pytest.raises(openai.BadRequestError, match="top_p"):
        client.chat.completions.create(model=NAME, messages=messages, top_p=3)
