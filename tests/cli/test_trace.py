"""`specvlm trace`: its command line, texts of tokens, replay; slow tests run it for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from vllm import SamplingParams

from tests.exactness.engines import GREEDY, answers, engine, target_of, tokens
from tests.timeline.made import timeline
from tests.timeline.test_page import record_in
from tests.tiny.checkpoints import build
from tests.tiny.prompts import prompt
from tests.tiny.sizes import DRAFT, POSITIONS
from vllm_specvlm import zoo
from vllm_specvlm.cli import trace
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.cli.recording import LARGEST_SIDE, Names, Texts, record, seen_box, shown
from vllm_specvlm.timeline.page import page
from vllm_specvlm.timeline.step import Step
from vllm_specvlm.timeline.timeline import Timeline
from vllm_specvlm.tree.token_tree import TokenTree

FAMILY = "llava"
NAMES = Names("target", "draft", "trees", "engine")


def test_the_record_of_an_engine_is_a_timeline() -> None:
    """The whole way on a tiny pair: the answer is plain vLLM's, and every token has its text."""
    one = prompt(FAMILY, "one picture")
    (plain,) = answers(engine(target_of(FAMILY)), [one])
    llm = engine(target_of(FAMILY), {"model": str(build(FAMILY, seed=7, size=DRAFT))})
    ask = lambda: answers(llm, [one])[0]  # noqa: E731
    found = record(llm, ask, NAMES, "what is this?", one.images[0], GREEDY)
    assert found.answer == tokens([plain])[0]
    assert "".join(found.pieces) == plain.outputs[0].text
    assert found.picture is not None and found.picture.sight is not None
    assert found.picture.sight.how == "all"
    tokenizer = llm.get_tokenizer()
    start = 0
    for step, texts in zip(found.steps, found.labels, strict=True):
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(step.tree.tokens, step.tree.parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        for path, text in zip((*paths, step.tokens), texts, strict=True):
            whole = tokenizer.decode([*found.answer[:start], *path]).rstrip("\ufffd")
            assert whole.endswith(text.lstrip("\ufffd"))
            assert text or tokenizer.decode(path[-1:]) == "\ufffd"  # part of a character
        assert [texts[node] for node in step.path] == list(found.pieces[start : start + len(step.path)])
        start += len(step.tokens)
    accepted = [token for step in found.decoding for token in step.tokens]
    assert (*found.steps[0].tokens, *accepted)[: len(found.answer)] == found.answer
    assert sum(len(step.path) for step in found.steps) > 5
    assert record_in(page(found))["steps"] == found.as_dict()["steps"]


def test_a_context_as_long_as_the_cache_allows() -> None:
    """As the command asks for: vLLM shortens the context after the engine's parts were made."""
    one = prompt(FAMILY, "long")
    fitted = {"max_model_len": -1, "kv_cache_memory_bytes": 3 << 20}
    (plain,) = answers(engine(target_of(FAMILY)), [one])
    llm = engine(target_of(FAMILY), {"model": str(build(FAMILY, seed=7, size=DRAFT))}, **fitted)
    longest = llm.llm_engine.model_config.max_model_len
    assert len(plain.prompt_token_ids or ()) + 40 < longest < POSITIONS
    found = record(llm, lambda: answers(llm, [one])[0], NAMES, "?", None, GREEDY)
    assert found.answer == tokens([plain])[0]
    assert sum(len(step.path) for step in found.steps) > 5
    to_the_end = SamplingParams(temperature=0.0, max_tokens=4096, ignore_eos=True)
    found = record(llm, lambda: answers(llm, [one], to_the_end)[0], NAMES, "?", None, to_the_end)
    assert found.prompt_tokens + len(found.answer) == longest


class Letters:
    """A tokenizer whose tokens are bytes, and 256 the end."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text = bytes(token for token in ids if token < 256).decode("utf-8", "replace")
        return text + "<end>" * (256 in ids and not skip_special_tokens)


def test_texts_of_tokens_that_are_parts_of_characters() -> None:
    answer = [*"né 雪!".encode(), 256]
    texts = Texts(Letters(), list(b"prompt: "), answer)
    pieces = texts.pieces()
    assert "".join(pieces) == "né 雪!"
    assert pieces == ("n", "", "é", " ", "", "", "雪", "!", "")
    tree = TokenTree((*b"n\xc3", ord("o"), 0xA9), (-1, 0, 0, 1))
    step = Step("fixed", (*b"n\xc3", 0xA9, 0x20), tree, (-0.1,) * 4, (0, 1, 3))
    ended = Step("none", (256,))
    assert texts.labels([step, ended]) == (("n", "", "o", "é", " "), ("<end>",))


def test_the_picture_is_shown_small() -> None:
    small = shown(Image.new("L", (50, 40), 9))
    assert (small.width, small.height, small.media_type) == (50, 40, "image/png")
    noise = Image.effect_noise((3000, 1500), 90)
    large = shown(noise)
    assert (large.width, large.height) == (LARGEST_SIDE, LARGEST_SIDE // 2)
    assert large.media_type == "image/jpeg" and len(large.base64) < 1_000_000


def _crop(shortest: int, side: int) -> dict[str, Any]:
    return {"do_center_crop": True, "size": {"shortest_edge": shortest}, "crop_size": {"height": side, "width": side}}


@pytest.mark.parametrize(
    ("settings", "size", "box"),
    [
        ({"do_center_crop": False}, (640, 480), (0, 0, 1, 1)),
        (_crop(336, 336), (640, 480), (0.125, 0, 0.875, 1)),
        (_crop(256, 128), (100, 100), (0.25, 0.25, 0.75, 0.75)),
        ({**_crop(9, 9), "size": {"height": 9, "width": 9}}, (9, 9), None),
    ],
)
def test_the_part_that_is_seen(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], size: tuple[int, int], box: Any
) -> None:
    from vllm.transformers_utils import processor

    monkeypatch.setattr(processor, "cached_image_processor_from_config", lambda _: SimpleNamespace(**settings))
    llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=None))
    assert seen_box(llm, size) == (None if box is None else pytest.approx(box))


def test_replay_makes_the_page_and_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, out = tmp_path / "trace.json", tmp_path / "page.html"
    saved.write_text(json.dumps(timeline(7).as_dict()))
    assert trace.main(["--replay", str(saved), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "steps of the target" in said.out and str(out) in said.err
    assert len(record_in(out.read_text())["steps"]) == 8
    assert trace.main(["--replay", str(saved), "--out", str(out), "--json"]) == 0
    assert Timeline.from_dict(json.loads(capsys.readouterr().out)).as_dict() == json.loads(saved.read_text())


def test_settings_in_words() -> None:
    def words(*line: str) -> str:
        return trace.setting(trace.speculative(trace.parser().parse_args(line), "draft"))

    assert words() == "trees planned step by step, at most 16 nodes, 12 deep"
    assert words("--trees", "tree", "--nodes", "16", "--depth", "8") == "trees of 16 nodes, 8 deep"
    assert words("--trees", "chain", "--nodes", "5") == "chains of 5"


@pytest.mark.parametrize(
    "line",
    [["--nodes", "0"], ["--nodes", "128"], ["--max-tokens", "1"], ["--temperature", "-1"], ["--temperature", "x"],
     ["--temperature", "nan"], ["--seed", "-1"], ["--trees", "star"], ["--dtype", "int8"]],
)  # fmt: skip
def test_values_out_of_range_are_mistakes(line: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        trace.main(line)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--prompt", " "], "empty"),
        (["--prompt", "\udcff"], "no text in UTF-8"),
        (["--image", "nothing.png"], "no file nothing.png"),
        (["--out", "no/such/folder.html"], "no folder"),
        (["--replay", "nothing.json"], "cannot be read"),
    ],
)
def test_mistakes_are_said_before_an_engine_starts(
    line: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        trace.main(line)
    assert list(tmp_path.iterdir()) == []


def _run(*line: str) -> Any:
    command = [sys.executable, "-m", "vllm_specvlm.cli", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--draft", "specvlm/reference-head"],
        ["--trees", "chain", "--nodes", "4", "--image", str(zoo.sample_picture()), "--prompt", zoo.sample_question()],
        ["--temperature", "0.8", "--seed", "3"],
    ],
    ids=["planned", "head", "chain", "sampled"],
)
def test_the_command_runs(more: list[str], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    found = Timeline.from_dict(_run("trace", "--json", "--max-tokens", "32", "--out", str(out), *more))
    assert len(found.answer) == 32 or found.finish == "stop"
    assert found.acceptance_length > 1
    assert record_in(out.read_text())["answer"] == list(found.answer)
    if "--temperature" in more:
        assert (found.temperature, found.seed) == (0.8, 3)
    else:  # the demo asks plain vLLM the same
        demo = _run("demo", "--json", "--repeat", "1", "--max-tokens", "32")
        assert demo["plain_text"] == "".join(found.pieces)
