"""Stand-ins for the downloaded material: drawn sprites and Pillow's own font."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from vllm_specvlm.zoo.scenes.concepts import CONCEPTS
from vllm_specvlm.zoo.scenes.sources import Sources


class DrawnSources(Sources):
    """Every concept has one coloured rectangle per split; easy-vqa has two pictures per part."""

    def font(self, rng: random.Random, size: int) -> ImageFont.FreeTypeFont:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font

    def easy_picture(self, part: str, number: int) -> Image.Image:
        picture = Image.new("RGB", (64, 64), (250, 250, 250))
        picture.paste((200, 20, 20), (20, 16, 40, 48))
        return picture


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    work: Path = tmp_path_factory.mktemp("scenes")
    (work / "sprites").mkdir()
    index = []
    for number, concept in enumerate(CONCEPTS):
        for split in ("train", "validation", "test"):
            file = f"{concept.name}_{split}.png"
            Image.new("RGBA", (40, 30), (number * 4, 90, 200, 255)).save(work / "sprites" / file)
            index.append({"concept": concept.name, "file": file, "source": f"drawn:{file}", "split": split})
    (work / "sprites" / "index.json").write_text(json.dumps(index))
    for part in ("train", "test"):
        folder = work / "unpacked" / "easy_vqa" / "data" / part
        folder.mkdir(parents=True)
        asked = [("what color is the shape?", "red"), ("what shape is in the image?", "rectangle")]
        rows = [[q, a, number] for number in range(16) for q, a in [*asked, ("is there a circle?", "no")]]
        (folder / "questions.json").write_text(json.dumps(rows))
    return DrawnSources(work)
