"""A recorded log as training data: what is drawn, what is left out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
import torch

from tests.tiny.checkpoints import build
from tests.traffic.made import OTHER, TARGET, exchange, png
from vllm_specvlm.cli import main as cli
from vllm_specvlm.draft import target_id
from vllm_specvlm.traffic.exchange import Exchange, Message
from vllm_specvlm.traffic.log_folder import LogFolder
from vllm_specvlm.train import lesson_round
from vllm_specvlm.train.conversation import Conversation, Split, Turn
from vllm_specvlm.train.encoder import Encoder
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.recipe import AnswersRecipe, DataRecipe
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.traffic_source import TrafficSource


@pytest.fixture
def log(tmp_path: Path) -> LogFolder:
    made = LogFolder(tmp_path / "log")
    made.prepare()
    return made


def drawn(source: TrafficSource, split: Split = "train", count: int = 200) -> list[Conversation]:
    rng = random.Random(0)
    return [source.draw(rng, split) for _ in range(count)]


def test_an_exchange_becomes_a_conversation(log: LogFolder) -> None:
    turns = (Message("user", ("Look: ", png(), "?")), Message("assistant", ("A cat.",)))
    more = (Message("user", ("Its colour?",)), Message("assistant", ("Red.",)))
    log.add(Exchange((Message("system", ("Be brief.",)), *turns, *more)), TARGET)
    (found,) = {repr(each): each for each in drawn(TrafficSource(log.folder))}.values()
    assert found.system == "Be brief." and not found.asks
    assert found.turns == (Turn(("Look: ", None, "?"), "A cat."), Turn(("Its colour?",), "Red."))
    assert [path.read_bytes() for path in found.pictures if isinstance(path, Path)] == [png()]
    assert found.asked(1).system == "Be brief."


def test_the_same_question_is_never_on_both_sides(log: LogFolder) -> None:
    for number in range(120):
        log.add(exchange(f"Question {number % 60}", f"Answer {number}"), TARGET)
    source = TrafficSource(log.folder)
    train, test = ({each.turns[0].question for each in drawn(source, split, 2000)} for split in ("train", "test"))
    assert not train & test and len(test) >= 2 and len(train) > 40


def test_a_chat_is_never_on_both_sides_wherever_its_log_lies(tmp_path: Path) -> None:
    """Every turn of a chat is recorded with those before it; pictures of later turns do not matter."""
    sides: list[dict[Split, set[tuple[object, str]]]] = []
    for place in ("here", "over/there"):
        log = LogFolder(tmp_path / place)
        log.prepare()
        for number in range(60):
            chat: list[Message] = []
            for turn, shown in enumerate([(png("red" if number % 2 else "blue"),), (), (png(),)]):
                chat += [Message("user", (*shown, f"{number // 2}, turn {turn}")), Message("assistant", ("Yes.",))]
                log.add(Exchange(tuple(chat)), TARGET)
        source = TrafficSource(log.folder)
        assert {len(each.turns) for each in drawn(source)} == {1, 2, 3}
        first: dict[Split, set[tuple[object, str]]] = {"train": set(), "test": set()}
        for split, found in first.items():
            for each in drawn(source, split, 4000):
                assert isinstance(each.pictures[0], Path)
                found.add((each.turns[0].question, each.pictures[0].name))
        assert not first["train"] & first["test"], "one chat stands on both sides"
        assert len(first["train"] | first["test"]) == 60 and len(first["test"]) >= 2
        sides.append(first)
    assert sides[0] == sides[1], "the split depends on where the folder lies"


def test_texts_with_special_tokens_are_left_out_and_counted(log: LogFolder) -> None:
    log.add(exchange("good"), TARGET)
    log.add(exchange("What is <image>?"), TARGET)
    log.add(exchange("Say it.", "</s>"), TARGET)
    with_system = exchange("mine").messages
    log.add(Exchange((Message("system", ("<image>",)), *with_system)), TARGET)
    sources = Sources([DataRecipe(str(log.folder))], Path())
    (told,) = sources.keep_only(TARGET, {"<image>", "</s>"})
    assert "0 exchanges are of another target, and 3 have special tokens in their text" in told
    rng = random.Random(0)
    assert {sources.draw(rng, "train").turns[0].question for _ in range(100)} == {("good",)}
    with pytest.raises(RecipeError, match=r"All 4 exchanges of 'tiny' .* have special tokens"):
        TrafficSource(log.folder).keep_only(TARGET, {"o", "<", "y"})


def test_a_recorded_conversation_that_cannot_be_encoded_is_drawn_anew(log: LogFolder) -> None:
    target = Target(str(build("llava")), torch.float32, torch.device("cpu"))
    assert {"<image>", target.processor.tokenizer.eos_token} <= target.special_tokens
    log.add(exchange("tell the tale", "the red tree"), TARGET)
    log.add(exchange("what is this", "the red tree", picture=b"no picture"), TARGET)
    sources = Sources([DataRecipe(str(log.folder))], Path())
    answers, said = AnswersRecipe(own=0.0), list[str]()
    lessons = lesson_round.prepare(target, sources, answers, 12, "key", say=said.append)
    assert len(lessons) == 12 and not any(lesson.pictures for lesson in lessons)
    (sentence,) = said
    assert re.match(r"\d+ times a recorded conversation could not be encoded \(.*cannot be read", sentence)
    assert int(sentence.split()[0]) > 0

    class Authors(Sources):
        def draw(self, rng: random.Random, split: Split) -> Conversation:
            return dataclasses.replace(super().draw(rng, split), recorded=False)

    with pytest.raises(RecipeError, match=r"The picture .* cannot be read"):
        lesson_round.prepare(target, Authors([DataRecipe(str(log.folder))], Path()), answers, 12, "key")


def test_damaged_files_are_left_out_and_counted(log: LogFolder) -> None:
    log.add(exchange("good"), TARGET)
    exchanges = log.folder / "exchanges"
    (exchanges / "0.json").write_text("{")
    (exchanges / "1.json").write_text((exchanges / log.names()[-1]).read_text()[:-9])
    (exchanges / "2.json.1234.partial").write_text("{")
    log.add(exchange("picture lost", picture=png()), TARGET)
    next((log.folder / "pictures").iterdir()).unlink()
    source = TrafficSource(log.folder)
    assert source.damaged == 3
    assert {each.turns[0].question for each in drawn(source)} == {("good",)}
    (told,) = Sources([DataRecipe(str(log.folder))], Path()).keep_only(TARGET, ())
    assert "3 files are damaged, 0 exchanges are of another target" in told


def test_a_log_without_a_whole_exchange_is_refused(log: LogFolder, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to train on"):
        TrafficSource(log.folder)
    (log.folder / "exchanges" / "0.json").write_text("{")
    with pytest.raises(RecipeError, match=r"of 1 files none is a whole exchange; in '0.json'"):
        TrafficSource(log.folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(RecipeError, match="a folder that a server recorded to"):
        TrafficSource(tmp_path / "other")


def test_another_targets_answers_are_left_out_or_refused(log: LogFolder) -> None:
    log.add(exchange("theirs"), OTHER)
    source = TrafficSource(log.folder)
    with pytest.raises(RecipeError, match=r"answers of 'other', which is not the target .*its digest is"):
        source.keep_only(TARGET, ())
    log.add(exchange("ours"), TARGET)
    source = TrafficSource(log.folder)
    source.keep_only(TARGET, ())
    assert source.foreign == 1
    assert {each.turns[0].question for each in drawn(source)} == {("ours",)}
    renamed = dataclasses.replace(TARGET, name="moved")
    assert TrafficSource(log.folder).keep_only(renamed, ()) is None


def test_a_log_whose_chats_all_begin_alike_is_told_of(log: LogFolder) -> None:
    """A hash of the first question decides who is held out: here all or none."""
    for number in range(30):
        log.add(exchange("Hello.", f"Answer {number}"), TARGET)
    sources = Sources([DataRecipe(str(log.folder))], log.folder)
    (told,) = sources.keep_only(TARGET, ())
    assert "what is held out of it is what is trained on" in told
    for number in range(60):
        log.add(exchange(f"Question {number}", "Answer"), TARGET)
    assert not Sources([DataRecipe(str(log.folder))], log.folder).keep_only(TARGET, ())


def test_an_answer_that_broke_off_gets_no_end(log: LogFolder) -> None:
    target = Target(str(build("llava")), torch.float32, torch.device("cpu"))
    ends = []
    for cut in (False, True):
        log.add(dataclasses.replace(exchange(f"Is it {cut}?", "A long"), cut=cut), TARGET)
    for conversation in {repr(each): each for each in drawn(TrafficSource(log.folder), "train")}.values():
        encoded = target.encoder.encode(conversation)
        assert encoded.spoken[-1]
        ends.append((conversation.cut, encoded.ids[-1] in target.end_ids))
        assert not conversation.asked(0).cut
    assert sorted(ends) == [(False, True), (True, False)]


def test_the_digest_changes_with_the_log(log: LogFolder) -> None:
    log.add(exchange("one"), TARGET)
    first = TrafficSource(log.folder).digest()
    assert first == TrafficSource(log.folder).digest() and first.startswith("1 exchanges, sha256 ")
    log.add(exchange("two"), TARGET)
    assert TrafficSource(log.folder).digest() != first


def test_a_system_message_reaches_the_prompt() -> None:
    target = Target(str(build("llava")), torch.float32, torch.device("cpu"))
    encoder: Encoder = target.encoder
    turns = (Turn(("hello there",), "the red tree"),)
    plain, told = (encoder.encode(Conversation((), turns, system=system)) for system in ("", "tell the tale"))
    assert sum(plain.spoken) == sum(told.spoken)
    assert told.ids[-sum(told.spoken) :] == plain.ids[-sum(plain.spoken) :]
    assert len(told.ids) > len(plain.ids)


def test_training_from_a_log(log: LogFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = build("llava")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'target = "{target}"\n[[data]]\nsource = "specvlm/reference"\n[answers]\nlongest = 8\nbatch = 4\n'
        "[head]\nvocabulary = 64\n[training]\nsteps = 2\nbatch = 2\npool = 4\nsave_every = 2\nunroll = 2\n"
        "longest = 512\n[check]\nevery = 0\n"
    )
    line = ["train", str(recipe), "--out", str(tmp_path / "out"), "--from-log", str(log.folder), "--json"]
    assert cli.main(line) == 2
    assert "nothing to train on" in capsys.readouterr().err
    log.add(exchange(picture=png()), OTHER)
    assert cli.main(line) == 2
    assert "which is not the target to train for" in capsys.readouterr().err
    log.add(exchange("tell the tale", "the red tree", picture=png()), target_id.of_folder(target))
    assert cli.main(line) == 0
    told = capsys.readouterr()
    assert "1 exchanges are of another target, and 0 have special tokens in their text; they are left out." in told.err
    folder = Path(json.loads(told.out)["checkpoint"])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["data"]["log"].startswith("1 exchanges, sha256 ")
    assert [each["weight"] for each in provenance["recipe"]["data"]] == [1.0, 1.0]
