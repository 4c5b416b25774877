"""Prompts for the tiny checkpoints, with generated pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny.families import FAMILIES

_TALE = "tell the tale of the red tree and the blue tree; "


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt: its text with one placeholder per picture and video, the pictures and the videos."""

    name: str
    text: str
    images: tuple[Image.Image, ...] = ()
    videos: tuple[np.ndarray, ...] = ()
    """uint8 [frames, height, width, 3] each."""

    def request(self) -> dict[str, Any]:
        """The prompt as vLLM's `LLM.generate` takes it."""
        shown: dict[str, Any] = {}
        if self.images:
            shown["image"] = list(self.images)
        if self.videos:
            shown["video"] = [(video, _metadata(len(video))) for video in self.videos]
        return {"prompt": self.text, **({"multi_modal_data": shown} if shown else {})}

    def follow_up(self, answer: str, question: str) -> Prompt:
        """The next turn of the conversation: this prompt, the answer it got, and a question."""
        text = f"{self.text}{answer}\nUSER: {question}\nASSISTANT:"
        return Prompt(f"{self.name}, next", text, self.images, self.videos)


def _metadata(frames: int) -> dict[str, Any]:
    """What vLLM's video loaders would say of so many frames, two a second, all of them taken."""
    return {
        "fps": 2.0,
        "duration": frames / 2,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def picture(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    """A smooth random picture, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def video(seed: int, frames: int = 4, width: int = 84, height: int = 56) -> np.ndarray:
    """A picture that becomes another one, others for each seed: uint8 [frames, height, width, 3]."""
    first, last = (np.asarray(picture(at, width, height), dtype=np.float32) for at in (seed, seed + 1000))
    shares = np.linspace(0, 1, frames, dtype=np.float32)
    return np.stack([first + share * (last - first) for share in shares]).astype(np.uint8)


def prompts(family: str) -> list[Prompt]:
    """One prompt of each kind: no picture, one, another with that text, tall, long text, two, several turns."""
    image = FAMILIES[family].placeholder
    return [
        Prompt("text only", "USER: hello there\nASSISTANT:"),
        Prompt("one picture", f"USER: {image} what is this?\nASSISTANT:", (picture(1),)),
        Prompt("other picture", f"USER: {image} what is this?\nASSISTANT:", (picture(2),)),
        Prompt("tall picture", f"USER: {image} {_TALE}\nASSISTANT:", (picture(3, 60, 120),)),
        Prompt("long", f"USER: {_TALE * 4}{image} {_TALE * 2}\nASSISTANT: the tale of", (picture(4, 64, 64),)),
        Prompt(
            "two pictures",
            f"USER: {image} and {image} which is red?\nASSISTANT:",
            (picture(5, 56, 56), picture(6, 112, 70)),
        ),
        Prompt(
            "turns",
            f"USER: {image} what is this?\nASSISTANT: the red tree.\nUSER: and {image} this?\nASSISTANT: "
            "the blue tree.\nUSER: tell the tale\nASSISTANT:",
            (picture(1), picture(7, 70, 70)),
        ),
    ]


def clips(family: str) -> list[Prompt]:
    """One prompt of each kind with videos, and two without, for families that take some."""
    image, moving = FAMILIES[family].placeholder, FAMILIES[family].video
    assert moving is not None, family
    # vLLM 0.32 itself stops at videos of other lengths in one batch with this family.
    frames = 4 if family == "llava_onevision" else 8
    return [
        Prompt("text only", "USER: hello there\nASSISTANT:"),
        Prompt("one video", f"USER: {moving} what is this?\nASSISTANT:", videos=(video(11),)),
        Prompt("other video", f"USER: {moving} what is this?\nASSISTANT:", videos=(video(12),)),
        Prompt("longer video", f"USER: {_TALE}{moving} {_TALE}\nASSISTANT:", videos=(video(13, frames, 60, 60),)),
        Prompt("one picture", f"USER: {image} what is this?\nASSISTANT:", (picture(1),)),
        Prompt(
            "video and picture",
            f"USER: {moving} and {image} which is red?\nASSISTANT:",
            (picture(5, 56, 56),),
            (video(14, 4, 56, 84),),
        ),
    ]


def prompt(family: str, name: str) -> Prompt:
    """The prompt of that name."""
    return next(each for each in prompts(family) if each.name == name)


def many(family: str, count: int) -> list[Prompt]:
    """`count` different prompts, text only every fourth: for batches."""
    image = FAMILIES[family].placeholder
    made: list[Prompt] = []
    for seed in range(count):
        words = " ".join(np.random.default_rng(seed).permutation(_TALE.split()).tolist())
        if seed % 4 == 3:
            made.append(Prompt(f"number {seed}", f"USER: {words}\nASSISTANT:"))
        else:
            made.append(Prompt(f"number {seed}", f"USER: {image} {words}\nASSISTANT:", (picture(100 + seed),)))
    return made
