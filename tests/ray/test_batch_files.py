"""Questions and answers as files, without Ray's cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from vllm_specvlm.cli import batch as command
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.cluster import batch
from vllm_specvlm.cluster.answers_file import AnswersFile
from vllm_specvlm.cluster.question import Question

BODY = '{"choices": []}'
ERROR = '{"error": {"message": "no", "code": 400}}'


def test_the_short_form_becomes_a_chat(tmp_path: Path) -> None:
    line = '{"custom_id": "a", "prompt": "What?", "image": ["x y.png", "z.png"], "max_tokens": 3}'
    question = Question.parse(line, tmp_path)
    seen = [
        {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/x%20y.png"}},
        {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/z.png"}},
        {"type": "text", "text": "What?"},
    ]
    assert question.custom_id == "a"
    assert json.loads(question.body) == {"messages": [{"role": "user", "content": seen}], "max_tokens": 3}


def test_openais_form_stays_as_it_is(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "seed": 1}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert json.loads(Question.parse(json.dumps(line), tmp_path).body) == body


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "has no 'custom_id'"),
        ('{"custom_id": 7, "prompt": ""}', "has no 'custom_id'"),
        ('{"custom_id": "a"}', "neither a 'prompt' nor a 'body'"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "neither a 'prompt' nor a 'body'"),
        ('{"custom_id": "a", "prompt": "b", "image": 3}', "an 'image' that is no path"),
        ('{"custom_id": "a", "prompt": 3}', "a 'prompt' that is no text"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"custom_id": "first", "prompt": "x"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"Line 3 of '.*questions.jsonl'") as caught:
        batch.questions(file, tmp_path)
    assert says in str(caught.value)


def test_names_must_differ(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"custom_id": "a", "prompt": "x"}\n' * 2)
    with pytest.raises(ValueError, match=r"Line 2 .* 'custom_id' of an earlier line"):
        batch.questions(file, tmp_path)


def test_answers_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as answers:
        answers.write([{"custom_id": "a", "response": BODY, "error": None}])
        answers.write([{"custom_id": name, "response": None, "error": ERROR} for name in ("a", "b")])
        assert (answers.done, answers.failed) == ({"a", "b"}, 1)
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["response"] | {"request_id": ""} == {"status_code": 200, "request_id": "", "body": json.loads(BODY)}
    assert first["error"] is None
    assert second["response"]["status_code"] == 400 and second["error"] == json.loads(ERROR)["error"]
    with AnswersFile(path) as answers:
        assert (answers.done, answers.failed) == ({"a", "b"}, 1)


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_line_cut_off_is_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as answers:
        answers.write({"custom_id": name, "response": BODY, "error": None} for name in "ab")
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes()[:-cut])
    with AnswersFile(path) as answers:
        assert answers.done == {"a"} and path.read_bytes() == first
        answers.write([{"custom_id": "b", "response": BODY, "error": None}])
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["hello", "{}", "[]", '{"custom_id": "a"}'])
def test_another_file_is_not_touched(tmp_path: Path, line: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"Line 1 of '.*notes.txt' is no answer"):
        AnswersFile(path)
    assert path.read_text() == line + "\n"


def test_engine_options_of_the_command_line(tmp_path: Path) -> None:
    """Only what was given, models and pictures added."""
    line = command.parser()
    base = ["tiny", "--input", "a", "--output", "b"]
    given = ["--dtype", "float32", "--max-model-len", "512", "--speculative-config", '{"method": "specvlm"}']
    found = command.engine_options(line.parse_args(base + given), line.parse_args(base), tmp_path)
    assert found == {
        "model": "tiny",
        "served_model_name": ["tiny"],
        "allowed_local_media_path": str(tmp_path),
        "dtype": "float32",
        "max_model_len": 512,
        "speculative_config": {"method": "specvlm"},
    }


def test_a_bad_input_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("{\n")
    with pytest.raises(UserError, match=r"Line 1 of .* is no JSON"):
        command.main(["tiny", "--input", str(file), "--output", str(tmp_path / "answers.jsonl")])


@pytest.mark.parametrize("engines", ["0", "x", "3:2", "1:"])
def test_bad_numbers_of_engines(engines: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["tiny", "--input", "a", "--output", "b", "--engines", engines])
    assert "--engines" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"important": [1, 2, 3]}', "notes", '{"id": "other"}'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "precious.jsonl"
    path.write_text(text)  # no end of line
    with pytest.raises(ValueError, match="is no answer of a batch"):
        AnswersFile(path)
    assert path.read_text() == text


@pytest.mark.parametrize("cut", ["{", '{"id": "spec', '{"id": "specvlm-0123", "custom_id": "b", "resp'])
def test_a_line_of_ours_that_was_cut_off_is_removed(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as answers:
        answers.write([{"custom_id": "a", "response": BODY, "error": None}])
    whole = path.read_bytes()
    path.write_bytes(whole + cut.encode())
    with AnswersFile(path) as answers:
        assert answers.done == {"a"}
    assert path.read_bytes() == whole


def test_half_a_character_in_an_answer_is_written(tmp_path: Path) -> None:
    with AnswersFile(tmp_path / "answers.jsonl") as answers:
        answers.write([{"custom_id": "a", "response": '{"choices": ["\\ud83d"]}', "error": None}])
    assert "\\ud83d" in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"custom_id": "\\ud800", "prompt": ""}', "characters that can be written"),
        ('{"custom_id": "a", "prompt": "", "messages": []}', "beside its 'prompt'"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_more_lines_that_are_none(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Question.parse(line, tmp_path)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer = {"custom_id": "a", "response": BODY, "error": None}
    with AnswersFile(path) as answers:
        with pytest.raises(ValueError, match=r"^Another run writes '.*answers.jsonl'; wait until it has ended, or"):
            AnswersFile(path)
        answers.write([answer])
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"id": "specvlm-0123", "cust')  # as the first run writes its next line
        with pytest.raises(ValueError, match="Another run"):
            AnswersFile(path)
        assert path.read_bytes() != whole, "what the other run was writing was cut"
    with AnswersFile(path) as answers:
        assert answers.done == {"a"} and path.read_bytes() == whole


def test_a_last_line_without_an_end_is_ended(tmp_path: Path) -> None:
    """Another program has written it, or an editor has saved it: the next answer is a line of its own."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id":"batch_1","custom_id":"a","response":{},"error":null}')
    with AnswersFile(path) as answers:
        assert answers.done == {"a"}
        answers.write([{"custom_id": "b", "response": BODY, "error": None}])
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "b"]
    with AnswersFile(path) as answers:
        assert answers.done == {"a", "b"}
