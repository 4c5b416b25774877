"""The page as text: complete, loading nothing, and with nothing of the trace as markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.timeline.hostile import HOSTILE
from tests.timeline.made import timeline
from vllm_specvlm.timeline.page import page
from vllm_specvlm.timeline.timeline import Timeline

SKELETON = re.compile(r"src|href|action|formaction|data|srcdoc|poster|background|ping|style|on\w+")


class Reader(HTMLParser):
    """Elements with their attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside.append(dict(attributes).get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self.elements:
            self._inside.pop()
            break

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside[-1]] = self.texts.get(self._inside[-1], "") + data


def record_in(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="timeline">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


@pytest.mark.parametrize("made", [timeline(0), timeline(1), timeline(24), timeline(500), timeline(9, nodes=127)])
def test_every_step_is_in_it(made: Timeline) -> None:
    record = record_in(page(made))
    whole = made.as_dict()
    picture = whole["picture"].pop("base64")
    assert record == whole
    assert len(record["steps"]) == len(made.steps)
    assert f"base64,{picture}" in page(made)


def test_it_loads_nothing() -> None:
    text = page(timeline(5))
    reader = Reader(text)
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "audio", "video")
        for name, value in attributes.items():
            if SKELETON.fullmatch(name):
                assert (tag, name) == ("img", "src") and value is not None and value.startswith("data:image/"), (
                    tag,
                    name,
                )
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    assert not re.search(
        r"https?://|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|innerHTML|eval\(|Function\(", outside
    )


def test_its_policy_names_its_own_script_and_style() -> None:
    text = page(timeline(2))
    policy = next(a["content"] for t, a in Reader(text).elements if t == "meta" and "http-equiv" in a) or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        body = text[text.rindex(f"<{tag}>") + len(tag) + 2 : text.rindex(f"</{tag}>")]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_texts_are_text() -> None:
    plain = Reader(page(timeline(6)))
    made = timeline(6, words=HOSTILE, question=" ".join(HOSTILE), nodes=30, depth=10)
    made = replace(made, target=HOSTILE[0], draft=HOSTILE[1], setting=HOSTILE[2], engine=HOSTILE[3])
    text = page(made)
    text.encode("utf-8")
    found = Reader(text)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert record_in(text)["pieces"] == list(made.pieces)
    # The control: the same comparison notices a page that does not escape.
    careless = text.replace("\\u003c", "<").replace("\\u003e", ">").replace("&lt;", "<").replace("&gt;", ">")
    assert [tag for tag, _ in Reader(careless).elements] != [tag for tag, _ in plain.elements]


def test_what_is_sampled_says_so() -> None:
    assert "greedy" in page(timeline(2))
    sampled = page(timeline(2, temperature=0.7, seed=5))
    assert "sampled, temperature 0.7, seed 5" in sampled and "greedy" not in sampled
