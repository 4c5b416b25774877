"""How the `config.json` of a drafter's checkpoint is read, whatever kind of drafter it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vllm_specvlm.draft import plain_values

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of drafter as its `config.json` describes it."""

    name: str
    """For messages: "feature head"."""
    model_type: str
    format: int
    again: str
    """How one of the present format comes about, for messages: "train it again"."""
    parse: Callable[[dict[str, Any], dict[str, Any]], T]
    """Makes the configuration of the tables `network` and `target`."""

    def from_json(self, given: object) -> T:
        """Raises ValueError: it is none, was written by a newer version, or has a key missing or too many."""
        if not isinstance(given, Mapping):
            raise ValueError("Its config.json is no JSON object; restore the file.")
        if given.get("model_type") != self.model_type:
            raise ValueError(
                f"Its model type is {given.get('model_type')!r}, not {self.model_type!r}; give a drafter of that type."
            )
        if given.get("format") != self.format:
            raise ValueError(
                f"Its format is {given.get('format')!r} and this version reads {self.format}; upgrade vllm_specvlm, or "
                f"{self.again}."
            )
        try:
            network, target = given["network"], given["target"]
            if not isinstance(network, Mapping) or not isinstance(target, Mapping):
                raise TypeError("'network' and 'target' must be objects")
            return self.parse(dict(network), dict(target))
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"Its config.json does not describe the {self.name} ({error}); restore the file."
            ) from error

    def read(self, folder: str | Path) -> T:
        """From the `config.json` in `folder`. Raises ValueError: there is none, or as `from_json`, in one sentence."""
        path = Path(folder).expanduser() / "config.json"
        try:
            given = plain_values.parsed(path)
        except OSError as error:
            raise ValueError(f"There is no {self.name} at '{folder}' ({error.strerror}); give its folder.") from error
        except ValueError as error:
            raise ValueError(f"'{path}' is not JSON ({error}); restore the file.") from error
        try:
            return self.from_json(given)
        except ValueError as error:
            raise ValueError(f"The {self.name} '{folder}' cannot be used: {error}") from error
