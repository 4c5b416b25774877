"""Between two vocabularies: which of the draft's tokens say what the target's tokens say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Meaning = tuple[bool, bytes]
"""Whether a token is a special one, and its text."""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """How a draft reads and proposes the tokens of a target with another vocabulary.

    Each token of the target has one stand-in, so that the draft's text keeps the target's positions. A stand-in that
    says less than its token, or another cut of the text than the draft was trained on, costs acceptance and nothing
    else: the target never sees the draft's tokens.
    """

    stand_ins: npt.NDArray[np.int64]
    """[target vocabulary]: what the draft is fed with."""
    drafted: npt.NDArray[np.int64]
    """[n]: the draft's tokens that the target has too."""
    meant: npt.NDArray[np.int64]
    """[n]: what they are in the target's vocabulary; each at most once."""

    @classmethod
    def between(cls, target: Any, draft: Any, target_size: int, draft_size: int) -> TokenMap:
        """From both tokenizers (transformers' fast ones) and the sizes of the models' vocabularies.

        Tokens of the same text are each other's. Any other token of the target is read as the last of the draft's
        tokens that spell it, as that is what the next one follows.

        Raises:
            ValueError: the tokens of one of the tokenizers cannot be told as bytes.
        """
        theirs = {token: meaning for token, meaning in meanings(target).items() if token < target_size}
        ours = {token: meaning for token, meaning in meanings(draft).items() if token < draft_size}
        of_meaning: dict[Meaning, int] = {}
        for token, meaning in ours.items():
            of_meaning.setdefault(meaning, token)
        same = {token: of_meaning[meaning] for token, meaning in theirs.items() if meaning in of_meaning}
        for role in ("eos_token_id", "bos_token_id", "pad_token_id"):  # often called otherwise
            token, other = getattr(target, role), getattr(draft, role)
            if token in theirs and token not in same and other in ours:
                same[token] = other
        unknown = next((t for t in (draft.unk_token_id, draft.pad_token_id, draft.eos_token_id) if t in ours), 0)
        stand_ins = np.full(target_size, unknown, dtype=np.int64)
        lacking = {token: meaning for token, meaning in theirs.items() if token not in same}
        for token, last in (_last_tokens(lacking, draft, of_meaning) | same).items():
            if last in ours:  # a tokenizer may know more than its model
                stand_ins[token] = last
        meant: dict[int, int] = {}
        for token in theirs:
            if token in same:
                meant.setdefault(same[token], token)
        return cls(stand_ins, np.array(list(meant), dtype=np.int64), np.array(list(meant.values()), dtype=np.int64))


def meanings(tokenizer: Any) -> dict[int, Meaning]:
    """Of every token id of a fast tokenizer that is byte-level, or made of pieces with a mark for blanks.

    Of pieces that mean the same, the one that texts are made of comes first: single bytes, which spell what has no
    piece of its own, come last.

    Raises:
        ValueError: it is neither.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else repr(backend.decoder)
    if "ByteLevel" in decoder:
        bytes_of = _byte_level
    elif "▁" in decoder or "Metaspace" in decoder:
        bytes_of = _piece
    else:
        raise ValueError("it is neither a byte-level tokenizer nor one of SentencePiece's kind")
    added = tokenizer.added_tokens_decoder
    texts = {token: text for text, token in tokenizer.get_vocab().items() if token not in added}
    ordered = sorted(texts, key=lambda token: (bytes_of is _piece and _is_byte(texts[token]), token))
    found = {token: (False, bytes_of(texts[token])) for token in ordered}
    return found | {token: (bool(entry.special), entry.content.encode()) for token, entry in added.items()}


def _alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(rest)}


_BYTES = _alphabet()


def _byte_level(text: str) -> bytes:
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in text)


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _piece(text: str) -> bytes:
    return bytes.fromhex(text[3:5]) if _is_byte(text) else text.replace("▁", " ").encode()


def _last_tokens(lacking: Mapping[int, Meaning], draft: Any, of_meaning: Mapping[Meaning, int]) -> dict[int, int]:
    """The last of the draft's tokens that spell each of these; special ones are not spelt."""
    found: dict[int, int] = {}
    spelt: dict[int, str] = {}
    for token, (special, text) in lacking.items():
        if special or not text:
            continue
        try:
            spelt[token] = text.decode()
        except UnicodeDecodeError:  # part of a character
            last = of_meaning.get((False, text[-1:]))
            if last is not None:
                found[token] = last
    if spelt:
        encoded = draft(list(spelt.values()), add_special_tokens=False)["input_ids"]
        found |= {token: ids[-1] for token, ids in zip(spelt, encoded, strict=True) if ids}
    return found
