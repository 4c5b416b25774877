"""The page in a real browser: every step, by keyboard and mouse, in light and dark, in wide and narrow windows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.timeline.browser import Browser, find
from tests.timeline.hostile import HOSTILE
from tests.timeline.made import picture, timeline
from vllm_specvlm.timeline.page import page
from vllm_specvlm.timeline.sight import Patch, Sight
from vllm_specvlm.timeline.timeline import Timeline

_SHOWN = """(() => ({
  heading: document.getElementById("step-number").textContent,
  mode: document.getElementById("step-mode").textContent,
  words: document.getElementById("step-words").textContent,
  time: document.getElementById("step-time").textContent,
  answer: [...document.querySelectorAll("#answer span:not(.later)")].map((s) => s.textContent).join(""),
  now: [...document.querySelectorAll("#answer span.now")].map((s) => s.textContent),
  kinds: [...document.querySelectorAll("#tree svg > g:last-child > g")].map((g) => g.classList[0]),
  accepted: [...document.querySelectorAll("#tree g.accepted title")]
    .map((t) => JSON.parse(t.textContent.split("\\n")[0])),
  links: document.querySelectorAll("#tree .link").length,
  bars: document.querySelectorAll("#strip .column").length,
  hash: location.hash,
  value: document.getElementById("strip").getAttribute("aria-valuenow"),
  spoken: document.getElementById("strip").getAttribute("aria-valuetext"),
}))()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium or Chrome on this machine: install the package chromium, or name one in $CHROMIUM")
    with Browser(program) as found:
        yield found


def written(made: Timeline, folder: Path) -> Path:
    path = folder / "trace.html"
    path.write_text(page(made), encoding="utf-8", errors="replace")
    return path


def check_step(shown: dict[str, Any], made: Timeline, number: int) -> None:
    """What is shown is step `number` of the trace, all of it."""
    step = made.steps[number]
    start = sum(len(each.tokens) for each in made.steps[:number])
    kept = min(len(step.tokens), len(made.answer) - start)
    assert shown["heading"] == (f"Step {number} of {len(made.steps) - 1}" if number else "Prompt")
    assert shown["mode"].endswith({"prompt": "", "fixed": "planner", "none": "drafted"}.get(step.mode, step.mode))
    assert shown["answer"] == "".join(made.pieces[: start + kept]).lstrip()
    assert shown["kinds"].count("accepted") == len(step.path)
    assert shown["kinds"].count("rejected") == len(step.tree) - len(step.path)
    assert (shown["kinds"].count("own"), shown["kinds"].count("root")) == (1, 1)
    assert shown["links"] == len(step.tree) + 1
    assert shown["accepted"] == [made.labels[number][node] for node in step.path]
    assert shown["bars"] == len(made.steps)
    assert (shown["hash"], shown["value"]) == (f"#step={number}", str(number))
    assert shown["spoken"].startswith(f"step {number}: {kept} token" if number else "prompt: 1 token")
    times = [float(found) for found in re.findall(r"([\d.]+) ?(?:draft|verify|prompt|other|ms)", shown["time"])]
    assert len(times) == 4
    assert math.isclose(sum(times[:3]), times[3], abs_tol=1.1)
    assert math.isclose(times[3], 1000 * step.seconds, abs_tol=0.51)


@pytest.mark.parametrize("steps", [0, 1, 24])
def test_every_step_by_keyboard(browser: Browser, tmp_path: Path, steps: int) -> None:
    made = timeline(steps)
    browser.open(written(made, tmp_path))
    check_step(browser.evaluate(_SHOWN), made, min(1, steps))
    browser.press("Home")
    for number in range(len(made.steps)):
        check_step(browser.evaluate(_SHOWN), made, number)
        browser.press("ArrowRight")
    check_step(browser.evaluate(_SHOWN), made, steps)  # nothing beyond the end
    browser.press("ArrowLeft")
    check_step(browser.evaluate(_SHOWN), made, max(steps - 1, 0))
    browser.press("End")
    check_step(browser.evaluate(_SHOWN), made, steps)
    assert browser.complaints() == []


def test_control_what_is_not_the_step_is_noticed(browser: Browser, tmp_path: Path) -> None:
    made = timeline(24)
    path = written(made, tmp_path)
    browser.open(path, step=4)
    check_step(browser.evaluate(_SHOWN), made, 4)
    with pytest.raises(AssertionError):
        check_step(browser.evaluate(_SHOWN), made, 5)
    other = json.loads(json.dumps(made.as_dict()))
    other["labels"][4][made.steps[4].path[0]] += "?"
    for wrong in (timeline(24, draw=1), timeline(23), Timeline.from_dict(other)):
        with pytest.raises(AssertionError):
            check_step(browser.evaluate(_SHOWN), wrong, 4)


def test_five_hundred_steps(browser: Browser, tmp_path: Path) -> None:
    made = timeline(500)
    path = written(made, tmp_path)
    for number in (0, 1, 250, 500):
        browser.open(path, step=number)
        check_step(browser.evaluate(_SHOWN), made, number)
    assert browser.evaluate("document.querySelector('#strip svg').getBoundingClientRect().right <= innerWidth")
    assert browser.complaints() == []


def test_a_wide_tree_fades_out_where_it_goes_on(browser: Browser, tmp_path: Path) -> None:
    fades = 'document.getElementById("tree").classList.contains("more")'
    browser.open(written(timeline(3, nodes=3, depth=3), tmp_path), step=1)
    assert browser.evaluate(fades) is False
    browser.open(written(timeline(3, nodes=20, depth=12), tmp_path), step=1)
    assert browser.evaluate(fades) is True
    browser.evaluate('document.getElementById("tree").scrollLeft = 99999')
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.evaluate(fades) is False


def test_mouse_play_and_address(browser: Browser, tmp_path: Path) -> None:
    made = timeline(24)
    browser.open(written(made, tmp_path))

    def middle(selector: str) -> tuple[float, float]:
        x, y = browser.evaluate(
            f"(() => {{ const r = document.querySelector('{selector}').getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return x, y

    browser.click(*middle("#next"))
    check_step(browser.evaluate(_SHOWN), made, 2)
    browser.click(*middle("#strip .column:nth-of-type(11) .verify"))
    check_step(browser.evaluate(_SHOWN), made, 10)
    browser.click(*middle("#answer span:first-child"))
    check_step(browser.evaluate(_SHOWN), made, 0)
    browser.evaluate("location.hash = '#step=7'")
    assert browser.evaluate("new Promise((done) => setTimeout(() => done(current), 50))") == 7
    browser.evaluate("location.hash = '#step=999'")
    assert browser.evaluate("new Promise((done) => setTimeout(() => done(current), 50))") == 24
    browser.press("Home")
    browser.press(" ")
    assert browser.evaluate("document.getElementById('play').getAttribute('aria-pressed')") == "true"
    assert browser.evaluate("new Promise((done) => setTimeout(() => done(current), 2600))") in (1, 2, 3)
    browser.press(" ")
    stopped = browser.evaluate("current")
    assert browser.evaluate("new Promise((done) => setTimeout(() => done(current), 1500))") == stopped


def pixels(browser: Browser, folder: Path) -> np.ndarray:
    path = folder / "screenshot.png"
    browser.screenshot(path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def near(found: np.ndarray, colour: str) -> int:
    """Pixels of about this colour, such as #08845f."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(found - wanted).max(axis=-1) < 12).sum())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(browser: Browser, tmp_path: Path, dark: bool, width: int) -> None:
    made = timeline(24, nodes=16, depth=8)
    number = max(range(25), key=lambda i: len(made.steps[i].path))
    browser.open(written(made, tmp_path), width=width, height=900, dark=dark, step=number)
    found = pixels(browser, tmp_path)
    assert found.shape == (900, width, 3)
    assert (found.mean() < 80) if dark else (found.mean() > 200)
    assert near(found, "#3bd6a7" if dark else "#08845f") > 150  # accepted
    assert near(found, "#dd3333") > 500  # the circle of the picture
    assert near(found, "#66abff" if dark else "#2473d6") > 100  # verify
    # Nothing sticks out to the right: only the tree scrolls, within itself.
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.press("End")
    assert (pixels(browser, tmp_path) != found).any()


def test_hostile_texts_run_nothing(browser: Browser, tmp_path: Path) -> None:
    made = timeline(6, words=HOSTILE, question=" ".join(HOSTILE), nodes=30, depth=10)
    made = replace(made, target=HOSTILE[0], draft=HOSTILE[1], setting=HOSTILE[2], engine=HOSTILE[3])
    path = written(made, tmp_path)
    browser.open(path)
    for _ in range(6):
        browser.press("ArrowRight")
    assert browser.evaluate(
        "window.hacked === undefined && document.querySelectorAll('iframe, #answer *:not(span)').length === 0"
    )
    assert browser.requests() == [path.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") == 1280
    # The control: where nothing is escaped and no policy stands in the way, these texts do run.
    text = path.read_text().replace("\\u003c", "<").replace("\\u003e", ">").replace('\\"', "'")
    path.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text))
    browser.open(path)
    assert browser.evaluate("window.hacked") == 1
    # And with the policy alone they do not.
    path.write_text(text)
    browser.open(path)
    assert browser.evaluate("window.hacked === undefined")
    assert browser.complaints() != []


POOLED = Sight(36, "pool", tuple(Patch(9 * i, (0.1111,) * 9) for i in range(4)), (6, 6))
PRUNED = Sight(36, "prune", (Patch(0, (1.0,)), Patch(14, (1.0,)), Patch(35, (1.0,))), (6, 6))
ASKED = Sight(36, "resampler", tuple(Patch(0, tuple((i + 1) / 666 for i in range(36))) for _ in range(2)), (6, 6))


def test_what_the_compressor_kept_is_drawn_over_the_picture(browser: Browser, tmp_path: Path) -> None:
    def look(sight: Sight, selector: str, **changes: Any) -> Any:
        shown = replace(picture(sight), **changes)
        browser.open(written(timeline(2, picture=shown), tmp_path))
        return browser.evaluate(f"document.querySelectorAll('{selector}').length")

    assert look(POOLED, "#seen rect.cell:not(.shade)") == 36
    assert (
        browser.evaluate(
            "new Set([...document.querySelectorAll('#seen rect')].map((r) => r.getAttribute('fill'))).size"
        )
        == 4
    )
    assert "4 of 36 visual tokens" in browser.evaluate("document.querySelector('figcaption').textContent")
    assert look(PRUNED, "#seen rect.shade") == 33
    lit = (
        "[...document.querySelectorAll('#seen rect.shade')].map((r) => 6 * r.getAttribute('y') + +r.getAttribute('x'))"
    )
    assert sorted(set(range(36)) - set(browser.evaluate(lit))) == [0, 14, 35]
    assert look(Sight(36, "blind", grid=(6, 6)), "#seen rect.shade") == 1
    for how in ("all", "shared"):
        assert look(Sight(36, how, grid=(6, 6)), "#seen rect") == 0
        assert "36 of 36 visual tokens" in browser.evaluate("document.querySelector('figcaption').textContent")
    assert look(ASKED, "#seen rect.cell:not(.shade)") == 36
    opacities = browser.evaluate(
        "[...document.querySelectorAll('#seen rect')].map((r) => +r.getAttribute('fill-opacity'))"
    )
    assert opacities == sorted(opacities) and opacities[0] < opacities[-1]
    # A model that lays its tokens out otherwise: a row beside the picture.
    assert look(replace(PRUNED, grid=None), "#seen rect") == 0
    assert browser.evaluate("document.querySelectorAll('#seen-row rect.shade').length") == 33
    # Part of the picture only.
    look(POOLED, "#seen rect", box=(0.25, 0.0, 0.75, 1.0))
    picture_box, seen_box = (
        browser.evaluate(
            f"(() => {{ const r = document.querySelector('{s}').getBoundingClientRect(); return [r.x, r.width]; }})()"
        )
        for s in (".frame img", "#seen")
    )
    assert seen_box[0] == pytest.approx(picture_box[0] + picture_box[1] / 4, abs=1)
    assert seen_box[1] == pytest.approx(picture_box[1] / 2, abs=1)
    browser.press("v")
    assert browser.evaluate("getComputedStyle(document.getElementById('seen')).visibility") == "hidden"
    browser.press("v")
    assert browser.evaluate("getComputedStyle(document.getElementById('seen')).visibility") == "visible"
