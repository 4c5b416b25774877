"""Grammars of reasoning models: they begin where the thoughts end, wherever in a tree that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.parser.engine.adapters import ParserEngineReasoningAdapter
from vllm.parser.engine.parser_engine import ReasoningEnd
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.sampling_params import StructuredOutputsParams

from tests.exactness.engines import answers, engine, tally, target_of, tokens
from tests.exactness.test_grammars import BACKENDS, knowing, under
from tests.tiny.prompts import prompts

# What ends a thought, by the tests below; vLLM builds a parser per request.
_END: list[int] = []


class _Thinking(ReasoningParser):
    """Thoughts end with the first token of `_END`."""

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        return False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        return _END[0] in delta_ids

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        return []

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        return None, model_output

    def extract_reasoning_streaming(self, *args: Any, **kwargs: Any) -> None:
        return None


class _ThinkingInPairs(_Thinking):
    """Thoughts end with both tokens of `_END`, which may come in one step or in two."""

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        return list(input_ids[-2:]) == _END


class _ThinkingEndsInContent(ParserEngineReasoningAdapter):
    """Thoughts end with a token that is already part of the answer, as with a tool call."""

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        ReasoningParser.__init__(self, tokenizer)

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        return False

    is_reasoning_end_streaming = _Thinking.is_reasoning_end_streaming
    reasoning_start_str = reasoning_end_str = None

    @property
    def reasoning_end_token_ids(self) -> frozenset[int]:
        return frozenset(_END[:1])

    def find_reasoning_end(self, token_ids: Sequence[int]) -> ReasoningEnd | None:
        return ReasoningEnd(list(token_ids).index(_END[0]), True) if _END[0] in token_ids else None


@pytest.mark.parametrize("parser", [_Thinking, _ThinkingInPairs, _ThinkingEndsInContent], ids=lambda p: p.__name__[1:])
@pytest.mark.parametrize("backend", BACKENDS)
def test_thoughts_are_free(backend: str, parser: type[ReasoningParser], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reasoning model's grammar begins where its thoughts end, which may be anywhere in a tree."""
    name = parser.__name__
    ReasoningParserManager.register_module(name, module=parser)
    options = {**under(backend), "reasoning_parser": name}
    target, batch = target_of("llava"), prompts("llava")
    free = tokens(answers(engine(target), batch))
    # Most answers come upon it sooner or later, and an answer may begin with it.
    letters = {i for i in range(512) if engine(target).get_tokenizer().decode([i]).isalpha()}
    common = max(letters, key=lambda token: sum(token in answer[4:] for answer in free))
    pairs = [pair for answer in free for pair in pairwise(answer[4:])]
    _END[:] = max(pairs, key=pairs.count) if parser is _ThinkingInPairs else [common]

    def params() -> SamplingParams:
        regex = StructuredOutputsParams(regex="[a-zA-Z]{2,}(-[a-z]{3,5})+!")
        return SamplingParams(temperature=0.0, max_tokens=60, structured_outputs=regex)

    reference = answers(engine(target, **options), batch, params())
    free = tokens(answers(engine(target), batch, SamplingParams(temperature=0.0, max_tokens=60)))
    said = tokens(reference)
    assert any(a != b and a[:4] == b[:4] for a, b in zip(said, free, strict=True)), "no grammar after a thought"
    llm = knowing(reference, monkeypatch, **options)
    before = tally(llm)["accepted"]
    assert tokens(answers(llm, batch, params())) == said
    assert tally(llm)["accepted"] > before + 60
