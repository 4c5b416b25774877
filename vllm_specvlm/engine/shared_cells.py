"""Numbers that a worker process writes and the API server's process reads, in memory that belongs to no file system."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

VARIABLE = "SPECVLM_METRICS"
"""Names the memory to the processes that this one starts. vLLM's own configuration cannot: the key of its compiled
artefacts contains every value in it, and this one is another at each start."""

_NAME = "specvlm-metrics"
_BYTES = 8  # of a float64


class SharedCells:
    """A row of float64 in anonymous memory, zero at first.

    Loads and stores of aligned eight bytes are whole on every processor this runs on, so one writer and any number of
    readers need no lock. All pages are there from the beginning: a machine that is full later cannot hurt the writer.
    """

    def __init__(self, cells: int) -> None:
        """Make it and name it in the environment.

        Raises:
            OSError: the machine has no memory for it, or not this kind of memory.
        """
        os.environ.pop(VARIABLE, None)  # without memory of its own, an engine may not write into another's
        self._descriptor = os.memfd_create(_NAME)
        try:
            os.posix_fallocate(self._descriptor, 0, cells * _BYTES)
            self.cells = _mapped(self._descriptor, cells)
        except OSError:
            os.close(self._descriptor)
            raise
        os.environ[VARIABLE] = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """No process can find it any more; those that have found it keep it."""
        os.close(self._descriptor)


def found(cells: int) -> memoryview[float]:
    """The cells that the environment names, written by this process from now on.

    Raises:
        OSError: it names none, or what it names is gone or is something else.
    """
    name = os.environ.get(VARIABLE)
    if name is None:
        raise OSError(f"{VARIABLE} is not set in this process")
    if not str(Path(name).readlink()).startswith(f"/memfd:{_NAME}"):  # the number was given to another file
        raise OSError(f"{name} is no memory of vllm_specvlm")
    descriptor = os.open(name, os.O_RDWR)
    try:
        if os.fstat(descriptor).st_size != cells * _BYTES:
            raise OSError(f"{name} has not the size this version of vllm_specvlm expects")
        return _mapped(descriptor, cells)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, cells: int) -> memoryview[float]:
    return memoryview(mmap.mmap(descriptor, cells * _BYTES)).cast("d")
