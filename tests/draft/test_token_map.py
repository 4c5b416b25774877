"""Which of a draft's tokens say what the target's say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.tiny.tokenizers import ENTRIES, make_tokenizer
from vllm_specvlm.draft.token_map import TokenMap, meanings


def pieces(*words: str, end: str = "<end>") -> Any:
    """A tokenizer of SentencePiece's kind: bytes, letters, and words that begin with a blank."""
    letters = ["▁", *(chr(at) for at in range(33, 127))]
    vocab = {token: at for at, token in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + letters)}
    merges: list[tuple[str, str]] = []
    for word in words:
        for at in range(1, len(word)):
            if word[: at + 1] not in vocab:
                vocab[word[: at + 1]] = len(vocab)
                merges.append((word[:at], word[at]))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end)


def between(target: Any, draft: Any) -> TokenMap:
    return TokenMap.between(target, draft, len(target), len(draft))


def check(target: Any, draft: Any) -> TokenMap:
    """What is proposed says the same in both vocabularies, and is proposed once."""
    found = between(target, draft)
    theirs, ours = meanings(target), meanings(draft)
    assert len(set(found.meant.tolist())) == len(found.meant) == len(set(found.drafted.tolist())) > 0
    for drafted, meant in zip(found.drafted.tolist(), found.meant.tolist(), strict=True):
        assert ours[drafted] == theirs[meant] or {drafted, meant} == {draft.eos_token_id, target.eos_token_id}
        assert found.stand_ins[meant] == drafted
    return found


def test_the_same_tokens_under_other_ids() -> None:
    target, draft = make_tokenizer(["<image>"]), make_tokenizer(["<image>"], kind="renumbered")
    found = check(target, draft)
    assert sorted(found.drafted.tolist()) == sorted(found.meant.tolist()) == list(range(ENTRIES))
    assert (found.stand_ins != np.arange(ENTRIES)).sum() > ENTRIES // 2


def test_tokens_that_the_draft_lacks_are_read_as_the_last_of_those_that_spell_them() -> None:
    target, draft = make_tokenizer(["<image>"]), make_tokenizer(["<image>"], kind="other")
    found = check(target, draft)
    theirs, ours = meanings(target), meanings(draft)
    lacking = [token for token in theirs if token not in set(found.meant.tolist())]
    assert len(lacking) > 20
    for token in lacking:
        (special, text), (_, read) = theirs[token], ours[int(found.stand_ins[token])]
        assert not special and text.endswith(read) and text != read


@pytest.mark.parametrize("swapped", [False, True])
def test_a_byte_level_tokenizer_and_one_of_pieces(swapped: bool) -> None:
    both = make_tokenizer(["<image>"]), pieces("▁the", "▁tree", "th", "in")
    target, draft = both[::-1] if swapped else both
    found = check(target, draft)
    at = dict(zip(found.meant.tolist(), found.drafted.tolist(), strict=True))
    blank, byte = ("▁", "<0xE9>") if swapped else ("Ġ", "é")
    assert at[target.convert_tokens_to_ids(blank)] == draft.convert_tokens_to_ids("Ġ" if swapped else "▁")
    assert at[target.convert_tokens_to_ids(byte)] == draft.convert_tokens_to_ids("é" if swapped else "<0xE9>")
    assert at[target.convert_tokens_to_ids("th")] == draft.convert_tokens_to_ids("th")
    assert at[target.eos_token_id] == draft.eos_token_id, "the ends of answers are called otherwise"
    if not swapped:
        assert target.convert_tokens_to_ids("<image>") not in at, "the draft has no pictures"


def test_a_special_token_is_not_the_text_that_it_is_written_as() -> None:
    target, draft = pieces("<end>", end="<stop>"), pieces(end="<end>")
    written = target.get_vocab()["<end>"]
    assert meanings(target)[written] == (False, b"<end>") and meanings(draft)[draft.eos_token_id] == (True, b"<end>")
    assert written not in between(target, draft).meant.tolist()


def test_ids_without_tokens_are_read_as_something() -> None:
    target = make_tokenizer()
    found = TokenMap.between(target, make_tokenizer(kind="other"), ENTRIES + 64, ENTRIES)
    assert found.stand_ins.shape == (ENTRIES + 64,) and found.stand_ins.min() >= 0 and found.stand_ins.max() < ENTRIES
    assert found.meant.max() < ENTRIES


def test_other_tokenizers_are_refused() -> None:
    core = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="neither a byte-level tokenizer nor one of SentencePiece's kind"):
        between(make_tokenizer(), PreTrainedTokenizerFast(tokenizer_object=core))
