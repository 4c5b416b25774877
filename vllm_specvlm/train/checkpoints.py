"""Checkpoints of a run: folders `step-N`, each a drafter that can be served, and beside it what going on needs.

A checkpoint is made in a hidden folder and appears with one rename: a kill at any moment leaves only whole ones, and
one that was to take a damaged one's place gets it when the run goes on.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic

import torch
from safetensors import SafetensorError

from vllm_specvlm.draft.checkpoint_folder import not_finite
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train.errors import TrainingError
from vllm_specvlm.train.student import N, Student

STATE = "training.pt"
_NAME = re.compile(r"step-(\d+)")


@dataclass(slots=True)
class Saved(Generic[N]):
    """A checkpoint that was read."""

    step: int
    network: N
    target: TargetId
    state: dict[str, Any]
    """Optimiser, recipe and digests of the data."""


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


class Checkpoints(Generic[N]):
    """Those of one run."""

    def __init__(self, folder: Path, keep: int, student: Student[N]) -> None:
        """`keep`: how many are left when a new one is saved; `student` reads and writes networks."""
        self.folder, self._keep = folder, keep
        self._student: Student[N] = student

    def steps(self) -> list[int]:
        """Their steps, ascending."""
        return steps_in(self.folder)

    def path(self, step: int) -> Path:
        """The folder of one."""
        return self.folder / f"step-{step:06d}"

    def save(
        self, step: int, network: N, target: TargetId, state: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> Path:
        """Write one; then remove the oldest.

        Raises:
            TrainingError: it cannot be written, or its weights are not finite. Nothing of it is left, and those before
                it are as they were.
        """
        broken = not_finite(dict(network.named_parameters()) | dict(network.named_buffers()))
        if broken is not None:
            raise TrainingError(
                f"After step {step} the weights are no finite numbers ({broken!r}); {self.left()}: lower training.lr "
                "or training.clip and start again from there."
            )
        final, partial = self.path(step), self.folder / f".step-{step:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._student.save(partial, network, target, provenance)
            write_state(partial / STATE, state)
            if final.exists():  # a damaged one that resuming passed over
                final.rename(self.folder / f".step-{step:06d}.old")
            partial.rename(final)
            _sync_folder(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TrainingError(
                f"The checkpoint of step {step} cannot be written ({_reason(error)}); {self.left()}: make room, then "
                "go on with --resume."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self.steps()[: -self._keep]:
            hidden = self.folder / f".step-{old:06d}.old"
            self.path(old).rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        return final

    def left(self) -> str:
        """What there is, for messages: "the last good one is step-000200"."""
        steps = self.steps()
        return f"the last good one is {self.path(steps[-1]).name}" if steps else "there is none yet"

    def clean(self) -> None:
        """Finish the exchange that a kill interrupted between its two renames; remove what it left half-made."""
        for old in self.folder.glob(".step-*.old"):
            final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            whole = old.with_suffix(".partial")  # it was, before the damaged one made room
            if whole.exists() and not final.exists():
                whole.rename(final)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("..step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def last(
        self, check: Callable[[Mapping[str, Any]], None] = lambda state: None
    ) -> tuple[Saved[N] | None, list[str]]:
        """The newest that is sound, and a sentence about each newer one that is not.

        `check` looks at a state before the network is read, which may be of another kind; what it raises is raised.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            folder = self.path(step)
            try:
                state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as error:
                damaged.append(_passed_over(folder, error))
                continue
            check(state)
            try:
                network, target = self._student.load(folder)
                broken = not_finite(dict(network.named_parameters()) | dict(network.named_buffers()))
                if broken is not None:
                    raise ValueError(f"its weights are no finite numbers ({broken!r})")
                for tensor in (*network.parameters(), *network.buffers()):
                    # Out of the mapped file, whose alignment would change how some kernels sum.
                    tensor.data = tensor.data.clone()
                return Saved(step, network, target, state), damaged
            except (OSError, RuntimeError, ValueError) as error:
                damaged.append(_passed_over(folder, error))
        return None, damaged


def _passed_over(folder: Path, error: Exception) -> str:
    return f"The checkpoint {folder.name} is damaged ({_reason(error)}) and is passed over."


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Through a Python file, so that a full disk is an OSError with its reason; on the disk when this returns."""
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The operating system's own words, where an error has them or was raised on their account."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    said = str(error).strip().splitlines() or [type(error).__name__]
    return said[0].rstrip(".;")
