"""Profiles: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.profile import Profile, ProfileKey

KEY = ProfileKey(
    model="target@1234",
    draft="draft@5678",
    dtype="float32",
    mode="eager",
    tensor_parallel=1,
    device="a CPU",
    threads=2,
    vllm="0.32.0",
    torch="2.13.0",
    vllm_specvlm="0.1.0",
)
OTHER = ("other@1", "lookup", "bfloat16", "compiled", 2, "a GPU", 4, "0.33.0", "2.14.0", "0.2.0")
FIELDS = [field.name for field in dataclasses.fields(ProfileKey)]


def profile() -> Profile:
    costs = Costs(
        CostCurve({1: 0.010, 64: 0.030}), CostCurve({1: 0.011, 64: 0.040}), CostCurve({1: 0.001}), CostCurve({1: 0.001})
    )
    for _ in range(5):
        costs.tree.observe(8, 0.020)
    return Profile(KEY, costs, 0.0012)


def test_round_trip(tmp_path: Path) -> None:
    path, made = tmp_path / "profile.json", profile()
    made.save(path)
    found = Profile.load(path, KEY)
    assert found.as_dict() == made.as_dict()
    assert found.costs.tree.at(8) == pytest.approx(0.020, rel=1e-5)
    assert found.costs.tree.seen(8) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]


def test_what_was_measured_outweighs_one_busy_moment(tmp_path: Path) -> None:
    profile().save(tmp_path / "p")
    tree = Profile.load(tmp_path / "p").costs.tree
    tree.observe(8, 0.200)
    assert tree.at(8) < 0.022
    fresh = CostCurve({1: 0.011, 8: 0.020, 64: 0.040})  # the control: a curve that nobody ever observed believes it
    fresh.observe(8, 0.200)
    assert fresh.at(8) == pytest.approx(0.200)


@pytest.mark.parametrize(("field", "value"), list(zip(FIELDS, OTHER, strict=True)))
def test_another_key_is_refused_by_its_field(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "profile.json"
    profile().save(path)
    with pytest.raises(ValueError, match="calibrate again") as refused:
        Profile.load(path, dataclasses.replace(KEY, **{field: value}))
    said = str(refused.value)
    assert f" {field} {getattr(KEY, field)!r} " in said
    assert repr(value) in said
    assert Profile.load(path).key == KEY  # without a key to compare, any profile will do


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        for name in names[:-1]:
            saved = saved[name]
        del saved[names[-1]]

    return change


def _with(value: Any, *names: str) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        for name in names[:-1]:
            saved = saved[name]
        saved[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_with(2, "format"), "not of format 1"),
        (_without("key"), "lacks 'key'"),
        (_without("curves"), "lacks 'key' or 'curves'"),
        (_without("key", "device"), "None for 'device'"),
        (_with("2", "key", "threads"), "'2' for 'threads'"),
        (_with(True, "key", "threads"), "True for 'threads'"),
        (_with("fast", "overhead"), "overhead is 'fast'"),
        (_with(-1.0, "overhead"), "overhead is -1.0"),
        (_with(float("nan"), "overhead"), "overhead is nan"),
        (_without("curves", "tree"), "curve 'tree'"),
        (_with({"rows": [1, 2], "seconds": [0.1]}, "curves", "draft"), "curve 'draft'"),
        (_with({"rows": [1], "seconds": [0.0]}, "curves", "plain"), "curve 'plain'"),
        (_with({"rows": [1], "seconds": [float("inf")]}, "curves", "plain"), "curve 'plain'"),
        (_with({"rows": [1], "seconds": ["slow"]}, "curves", "plain"), "curve 'plain'"),
        (_with([1, 2], "curves", "plain"), "curve 'plain'"),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    path = tmp_path / "profile.json"
    saved = profile().as_dict()
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="is no profile") as refused:
        Profile.load(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), (b"{", "no JSON"), (b"[1]", "format"), (b"\xff\xfe", "no text")]
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        Profile.load(path)


def test_saving_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is cut short leaves the old profile and nothing else."""
    path = tmp_path / "profile.json"
    profile().save(path)
    before = path.read_text()

    def cut_short(value: object, file: Any, **_: Any) -> None:
        file.write('{"format": 1, "ke')
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", cut_short)
    with pytest.raises(KeyboardInterrupt):
        profile().save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
