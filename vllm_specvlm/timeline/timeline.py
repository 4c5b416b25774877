"""The timeline of one answered request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_specvlm.timeline.sight import Sight
from vllm_specvlm.timeline.step import PROMPT, Step

_FORMAT = 1
_MEDIA = ("image/png", "image/jpeg")


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture as it is shown, and what of it was looked at.

    Raises:
        ValueError: neither PNG nor JPEG, no base64, or a box that is not within the picture.
    """

    media_type: str
    base64: str
    width: int
    height: int
    box: tuple[float, float, float, float] | None = (0.0, 0.0, 1.0, 1.0)
    """Left, top, right, bottom of what the target's visual tokens cover, as shares of the sides; None: unknown."""
    sight: Sight | None = None
    """None: the drafter never came to look."""

    def __post_init__(self) -> None:
        if self.media_type not in _MEDIA:
            raise ValueError(f"A picture is of type {self.media_type!r}; known are {', '.join(_MEDIA)}.")
        if not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", self.base64):
            raise ValueError("A picture's bytes are not in base64.")
        if any(type(side) is not int or side < 1 for side in (self.width, self.height)):
            raise ValueError(f"A picture of {self.width!r} x {self.height!r} pixels is none.")
        if self.box is not None and not (0 <= self.box[0] < self.box[2] <= 1 and 0 <= self.box[1] < self.box[3] <= 1):
            raise ValueError(f"The box {self.box} is not within a picture.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "media_type": self.media_type,
            "base64": self.base64,
            "width": self.width,
            "height": self.height,
            "box": None if self.box is None else list(self.box),
            "sight": None if self.sight is None else self.sight.as_dict(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Picture:
        """The picture of plain values. Raises ValueError, KeyError or TypeError if they are none."""
        box, sight = saved["box"], saved["sight"]
        changed = {
            "box": None if box is None else (box[0], box[1], box[2], box[3]),
            "sight": None if sight is None else Sight.from_dict(sight),
        }
        return cls(**{**saved, **changed})


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request from its first row to its last token.

    Raises:
        ValueError: the steps do not give the answer, or texts do not fit tokens.
    """

    target: str
    draft: str
    """Name of the draft; `lookup` for none."""
    setting: str
    """In words: how large trees may get and who decides."""
    engine: str
    """In words: versions, dtype, machine."""
    temperature: float
    """0: greedy."""
    seed: int | None
    question: str
    picture: Picture | None
    prompt_tokens: int
    answer: tuple[int, ...]
    """Token ids."""
    pieces: tuple[str, ...]
    """The text that each of them adds; nothing for an end-of-text mark and the like."""
    finish: str
    """Why the answer ended: vLLM's `stop` or `length`."""
    steps: tuple[Step, ...]
    """The first one gives the first token. The last one may give more than the answer has: it ended within."""
    labels: tuple[tuple[str, ...], ...]
    """Per step, the text of each node of its tree, then that of the target's own token; marks are spelt out."""

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0].mode != PROMPT or any(step.mode == PROMPT for step in self.steps[1:]):
            raise ValueError("A timeline needs steps, the first of which computes the prompt, and no other.")
        given = [token for step in self.steps for token in step.tokens]
        spare = len(given) - len(self.answer)
        if tuple(given[: len(self.answer)]) != self.answer or not 0 <= spare < len(self.steps[-1].tokens):
            raise ValueError(f"The {len(given)} tokens of the steps are not the answer of {len(self.answer)} tokens.")
        if len(self.pieces) != len(self.answer) or [len(texts) for texts in self.labels] != [
            len(step.tree) + 1 for step in self.steps
        ]:
            raise ValueError("Every token of the answer, every node of a tree and every own token needs its text.")

    @property
    def decoding(self) -> tuple[Step, ...]:
        """The steps after the first token."""
        return self.steps[1:]

    @property
    def seconds(self) -> float:
        """From the first token to the last."""
        return sum(step.seconds for step in self.decoding)

    @property
    def tokens_per_step(self) -> float:
        """Of the steps after the first token; 1.0 without any. Plain decoding has 1."""
        return (len(self.answer) - 1) / len(self.decoding) if self.decoding else 1.0

    @property
    def tokens_per_second(self) -> float:
        """Of the steps after the first token; 0.0 without any."""
        return (len(self.answer) - 1) / self.seconds if self.seconds else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens of a verified tree, the target's own one included; 1.0 if there was none."""
        trees = [step for step in self.decoding if len(step.tree)]
        return sum(len(step.tokens) for step in trees) / len(trees) if trees else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": _FORMAT,
            "target": self.target,
            "draft": self.draft,
            "setting": self.setting,
            "engine": self.engine,
            "temperature": self.temperature,
            "seed": self.seed,
            "question": self.question,
            "picture": None if self.picture is None else self.picture.as_dict(),
            "prompt_tokens": self.prompt_tokens,
            "answer": list(self.answer),
            "pieces": list(self.pieces),
            "finish": self.finish,
            "steps": [step.as_dict() for step in self.steps],
            "labels": [list(texts) for texts in self.labels],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Timeline:
        """The timeline of plain values. Raises ValueError, KeyError or TypeError if they are none."""
        values = dict(saved)
        if (version := values.pop("format")) != _FORMAT:
            raise ValueError(f"format {version!r} is not {_FORMAT}")
        picture = values["picture"]
        values |= {
            "picture": None if picture is None else Picture.from_dict(picture),
            "answer": tuple(values["answer"]),
            "pieces": tuple(values["pieces"]),
            "steps": tuple(Step.from_dict(step) for step in values["steps"]),
            "labels": tuple(tuple(texts) for texts in values["labels"]),
        }
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> Timeline:
        """The timeline in a file of JSON. Raises ValueError, in one sentence, for one that is none."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(
                f"The file {path} cannot be read ({error.strerror}); name one of `specvlm trace`."
            ) from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The file {path} is no recorded trace ({error}); record it again.") from error
