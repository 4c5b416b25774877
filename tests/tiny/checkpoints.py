"""Tiny random checkpoints that vLLM loads: configuration, weights, tokenizer and processor, made from nothing.

A target, a drafter for it, and bad drafters for it:

    target = build("llava")
    draft = build("llava", seed=1, size=DRAFT)
    padded = build("llava", seed=1, size=DRAFT, vocab_padding=64)
    strange = build("llava", seed=1, size=DRAFT, tokenizer="other")
    renumbered = build("llava", tokenizer="renumbered")
    blind = build("llava", seed=1, size=DRAFT, text_only=True)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import transformers as tf

from tests.tiny.families import FAMILIES, REFUSED, TEXT_ONLY
from tests.tiny.sizes import DRAFT, TARGET, Size
from tests.tiny.tokenizers import ENTRIES, make_tokenizer
from tests.tiny.weights import randomize, renumber, restore_names

# Read together with the code itself: a process that outlives an edit must not file old weights under the new name.
_SOURCE = b"".join(
    Path(__file__).with_name(f"{name}.py").read_bytes()
    for name in ("checkpoints", "families", "sizes", "tokenizers", "weights")
)

__all__ = ["DRAFT", "FAMILIES", "TARGET", "Size", "build", "cache_folder"]


def cache_folder() -> Path:
    """Where checkpoints are kept between runs: SPECVLM_TEST_CACHE, else among this user's temporary files."""
    default = Path(tempfile.gettempdir()) / f"specvlm-tests-{os.getuid()}" / "checkpoints"
    return Path(os.environ.get("SPECVLM_TEST_CACHE") or default)


def build(
    family: str,
    out: Path | None = None,
    *,
    seed: int = 0,
    scale: float = 1.0,
    echo: float = 0.6,
    size: Size = TARGET,
    vocab_padding: int = 0,
    tokenizer: str = "usual",
    text_only: bool = False,
) -> Path:
    """The folder of a checkpoint, inside `out` (default: `cache_folder()`), made unless it is there already.

    family: a key of FAMILIES or REFUSED. seed, scale, echo: see `weights.randomize`; checkpoints of one family that
    differ in these and in size have the same tokenizer and the same number of tokens for a picture. vocab_padding: rows
    of the vocabulary beyond the tokenizer's 512. tokenizer: "usual", "other" for one that does not match, "renumbered"
    for the usual one's tokens under other ids, with weights to match. text_only: a Llama with the family's tokenizer.
    The same arguments give the same weights, byte by byte. The folder is named after the arguments and the builder's
    source, and appears at once when complete: several processes may build.
    """
    arguments: dict[str, object] = {
        "family": family,
        "seed": seed,
        "scale": scale,
        "echo": echo,
        "size": asdict(size),
        "vocab_padding": vocab_padding,
        "tokenizer": tokenizer,
        "text_only": text_only,
    }
    folder = (out or cache_folder()) / f"{'text-' if text_only else ''}{family}-{_digest(arguments)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{family}-"))
    try:
        _make(making, family, seed, scale, echo, size, vocab_padding, tokenizer, text_only)
        making.chmod(0o755)
        try:
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _digest(arguments: dict[str, object]) -> str:
    return hashlib.sha256(f"{tf.__version__} {sorted(arguments.items())}".encode() + _SOURCE).hexdigest()[:12]


def _make(
    folder: Path,
    family: str,
    seed: int,
    scale: float,
    echo: float,
    size: Size,
    vocab_padding: int,
    tokenizer_kind: str,
    text_only: bool,
) -> None:
    facts = (FAMILIES | REFUSED)[family]
    tokenizer = make_tokenizer(facts.specials, facts.attributes, tokenizer_kind)
    make = TEXT_ONLY.make if text_only else facts.make
    model, processor = make(tokenizer, ENTRIES + vocab_padding, size, facts.chat_template)
    model = model.float().eval()
    specials = set(tokenizer.added_tokens_decoder)
    randomize(model, seed=facts.first_seed + seed, scale=scale, echo=echo, entries=ENTRIES, specials=specials)
    if tokenizer_kind == "renumbered":
        renumber(model, make_tokenizer(facts.specials, facts.attributes).get_vocab(), tokenizer.get_vocab())
    model.generation_config = tf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if facts.clip_names and not text_only:
        restore_names(folder)
