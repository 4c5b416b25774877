"""Where the training pictures come from: ``python -m vllm_specvlm.zoo.scenes.sources --work DIR`` fetches them.

========================= ======== ================== ==========================================
package                   from     licence            used for
========================= ======== ================== ==========================================
openclipart-png 0.18      Debian   public domain      things in scenes
fonts-noto-color-emoji    Debian   OFL 1.1            things in scenes
fonts-* (see FONTS)       Debian   OFL, Apache, free  rendered text
easy-vqa 1.0              PyPI     MIT                pictures and questions of the task "vqa"
========================= ======== ================== ==========================================

Only training needs any of it. ``apt-get`` must know Debian's packages; files that are already in DIR/downloads are
taken as they are.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vllm_specvlm.zoo.scenes.canvas import Split
from vllm_specvlm.zoo.scenes.concepts import BY_NAME, CONCEPTS

DEBIAN = (
    "openclipart-png",
    "fonts-noto-color-emoji",
    "fonts-dejavu-core",
    "fonts-liberation",
    "fonts-roboto-unhinted",
    "fonts-lato",
    "fonts-open-sans",
    "fonts-comic-neue",
    "fonts-courier-prime",
    "fonts-quicksand",
    "fonts-linuxlibertine",
    "fonts-cabin",
    "fonts-hack",
)
PYPI = ("easy-vqa==1.0",)
FONTS = (
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationSerif-Bold.ttf",
    "LiberationMono-Bold.ttf",
    "Roboto-Medium.ttf",
    "Roboto-Black.ttf",
    "Lato-Bold.ttf",
    "OpenSans-Semibold.ttf",
    "ComicNeue-Bold.otf",
    "Courier Prime Bold.otf",
    "Quicksand-Bold.ttf",
    "LinLibertine_RB.otf",
    "Cabin-Bold.otf",
    "Hack-Bold.ttf",
)
_SPRITE = 224  # pixels, the longer side of a stored sprite
# line drawings, and files that do not show what their names say (or show a notice instead)
_UNFIT = re.compile(
    r"_bw|bw_|contour|contorno|outline|blueprint|silhouet|not_?lit|mateya|duck_yellow|sleeping_bear|balls|mute|herald"
    r"|branches_and|green_fedora|magic_hat|war_drum|tile_orange|lightbulb_jon_phillips_05"
)
_ALIKE = 10.0  # mean difference of two thumbnails' channels up to which they count as one picture


@dataclass(frozen=True)
class Sprite:
    """One picture of one concept: an RGBA file, where it comes from, and the split it belongs to."""

    concept: str
    file: str
    source: str
    split: Split


class Sources:
    """The prepared material in ``work``: sprites by concept and split, fonts, easy-vqa's questions."""

    def __init__(self, work: Path) -> None:
        self._work = work
        entries = json.loads((work / "sprites" / "index.json").read_text())
        self.sprites = [Sprite(**entry) for entry in entries]
        self._by_concept: dict[tuple[str, str], list[Sprite]] = {}
        for sprite in self.sprites:
            self._by_concept.setdefault((sprite.concept, sprite.split), []).append(sprite)

    def concepts(self, split: Split) -> list[str]:
        """Names of the concepts that have a sprite in ``split``, in the table's order."""
        return [concept.name for concept in CONCEPTS if (concept.name, split) in self._by_concept]

    def sprite(self, rng: random.Random, concept: str, split: Split, side: float) -> Image.Image:
        """A sprite of ``concept`` from ``split``, its longer side ``side`` pixels; mirrored in half of all draws."""
        chosen = rng.choice(self._by_concept[concept, split])
        image = self._image(chosen.file)
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image

    @functools.cache  # noqa: B019  (one object per process, and it keeps all of them)
    def _image(self, file: str) -> Image.Image:
        return Image.open(self._work / "sprites" / file).convert("RGBA")

    def font(self, rng: random.Random, size: int) -> ImageFont.FreeTypeFont:
        """One of FONTS at ``size`` pixels."""
        return self._font(rng.choice(FONTS), size)

    @functools.cache  # noqa: B019
    def _font(self, name: str, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(self._fonts[name]), size, layout_engine=ImageFont.Layout.BASIC)

    @functools.cached_property
    def _fonts(self) -> dict[str, Path]:
        return {path.name: path for path in (self._work / "unpacked").rglob("*.[to]tf")}

    @functools.cached_property
    def easy_vqa(self) -> dict[str, dict[int, list[tuple[str, str]]]]:
        """Questions and answers by official split ("train", "test") and picture number."""
        table: dict[str, dict[int, list[tuple[str, str]]]] = {}
        for part in ("train", "test"):
            path = self._work / "unpacked" / "easy_vqa" / "data" / part / "questions.json"
            for question, answer, number in json.loads(path.read_text()):
                table.setdefault(part, {}).setdefault(number, []).append((question, answer))
        return table

    def easy_picture(self, part: str, number: int) -> Image.Image:
        """Picture ``number`` of easy-vqa's ``part``, RGB, 64 x 64."""
        folder = self._work / "unpacked" / "easy_vqa" / "data" / part / "images"
        return Image.open(folder / f"{number}.png").convert("RGB")


def fetch(work: Path) -> None:
    """Download what is missing into ``work/downloads`` and unpack it into ``work/unpacked``."""
    downloads, unpacked = work / "downloads", work / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    for package in DEBIAN:
        if not list(downloads.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=downloads, check=True)
    for package in PYPI:
        if not list(downloads.glob(package.split("==")[0].replace("-", "_") + "-*.whl")):
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(downloads), package], check=True
            )
    for archive in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
    for wheel in downloads.glob("easy_vqa-*.whl"):
        zipfile.ZipFile(wheel).extractall(unpacked)


def _clips(folder: Path) -> Iterable[tuple[str, str, Path]]:
    """Concept, source and file of every fitting clip, each name once (the collection repeats files across folders)."""
    seen: set[str] = set()
    paths = sorted(folder.rglob("*.png"))
    for concept in CONCEPTS:
        pattern = re.compile(concept.clips + "$") if concept.clips else None
        for path in paths:
            stem = path.name.removesuffix(".png").removesuffix(".svg")
            key = f"{path.parent.name}/{path.name}"
            fits = pattern is not None and pattern.match(key) is not None and not _UNFIT.search(path.name)
            if fits and stem not in seen:
                seen.add(stem)
                yield concept.name, f"openclipart:{path.relative_to(folder)}", path


def _cut(image: Image.Image) -> Image.Image | None:
    """``image`` as RGBA without its empty margin; a white ground counts as empty. None if nothing is left."""
    image = image.convert("RGBA")
    image.thumbnail((2 * _SPRITE, 2 * _SPRITE))
    if np.asarray(image.getchannel("A")).min() > 250:  # no transparency: the ground is what the corners show
        for corner in ((0, 0), (image.width - 1, 0), (0, image.height - 1), (image.width - 1, image.height - 1)):
            ImageDraw.floodfill(image, corner, (255, 255, 255, 0), thresh=24)
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 20:
        return None
    image = image.crop(box)
    if float(np.asarray(image.getchannel("A")).mean()) < 30:  # thin lines: nothing to recognise once it is small
        return None
    image.thumbnail((_SPRITE, _SPRITE), Image.Resampling.LANCZOS)
    return image


def _different(pictures: list[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """``pictures`` without those that look like an earlier one: both collections repeat themselves."""
    kept: list[tuple[str, Image.Image]] = []
    seen: list[NDArray[np.float32]] = []
    for source, image in pictures:
        ground = Image.new("RGB", image.size, (128, 128, 128))
        ground.paste(image, (0, 0), image)
        small = np.asarray(ground.resize((16, 16), Image.Resampling.BOX), dtype=np.float32)
        if all(np.abs(small - other).mean() > _ALIKE for other in seen):
            kept.append((source, image))
            seen.append(small)
    return kept


def _emoji(font: ImageFont.FreeTypeFont, code: int) -> Image.Image:
    image = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((8, 8), chr(code), font=font, embedded_color=True)
    return image


def _assign(sources: list[str]) -> dict[str, Split]:
    """Splits of one concept's sources: a fifth for test, one for validation from five on, in the order of hashes."""
    ordered = sorted(sources, key=lambda source: hashlib.sha256(source.encode()).hexdigest())
    test = 0 if len(ordered) < 2 else max(1, len(ordered) // 5)
    validation = 1 if len(ordered) >= 5 else 0
    return {
        source: "test" if index < test else "validation" if index < test + validation else "train"
        for index, source in enumerate(ordered)
    }


def prepare(work: Path) -> None:
    """Cut all sprites out of ``work/unpacked`` into ``work/sprites`` and write their index."""
    folder = work / "sprites"
    folder.mkdir(exist_ok=True)
    found: dict[str, list[tuple[str, Image.Image]]] = {}
    noto = next((work / "unpacked").rglob("NotoColorEmoji.ttf"))
    font = ImageFont.truetype(str(noto), 109)  # the only size its bitmaps have
    for concept in CONCEPTS:
        for code in concept.emoji:
            image = _cut(_emoji(font, code))
            if image is not None:
                found.setdefault(concept.name, []).append((f"noto:{code:x}", image))
    for name, source, path in _clips(next((work / "unpacked").rglob("openclipart/png"))):
        image = _cut(Image.open(path))
        if image is not None:
            found.setdefault(name, []).append((source, image))
    index = []
    for name, gathered in found.items():
        pictures = _different(gathered)
        splits = _assign([source for source, _ in pictures])
        for number, (source, image) in enumerate(pictures):
            file = f"{BY_NAME[name].name}_{number}.png"
            image.save(folder / file)
            index.append({"concept": name, "file": file, "source": source, "split": splits[source]})
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    fetch(work)
    prepare(work)
    sources = Sources(work)
    for split in ("train", "validation", "test"):
        count = sum(sprite.split == split for sprite in sources.sprites)
        print(f"{split}: {count} pictures of {len(sources.concepts(split))} concepts")


if __name__ == "__main__":
    main()
