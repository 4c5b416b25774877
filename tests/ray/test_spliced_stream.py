"""A stream continued from a repetition, wherever it broke and however the pieces differ."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from vllm_specvlm.cluster.spliced_stream import DONE, BrokenAnswerError, DifferentAnswerError, SplicedStream

TOKENS = ["the ", "red", " tr", "ee", "", " and ", "é", " the", " blue", " tree"]


def event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def chat(rng: random.Random, name: str, usage: bool = True, choices: int = 2) -> list[str]:
    """The chunks of an answer as an engine sends them, in bursts of random lengths."""
    head = {"id": name, "created": rng.randrange(100), "object": "chat.completion.chunk"}
    chunks = [
        {"choices": [{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
        for index in range(choices)
    ]
    left = dict.fromkeys(range(choices), 0)
    while left:
        index = rng.choice(list(left))
        at = left[index]
        burst = TOKENS[at : at + rng.randint(1, 4)]
        left[index] += len(burst)
        ends = left[index] >= len(TOKENS)
        entry = {
            "index": index,
            "delta": {"content": "".join(burst)},
            "token_ids": [at + offset for offset in range(len(burst))],
            "logprobs": {"content": [{"token": token} for token in burst]},
            "finish_reason": "length" if ends else None,
        }
        chunks.append({"choices": [entry]})
        if ends:
            del left[index]
    if usage:
        chunks.append({"choices": [], "usage": {"completion_tokens": choices * len(TOKENS)}})
    return [event({**head, **chunk}) for chunk in chunks] + [DONE]


def sent(stream: SplicedStream, *events: str) -> str:
    """All that is to be sent of these."""
    return "".join(piece for each in events for piece in stream.new(each))


def received(events: str) -> dict[str, Any]:
    """What a client makes of a stream."""
    found: dict[str, Any] = {"choices": {}, "heads": set(), "usage": [], "done": 0}
    for line in filter(None, events.split("\n\n")):
        if line == DONE.strip():
            found["done"] += 1
            continue
        chunk = json.loads(line.removeprefix("data: "))
        found["heads"].add((chunk["id"], chunk["created"]))
        if "usage" in chunk:
            found["usage"].append(chunk["usage"])
        for entry in chunk["choices"]:
            kept = found["choices"].setdefault(
                entry["index"], {"text": "", "token_ids": [], "logprobs": [], "ends": [], "roles": 0}
            )
            kept["roles"] += "role" in entry["delta"]
            kept["text"] += entry["delta"]["content"]
            kept["token_ids"] += entry.get("token_ids") or []
            kept["logprobs"] += [each["token"] for each in (entry.get("logprobs") or {}).get("content", [])]
            if entry["finish_reason"]:
                kept["ends"].append(entry["finish_reason"])
    return found


def test_a_client_sees_one_answer() -> None:
    """Broken three times, anywhere: each text, token, log-prob, end and usage comes once, under one name."""
    answer = {
        "text": "".join(TOKENS),
        "token_ids": list(range(len(TOKENS))),
        "logprobs": TOKENS,
        "ends": ["length"],
        "roles": 1,
    }
    for seed in range(200):
        rng = random.Random(seed)
        stream, told = SplicedStream(), ""
        for attempt in range(3):
            events = chat(rng, f"attempt {attempt}")
            told += sent(stream, *events[: rng.randint(0, len(events))])
            stream.repeat()
        told += sent(stream, "".join(chat(rng, "the last")))
        found = received(told)
        assert found["choices"] == {0: answer, 1: answer}
        assert len(found["heads"]) == 1 and found["done"] == 1
        assert found["usage"] == [{"completion_tokens": 2 * len(TOKENS)}]


def test_an_unbroken_stream_stays_as_it_is() -> None:
    events = chat(random.Random(0), "a")
    stream = SplicedStream()
    assert [json.loads(sent(stream, e)[6:]) for e in events[:-1]] == [json.loads(e[6:]) for e in events[:-1]]
    assert sent(stream, DONE) == DONE


def test_completions_are_continued_too() -> None:
    def chunk(text: str, tokens: list[str], end: str | None = None) -> str:
        logprobs = {"tokens": tokens, "text_offset": [0] * len(tokens)}
        return event({"id": "c", "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": end}]})

    stream = SplicedStream()
    sent(stream, chunk("the red", ["the", " red"]))
    stream.repeat()
    assert sent(stream, chunk("the", ["the"])) == ""
    (entry,) = json.loads(sent(stream, chunk(" red tree", [" red", " tree"], "stop"))[6:])["choices"]
    assert entry["text"] == " tree" and entry["logprobs"] == {"tokens": [" tree"], "text_offset": [0]}


@pytest.mark.parametrize("text", ["the blue tree", "a"])
def test_another_answer_is_not_mixed_in(text: str) -> None:
    def chunk(text: str) -> str:
        return event({"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    stream = SplicedStream()
    sent(stream, chunk("the red"))
    stream.repeat()
    with pytest.raises(DifferentAnswerError, match="its content goes on with"):
        sent(stream, chunk(text))


def test_tool_calls_are_not_continued() -> None:
    stream = SplicedStream()
    call = {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "look"}}]}, "finish_reason": None}
    assert "look" in sent(stream, event({"id": "c", "choices": [call]}))
    with pytest.raises(DifferentAnswerError, match="tool calls"):
        stream.repeat()


def test_errors_of_the_engine_and_of_the_client() -> None:
    stream = SplicedStream()
    assert "too long" in sent(stream, event({"error": {"message": "too long", "code": 400}}))
    with pytest.raises(BrokenAnswerError, match="died"):
        sent(stream, event({"error": {"message": "died", "code": 500}}))
