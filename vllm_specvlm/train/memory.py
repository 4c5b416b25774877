"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None


def give_back() -> None:
    """Steps of ever different lengths leave holes that glibc keeps: several times of what a run needs, after a while.

    Takes milliseconds. Does nothing without glibc, and for memory of other devices.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
