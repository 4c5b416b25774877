"""A drafter that fails costs speed, never an answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.exactness.engines import answers, engine, runner, tally, target_of, tokens
from tests.tiny.prompts import prompts


class _Broken:
    """A drafter whose named method raises from its n-th call on."""

    def __init__(self, drafter: Any, method: str, calls: int) -> None:
        self._drafter, self._method, self._left = drafter, method, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._drafter, name)
        if name != self._method:
            return found

        def failing(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise RuntimeError("injected")
            return found(*args, **kwargs)

        return failing


@pytest.mark.parametrize("method", ["begin", "advance", "open", "propose_level", "finish"])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_drafter_that_raises_is_switched_off(method: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of("llava")
    batch = prompts("llava") * 2
    reference = tokens(answers(engine(target), batch))
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 7})
    speculator = runner(llm).drafter
    # `setattr` remembers what stands there now, so that the next test finds the drafter whole.
    monkeypatch.setattr(speculator, "_model", speculator._model)
    monkeypatch.setattr(speculator, "_drafter", _Broken(speculator._drafter, method, calls))
    before = tally(llm)["drafter_failures"]
    assert tokens(answers(llm, batch)) == reference
    assert tokens(answers(llm, batch)) == reference, "after the failure"
    assert tally(llm)["drafter_failures"] == before + 1


def test_a_vision_tower_that_raises_leaves_the_draft_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of("llava")
    reference = tokens(answers(engine(target), prompts("llava")))
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 5})

    def fail(**pixels: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(runner(llm).drafter._model._vision, "_encode", fail)
    monkeypatch.setattr(runner(llm).drafter._model._vision, "_cache", type(runner(llm).drafter._model._vision._cache)())
    before = tally(llm)
    assert tokens(answers(llm, prompts("llava"))) == reference
    after = tally(llm)
    assert after["drafter_failures"] == before["drafter_failures"]
    assert after["trees"] > before["trees"]
