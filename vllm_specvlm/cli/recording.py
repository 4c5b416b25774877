"""From a running engine to a timeline: ask once, collect what the worker noted, give every token its text."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_specvlm.timeline.sight import Sight
from vllm_specvlm.timeline.step import Step
from vllm_specvlm.timeline.timeline import Picture, Timeline

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_SIDE = 768  # pixels of the picture in the page
_CONTEXT = 6  # tokens before one that its text may depend on


@dataclass(frozen=True)
class Names:
    """What the page says about the engine, in words."""

    target: str
    draft: str
    setting: str
    engine: str


def record(llm: Any, ask: Callable[[], Any], names: Names, question: str, image: Image | None, params: Any) -> Timeline:
    """The timeline of the one request that `ask` makes.

    Args:
        llm: an in-process `LLM` with method `specvlm`.
        ask: gives vLLM's `RequestOutput` of one finished request.
        names: for the page.
        question: as people would read it.
        image: the picture that is asked about, if there is one.
        params: the request's `SamplingParams`.
    """
    llm.collective_rpc("specvlm_trace")
    try:
        output = ask()
    finally:
        (noted,) = llm.collective_rpc("specvlm_traced")[0] or [None]
    answer = output.outputs[0]
    steps = [Step.from_dict(step) for step in noted["steps"]]
    texts = Texts(llm.get_tokenizer(), output.prompt_token_ids, answer.token_ids)
    picture = None
    if image is not None:
        sights = noted["sights"]
        sight = Sight.from_dict(sights[0]) if sights else None
        picture = replace(shown(image), box=seen_box(llm, image.size), sight=sight)
    return Timeline(
        target=names.target,
        draft=names.draft,
        setting=names.setting,
        engine=names.engine,
        temperature=params.temperature,
        seed=params.seed,
        question=question,
        picture=picture,
        prompt_tokens=noted["prompt_tokens"],
        answer=tuple(answer.token_ids),
        pieces=texts.pieces(),
        finish=answer.finish_reason,
        steps=tuple(steps),
        labels=texts.labels(steps),
    )


class Texts:
    """The text that tokens add where they stand."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """The tokens before the answer, and those of it."""
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._answer = list(answer)
        self._known: dict[tuple[int, ...], str] = {}

    def pieces(self) -> tuple[str, ...]:
        """Of the answer's tokens; a character in several tokens stands with the last of them."""
        text = self._prompt[-_CONTEXT:] + self._answer
        first = len(text) - len(self._answer)
        return tuple(self._added(text[max(0, i - _CONTEXT) : i + 1]) for i in range(first, len(text)))

    def labels(self, steps: Sequence[Step]) -> tuple[tuple[str, ...], ...]:
        """Of all nodes of the steps' trees, and of each step's last token; marks such as that of the end spelt out."""
        found, text = [], self._prompt[-_CONTEXT:]
        for step in steps:
            paths: list[list[int]] = []
            for token, parent in zip(step.tree.tokens, step.tree.parents, strict=True):
                paths.append([*(paths[parent] if parent >= 0 else ()), token])
            paths.append(list(step.tokens))
            found.append(tuple(self._added([*text, *path][-_CONTEXT - 1 :], marks=True) for path in paths))
            text = [*text, *step.tokens][-_CONTEXT:]
        return tuple(found)

    def _added(self, tokens: list[int], *, marks: bool = False) -> str:
        """What the last token adds to the text of the others."""
        key = (marks, *tokens)
        if key not in self._known:
            before, after = self._text(tokens[:-1], marks), self._text(tokens, marks)
            self._known[key] = after[len(before) :] if after.startswith(before) else self._text(tokens[-1:], marks)
        return self._known[key]

    def _text(self, tokens: list[int], marks: bool) -> str:
        # An unfinished character is shown as a replacement character, which the next token takes away again.
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=not marks)
        return text.rstrip("\ufffd")


def shown(image: Image) -> Picture:
    """The picture in a size for the page: as PNG where that is small, else as JPEG."""
    copy = image.convert("RGB")
    copy.thumbnail((LARGEST_SIDE, LARGEST_SIDE))

    def encoded(kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        copy.save(file, kind, **options)
        return file.getvalue()

    media, data = "image/png", encoded("PNG", optimize=True)
    if len(data) > 200_000:
        media, data = "image/jpeg", encoded("JPEG", quality=88)
    return Picture(media, base64.b64encode(data).decode(), copy.width, copy.height)


def seen_box(llm: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The part of a picture of this size that the target's image processor leaves; None if that cannot be told.

    Args:
        llm: the engine.
        size: width and height.
    """
    from vllm.transformers_utils.processor import cached_image_processor_from_config

    try:
        processor = cached_image_processor_from_config(llm.llm_engine.model_config)
    except (OSError, ValueError):
        return None
    crop = getattr(processor, "crop_size", None)
    if not getattr(processor, "do_center_crop", None) or not crop:
        return (0.0, 0.0, 1.0, 1.0)
    side = dict(getattr(processor, "size", None) or {}).get("shortest_edge")
    if not side:
        return None
    scale = side / min(size)
    across, down = (
        min(1.0, crop[name] / (length * scale)) for name, length in zip(("width", "height"), size, strict=True)
    )
    return ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)
