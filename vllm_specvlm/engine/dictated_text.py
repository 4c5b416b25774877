"""What a grammar leaves no choice about: the tokens that its request will be given whatever its model says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from vllm.tokenizers import TokenizerLike
    from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

_MOST = 64
"""Allowed tokens among which there may be no choice: a text's beginnings, of which a vocabulary has a few."""
_HABITS = 4096
"""Remembered at most, and then forgotten."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class DictatedText:
    """Finds, at any state of a grammar, the tokens that have to follow.

    A text can be dictated where no token is: `count` may come as `count`, or as `co` and `unt`. So there is no choice
    if all tokens that are allowed are beginnings of one of them. Which one comes is the target's habit: what it took
    where it last had these to take from, and before that the longest. A wrong guess is a draft that is rejected.
    """

    def __init__(self, tokenizer: TokenizerLike, mask: torch.Tensor) -> None:
        """`mask`: int32 [1, vocabulary / 32] of the backend's making, to be written to at will."""
        self._tokenizer = tokenizer
        self._mask = mask
        self._texts: dict[int, str | None] = {}
        self._habits: dict[tuple[int, ...], int] = {}

    def after(self, grammar: StructuredOutputGrammar, most: int) -> list[int]:
        """What has to come next, at most so many tokens; the grammar is left in the state it is in."""
        found: list[int] = []
        while len(found) < most and not grammar.is_terminated():
            allowed = self._beginnings(grammar)
            if not allowed:
                break
            token = self._habits.get(allowed, allowed[-1])
            if not grammar.accept_tokens("", [token]):
                break
            found.append(token)
        grammar.rollback(len(found))
        return found

    def learn(self, grammar: StructuredOutputGrammar, token: int) -> None:
        """The target takes this token, with the grammar in its state before it."""
        allowed = self._beginnings(grammar)
        if token in allowed and (token != allowed[-1] or allowed in self._habits):
            if len(self._habits) >= _HABITS:
                self._habits.clear()
            self._habits[allowed] = token

    def _beginnings(self, grammar: StructuredOutputGrammar) -> tuple[int, ...]:
        """The tokens that are allowed, the longest last, if all others are beginnings of it; else none."""
        self._mask.fill_(-1)
        grammar.fill_bitmask(self._mask, 0)
        words = self._mask[0].numpy().view(np.uint32)
        if not 0 < int(np.bitwise_count(words).sum()) <= _MOST:
            return ()
        allowed: list[int] = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()
        if len(allowed) == 1:
            return (allowed[0],)
        texts = {token: self._text(token) for token in allowed}
        allowed.sort(key=lambda token: len(texts[token] or ""))
        longest = texts[allowed[-1]]
        if longest is None or not all(text and longest.startswith(text) for text in texts.values()):
            return ()
        return tuple(allowed)

    def _text(self, token: int) -> str | None:
        """A token as its vocabulary spells it, None if it is none of it."""
        if token not in self._texts:
            text: str | None = self._tokenizer.convert_ids_to_tokens([token])[0] if token < self._known else None
            byte = _BYTE.fullmatch(text or "")
            self._texts[token] = chr(int(byte[1], 16)) if byte else None if text is None else text.replace("▁", " ")
        return self._texts[token]

    @property
    def _known(self) -> int:
        return len(self._tokenizer)
