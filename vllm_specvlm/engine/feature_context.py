"""What a feature head has seen of one request, and what it can be fed next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.engine.transfer import upload


@dataclass(frozen=True, slots=True)
class Span:
    """A picture's slots in a request: [start, stop), its placeholders' or one before (`HeadConfig.reads_ahead`)."""

    identifier: str
    start: int
    stop: int


def in_spans(spans: Sequence[Span], positions: np.ndarray) -> np.ndarray:
    """bool: which positions are slots of one of the pictures."""
    inside = np.zeros(len(positions), dtype=bool)
    for span in spans:
        inside |= (positions >= span.start) & (positions < span.stop)
    return inside


@dataclass(slots=True)
class FeatureContext:
    """One request's slots. Slot `p` joins the feature at `p` with token `p + 1` (see `draft.feature_head`)."""

    pictures: Sequence[Span]
    visible: np.ndarray
    """bool [max_model_len]: slots whose K/V the head can trust."""
    upto: int = 0
    """Slots below this are visible, or holes for good."""
    counted: tuple[int, int] | None = None
    """A root, and how many slots below it could be fed; each token confirmed since then adds one."""
    compressed: dict[int, Compressed] = field(default_factory=dict)
    """Compressed pictures that are not fed yet, by the start of their slots."""
    vectors: dict[int, torch.Tensor] = field(default_factory=dict)
    """Global vectors [hidden] of compressed pictures, by the end of their slots."""
    reads_ahead: bool = False
    """As the head does: where pictures' slots are, and which of them hold tokens."""
    has_vectors: bool = False
    """Whether the compressor may make global vectors, which no slot holds: text needs them behind any picture."""

    def in_picture(self, positions: np.ndarray) -> np.ndarray:
        """bool: which positions are pictures' slots."""
        return in_spans(self.pictures, positions)

    def before_picture(self, slots: np.ndarray) -> np.ndarray:
        """bool: behind which text slots a placeholder follows, whose embedding means nothing."""
        return np.zeros(len(slots), dtype=bool) if self.reads_ahead else self.in_picture(slots + 1)

    def first_token(self, span: Span) -> int:
        """The slot of the first token that is left of a compressed picture; the others follow."""
        return span.stop - len(self.compressed[span.start].tokens) if self.reads_ahead else span.start

    def spans(self, stop: int) -> list[tuple[int, int]]:
        """Stretches of visible slots below `stop`, ascending."""
        edges = np.flatnonzero(np.diff(self.visible[:stop], prepend=False, append=False))
        return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]

    def missing(self, root: int, features: np.ndarray, compress: Callable[[Span], Compressed | None]) -> np.ndarray:
        """int64, ascending: slots below `root` that are not visible and whose inputs exist.

        Args:
            root: position of the last confirmed token.
            features: int64, ascending: positions whose features are kept.
            compress: called for pictures with missing slots or a missing vector; None for one that is gone.
        """
        slots = self.upto + np.flatnonzero(~self.visible[self.upto : root])
        text = slots[~self.in_picture(slots)]
        fed = [text[np.isin(text, features, assume_unique=True)]]
        for span in self.pictures:
            mine = slots[(slots >= span.start) & (slots < span.stop)]
            # Slots written for another request bring no vector with them.
            wanted = self.has_vectors and span.stop > self.upto and span.stop not in self.vectors
            if not len(mine) and not wanted:
                continue
            if span.start not in self.compressed:
                found = compress(span)
                if found is None:
                    continue
                self.compressed[span.start] = found
                if found.global_vector is not None:
                    self.vectors[span.stop] = found.global_vector
            first = self.first_token(span)
            last = first + len(self.compressed[span.start].tokens)
            # vLLM shares blocks by the placeholders in them: the slot before the first one is not the picture's alone.
            first = max(first, span.start + self.reads_ahead)
            fed.append(mine[(mine >= first) & (mine < last)])
        return np.unique(np.concatenate(fed))

    def advance(self, upto: int) -> None:
        """Slots below this were fed, or are holes for good: their pictures need not be held any longer."""
        self.upto, self.counted = upto, None
        for span in self.pictures:
            if span.stop <= upto:
                self.compressed.pop(span.start, None)

    def global_vectors(self, slots: np.ndarray) -> tuple[np.ndarray, torch.Tensor] | None:
        """Slots (bool) that a global vector is added to, and for each of them the latest picture's, [n, hidden]."""
        if not self.vectors:
            return None
        stops = sorted(self.vectors)
        latest = np.searchsorted(stops, slots, side="right") - 1
        after = (latest >= 0) & ~self.in_picture(slots)
        vectors = torch.stack([self.vectors[stop] for stop in stops])
        return after, vectors[upload(latest[after], vectors.device)]
