"""What is read out of requests and responses, and what is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traffic.made import answered, asked, png, streamed
from vllm_specvlm.traffic import chat
from vllm_specvlm.traffic.exchange import Exchange, Message

MODELS = ("tiny",)


def read(body: Any, response: bytes) -> Exchange | None:
    return chat.exchange(json.dumps(body).encode(), response, MODELS)


def test_a_whole_answer() -> None:
    found = read(asked(picture=png()), answered("A cat."))
    assert found == Exchange((Message("user", (png(), "What is this?")), Message("assistant", ("A cat.",))))


def test_a_stream() -> None:
    found = read(asked("Hello.", stream=True), streamed("A ", "small", " cat."))
    assert found is not None and found.messages[-1] == Message("assistant", ("A small cat.",))


def test_an_answer_that_got_too_long_is_cut() -> None:
    for body, response in (
        (asked(), answered("A long")),
        (asked(stream=True), streamed("A ", "long", reason="length")),
    ):
        response = response.replace(b'"stop"', b'"length"')
        found = read(body, response)
        assert found is not None and found.cut
    found = read(asked(), answered("A cat."))
    assert found is not None and not found.cut


def test_earlier_turns_and_a_system_message() -> None:
    body = asked()
    body["messages"] = [
        {"role": "system", "content": "Be brief."},
        *body["messages"],
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "Its colour?"},
    ]
    found = read(body, answered("Red."))
    assert found is not None
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_no_model_named_is_the_servers_own() -> None:
    assert read({**asked(), "model": None}, answered()) is not None


@pytest.mark.parametrize(
    "body",
    [
        asked(model="adapter"),
        asked(tools=[{"type": "function"}]),
        asked(response_format={"type": "json_object"}),
        asked(continue_final_message=True),
        asked(add_generation_prompt=False),
        asked(echo=True),
        asked(truncate_prompt_tokens=-1),
        asked(add_special_tokens=True),
        asked(reasoning_effort="low"),
        asked(thinking_token_budget=0),
        asked(logit_bias={"7": 5.0}),
        asked(bad_words=["cat"]),
        asked(allowed_token_ids=[1, 2]),
        asked(skip_special_tokens=False),
        asked(include_reasoning=False),
        {**asked(), "messages": []},
        {**asked(), "messages": [{"role": "assistant", "content": "Hello."}]},
        {**asked(), "messages": [{"role": "tool", "content": "4"}]},
        {**asked(), "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        {**asked(), "messages": [{"role": "user", "content": None}]},
        {**asked(), "messages": [{"role": "user", "content": []}]},
        {**asked(), "messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
        {
            **asked(),
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}
            ],
        },
        {
            **asked(),
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}]}
            ],
        },
        [],
        None,
        "text",
    ],
)
def test_what_training_cannot_repeat_is_left_alone(body: Any) -> None:
    assert read(body, answered()) is None


def test_fields_that_ask_for_nothing() -> None:
    """Clients send them."""
    fields: dict[str, Any] = {
        "response_format": {"type": "text"},
        "tools": [],
        "logit_bias": {},
        "chat_template": None,
        "add_special_tokens": False,
        "skip_special_tokens": True,
        "include_reasoning": True,
        "temperature": 0.7,
    }
    assert read(asked(**fields), answered()) is not None


@pytest.mark.parametrize(
    "response",
    [
        answered("", tool_calls=[{"id": 1}]),
        answered("x", reasoning="Hm."),
        answered(""),
        b"",
        b"{}",
        b'{"choices": []}',
        b"not JSON",
        answered().replace(b'"stop"', b'"abort"'),
        json.dumps({"choices": json.loads(answered())["choices"] * 2}).encode(),
    ],
)
def test_answers_that_are_not_one_whole_text(response: bytes) -> None:
    assert read(asked(), response) is None


@pytest.mark.parametrize(
    "response",
    [
        streamed("A cat.", done=False),
        streamed("A cat.", reason="abort"),
        streamed("A cat.")[:-40],
        streamed("A cat.").replace(b'"index": 0', b'"index": 1', 1),
        b"",
        b"data: [DONE]\n\n",
        b"data: {\n\ndata: [DONE]\n\n",
    ],
)
def test_streams_that_broke_off(response: bytes) -> None:
    assert read(asked(stream=True), response) is None


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_bytes_raise(request: bytes, response: bytes) -> None:
    assert chat.exchange(request, response, MODELS) is None


KEYS = ["messages", "role", "content", "type", "text", "image_url", "url", "user", "choices", "stream"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(json_values, json_values)
def test_no_json_raises(body: Any, response: Any) -> None:
    read(body, json.dumps(response).encode())
    read(asked(), json.dumps(response).encode())
    read(body, answered())
