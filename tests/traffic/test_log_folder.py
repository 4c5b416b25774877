"""The folder: whole files or none, and whatever else may lie there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any, Self

import pytest

from tests.traffic.made import TARGET, exchange, png
from vllm_specvlm.traffic import log_folder
from vllm_specvlm.traffic.log_folder import LogFolder


@pytest.fixture
def log(tmp_path: Path) -> LogFolder:
    made = LogFolder(tmp_path / "log")
    made.prepare()
    return made


def only(log: LogFolder) -> Path:
    (name,) = log.names()
    return log.folder / "exchanges" / name


def test_what_was_written_is_read(log: LogFolder) -> None:
    written = log.add(exchange(picture=png()), TARGET)
    assert written == log.size() > len(png())
    target, messages, cut = log.read(only(log).name)
    assert target == TARGET and not cut
    assert [part.keys() for part in messages[0]["content"]] == [{"picture"}, {"text"}]
    assert log.picture(messages[0]["content"][0]["picture"]).read_bytes() == png()
    assert messages[1] == {"role": "assistant", "content": [{"text": "A cat."}]}


def test_an_answer_that_broke_off_is_known_as_such(log: LogFolder) -> None:
    log.add(dataclasses.replace(exchange(), cut=True), TARGET)
    assert log.read(only(log).name)[2]
    old = json.loads(only(log).read_text())
    del old["cut"]
    only(log).write_text(json.dumps(old))
    assert not log.read(only(log).name)[2], "logs from before there was this"


def test_a_picture_is_kept_once(log: LogFolder) -> None:
    first = log.add(exchange("a", picture=png()), TARGET)
    second = log.add(exchange("b", picture=png()), TARGET)
    assert second == first - len(png())
    assert len(list((log.folder / "pictures").iterdir())) == 1 and len(log.names()) == 2


def test_a_picture_that_was_cut_short_is_written_anew(log: LogFolder) -> None:
    log.add(exchange(picture=png()), TARGET)
    (picture,) = (log.folder / "pictures").iterdir()
    picture.write_bytes(png()[:-9])
    log.add(exchange(picture=png()), TARGET)
    assert picture.read_bytes() == png()
    assert [log.read(name)[0] for name in log.names()] == [TARGET, TARGET]


@pytest.mark.parametrize("large", ["text", "picture"])
def test_what_would_not_be_read_is_not_written(large: str, log: LogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 500  # of the exchange without the long text, and of the picture without its tail: less
    monkeypatch.setattr(log_folder, "_MOST_BYTES", size)
    picture = png() + bytes(size if large == "picture" else 0)
    assert log.add(exchange("x" * (size if large == "text" else 1), picture=picture), TARGET) == 0
    assert [path for path in log.folder.rglob("*") if path.is_file()] == []
    assert log.add(exchange("x", picture=png()), TARGET) > 0
    assert log.read(only(log).name)[0] == TARGET


def test_files_are_on_the_disk_before_they_have_their_names(log: LogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), sync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("name"), replace(self, to))[1])
    log.add(exchange(picture=png()), TARGET)
    assert done == ["sync", "name"] * 2


def test_nobody_else_may_read_it(log: LogFolder) -> None:
    log.add(exchange(picture=png()), TARGET)
    assert log.folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in log.folder.rglob("*"))


def test_a_full_disk_leaves_no_half_file(log: LogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def full(*arguments: Any, **options: Any) -> Any:
        file = real(*arguments, **options)

        class Full:
            def __enter__(self) -> Self:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[:3])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        log.add(exchange(picture=png()), TARGET)
    assert [path for path in log.folder.rglob("*") if path.is_file()] == []


def test_half_written_files_are_not_exchanges(log: LogFolder) -> None:
    log.add(exchange(), TARGET)
    whole = only(log)
    (whole.parent / f"{whole.name}.1a2b3c4d.partial").write_text(whole.read_text()[:40])
    assert log.names() == [whole.name]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        "[" * 100_000,
        b"\xff\xfe\x00",
        {"format": 2},
        {"target": {}},
        {"target": {"name": "tiny", "hidden_size": "many"}},
        {"target": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
        {"messages": "text"},
        {"messages": [{"role": "user", "content": [{"text": 7}]}, {"role": "assistant", "content": [{"text": "b"}]}]},
        {"messages": [{"role": "user", "content": [{}]}, {"role": "assistant", "content": [{"text": "b"}]}]},
        {"messages": [{"role": "user", "content": [None]}, {"role": "assistant", "content": [{"text": "b"}]}]},
        {"messages": [{"role": "user", "content": [{"text": "a", "picture": "b"}]}, None]},
    ],
    ids=str,
)
def test_what_is_no_exchange(log: LogFolder, content: Any) -> None:
    log.add(exchange(), TARGET)
    path = only(log)
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError):
        log.read(path.name)


@pytest.mark.parametrize(
    "name",
    [
        "../../secret",
        "/etc/hostname",
        "../exchanges/x.json",
        "",
        ".",
        "A" * 64,
        "a" * 63 + "\n",
        "a" * 63,
        "a" * 65,
        "a" * 60 + "/../",
        7,
        None,
        ["a"],
        {"picture": "a"},
    ],
    ids=repr,
)
def test_pictures_are_named_by_their_content_and_nothing_else(log: LogFolder, name: Any) -> None:
    (log.folder.parent / "secret").write_bytes(png())
    log.add(exchange(picture=png()), TARGET)
    path = only(log)
    content = json.loads(path.read_text())
    content["messages"][0]["content"][0]["picture"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError):
        log.read(path.name)


def test_pictures_that_are_missing_changed_or_links(log: LogFolder) -> None:
    log.add(exchange(picture=png()), TARGET)
    (picture,) = (log.folder / "pictures").iterdir()
    picture.write_bytes(png("blue"))
    with pytest.raises(ValueError, match="not what it was"):
        log.read(only(log).name)
    secret = log.folder.parent / "secret"
    secret.write_bytes(png())
    picture.unlink()
    picture.symlink_to(secret)
    with pytest.raises(ValueError, match="cannot be read"):
        log.read(only(log).name)
    picture.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        log.read(only(log).name)


def test_a_pipe_or_a_folder_in_the_place_of_a_file_does_not_hang(log: LogFolder) -> None:
    os.mkfifo(log.folder / "exchanges" / "1.json")
    (log.folder / "exchanges" / "2.json").mkdir()
    for name in log.names():
        with pytest.raises(ValueError):
            log.read(name)
