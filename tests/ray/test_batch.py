"""Batches on a local Ray cluster: complete, without duplicates, and what plain vLLM says, whatever dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from tests.ray.batch_case import line, options, plain_tokens, read, tokens, write
from tests.ray.local_cluster import kill, local_cluster, processes, wait_for
from tests.ray.poison import PoisonedActor
from tests.tiny.prompts import picture
from vllm_specvlm.cluster import batch
from vllm_specvlm.cluster import processor as processors
from vllm_specvlm.cluster.processor import Processor

ACTOR, ENGINE = "ray::MapWorker(MapBatches(", "VLLM::EngineCore"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(cpus=4):
        yield


def test_answers_errors_and_a_second_run(cluster: None, tmp_path: Path) -> None:
    """The quick one. A picture that is not there, two outside the folder and a bad option fail alone.

    The bad option comes first, and with a picture that good questions share.
    """
    good = [line(number) for number in range(10)]
    bad = [
        line(0, custom_id="option", temperature=-1),
        line(0, custom_id="missing", image="missing.png"),
        line(0, custom_id="outside", image="../outside.png"),
        line(0, custom_id="link", image="link.png"),
    ]
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(0).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    file, output = write(folder, [*bad, *good]), tmp_path / "answers.jsonl"
    asked = batch.questions(file, folder)
    processor = Processor(options(folder), batch_size=4, attempts=2)
    seen: list[int] = []
    assert batch.run(asked, output, processor, seen.append) == batch.Outcome(0, 14, 4)
    assert seen == sorted(seen) and seen[-1] == 14
    answers = read(output)
    plain = plain_tokens(folder, good)
    assert {name: tokens(answers[name]) for name in plain} == plain
    assert {name for name, entry in answers.items() if entry["error"]} == {"missing", "outside", "link", "option"}
    assert "temperature" in answers["option"]["error"]["message"]
    for name in ("outside", "link"):
        assert "allowed-local-media-path" in answers[name]["error"]["message"]

    # As after a crash: some answers are lost, and one is half written.
    kept = output.read_text().splitlines(keepends=True)[:7]
    output.write_text("".join(kept) + '{"id": "specvlm-x", "custom_id": "q')
    assert batch.run(asked, output, processor) == batch.Outcome(7, 7, 4)
    assert output.read_text().startswith("".join(kept))
    again = read(output)
    assert {name: tokens(again[name]) for name in plain} == plain
    assert len(again) == 14


@pytest.mark.slow  # three starts of an engine
def test_an_engine_that_is_refused_ends_the_run(cluster: None, tmp_path: Path) -> None:
    file = write(tmp_path, [line(0)])
    refused = {**options(tmp_path), "speculative_config": {"method": "specvlm", "dept": 3}}
    with pytest.raises(RuntimeError, match="Unknown speculative-config option 'dept'"):
        batch.run(batch.questions(file, tmp_path), tmp_path / "answers.jsonl", Processor(refused))


@pytest.mark.slow  # engines die eight times
def test_a_question_that_kills_engines(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, and its neighbours are answered."""
    monkeypatch.setattr(processors, "AnsweringActor", PoisonedActor)
    lines: list[dict[str, Any]] = [line(number) for number in range(12)]
    lines[5]["user"] = "poison"
    file, output = write(tmp_path, lines), tmp_path / "answers.jsonl"
    processor = Processor(options(tmp_path), batch_size=4, attempts=2)
    assert batch.run(batch.questions(file, tmp_path), output, processor) == batch.Outcome(0, 12, 1)
    answers = read(output)
    plain = plain_tokens(tmp_path, lines)
    assert "died" in answers.pop("q5")["error"]["message"]
    del plain["q5"]
    assert {name: tokens(entry) for name, entry in answers.items()} == plain


@pytest.mark.slow  # five hundred pictures, three engines started anew
def test_500_pictures_with_killed_actors(cluster: None, tmp_path: Path) -> None:
    """An actor is killed, then the engine inside another: complete, nothing twice, nothing different."""
    lines = [line(number) for number in range(500)]
    file, output = write(tmp_path, lines), tmp_path / "answers.jsonl"
    killed: list[tuple[str, int]] = []

    def disturb(done: int) -> None:
        for title, at in ((ACTOR, 100), (ENGINE, 300)):
            if done >= at and title not in dict(killed):
                kill(processes(title)[0])
                killed.append((title, done))

    began = time.monotonic()
    processor = Processor(options(tmp_path), engines=(2, 2), batch_size=16)
    assert batch.run(batch.questions(file, tmp_path), output, processor, disturb) == batch.Outcome(0, 500, 0)
    print(f"500 pictures in {time.monotonic() - began:.0f} s, killed: {killed}")
    assert [title for title, _ in killed] == [ACTOR, ENGINE] and killed[-1][1] < 500
    answers = read(output)
    assert {name: tokens(entry) for name, entry in answers.items()} == plain_tokens(tmp_path, lines)
    wait_for(ENGINE, 0)
