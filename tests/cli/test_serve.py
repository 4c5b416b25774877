"""`specvlm serve`: what reaches vLLM's own `serve`, with no engine started."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from tests.tiny.checkpoints import build
from vllm_specvlm.cli import serve
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.draft import target_id
from vllm_specvlm.traffic.recording import MIDDLEWARE, VARIABLE, Recording

TARGET, DRAFT = "specvlm/reference-target", "specvlm/reference-draft"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """The arguments that vLLM's serve command would have run with."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(seen.append))
    return seen


def test_takes_the_model_as_positional_argument_and_any_option_of_vllm_serve(served: list[argparse.Namespace]) -> None:
    line = ["some/model", "--dtype", "float32", "--port", "8123", "--max_model_len", "512", "-tp", "2"]
    assert serve.main(line) == 0
    (arguments,) = served
    assert arguments.model_tag == "some/model"
    assert (arguments.dtype, arguments.port) == ("float32", 8123)
    assert (arguments.max_model_len, arguments.tensor_parallel_size) == (512, 2)
    assert arguments.served_model_name is None


def test_does_not_ask_for_the_distribution_called_vllm(
    monkeypatch: pytest.MonkeyPatch, served: list[argparse.Namespace]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert serve.main(["some/model"]) == 0
    assert len(served) == 1


@pytest.mark.parametrize(
    "draft",
    [
        ["--speculative-config", json.dumps({"method": "specvlm", "model": DRAFT, "num_speculative_tokens": 4})],
        ["--speculative-config.method", "specvlm", "--speculative-config.model", DRAFT],
    ],
    ids=["json", "dotted"],
)
def test_resolves_the_models_of_the_plugin(
    models: dict[str, str], served: list[argparse.Namespace], draft: list[str]
) -> None:
    assert serve.main([TARGET, *draft]) == 0
    (arguments,) = served
    assert arguments.model_tag == arguments.model == models[TARGET]
    assert arguments.speculative_config["model"] == models[DRAFT]
    assert arguments.speculative_config["method"] == "specvlm"
    assert arguments.served_model_name == [TARGET]  # clients use the name that the server was started with


def test_resolves_the_short_flags_of_speculation(models: dict[str, str], served: list[argparse.Namespace]) -> None:
    assert serve.main([TARGET, "--spec-method", "specvlm", "--spec-model", DRAFT, "--spec-tokens", "4"]) == 0
    assert served[0].spec_model == models[DRAFT]


def test_a_served_name_of_the_user_stays(models: dict[str, str], served: list[argparse.Namespace]) -> None:
    assert serve.main([TARGET, "--served-model-name", "eyes"]) == 0
    assert served[0].served_model_name == ["eyes"]


def test_other_drafts_stay_as_they_are(models: dict[str, str], served: list[argparse.Namespace]) -> None:
    assert serve.main(["some/model", "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}']) == 0
    assert served[0].speculative_config == {"method": "ngram", "num_speculative_tokens": 2}


def test_an_unknown_model_of_the_plugin_is_a_mistake(models: dict[str, str], served: list[argparse.Namespace]) -> None:
    with pytest.raises(UserError, match="no model specvlm/refrence"):
        serve.main(["specvlm/refrence"])
    assert not served


def test_an_unknown_option_is_a_mistake(served: list[argparse.Namespace], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        serve.main(["some/model", "--speculate-configs", "{}"])
    assert stopped.value.code == 2
    assert "--speculate-configs" in capsys.readouterr().err
    assert not served


def test_an_engine_that_refuses_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    def refuse(arguments: Any) -> None:
        raise ValueError("pipeline parallelism is not supported: use --tensor-parallel-size.")

    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(refuse))
    assert serve.main(["some/model"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "specvlm serve: pipeline parallelism is not supported: use --tensor-parallel-size."


def test_nothing_is_recorded_unless_it_is_asked_for(
    served: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert serve.main(["some/model", "--middleware", "mine.Own"]) == 0
    assert served[0].middleware == ["mine.Own"]
    assert VARIABLE not in os.environ


def test_recording_is_announced_to_the_servers_processes(
    served: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "")  # is put back afterwards
    target = str(build("llava"))
    line = [target, "--record", str(tmp_path / "log"), "--record-mib", "7", "--middleware", "mine.Own"]
    assert serve.main([*line, "--served-model-name", "eyes", "look", "--record-redact", "json:loads"]) == 0
    assert served[0].middleware == [MIDDLEWARE, "mine.Own"]
    made_for = target_id.of_folder(target)
    assert Recording.announced() == Recording(str(tmp_path / "log"), made_for, ("eyes", "look"), 7, "json:loads")
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"exchanges", "pictures"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--record", "/dev/null/log"], "Nothing can be recorded to '/dev/null/log'"),
        (["--record", "{tmp}", "--record-redact", "no.such:thing"], "There is no redaction function 'no.such:thing'"),
        (["--record", "{tmp}", "--record-redact", "json"], "There is no redaction function 'json'"),
        (["--record", "{tmp}", "--record-redact", "json:__name__"], "'json:__name__' is no function"),
        (["--record", "{tmp}", "--chat-template", "{{{{messages}}}}"], "--record beside --chat-template: training"),
        (["--record", "{tmp}", "--mm-processor-kwargs", '{{"a": 1}}'], "--record beside --mm-processor-kwargs"),
        (["--record-redact", "json:loads"], "redacts what is recorded, and nothing is: give --record DIR as well"),
        (["--record-mib", "7"], "bounds what is recorded, and nothing is: give --record DIR as well"),
    ],
)
def test_recording_that_cannot_work_is_a_mistake(
    options: list[str], told: str, served: list[argparse.Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(UserError, match=told):
        serve.main([str(build("llava")), *(option.format(tmp=tmp_path) for option in options)])
    assert not served


def test_nothing_is_recorded_of_a_target_that_cannot_be_told_apart(
    served: list[argparse.Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"Nothing can be recorded of '.*model' \(There is no model at"):
        serve.main([str(tmp_path / "model"), "--record", str(tmp_path / "log")])
    assert not served and not (tmp_path / "log").exists() and os.environ[VARIABLE] == ""


def test_what_vllm_builds_has_the_recorder_innermost() -> None:
    """So it sees what the operator's own middleware lets pass, as that passes it on."""
    seen: list[str] = []

    def layer(name: str) -> Any:
        class Layer:
            def __init__(self, app: Any) -> None:
                self.app = app

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                seen.append(name)
                await self.app(scope, receive, send)

        return Layer

    app = Starlette()
    for name in ("ours", "operator's"):  # in the order of `arguments.middleware`, as vLLM adds them
        app.add_middleware(layer(name))
    asyncio.run(app({"type": "http", "method": "GET", "path": "/", "headers": []}, None, _nothing))
    assert seen == ["operator's", "ours"]


async def _nothing(event: Any) -> None:
    pass
