"""A folder of recorded exchanges: one JSON file each, their pictures beside them, named by their content.

    DIR/exchanges/20261122-140501-4f1c09ab7e21.json   {"format": 1, "target": {...}, "messages": [...], "cut": false}
    DIR/pictures/9f86d081884c7d65...                  SHA-256 (hexadecimal) of the file

A file is complete once it has its name. What a message shows is `{"picture": "9f86..."}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.traffic.exchange import Exchange

FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 64 << 20
"""Of one file: what is larger is neither written nor read."""


class LogFolder:
    """Writes and reads such a folder. Several processes may write at once."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        self.folder = folder
        self._exchanges = folder / "exchanges"
        self._pictures = folder / "pictures"

    def prepare(self) -> None:
        """Make the folder, for its owner's eyes only. Raises OSError."""
        for each in (self.folder, self._exchanges, self._pictures):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)

    def size(self) -> int:
        """Bytes of all files in it."""
        total = 0
        for folder in (self._exchanges, self._pictures):
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # another process renamed it
                        total += entry.stat(follow_symlinks=False).st_size
        return total

    def add(self, exchange: Exchange, target: TargetId) -> int:
        """Write an exchange, pictures first; returns the bytes written: 0 if a file of it would be above 64 MiB.

        Raises OSError, and leaves no half file.
        """
        pictures: dict[str, bytes] = {}

        def named(part: str | bytes) -> dict[str, str]:
            if isinstance(part, str):
                return {"text": part}
            name = hashlib.sha256(part).hexdigest()
            pictures[name] = part
            return {"picture": name}

        messages = [
            {"role": message.role, "content": [named(part) for part in message.parts]} for message in exchange.messages
        ]
        content = {
            "format": FORMAT,
            "target": dataclasses.asdict(target),
            "messages": messages,
            "cut": exchange.cut,
        }
        data = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
        if max(map(len, (data, *pictures.values()))) > _MOST_BYTES:
            return 0
        written = 0
        for name, picture in pictures.items():
            if _size(self._pictures / name) != len(picture):
                written += _write(self._pictures / name, picture)
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(6)}.json"
        return written + _write(self._exchanges / name, data)

    def names(self) -> list[str]:
        """The exchanges that are complete, in the order of their times. Raises OSError."""
        with os.scandir(self._exchanges) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(".json"))

    def read(self, name: str) -> tuple[TargetId, list[dict[str, Any]], bool]:
        """Target and messages of an exchange, and `Exchange.cut`; the pictures it names are checked to be there whole.

        Raises:
            ValueError: the file is no such exchange, or a picture is missing or not what it was.
        """
        try:
            content = json.loads(_read(self._exchanges / name))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
            target, messages = TargetId(**content["target"]), content["messages"]
            cut = content.get("cut", False) is True  # which older logs do not say
            seen: dict[str, bytes] = {}
            whole = {
                "messages": [
                    {"role": each["role"], "content": [self._loaded(part, seen) for part in each["content"]]}
                    for each in messages
                ]
            }
            Exchange.from_dict(whole)
        except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
        return target, messages, cut

    def picture(self, name: str) -> Path:
        """Where a picture is. Raises ValueError for a name that is not the digest of a file."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"a picture is called {name!r}, which is not the SHA-256 of one")
        return self._pictures / name

    def _loaded(self, part: dict[str, Any], seen: dict[str, bytes]) -> dict[str, Any]:
        if "picture" not in part:
            return part
        name = part["picture"]
        if name not in seen:
            data = _read(self.picture(name))
            if hashlib.sha256(data).hexdigest() != name:
                raise ValueError(f"picture {name} is not what it was when it was recorded")
            seen[name] = data
        return {**part, "picture": seen[name]}


def _read(path: Path) -> bytes:
    """A plain file's content; links are not followed."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"'{path.name}' is larger than {_MOST_BYTES >> 20} MiB")
    return data


def _size(path: Path) -> int | None:
    """Bytes of a file, None if there is none."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes) -> int:
    """Under another name first and on the disk, so that a file with its own name is whole even after a power cut."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return len(data)
