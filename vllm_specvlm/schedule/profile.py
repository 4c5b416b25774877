"""A profile: what passes cost on one machine with one pair of models, kept in a file between runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import CURVES, Costs

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What costs depend on. Two engines with equal keys may share a profile."""

    model: str
    """The target: name and a digest of its configuration, as costs depend on sizes and not on weights."""
    draft: str
    """The draft likewise, or "lookup"."""
    dtype: str
    mode: str
    """"eager" or "compiled"."""
    tensor_parallel: int
    device: str
    """Model of the CPU or name of the GPU."""
    threads: int
    """Of a worker's parallel regions."""
    vllm: str
    torch: str
    vllm_specvlm: str

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ProfileKey:
        """The key of plain values. Raises ValueError naming a field that is missing or of another type."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = saved.get(field.name)
            kind = int if field.name in ("tensor_parallel", "threads") else str
            if type(value) is not kind:
                raise ValueError(f"its key has {value!r} for '{field.name}'")
            values[field.name] = value
        return cls(**values)

    def difference(self, other: ProfileKey) -> tuple[str, Any, Any] | None:
        """The first field that differs, with this key's value and the other's; None for equal keys."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                return field.name, mine, theirs
        return None


@dataclass(frozen=True, slots=True)
class Profile:
    """Cost curves and what they were measured with."""

    key: ProfileKey
    costs: Costs
    overhead: float
    """Seconds of drafting outside draft passes, per step with trees."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the curves as they are now."""
        return {
            "format": _FORMAT,
            "key": dataclasses.asdict(self.key),
            "overhead": float(f"{self.overhead:.6g}"),
            "curves": {name: getattr(self.costs, name).as_dict() for name in CURVES},
        }

    @classmethod
    def from_dict(cls, saved: object) -> Profile:
        """The profile of plain values. Raises ValueError saying which part of it is none."""
        if not isinstance(saved, Mapping) or saved.get("format") != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        key, curves, overhead = saved.get("key"), saved.get("curves"), saved.get("overhead")
        if not isinstance(key, Mapping) or not isinstance(curves, Mapping):
            raise ValueError("it lacks 'key' or 'curves'")
        if not isinstance(overhead, int | float) or isinstance(overhead, bool) or not 0 <= overhead < 1e6:
            raise ValueError(f"its overhead is {overhead!r}, which is no time in seconds")
        found = {}
        for name in CURVES:
            try:
                found[name] = CostCurve.from_dict(_finite(curves[name]))
            except (KeyError, OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"its curve '{name}' is none") from error
        return cls(ProfileKey.from_dict(key), Costs(**found), float(overhead))

    def save(self, path: Path) -> None:
        """Write the profile to `path`, whole or not at all. Raises OSError if the file cannot be written."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self.as_dict(), file, indent=1)
                file.write("\n")
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path, key: ProfileKey | None = None) -> Profile:
        """The profile in a file, which must have been measured with `key`, if one is given.

        Raises:
            ValueError: there is no profile in the file, or it was measured with something else; in one sentence.
        """
        try:
            profile = cls.from_dict(json.loads(path.read_text()))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ValueError(
                f"The profile '{path}' cannot be read ({reason}); make one with `specvlm calibrate`."
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"The file '{path}' is no profile: it is no JSON; make one with `specvlm calibrate`."
            ) from error
        except RecursionError as error:
            raise ValueError(f"The file '{path}' is no profile; make one with `specvlm calibrate`.") from error
        except ValueError as error:
            raise ValueError(f"The file '{path}' is no profile: {error}; make one with `specvlm calibrate`.") from error
        if key is not None and (found := profile.key.difference(key)) is not None:
            field, theirs, ours = found
            raise ValueError(
                f"The profile '{path}' was measured with {field} {theirs!r} and this engine has {ours!r}; "
                "calibrate again, or leave option 'profile' out."
            )
        return profile


def _finite(curve: Mapping[str, Any]) -> Mapping[str, Any]:
    if not all(math.isfinite(second) for second in curve["seconds"]):
        raise ValueError("seconds without end")
    return curve
