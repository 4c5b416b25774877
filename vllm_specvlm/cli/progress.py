"""A progress bar with the time left, on stderr."""

from __future__ import annotations

import sys
import time

_WIDTH = 24  # characters of the bar


class Progress:
    """On a terminal one line that is written over; elsewhere a line now and then."""

    def __init__(self, title: str) -> None:
        """`title` stands before the bar. The clock starts now."""
        self._title = title
        self._began = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, share: float, doing: str) -> None:
        """`share` of the work is done, 0 to 1."""
        now = time.monotonic()
        if not self._terminal and share < 1 and now - self._said < 5:
            return
        self._said = now
        spent = now - self._began
        left = f"{_clock(spent / share - spent)} left" if 0 < share < 1 else _clock(spent)
        full = round(_WIDTH * share)
        line = f"{self._title} [{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%}  {left:<11} {doing}"
        if self._terminal:
            print(f"\r\x1b[K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """The line is complete."""
        if self._terminal:
            print(file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
