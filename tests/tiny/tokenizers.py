"""Byte-level tokenizers of 512 entries, made from nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny.sizes import POSITIONS

ENTRIES = 512
_CORE = ["<pad>", "<s>", "</s>", "<unk>"]  # ids 0 to 3 in every tokenizer
_PAIRS = {"usual": ("etaoinshrdlucmfwypgbvk", "etaoinshrdlu"), "other": ("klmnoprstuvwxyzabcdefg", "uldrhsnioate")}


def make_tokenizer(
    specials: Sequence[str] = (), attributes: Mapping[str, str] | None = None, kind: str = "usual"
) -> PreTrainedTokenizerFast:
    """256 bytes, letter pairs, and the family's special tokens last; every id has a token and can be decoded.

    attributes become `tokenizer.<name>` and `tokenizer.<name>_id`, which some processors read. kind "other" gives a
    tokenizer of the same size and special tokens that calls most other tokens by other ids and has other pairs;
    "renumbered" has the usual ones under other ids.
    """
    attributes = dict(attributes or {})
    specials = list(dict.fromkeys([*specials, *attributes.values()]))
    specials = specials[::-1] if kind == "renumbered" else specials
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=kind == "other")
    vocab = {token: at for at, token in enumerate([*_CORE, *letters])}
    merges: list[tuple[str, str]] = []
    first, second = _PAIRS["other" if kind == "other" else "usual"]
    for a in first:
        for b in second:
            if a + b not in vocab and len(vocab) < ENTRIES - len(specials):
                vocab[a + b] = len(vocab)
                merges.append((a, b))
    if kind == "renumbered":
        vocab = {token: at if at < len(_CORE) else len(vocab) + len(_CORE) - 1 - at for token, at in vocab.items()}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*_CORE, *specials]])
    options: dict[str, Any] = {"extra_special_tokens": attributes} if attributes else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
        **options,
    )
    if len(tokenizer) != ENTRIES:
        raise ValueError(f"The tokenizer has {len(tokenizer)} entries instead of {ENTRIES}; take fewer special tokens.")
    return tokenizer
