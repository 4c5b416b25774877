"""The one exception of the zoo."""

from __future__ import annotations


class ZooError(RuntimeError):
    """The reference pair cannot be built. The message is one sentence that says why and what to do."""
