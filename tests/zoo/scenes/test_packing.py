from __future__ import annotations

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo import language_model
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.language_model import IM_END, IMAGE_TOKEN, IMAGE_TOKEN_ID
from vllm_specvlm.zoo.scenes.packing import FACT_WEIGHT, collate, pack
from vllm_specvlm.zoo.scenes.settings import COARSE, FINE
from vllm_specvlm.zoo.scenes.turn import Sample, Turn

TURNS = (
    Turn("What is on the left?", "On the left there is a cat.", ("cat",)),
    Turn("How many?", "I count three.", ("three",)),
)


@pytest.fixture(scope="module")
def tokenizer(gguf: GgufFile) -> PreTrainedTokenizerFast:
    return language_model.load_tokenizer(gguf)


def sample(*, chain: bool) -> Sample:
    return Sample("count", Image.new("RGB", (8, 8)), (), TURNS, chain)


def templated(tokenizer: PreTrainedTokenizerFast, turns: tuple[Turn, ...]) -> list[int]:
    messages = []
    for index, turn in enumerate(turns):
        parts = [{"type": "image"}] if index == 0 else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str)
    ids: list[int] = tokenizer(text.replace(IMAGE_TOKEN, IMAGE_TOKEN * COARSE.tokens).removesuffix("\n")).input_ids
    return ids


def test_a_dialogue_is_what_the_chat_template_makes_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    row = pack(tokenizer, sample(chain=True), COARSE)
    assert row.ids == templated(tokenizer, TURNS)
    assert row.positions == list(range(len(row.ids)))
    assert max(row.segment) == 1


def test_separate_questions_are_conversations_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    row = pack(tokenizer, sample(chain=False), COARSE)
    for number, turn in enumerate(TURNS, 1):
        seen = [i for i, segment in enumerate(row.segment) if segment in (0, number)]
        assert [row.ids[i] for i in seen] == templated(tokenizer, (turn,))
        assert [row.positions[i] for i in seen] == list(range(len(seen)))
    assert row.ids.count(IMAGE_TOKEN_ID) == COARSE.tokens
    assert pack(tokenizer, sample(chain=False), FINE).ids.count(IMAGE_TOKEN_ID) == FINE.tokens


def test_facts_weigh_more_and_questions_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    row = pack(tokenizer, sample(chain=False), COARSE)
    heavy = [
        tokenizer.decode([token]).strip() for token, w in zip(row.ids, row.weight, strict=True) if w == FACT_WEIGHT
    ]
    assert heavy == ["cat", "three"]
    said = [token for token, weight in zip(row.ids, row.weight, strict=True) if weight > 0]
    assert tokenizer.decode(said, skip_special_tokens=True) == "".join(turn.answer for turn in TURNS)
    assert said.count(IM_END) == len(TURNS)


def test_the_mask_lets_no_question_see_another(tokenizer: PreTrainedTokenizerFast) -> None:
    row = pack(tokenizer, sample(chain=False), COARSE)
    short = pack(tokenizer, Sample("count", Image.new("RGB", (8, 8)), (), TURNS[1:]), COARSE)
    rows = collate([row, short])
    mask, length = rows.mask[0, 0], len(row.ids)
    for i in (0, COARSE.tokens, length - 1):
        for j in range(length):
            allowed = j <= i and row.segment[j] in (0, row.segment[i])
            assert bool(mask[i, j]) == allowed
    assert rows.weight[1, len(short.ids) :].sum() == 0
    assert rows.mask[1, 0].any(-1).all()  # a padding row must see something, or softmax gives NaN
