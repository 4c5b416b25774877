"""Greedy answers through HTTP are plain vLLM's, whole and in pieces; sampled ones are a function of their seed."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.client import ask
from tests.server.hall import Reference
from tests.server.process import NAME, Server
from tests.server.questions import body, good, odd_pictures

pytestmark = pytest.mark.slow  # two servers of three processes


def test_the_reference_tells_questions_apart(reference: Reference) -> None:
    """A control: equality would mean little if every picture got one answer."""
    assert {answer.status for answer in reference.good.values()} == {200}
    assert len({answer.choices for answer in reference.good.values()}) == len(reference.good)
    assert reference.odd["grey"].choices != reference.odd["transparent"].choices


def test_chat(server: Server, reference: Reference) -> None:
    for name, question in good().items():
        assert ask(server, question)[0] == reference.good[name], name


def test_unusual_pictures(server: Server, reference: Reference) -> None:
    asked = odd_pictures()
    assert dict(zip(asked, ask(server, *asked.values()), strict=True)) == reference.odd
    assert all(answer.status == 200 for answer in reference.odd.values())


def test_a_picture_behind_a_url(server: Server, reference: Reference, media: str) -> None:
    (answer,) = ask(server, body(f"{media}/whole.png", " what is this?"))
    assert answer == reference.good["picture"]


def test_the_openai_client(server: Server, reference: Reference) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    question = good()["picture"]
    answer = client.chat.completions.create(
        model=NAME, messages=question["messages"], temperature=0, max_tokens=40, extra_body={"ignore_eos": True}
    )
    expected = reference.good["picture"]
    assert answer.choices[0].message.content == expected.choices[0][0]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.prompt_tokens, 40)


def test_seeded_answers(server: Server) -> None:
    """The same seed gives the same text alone and in a batch; other seeds give others."""
    question = {**good()["picture"], "temperature": 1.0}
    seeded = [{**question, "seed": seed} for seed in range(6)]
    alone = [ask(server, each)[0] for each in seeded[:2]]
    together = ask(server, *seeded)
    assert together[:2] == alone
    assert len({answer.choices for answer in together}) == 6


def test_several_answers(server: Server) -> None:
    question = {**good()["picture"], "temperature": 1.0, "n": 3, "seed": 5}
    first, second = (ask(server, question)[0] for _ in range(2))
    assert first == second
    assert len(set(first.choices)) == 3 and first.completion_tokens == 120


def test_completions_of_several_prompts(server: Server, reference: Reference) -> None:
    """The older endpoint, with the chat's prompt written out as its template does."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    prompts = ["USER: hello thereASSISTANT:"] * 2
    answer = client.completions.create(
        model=NAME, prompt=prompts, temperature=0, max_tokens=40, extra_body={"ignore_eos": True}
    )
    assert [choice.text for choice in answer.choices] == [reference.good["text"].choices[0][0]] * 2


@pytest.mark.parametrize("name", ["picture", "long", "turns"])
def test_streaming(name: str, always_server: Server, reference: Reference) -> None:
    """Pieces come in order and count right, though one step may bring several tokens."""
    expected = reference.good[name]
    text, tokens, ended = expected.choices[0]
    pieces = list(_stream(always_server, good()[name]))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    counted: list[int] = []
    sizes: list[int] = []
    for piece in pieces:
        assert piece.usage.prompt_tokens == expected.prompt_tokens
        assert piece.usage.total_tokens == piece.usage.prompt_tokens + piece.usage.completion_tokens
        if piece.choices:
            new = getattr(piece.choices[0], "token_ids", None) or []
            counted += new
            sizes.append(len(new))
            assert piece.usage.completion_tokens == len(counted)
    assert tuple(counted) == tokens
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == ended
    assert not pieces[-1].choices and pieces[-1].usage.completion_tokens == len(tokens)
    assert max(sizes) > 1, "no step brought more than one token: nothing was accepted"


def _stream(server: Server, question: dict[str, Any]) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return client.chat.completions.create(
        model=NAME,
        messages=question["messages"],
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
