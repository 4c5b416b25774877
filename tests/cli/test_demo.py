"""`specvlm demo`: its command line, its verdict and its JSON; one slow test runs it for real."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.tiny.checkpoints import build
from tests.tiny.heads import build_head
from vllm_specvlm import zoo
from vllm_specvlm.cli import demo, measurement
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.cli.measurement import Measurement, Request
from vllm_specvlm.compress.compressor import CompressorConfig

PLAIN = Measurement(
    text="A red circle.",
    token_ids=[5, 6, 7],
    tokens_per_s=20.0,
    first_token_s=0.5,
    total_s=1.0,
    acceptance_length=1.0,
    drafts=0,
    rates=[19.0, 20.0, 21.0],
)
FAST = replace(PLAIN, tokens_per_s=50.0, rates=[49.0, 50.0, 52.0], total_s=0.8, acceptance_length=3.25, drafts=8)
OTHER = replace(FAST, text="A red square.", token_ids=[5, 6, 8])
REQUIRED = {
    "identical": bool,
    "speedup": float,
    "acceptance_length": float,
    "plain_tokens_per_s": float,
    "specvlm_tokens_per_s": float,
    "plain_text": str,
    "specvlm_text": str,
}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, models: dict[str, str], tmp_path: Path) -> SimpleNamespace:
    """Engines that answer at once: `.asked` collects the requests, `.specvlm` is what the second one answers."""
    picture = tmp_path / "sample.png"
    Image.new("RGB", (8, 8)).save(picture)
    state = SimpleNamespace(asked=[], specvlm=FAST)

    def run_measurement(request: Request, verbose: bool) -> Measurement:
        assert Image.open(request.picture).size[0] > 0
        state.asked.append(request)
        return PLAIN if request.speculative is None else state.specvlm

    monkeypatch.setattr(demo, "run_measurement", run_measurement)
    monkeypatch.setattr(zoo, "sample_picture", lambda: picture)
    return state


def test_json_is_one_object_with_the_promised_fields(
    engines: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: type(result[name]) for name in REQUIRED} == REQUIRED
    assert result["identical"] is True
    assert result["speedup"] == 2.5
    assert result["end_to_end_speedup"] == 1.25
    assert result["acceptance_length"] == 3.25


def test_both_engines_get_the_same_request(engines: SimpleNamespace, models: dict[str, str]) -> None:
    line = ["--prompt", "Why?", "--dtype", "bfloat16", "--nodes", "7", "--max-tokens", "33", "--repeat", "2"]
    assert demo.main(line) == 0
    specvlm, plain = engines.asked
    assert replace(specvlm, speculative=None) == plain
    assert (plain.prompt, plain.dtype, plain.max_tokens, plain.runs) == ("Why?", "bfloat16", 33, 2)
    assert plain.target == models["specvlm/reference-target"]
    assert specvlm.speculative == {
        "method": "specvlm",
        "model": models["specvlm/reference-draft"],
        "num_speculative_tokens": 7,
    }


def test_another_target_is_shown_a_picture_of_its_own(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "resolve", lambda name: f"/models/{name}")
    assert demo.main(["--target", "specvlm/scenes-target", "--draft", "specvlm/scenes-head"]) == 0
    asked = engines.asked[0]
    assert asked.target == "/models/specvlm/scenes-target" and asked.speculative["model"].endswith("scenes-head")
    assert "describe" in asked.picture and asked.prompt != zoo.sample_question()


def test_lookup_needs_no_draft_model(engines: SimpleNamespace) -> None:
    assert demo.main(["--draft", "lookup"]) == 0
    assert engines.asked[0].speculative == {"method": "specvlm", "num_speculative_tokens": 16}


@pytest.mark.parametrize("target, draft", [("reference-target", "reference-draft"), ("scenes-target", "scenes-head")])
def test_our_own_targets_come_with_a_draft(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, target: str, draft: str
) -> None:
    monkeypatch.setattr(demo, "resolve", lambda name: f"/models/{name}")
    assert demo.main(["--target", f"specvlm/{target}"]) == 0
    assert engines.asked[0].speculative["model"] == f"/models/specvlm/{draft}"


def test_a_draft_that_does_not_fit_is_one_sentence_before_anything_is_measured() -> None:
    request = Request(str(build("llava")), "no.png", "Why?", "float32", 4, 1)
    request = replace(request, speculative={"method": "specvlm", "model": str(build("qwen2_5_vl"))})
    with pytest.raises(UserError, match="--draft takes a drafter of this target") as found:
        demo.run_measurement(request, verbose=False)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("kind", "more"), [("pool", {}), ("text", {"text_only_draft": True})])
def test_a_head_that_does_not_look_is_wanted_where_it_is_named(
    engines: SimpleNamespace, kind: str, more: dict[str, Any]
) -> None:
    head = build_head("llava", CompressorConfig(kind))
    demo.main(["--draft", str(head), "--json"])
    expected = {"method": "specvlm", "num_speculative_tokens": 16, "model": str(head)} | more
    assert engines.asked[0].speculative == expected


def test_a_head_that_does_not_look_fits_where_that_is_wanted() -> None:
    speculative = {"method": "specvlm", "model": str(build_head("llava", CompressorConfig("text")))}
    request = Request(str(build("llava")), "no.png", "Why?", "float32", 4, 1, speculative)
    assert "text_only_draft" in str(measurement._problem(request))
    assert measurement._problem(replace(request, speculative={**speculative, "text_only_draft": True})) is None


def test_the_report_shows_both_answers_only_if_they_differ(
    engines: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([]) == 0
    said = capsys.readouterr().out
    assert "identical" in said
    assert said.count("A red circle.") == 1
    assert "2.50x" in said
    assert "3.25" in said
    assert "\x1b" not in said  # not a terminal: no colours


def test_a_difference_in_float32_is_trouble(engines: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    engines.specvlm = OTHER
    assert demo.main([]) == 1
    said = capsys.readouterr().out
    assert "must not happen" in said
    assert "A red square." in said


def test_a_difference_in_bfloat16_is_said_plainly(engines: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    engines.specvlm = OTHER
    assert demo.main(["--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "The answers differ." in said
    assert "float32" in said


def test_a_busy_machine_is_mentioned(engines: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([]) == 0
    assert "busy" not in capsys.readouterr().out
    assert demo.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warning"] is None
    engines.specvlm = replace(FAST, rates=[20.0, 50.0, 52.0])
    assert demo.main([]) == 0
    said = capsys.readouterr().out
    assert said.index("20.0 to 52.0 tokens/s") < said.index("ratio  ")
    assert demo.main(["--json"]) == 0
    assert "20.0 to 52.0 tokens/s" in json.loads(capsys.readouterr().out)["warning"]


def test_a_failed_engine_is_shown(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(request: Request, verbose: bool) -> Measurement:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(demo, "run_measurement", fail)
    assert demo.main(["--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no memory left" in captured.err


def test_a_process_that_dies_is_an_error(tmp_path: Path) -> None:
    request = Request(str(tmp_path / "nothing"), "no.png", "Why?", "float32", 4, 1)
    with pytest.raises(RuntimeError, match="nothing"):
        demo.run_measurement(request, verbose=False)


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """Pictures that are none."""
    (tmp_path / "words.png").write_text("not a picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    half = (tmp_path / "whole.png").read_bytes()[:60]
    (tmp_path / "half.png").write_bytes(half)
    return {name: str(tmp_path / name) for name in ("missing.png", "words.png", "half.png")} | {"folder": str(tmp_path)}


@pytest.mark.parametrize("kind", ["missing.png", "words.png", "half.png", "folder"])
def test_a_bad_picture_is_a_mistake(broken: dict[str, str], kind: str) -> None:
    with pytest.raises(UserError, match="picture"):
        demo.main(["--image", broken[kind]])


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_question_is_a_mistake(prompt: str) -> None:
    with pytest.raises(UserError, match="empty"):
        demo.main(["--prompt", prompt])


@pytest.mark.parametrize(
    "line",
    [["--nodes", "0"], ["--nodes", "128"], ["--max-tokens", "1"], ["--repeat", "x"], ["--dtype", "float16"]],
)
def test_values_out_of_range_are_mistakes(line: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(line)
    assert stopped.value.code == 2


@pytest.mark.slow
def test_the_demo_runs() -> None:
    command = [sys.executable, "-m", "vllm_specvlm.cli", "demo", "--json", "--repeat", "1", "--max-tokens", "24"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["identical"] is True
    assert result["plain_text"].strip()
    assert result["acceptance_length"] > 1
    assert result["plain_tokens_per_s"] > 0 < result["specvlm_tokens_per_s"]
