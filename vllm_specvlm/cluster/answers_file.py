"""The file of a batch's answers: every question once, whatever happens while it is written."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_BEGINNING = b'{"id": "specvlm-'


class AnswersFile:
    """Lines in OpenAI's batch output format. A file that exists is continued: what is in it counts as done."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. A last line that was cut off in the middle of writing is removed.

        Raises:
            ValueError: the file is something else, or another run writes it.
            OSError: it cannot be read, locked or written.
        """
        self.done: set[str] = set()
        """Names of the questions in the file."""
        self.failed = 0
        """How many of them have an error for an answer."""
        self._file = path.open("a+b")
        try:
            self._continue(path)
        except BaseException:
            self._file.close()
            raise

    def _continue(self, path: Path) -> None:
        """Take the file for this run alone, and note what is in it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"Another run writes '{path}'; wait until it has ended, or name another file.") from error
        whole, line = 0, b"\n"
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n") and _BEGINNING.startswith(line[: len(_BEGINNING)]):
                self._file.truncate(whole)
                return
            self._note(path, number, line)  # also a last line without an end that is none of ours
            whole += len(line)
        if not line.endswith(b"\n"):
            self._file.write(b"\n")

    def _note(self, path: Path, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self.done.add(entry["custom_id"])
            self.failed += entry["error"] is not None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of '{path}' is no answer of a batch; name another file.") from error

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add answers, and return when the disk has them; those of questions that are done are left out.

        Args:
            rows: with "custom_id", and "response" or "error" as JSON, the other None.
        """
        for row in rows:
            if row["custom_id"] not in self.done:
                self._file.write(json.dumps(_line(row)).encode() + b"\n")
                self.done.add(row["custom_id"])
                self.failed += row["error"] is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    body = None if row["response"] is None else json.loads(row["response"])
    error = None if row["error"] is None else json.loads(row["error"])["error"]
    status = 200 if error is None else error["code"]
    name = uuid.uuid4().hex
    response = {"status_code": status, "request_id": f"batch-{name}", "body": body}
    return {"id": f"specvlm-{name}", "custom_id": row["custom_id"], "response": response, "error": error}
