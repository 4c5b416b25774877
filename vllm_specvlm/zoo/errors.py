"""The exceptions of the zoo."""

from __future__ import annotations


class ZooError(RuntimeError):
    """The reference pair cannot be built. The message is one sentence that says why and what to do."""


class DownloadError(ZooError):
    """The language model's file is not here and cannot be fetched."""
