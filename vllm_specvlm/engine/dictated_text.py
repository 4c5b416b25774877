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
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class DictatedText:
    """Finds, at any state of a grammar, the tokens that have to follow.

    A text can be dictated where no token is: `count` may come as `count`, or as `co` and `unt`. So a token counts as
    dictated if all others that are allowed are beginnings of it. The target nearly always takes the longest; where it
    does not, a drafted token was wrong.
    """

    def __init__(self, tokenizer: TokenizerLike, mask: torch.Tensor) -> None:
        """`mask`: int32 [1, vocabulary / 32] of the backend's making, to be written to at will."""
        self._tokenizer = tokenizer
        self._mask = mask
        self._texts: dict[int, str | None] = {}

    def after(self, grammar: StructuredOutputGrammar, most: int) -> list[int]:
        """What has to come next, at most so many tokens; the grammar is left in the state it is in."""
        found: list[int] = []
        while len(found) < most and not grammar.is_terminated():
            token = self._next(grammar)
            if token is None or not grammar.accept_tokens("", [token]):
                break
            found.append(token)
        grammar.rollback(len(found))
        return found

    def _next(self, grammar: StructuredOutputGrammar) -> int | None:
        """The one token that can come, None if there is a choice."""
        self._mask.fill_(-1)
        grammar.fill_bitmask(self._mask, 0)
        words = self._mask[0].numpy().view(np.uint32)
        count = int(np.bitwise_count(words).sum())
        if not 0 < count <= _MOST:
            return None
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()
        if count == 1:
            return int(allowed[0])
        texts = [self._text(token) for token in allowed]
        longest = max(texts, key=lambda text: len(text or ""))
        if longest is None or not all(text and longest.startswith(text) for text in texts):
            return None
        return int(allowed[texts.index(longest)])

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
