"""Sources, files in LLaVA's format, and the vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_specvlm.train import vocabulary
from vllm_specvlm.train.conversation import Conversation, Turn, choose_asked
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.jsonl_source import JsonlSource
from vllm_specvlm.train.recipe import DataRecipe
from vllm_specvlm.train.sources import BUILTIN, Sources


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[at % 2], "value": value} for at, value in enumerate(values)]


def source(tmp_path: Path, *entries: Any, **options: Any) -> JsonlSource:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return JsonlSource(path, **options)


def drawn(made: JsonlSource) -> Conversation:
    return made.draw(random.Random(0), "train")


def test_a_line(tmp_path: Path) -> None:
    entry = {"image": "a.png", "conversations": said("<image>\nWhat is this?", "A cat. ", "And the colour?", "Red.")}
    found = drawn(source(tmp_path, entry, images=tmp_path / "images"))
    assert found.pictures == (tmp_path / "images" / "a.png",)
    assert found.turns == (Turn((None, "What is this?"), "A cat."), Turn(("And the colour?",), "Red."))


def test_pictures_in_the_middle_not_mentioned_or_none(tmp_path: Path) -> None:
    two = {"image": ["a.png", "b.png"], "conversations": said("Compare <image> and <image>.", "Alike.")}
    assert drawn(source(tmp_path, two)).turns[0].question == ("Compare ", None, " and ", None, ".")
    silent = {"image": "a.png", "conversations": said("What is this?", "A cat.")}
    assert drawn(source(tmp_path, silent)).turns[0].question == (None, "What is this?")
    plain = drawn(source(tmp_path, {"conversations": said("Hello.")}))
    assert plain == Conversation((), (Turn(("Hello.",), None),)) and plain.asks


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"conversations": said("<image>\nWhat?", "A cat.")}, "1 turns, 1 <image> and 0 pictures"),
        ({"conversations": [{"from": "gpt", "value": "A cat."}]}, "do not alternate"),
        ({"image": "a.png"}, "'conversations'"),
        ([1], "list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, entry: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=rf"Line 1 of .*data.jsonl.*{told}"):
        drawn(source(tmp_path, entry))


def test_lines_are_held_out_for_good(tmp_path: Path) -> None:
    made = source(tmp_path, *({"conversations": said(f"Question {n}", "Yes.")} for n in range(600)))
    rng = random.Random(0)
    train = {made.draw(rng, "train").turns[0].question for _ in range(3000)}
    test = {made.draw(rng, "test").turns[0].question for _ in range(300)}
    assert not train & test and 3 < len(test) < 30 and len(train) > 550


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        JsonlSource(tmp_path / "none.jsonl")
    with pytest.raises(RecipeError, match="no conversation"):
        source(tmp_path)
    with pytest.raises(RecipeError, match=r"no data source 'specvlm/nothing'.*specvlm/reference"):
        Sources([DataRecipe("specvlm/nothing")], tmp_path)


@pytest.mark.parametrize("name", BUILTIN)
def test_what_comes_along_is_decided_by_the_seed(name: str) -> None:
    made = BUILTIN[name]()
    one, same, other = (made.draw(random.Random(seed), "train") for seed in (1, 1, 2))
    assert one.turns == same.turns != other.turns
    assert [picture.tobytes() for picture in one.pictures] == [picture.tobytes() for picture in same.pictures]  # type: ignore[union-attr]
    assert made.digest() and one.turns[0].question.count(None) == len(one.pictures)


def test_digests_name_no_places(tmp_path: Path) -> None:
    source(tmp_path, {"conversations": said("Hello.", "Hi.")})
    found = Sources([DataRecipe(str(tmp_path / "data.jsonl")), DataRecipe("specvlm/reference")], tmp_path).digests()
    assert list(found) == ["data.jsonl", "specvlm/reference"] and found["data.jsonl"].startswith("sha256 ")


def test_who_answers() -> None:
    three = Conversation((), tuple(Turn((f"q{n}",), f"a{n}") for n in range(3)))
    rng = random.Random(0)
    assert choose_asked(three, rng, 0.0) == three
    asked = [choose_asked(three, rng, 1.0) for _ in range(300)]
    lengths = [len(each.turns) for each in asked]
    assert all(each.asks for each in asked) and {each.expected for each in asked} == {2}
    assert 0.5 < lengths.count(1) / 300 < 0.85 and set(lengths) == {1, 2, 3}
    half = sum(choose_asked(three, rng, 0.5).asks for _ in range(400))
    assert 150 < half < 250
    unanswered = Conversation((), (Turn(("q",), None),))
    assert choose_asked(unanswered, rng, 0.0).asks


def test_the_frequent_tokens() -> None:
    answers = [torch.tensor([7, 7, 7, 9]), torch.tensor([9, 30, 5])]
    assert vocabulary.choose(answers, 4, {2}, 40).tolist() == [2, 5, 7, 9]
    assert vocabulary.choose(answers, 8, {2}, 40).tolist() == [0, 1, 2, 3, 5, 7, 9, 30]
    assert vocabulary.choose(answers, 99, {2}, 40).tolist() == list(range(40))
