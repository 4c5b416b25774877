"""A question of a batch: a line of its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Question:
    """A chat request with a name."""

    custom_id: str
    body: str
    """The body of an OpenAI chat request, as JSON."""

    @classmethod
    def parse(cls, line: str, pictures: Path) -> Question:
        """Read a line of OpenAI's batch format, or of the short one:

            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
            {"custom_id": "a", "prompt": "What is this?", "image": "a.png"}

        In the short one "image" may be missing, or a list; the pictures come before the text. Paths are relative to
        the folder `pictures`; keys that are left ("max_tokens", ...) go into the body as they are.

        Raises:
            ValueError: it is neither, in one sentence without the line's number.
        """
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON ({error}); correct it") from error
        if not isinstance(entry, dict) or not isinstance(name := entry.pop("custom_id", None), str):
            raise ValueError("has no 'custom_id' with a text in it; give every line another one")
        if not name.isprintable():
            raise ValueError(f"has the 'custom_id' {name!a}; name it in characters that can be written")
        if "prompt" in entry:
            if "messages" in entry or "body" in entry:
                raise ValueError("has 'messages' or a 'body' beside its 'prompt'; give one of them")
            return cls(name, json.dumps(_short(entry, pictures)))
        body, url = entry.get("body"), entry.get("url", CHAT)
        if not isinstance(body, dict) or url != CHAT:
            raise ValueError(f"has neither a 'prompt' nor a 'body' for {CHAT}; give one of them")
        return cls(name, json.dumps(body))


def _short(entry: dict[str, Any], pictures: Path) -> dict[str, Any]:
    prompt, named = entry.pop("prompt"), entry.pop("image", [])
    paths = [named] if isinstance(named, str) else named
    if not isinstance(prompt, str) or not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("has a 'prompt' that is no text or an 'image' that is no path; write text")
    seen = [{"type": "image_url", "image_url": {"url": (pictures / path).absolute().as_uri()}} for path in paths]
    return {"messages": [{"role": "user", "content": [*seen, {"type": "text", "text": prompt}]}], **entry}
