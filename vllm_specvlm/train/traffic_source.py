"""Conversations that a server recorded (`specvlm serve --record`), as a source to train on."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.traffic.log_folder import LogFolder
from vllm_specvlm.train.conversation import Conversation, Split, Turn
from vllm_specvlm.train.errors import RecipeError

_HELD_OUT = 10
"""One exchange in so many belongs to split `test`, by a hash of what was asked first, which all exchanges of one chat
share: neither a chat nor a question ever stands on both sides. Logs are short."""


class TrafficSource:
    """A folder as `traffic.log_folder` describes it. Exchanges that are damaged, or of another target, are left out.

    All exchanges and pictures are read once, when it is opened; only what was said is kept.
    """

    def __init__(self, folder: Path) -> None:
        """Raises RecipeError if nothing in the folder can be read."""
        self._folder = folder
        self._log = LogFolder(folder)
        self.damaged = 0
        """Files left out because they are no whole exchange."""
        self.foreign = 0
        """Exchanges left out because another target answered; `keep_only` counts them."""
        self.special = 0
        """Exchanges left out because of special tokens in their text; `keep_only` counts them."""
        self._entries: list[tuple[TargetId, str, Conversation]] = []
        reason = "it is empty"
        try:
            names = self._log.names()
        except OSError as error:
            raise RecipeError(
                f"The log '{folder}' cannot be read ({error.strerror}); give a folder that a server recorded to."
            ) from error
        for name in names:
            try:
                target, messages, cut = self._log.read(name)
                self._entries.append((target, name, self._conversation(messages, cut)))
            except ValueError as error:
                self.damaged += 1
                reason = f"of {self.damaged} files none is a whole exchange; in '{name}' {error}"
        if not self._entries:
            raise RecipeError(f"The log '{folder}' has nothing to train on ({reason}); record to it first.")
        self._sort()

    def keep_only(self, target: TargetId, special: Collection[str]) -> None:
        """Leave out what other targets answered, and texts that hold one of `special`, the target's special tokens.

        Those would be read as marks, such as the place of a picture, and not as what somebody wrote. Raises RecipeError
        if nothing is left.
        """
        differing = [reason for theirs, _, _ in self._entries if (reason := target.differs(theirs))]
        if len(differing) == len(self._entries):
            name = self._entries[0][0].name
            raise RecipeError(
                f"The log '{self._folder}' holds answers of '{name}', which is not the target to train for "
                f"({differing[0]}); give a log of '{target.name}'."
            )
        self.foreign = len(differing)
        ours = [entry for entry in self._entries if not target.differs(entry[0])]
        self._entries = [entry for entry in ours if not _holds(entry[2], special)]
        self.special = len(ours) - len(self._entries)
        if not self._entries:
            raise RecipeError(
                f"All {len(ours)} exchanges of '{target.name}' in the log '{self._folder}' have special tokens of its "
                "tokenizer in their text; record others."
            )
        self._sort()

    def digest(self) -> str:
        """Of the exchanges' names, and how many they are."""
        names = "\n".join(name for _, name, _ in self._entries)
        return f"{len(self._entries)} exchanges, sha256 {hashlib.sha256(names.encode()).hexdigest()[:16]}"

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """See `Source`. A log whose chats all belong to one split gives those; `split_missing` says so."""
        return rng.choice(self._splits[split] or self._splits["train" if split == "test" else "test"])

    @property
    def split_missing(self) -> Split | None:
        """The split that no exchange belongs to, as in short logs and where all chats begin alike."""
        empty: list[Split] = [split for split, found in self._splits.items() if not found]
        return empty[0] if empty else None

    def _sort(self) -> None:
        self._splits: dict[Split, list[Conversation]] = {"train": [], "test": []}
        for _, _, conversation in self._entries:
            first = conversation.asked(0)
            names = [picture.name for picture in first.pictures if isinstance(picture, Path)]
            asked = json.dumps([first.turns[0].question, names])
            split: Split = "test" if zlib.crc32(asked.encode()) % _HELD_OUT == 0 else "train"
            self._splits[split].append(conversation)

    def _conversation(self, messages: list[dict[str, Any]], cut: bool) -> Conversation:
        system = ""
        if messages[0]["role"] == "system":
            system, messages = messages[0]["content"][0]["text"], messages[1:]
        pictures: list[Path] = []
        turns: list[Turn] = []
        for asked, answered in zip(messages[::2], messages[1::2], strict=True):
            pictures += [self._log.picture(part["picture"]) for part in asked["content"] if "picture" in part]
            question = tuple(part.get("text") for part in asked["content"])
            turns.append(Turn(question, answered["content"][0]["text"]))
        return Conversation(tuple(pictures), tuple(turns), system=system, recorded=True, cut=cut)


def _holds(conversation: Conversation, special: Collection[str]) -> bool:
    questions = [part for turn in conversation.turns for part in turn.question]
    texts = [conversation.system, *questions, *(turn.answer for turn in conversation.turns)]
    return any(token in text for text in texts if text for token in special)
