"""What the clients ask: chat requests with pictures, good ones and bad ones, as JSON bodies."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from tests.server.process import NAME, free_port
from tests.tiny.prompts import picture

TALE = "tell the tale of the red tree and the blue tree; "
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 40, "ignore_eos": True}


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def data_url(file: bytes, form: str = "png") -> str:
    """A picture's file as a URL that contains it."""
    return f"data:image/{form};base64,{base64.b64encode(file).decode()}"


def turn(*parts: str) -> dict[str, Any]:
    """What the user says: texts, and URLs of pictures."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith(("data:", "http:", "file:"))
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def body(*parts: str, **options: Any) -> dict[str, Any]:
    """A greedy request of one turn."""
    return {**GREEDY, "messages": [turn(*parts)], **options}


def _image(seed: int, width: int = 84, height: int = 56) -> str:
    return data_url(encoded(picture(seed, width, height)))


def good() -> dict[str, dict[str, Any]]:
    """One request of each kind; pictures repeat."""
    said = {"role": "assistant", "content": " the red tree."}
    return {
        "text": body("hello there"),
        "picture": body(_image(1), " what is this?"),
        "other picture": body(_image(2), " what is this?"),
        "same picture": body(_image(1), TALE),
        "long": body(TALE * 3, _image(3, 60, 120), TALE),
        "two pictures": body(_image(4), " and ", _image(1), " which is red?"),
        "turns": {**GREEDY, "messages": [turn(_image(1), " what is this?"), said, turn("and ", _image(5), " this?")]},
    }


def odd_pictures() -> dict[str, dict[str, Any]]:
    """Files that are pictures, though unusual ones."""
    base = picture(8)
    seen = {
        "one pixel": data_url(encoded(picture(9).resize((1, 1)))),
        "a line": data_url(encoded(picture(9, 900, 2))),
        "grey": data_url(encoded(base.convert("L"))),
        "transparent": data_url(encoded(base.convert("RGBA"))),
        "palette": data_url(encoded(base.convert("P"))),
        "jpeg": data_url(encoded(base, "JPEG"), "jpeg"),
        "gif": data_url(encoded(base.convert("P"), "GIF"), "gif"),
        "large": data_url(encoded(picture(10, 1600, 1200), "JPEG"), "jpeg"),
    }
    return {name: body(url, " what is this?") for name, url in seen.items()}


def bad_pictures(media: str) -> dict[str, dict[str, Any]]:
    """Requests whose picture cannot be had; `media` is the address of `media.py`'s server."""
    file = encoded(picture(11))
    seen = {
        "no picture": data_url(b"this is no picture"),
        "cut in the header": data_url(file[:20]),
        "cut in the pixels": data_url(file[: len(file) // 2]),
        "no base64": "data:image/png;base64,%%%",
        "closed port": f"http://127.0.0.1:{free_port()}/x.png",
        "404": f"{media}/missing.png",
        "served, cut": f"{media}/cut.png",
        "served, connection lost": f"{media}/lost.png",
        "served, a page": f"{media}/page.png",
        "a file of the server": "file:///etc/hostname",
    }
    named = {name: body(url, " what is this?") for name, url in seen.items()}
    named["three pictures"] = body(*(_image(seed) for seed in (1, 2, 3)), " which?")  # the limit is two
    return named


FEATURES: dict[str, dict[str, Any]] = {
    "an unknown option": {"no_such_option": 3},
    "stop string": {"stop": ["n"]},
    "end of sequence": {"ignore_eos": False, "max_tokens": 300},
    "one token": {"max_tokens": 1},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "frequency_penalty": {"frequency_penalty": 0.9},
    "min_tokens": {"ignore_eos": False, "min_tokens": 12},
    "bad_words": {"bad_words": ["tree", "a"]},
    "allowed_token_ids": {"allowed_token_ids": list(range(300, 400))},
    "logit_bias": {"logit_bias": {"50": 5, "313": -20}},
    "min_p": {"min_p": 0.1},
    "choice": {"structured_outputs": {"choice": ["red", "blue"]}},
    "regex": {"structured_outputs": {"regex": "[a-z]{3,9}( [a-z]{3,9})+"}},
    "json": {"ignore_eos": False, "response_format": {"type": "json_object"}},
    "beam search": {"use_beam_search": True, "n": 2, "max_tokens": 6},
    "vllm_xargs": {"vllm_xargs": {"key": "value"}},
}
"""Options that a good request may have; its answer is plain vLLM's."""

REFUSED: dict[str, dict[str, Any]] = {
    "negative temperature": {"temperature": -1},
    "top_p above 1": {"top_p": 3},
    "n of a greedy request": {"n": 2},
    "more tokens than the model has": {"max_tokens": 5000},
    "an unknown model": {"model": "nobody"},
    "a token beyond the vocabulary": {"allowed_token_ids": [100_000]},
    "a broken schema": {"structured_outputs": {"json": {"type": "nonsense"}}},
}
"""Options that plain vLLM refuses."""


def with_options(options: dict[str, Any]) -> dict[str, Any]:
    """The request that every option is tried on."""
    return {**good()["picture"], **options}
