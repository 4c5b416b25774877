"""The recorded value: JSON and back, and what it refuses."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.timeline.made import of_steps, picture, step, timeline
from vllm_specvlm.timeline.sight import Patch, Sight
from vllm_specvlm.timeline.step import Step
from vllm_specvlm.timeline.summary import summary
from vllm_specvlm.timeline.timeline import Timeline


@pytest.mark.parametrize("steps", [0, 1, 24, 500])
def test_json_and_back(steps: int, tmp_path: Path) -> None:
    made = timeline(steps)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(made.as_dict()))
    found = Timeline.load(path)
    assert found.as_dict() == made.as_dict()
    assert [each.tree for each in found.steps] == [each.tree for each in made.steps]
    assert found.seconds == pytest.approx(made.seconds, abs=1e-5 * (steps + 1))


def test_without_a_picture() -> None:
    made = timeline(3, picture=None)
    assert Timeline.from_dict(made.as_dict()) == Timeline.from_dict(json.loads(json.dumps(made.as_dict())))


def _change(saved: dict[str, Any], *keys: Any, to: Any) -> None:
    for key in keys[:-1]:
        saved = saved[key]
    saved[keys[-1]] = to


@pytest.mark.parametrize(
    ("keys", "to"),
    [
        (("answer", 3), 4242),
        (("answer",), [7]),
        (("pieces",), ["too few"]),
        (("labels", 1), []),
        (("steps", 1, "tokens", 0), 4242),
        (("steps", 1, "path"), [5, 4]),
        (("steps", 1, "parents", 0), 3),
        (("steps", 1, "log_probs", 0), 0.5),
        (("steps", 1, "verify"), -0.001),
        (("steps", 1, "draft"), float("nan")),
        (("steps", 1, "draft_model"), 9.0),
        (("steps", 1, "mode"), "guess"),
        (("steps", 1, "mode"), "prompt"),
        (("steps", 0, "mode"), "trees"),
        (("steps",), []),
        (("steps",), 3),
        (("steps", 1, "surprise"), 1),
        (("format",), 2),
        (("picture", "media_type"), "text/html"),
        (("picture", "box"), [0, 0, 2, 1]),
        (("picture", "sight", "grid"), [5, 6]),
        (("picture", "sight", "patches"), [[35, [0.5, 0.5]]]),
        (("picture", "base64"), '"><script>'),
    ],
)
def test_what_does_not_fit_is_refused(keys: tuple[Any, ...], to: Any, tmp_path: Path) -> None:
    saved = timeline(4).as_dict()
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(saved))
    Timeline.load(path)
    _change(saved, *keys, to=to)
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="no recorded trace"):
        Timeline.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}'])
def test_a_file_that_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no recorded trace"):
        Timeline.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        Timeline.load(tmp_path / "nothing.json")


def test_an_answer_may_end_within_its_last_step_only() -> None:
    made = timeline(5)
    last = made.steps[-1]
    spare = len(last.tokens) - 1
    assert spare > 0
    cut = replace(made, answer=made.answer[:-spare], pieces=made.pieces[:-spare])
    assert Timeline.from_dict(cut.as_dict()).answer == cut.answer
    with pytest.raises(ValueError, match="are not the answer"):
        replace(made, answer=made.answer[: -spare - 1], pieces=made.pieces[: -spare - 1])


def test_figures_are_of_the_steps_after_the_first_token() -> None:
    tree, plain = step(random.Random(1), 12, 6), Step(mode="plain", tokens=(1,), verify=0.01)
    assert len(tree.path) > 1
    made = of_steps([Step(mode="prompt", tokens=(9,), verify=5.0), tree, plain])
    assert made.seconds == pytest.approx(tree.seconds + 0.01)
    assert made.acceptance_length == len(tree.path) + 1
    assert made.tokens_per_step == (len(tree.path) + 2) / 2
    assert made.tokens_per_second == pytest.approx((len(tree.path) + 2) / (tree.seconds + 0.01))
    said = summary(made)
    assert f"{len(made.answer)} tokens in 3 steps" in said
    assert f"{len(tree.path)} of 12 drafted tokens" in said
    assert "first token after 5.000 s" in said


def test_the_summary_of_one_token() -> None:
    assert "nothing to draft" in summary(timeline(0))


def test_sights() -> None:
    found = Sight.compressed("prune", [[0, 0, 1.0, 0], [0, 0, 0, 1.0]], 4)
    assert found.patches == (Patch(2, (1.0,)), Patch(3, (1.0,)))
    assert (found.kept, Sight(4, "all").kept, Sight(4, "blind").kept) == (2, 4, 0)
    assert Sight.compressed("resampler", [[0.5, 0.0001, 0.4999, 0]], 4).patches == (Patch(0, (0.5, 0.0001, 0.4999)),)
    assert found.on((2, 2)).grid == (2, 2)
    assert found.on((2, 3)).grid is None
    assert picture(found.on((2, 2))).sight == found.on((2, 2))
