"""Conversations as the target's token ids and vision inputs, with the places of pictures and answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vllm_specvlm.train.conversation import Conversation, Turn
from vllm_specvlm.train.errors import RecipeError

_NOT_VISION = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(slots=True)
class Encoded:
    """One conversation, up to its last answer's end token (of one that was cut there is none), or to where the target
    is to answer."""

    ids: list[int] = field(default_factory=list)
    spoken: list[bool] = field(default_factory=list)
    """Which ids belong to answers, end tokens included."""
    pictures: list[tuple[int, int]] = field(default_factory=list)
    """Placeholder ranges: start and length."""
    vision: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the processor makes of the pictures; the first dimension runs over pictures or patches."""
    asks: bool = False
    expected: int = 0
    """See `Conversation`."""

    def add(self, ids: Sequence[int], spoken: bool) -> None:
        """Append ids."""
        self.ids += ids
        self.spoken += [spoken] * len(ids)


class Encoder:
    """Chat template, tokenizer and image processor of one target.

    A prompt is rendered by the chat template and tokenised without further special tokens, as chat servers do it; an
    answer is tokenised by itself, since serving has it as the target's own tokens behind the prompt's.
    """

    def __init__(self, processor: Any, end_ids: Collection[int]) -> None:
        """`end_ids`: tokens that end an answer.

        Raises RecipeError if the processor has no chat template or cannot say which token stands for a picture.
        """
        if not getattr(processor, "chat_template", None):
            raise RecipeError("The target's processor has no chat template; add the chat_template.jinja of its family.")
        self._processor = processor
        self._image_id = getattr(processor, "image_token_id", None)
        if self._image_id is None:
            raise RecipeError("The target's processor has no image token; give a vision-language target.")
        self._end_ids = frozenset(end_ids)
        self._end = min(self._end_ids)

    def encode(self, conversation: Conversation) -> Encoded:
        """See `Encoded`.

        Raises RecipeError for a picture that cannot be read, or a chat template that answers do not come back from.
        """
        made = Encoded(asks=conversation.asks, expected=conversation.expected)
        pictures = [_opened(picture) for picture in conversation.pictures]
        messages: list[dict[str, Any]] = []
        if conversation.system:
            messages.append({"role": "system", "content": [{"type": "text", "text": conversation.system}]})
        rendered = ""
        for index, turn in enumerate(conversation.turns):
            messages.append({"role": "user", "content": _content(turn)})
            prompt = self._render(messages, open_end=True)
            if not prompt.startswith(rendered):
                raise RecipeError("The target's chat template rewrites earlier turns; use data of single turns.")
            shown = sum(part is None for part in turn.question)
            self._add_prompt(made, prompt[len(rendered) :], [pictures.pop(0) for _ in range(shown)])
            if turn.answer is None:
                break
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            rendered = self._render(messages, open_end=False)
            at = rendered.find(turn.answer, len(prompt)) if rendered.startswith(prompt) else -1
            if at < 0:
                raise RecipeError("The target's chat template changes answers; use answers.own = 1 with single turns.")
            behind = at + len(turn.answer)
            made.add(self._ids(rendered[len(prompt) : behind]), spoken=True)
            if conversation.cut and index == len(conversation.turns) - 1:
                break
            tail = self._ids(rendered[behind:])
            if tail and tail[0] in self._end_ids:
                made.add(tail[:1], spoken=True)
                tail = tail[1:]
            elif index == len(conversation.turns) - 1:
                made.add([self._end], spoken=True)
            if index < len(conversation.turns) - 1:
                made.add(tail, spoken=False)
        return made

    def _render(self, messages: list[dict[str, Any]], open_end: bool) -> str:
        text: str = self._processor.apply_chat_template(messages, add_generation_prompt=open_end, tokenize=False)
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._processor.tokenizer(text, add_special_tokens=False).input_ids if text else []
        return ids

    def _add_prompt(self, made: Encoded, text: str, pictures: list[Image.Image]) -> None:
        if not pictures:
            made.add(self._ids(text), spoken=False)
            return
        given = self._processor(text=[text], images=pictures, add_special_tokens=False, return_tensors="pt")
        ids = given["input_ids"][0].tolist()
        made.pictures += [(start + len(made.ids), length) for start, length in self._ranges(ids, len(pictures))]
        made.add(ids, spoken=False)
        new = {name: value for name, value in given.items() if name not in _NOT_VISION}
        made.vision = join_vision([made.vision, new]) if made.vision else new

    def _ranges(self, ids: list[int], pictures: int) -> list[tuple[int, int]]:
        """Where the pictures' placeholders are; runs that touch belong to pictures of equal length."""
        marks = torch.tensor([0, *(int(token == self._image_id) for token in ids), 0]).diff().nonzero().flatten()
        runs = [(start, end - start) for start, end in pairwise(marks.tolist())][::2]
        total = sum(length for _, length in runs)
        if len(runs) == pictures:
            return runs
        each = total // pictures
        if each and total % pictures == 0 and all(length % each == 0 for _, length in runs):
            return [(start + i * each, each) for start, length in runs for i in range(length // each)]
        raise RecipeError(
            f"The processor made {len(runs)} runs of placeholders of {pictures} pictures; train for targets of the "
            "LLaVA or Qwen-VL families."
        )


def join_vision(parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The vision inputs of several conversations as those of one batch; tiles (LLaVA-NeXT) are padded with zeros."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        tensors = [part[name] for part in parts if name in part]
        if tensors[0].dim() == 5:
            most = max(tensor.shape[1] for tensor in tensors)
            tensors = [
                torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 0, 0, most - tensor.shape[1])) for tensor in tensors
            ]
        joined[name] = torch.cat(tensors)
    return joined


def _content(turn: Turn) -> list[dict[str, str]]:
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.question]


def _opened(picture: Image.Image | Path) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecipeError(f"The picture '{picture}' cannot be read ({error}); restore it, or drop its line.") from error
