"""One line of the self-test's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what became of it, and what was found; `figures` are plain values for a report."""

    name: str
    outcome: Outcome
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def judged(cls, name: str, ok: bool, detail: str, **figures: Any) -> Check:
        """Passed or failed."""
        return cls(name, Outcome.PASSED if ok else Outcome.FAILED, detail, figures)

    @classmethod
    def not_run(cls, name: str, why: str) -> Check:
        """Left out, and why."""
        return cls(name, Outcome.NOT_RUN, why)


def guarded(name: str, run: Callable[[], Iterable[Check]]) -> list[Check]:
    """What `run` found; a check that raises has failed."""
    found: list[Check] = []
    try:
        found.extend(run())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        found.append(Check.judged(name, False, f"{type(error).__name__}: {lines[0]}"))
    return found
