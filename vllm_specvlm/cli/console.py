"""What the commands print, and where: answers on stdout, everything else on stderr, colour on terminals only."""

from __future__ import annotations

import os
import sys
from typing import TextIO


class UserError(Exception):
    """A mistake of the caller. The message is one sentence that says what is wrong and what to do; exit status 2."""


def say(text: str) -> None:
    """Print progress or a complaint on stderr."""
    print(text, file=sys.stderr, flush=True)


def bold(text: str, stream: TextIO | None = None) -> str:
    """`text` in bold if `stream` (stdout) is a terminal that wants colours, else as it is."""
    stream = stream or sys.stdout
    if stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        return f"\x1b[1m{text}\x1b[0m"
    return text
