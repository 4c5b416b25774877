"""Pictures are fixed by their seed, and show what their scene says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vllm_specvlm.zoo.pictures import CELL, COLOURS, SHAPES, SIDE, SIZES, Item, Scene, draw, sample_scene


def _picture(seed: int, split: str = "train") -> tuple[Scene, np.ndarray]:
    rng = random.Random(seed)
    scene = sample_scene(rng, split)  # type: ignore[arg-type]
    return scene, np.asarray(draw(scene, rng))


def test_a_seed_fixes_the_picture_to_the_last_pixel() -> None:
    first, again, other = _picture(7), _picture(7), _picture(8)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert first[1].shape == (SIDE, SIDE, 3)


def test_splits_share_no_scene() -> None:
    train = {_picture(seed, "train")[0].items for seed in range(300)}
    test = {_picture(seed, "test")[0].items for seed in range(300)}
    assert not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_keep_their_promises(split: str) -> None:
    counts = set()
    for seed in range(200):
        scene, _ = _picture(seed, split)
        assert scene.split == split
        assert [item.place for item in scene.items] == sorted({item.place for item in scene.items})
        assert len({(item.colour, item.shape) for item in scene.items}) == len(scene.items)
        counts.add(len(scene.items))
    assert counts == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_is_painted_in_its_colour_at_its_place(shape: str, size: str) -> None:
    for place, colour in enumerate(COLOURS):
        scene = Scene((Item(size, colour, shape, place),), "free")
        pixels = np.asarray(draw(scene, random.Random(place))).astype(int)
        near = np.abs(pixels - np.array(COLOURS[colour])).max(-1) < 50
        row, column = divmod(place, 3)
        inside = np.zeros_like(near)
        inside[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = True
        assert near[inside].sum() > 150
        assert near[~inside].sum() < 300  # noise, of 32,768 pixels


def test_large_is_larger() -> None:
    areas = []
    for size in SIZES:
        pixels = np.asarray(draw(Scene((Item(size, "red", "circle", 4),), "free"), random.Random(1))).astype(int)
        areas.append((np.abs(pixels - np.array(COLOURS["red"])).max(-1) < 50).sum())
    assert areas[1] > 1.5 * areas[0]
