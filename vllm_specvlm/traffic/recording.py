"""What a server is told about recording, handed to its processes in an environment variable."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_specvlm.draft.head_config import TargetId

VARIABLE = "SPECVLM_RECORDING"
MIDDLEWARE = "vllm_specvlm.traffic.recorder.TrafficRecorder"

Redaction = Callable[[dict[str, Any]], Mapping[str, Any] | None]
"""Gets `Exchange.as_dict()`; returns what may be kept of it, in the same form, or None for nothing."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Where to record, and what."""

    folder: str
    target: TargetId
    """Of the model that is served."""
    models: tuple[str, ...]
    """What requests call it."""
    mib: int = 1024
    """Recording stops when the folder holds so much."""
    redact: str | None = None
    """A function as `module:function`."""

    def hook(self) -> Redaction | None:
        """The redaction function. Raises ValueError if there is none of that name."""
        if self.redact is None:
            return None
        module, _, name = self.redact.partition(":")
        try:
            found: Redaction = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(
                f"There is no redaction function '{self.redact}' ({error}); write module:function, importable here."
            ) from error
        if not callable(found):
            raise ValueError(f"'{self.redact}' is no function; write module:function.")
        return found

    def announce(self) -> None:
        """Tell this process and those it starts."""
        os.environ[VARIABLE] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def announced(cls) -> Recording:
        """What was told. Raises ValueError if nothing was."""
        told = os.environ.get(VARIABLE)
        if told is None:
            raise ValueError("Nothing says where to record; start the server with `specvlm serve --record DIR`.")
        values = json.loads(told)
        return cls(**{**values, "target": TargetId(**values["target"]), "models": tuple(values["models"])})
