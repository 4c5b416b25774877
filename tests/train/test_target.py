"""What the frozen target gives, against transformers itself."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.checkpoints import build
from tests.tiny.prompts import picture
from vllm_specvlm.train.conversation import Conversation, Turn
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.target import Target

FAMILIES = ("llava", "qwen2_5_vl")
LAYERS = (0, 1)


@cache
def target(family: str, layers: tuple[int, ...] = ()) -> Target:
    return Target(str(build(family)), torch.float32, torch.device("cpu"), layers)


def answered(answer: str | None = " the red tree.") -> list[Conversation]:
    one, two = picture(1), picture(2, 56, 112)
    return [
        Conversation((one,), (Turn((None, " what is this?"), answer),)),
        Conversation((), (Turn(("hello there",), answer),)),
        Conversation(
            (one, two), (Turn((None, " and ", None, " which is red?"), "the blue tree"), Turn(("why?",), answer))
        ),
    ]


def alone(made: Target, ids: torch.Tensor, vision: dict[str, torch.Tensor]) -> Any:
    """transformers' own pass over one unpadded row."""
    inputs: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None]), **vision}
    if "image_grid_thw" in vision:
        inputs["mm_token_type_ids"] = (ids[None] == made.processor.image_token_id).long()
    with torch.no_grad():
        return made.model(**inputs, output_hidden_states=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_lessons_hold_what_transformers_computes(family: str) -> None:
    for layers in ((), LAYERS):
        made = target(family, layers)
        encoded = [made.encoder.encode(each) for each in answered()]
        for each, lesson in zip(encoded, made.read(encoded), strict=True):
            out = alone(made, lesson.ids, each.vision)
            places = lesson.slots[lesson.drafted] + 1
            torch.testing.assert_close(lesson.final, out.hidden_states[-1][0, places], atol=1e-4, rtol=1e-4)
            wanted = torch.cat([out.hidden_states[layer] for layer in layers], -1) if layers else out.hidden_states[-1]
            torch.testing.assert_close(lesson.features, wanted[0, lesson.slots], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(lesson.normaliser, out.logits[0, places].logsumexp(-1), atol=1e-4, rtol=1e-4)
            assert torch.equal(lesson.best, out.logits[0, places].argmax(-1))
            entering = out.hidden_states[0][0]  # embeddings, visual tokens in their places
            for (start, length), tokens in zip(lesson.pictures, lesson.visual, strict=True):
                torch.testing.assert_close(tokens, entering[start : start + length], atol=1e-4, rtol=1e-4)
            assert torch.equal(made.embed(lesson.ids[:1]), entering[:1])


@pytest.mark.parametrize("family", FAMILIES)
def test_its_answers_are_those_of_generate(family: str) -> None:
    made = target(family)
    encoded = [made.encoder.encode(each) for each in answered(None)]
    assert all(each.asks for each in encoded)
    lessons = made.answer(encoded, longest=24, temperatures=[0.0] * 3, seed=0)
    for each, lesson in zip(encoded, lessons, strict=True):
        ids = torch.tensor([each.ids])
        kinds = (
            {"mm_token_type_ids": (ids == made.processor.image_token_id).long()}
            if "image_grid_thw" in each.vision
            else {}
        )
        with torch.no_grad():
            wanted = made.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **each.vision,
                **kinds,
                max_new_tokens=24,
                do_sample=False,
            )[0]
        assert torch.equal(lesson.ids, wanted)
        # What was caught while it answered is what reading the answer gives.
        each.ids, each.spoken = lesson.ids.tolist(), [*each.spoken, *([True] * (len(lesson.ids) - len(each.ids)))]
        read = made.read([each])[0]
        for name in ("slots", "drafted", "depths", "best"):
            assert torch.equal(getattr(lesson, name), getattr(read, name)), name
        for name in ("features", "final", "normaliser"):
            torch.testing.assert_close(getattr(lesson, name), getattr(read, name), atol=2e-4, rtol=2e-4)


def test_rows_that_end_do_not_disturb_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = target("llava")
    encoded = [made.encoder.encode(each) for each in answered(None)]
    long = made.answer(encoded, 16, [0.0] * 3, seed=0)
    first = [lesson.ids.tolist()[len(each.ids) :] for each, lesson in zip(encoded, long, strict=True)]
    end = next(token for token in first[0][2:] if token not in first[1] and token not in first[2])
    monkeypatch.setattr(made._speaker, "_ends", torch.tensor([end]))
    short = made.answer(encoded, 16, [0.0] * 3, seed=0)
    assert short[0].ids.tolist() == [*encoded[0].ids, *first[0][: first[0].index(end) + 1]]
    for row in (1, 2):
        assert torch.equal(short[row].ids, long[row].ids)
        torch.testing.assert_close(short[row].final, long[row].final, atol=1e-4, rtol=1e-4)


def test_samples_follow_the_law_and_the_seed() -> None:
    made = target("llava")
    asked = made.encoder.encode(answered(None)[1])
    lessons = made.answer([asked] * 400, 2, [1.0] * 400, seed=3)
    counts = torch.bincount(torch.tensor([int(each.ids[len(asked.ids)]) for each in lessons]), minlength=512) / 400
    law = alone(made, torch.tensor(asked.ids), {}).logits[0, -1].softmax(-1)
    noise = torch.distributions.Multinomial(400, law).sample((200,)) / 400
    assert (counts - law).abs().sum() < (noise - law).abs().sum(-1).quantile(0.999)
    assert (torch.eye(512)[law.argmax()] - law).abs().sum() > (noise - law).abs().sum(-1).max()
    again = made.answer([asked] * 400, 2, [1.0] * 400, seed=3)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(lessons, again, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_where_answers_and_pictures_are(family: str) -> None:
    made = target(family)
    encoded = made.encoder.encode(answered(" the red tree.")[2])
    tokenizer = made.processor.tokenizer
    spoken = [token for token, mark in zip(encoded.ids, encoded.spoken, strict=True) if mark]
    assert tokenizer.decode(spoken, skip_special_tokens=True).split() == ["the", "blue", "tree", "the", "red", "tree."]
    assert spoken[-1] in made.end_ids
    image = made.processor.image_token_id
    marked = [at for start, length in encoded.pictures for at in range(start, start + length)]
    assert [at for at, token in enumerate(encoded.ids) if token == image] == marked and len(encoded.pictures) == 2


def test_touching_pictures_are_told_apart() -> None:
    made = target("llava")
    pair = Conversation((picture(1), picture(2)), (Turn((None, None, "which?"), "this"),))
    (first, size), (second, same) = made.encoder.encode(pair).pictures
    assert size == same == 16 and second == first + 16


def test_a_truncated_target_is_a_sentence(tmp_path: Path) -> None:
    shutil.copytree(build("llava"), tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="does not load"):
        Target(str(tmp_path / "target"), torch.float32, torch.device("cpu"))


def test_refusals(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="does not load"):
        Target(str(tmp_path), torch.float32, torch.device("cpu"))
    with pytest.raises(RecipeError, match="of type idefics3"):
        Target(str(build("idefics3")), torch.float32, torch.device("cpu"))
    with pytest.raises(RecipeError, match="reads layer 2 of the target, which has 2"):
        Target(str(build("llava")), torch.float32, torch.device("cpu"), (0, 2))
    bad = Conversation((tmp_path / "none.png",), (Turn((None, "what?"), "this"),))
    with pytest.raises(RecipeError, match=r"none.png' cannot be read"):
        target("llava").encoder.encode(bad)
