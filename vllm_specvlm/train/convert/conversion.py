"""From a downloaded head to a feature head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import vllm_specvlm
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import MODEL_TYPE, HeadConfig, TargetId
from vllm_specvlm.train.convert import eagle1, eagle3, shortlist, source, speculators, vispec
from vllm_specvlm.train.convert import target as targets
from vllm_specvlm.train.convert.parts import Parts, Wishes

_LAYOUTS: Sequence[ModuleType] = (speculators, vispec, eagle3, eagle1)
"""In the order in which they are tried: later ones would also recognise some of the earlier ones' tensors."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A feature head, as `head_checkpoint.save` takes it."""

    head: FeatureHead
    target: TargetId
    provenance: dict[str, Any]
    layout: str
    notes: tuple[str, ...]
    """Sentences for the user: what was decided, and what is not as it was."""


def convert(folder: str | Path, wishes: Wishes) -> Converted:
    """Read the public head in `folder`.

    The tensors keep their dtypes. An embedding table that is the target's is left out. The head sees no pictures,
    unless its layout says how (ViSpec).

    Raises:
        ValueError: the head cannot be read, is of no known layout, or does not fit the target; in one sentence.
    """
    found = source.read(folder)
    if found.config.get("model_type") == MODEL_TYPE:
        raise ValueError(f"'{folder}' is a feature head already; use it as it is.")
    layout = next((layout for layout in _LAYOUTS if layout.recognises(found)), None)
    if layout is None:
        names = ", ".join(sorted(found.tensors)[:4])
        raise ValueError(
            f"'{folder}' is not a head of a layout known here (its tensors are {names}, ...); only EAGLE-1, EAGLE-2, "
            "EAGLE-3, the speculators library's and ViSpec's can be converted."
        )
    parts: Parts = layout.read(found, wishes)
    if wishes.layers is not None and "feature_layers" not in parts.network:
        raise ValueError(
            f"'{folder}' is a head of layout {parts.layout}, which reads what leaves the target's final norm; leave "
            "out --layers."
        )
    config, state, target, notes = _assemble(parts, wishes)
    try:
        head = FeatureHead(config)
    except KeyError as error:
        raise ValueError(
            f"The rotary positions of '{folder}' ({config.rope_parameters}) lack {error}; download its config.json "
            "again."
        ) from error
    head.load_state_dict(state, assign=True)
    provenance = {
        "made": "converted",
        "vllm_specvlm": vllm_specvlm.__version__,
        "source": found.name,
        "layout": parts.layout,
        "sha256": {path.name: _digest(path) for path in (found.folder / "config.json", *found.files)},
        "notes": list(notes),
    }
    return Converted(head, target, provenance, parts.layout, notes)


def _assemble(parts: Parts, wishes: Wishes) -> tuple[HeadConfig, dict[str, torch.Tensor], TargetId, tuple[str, ...]]:
    """Configuration, state and target of the head, and the notes."""
    layer, target = parts.layer, wishes.target
    notes = list(parts.notes)
    if target is not None and target.id.hidden_size != layer.hidden_size:
        raise ValueError(
            f"The head is {layer.hidden_size} wide and the target '{target.id.name}' {target.id.hidden_size}; give the "
            "target that the head was made for."
        )
    vocabulary = layer.vocabulary if target is None else target.id.vocabulary
    state = dict(parts.state)
    embedding = _embedding(parts, target, notes)
    if embedding is not None:
        state["embed_tokens.weight"] = embedding
    output, tokens = parts.output, parts.tokens
    if output is not None and wishes.vocabulary is None and _is_the_targets(parts, target, output):
        notes.append("Its output layer is the target's and was left out.")
        output = tokens = None
    if wishes.vocabulary is not None:
        output, tokens = shortlist.cut(parts, target, wishes.vocabulary)
    if output is not None and tokens is not None:
        if int(tokens.max()) >= vocabulary:
            raise ValueError(
                f"The head drafts token {int(tokens.max())}, and the target '{target.id.name if target else ''}' has "
                f"{vocabulary}; give the target that the head was made for."
            )
        if bool((tokens[1:] < tokens[:-1]).any()):  # ours ascend
            order = tokens.argsort()
            output, tokens = output[order], tokens[order]
        state |= {"lm_head.weight": output, "vocabulary": tokens}
    config = HeadConfig(
        **layer.network(),
        **parts.network,
        target_vocabulary=vocabulary,
        vocabulary=None if output is None else len(output),
        own_embedding=embedding is not None,
        compressor=parts.compressor,
    )
    return config, state, _target_id(parts, target, notes), tuple(notes)


def _embedding(parts: Parts, target: targets.Target | None, notes: list[str]) -> torch.Tensor | None:
    """The head's own embedding table; None if the target's does."""
    own = parts.embedding
    if own is None:
        return None
    theirs = None if target is None else target.embedding()
    if theirs is None:
        if target is not None and len(own) != target.id.vocabulary:
            raise ValueError(
                f"The head's embedding table has {len(own)} tokens and the target {target.id.vocabulary}; give the "
                "target's weights too, to see whether its table begins with the head's."
            )
        notes.append(
            "Its embedding table was kept; with --target and its weights, one equal to the target's is left out."
        )
    elif targets.same(own, theirs):
        notes.append("Its embedding table is the target's and was left out.")
        return None
    elif target is not None and len(own) != target.id.vocabulary:
        raise ValueError(
            f"The head's embedding table has {len(own)} tokens and is not the target's, which has "
            f"{target.id.vocabulary}; give the target that the head was made for, with its weights."
        )
    return own


def _is_the_targets(parts: Parts, target: targets.Target | None, output: torch.Tensor) -> bool:
    """Whether the output layer is over the whole vocabulary, and equal to the target's."""
    if target is None or len(output) != target.id.vocabulary or len(output) != parts.layer.vocabulary:
        return False
    theirs = target.output()
    in_order = parts.tokens is not None and torch.equal(parts.tokens, torch.arange(len(output)))
    return theirs is not None and in_order and targets.same(output, theirs)


def _target_id(parts: Parts, target: targets.Target | None, notes: list[str]) -> TargetId:
    if target is not None:
        if target.id.digest is None:
            notes.append(
                "The target's weights were not at hand: that the head is for them is not checked when serving."
            )
        return target.id
    notes.append("No --target was given: that the head is for the target it runs with is hardly checked when serving.")
    return TargetId(
        name=parts.target_name or "unknown",
        model_type=None,
        hidden_size=parts.layer.hidden_size,
        layers=None,
        vocabulary=parts.layer.vocabulary,
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
