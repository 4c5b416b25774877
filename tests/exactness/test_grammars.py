"""Structured output on trees: answers are plain vLLM's under the same grammar, and drafts are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams

from tests.exactness.engines import (
    SCENARIOS,
    Scenario,
    answers,
    count_preemptions,
    engine,
    preemptions,
    runner,
    tally,
    target_of,
    tokens,
)
from tests.exactness.grammars import KINDS, grammar
from tests.exactness.oracle import OracleDrafter
from tests.exactness.test_identity import ORACLE_SHAPE
from tests.exactness.test_plans import with_random_plans
from tests.exactness.test_requests import same_logprobs
from tests.tiny.prompts import prompts
from vllm_specvlm.engine.dictated_text import DictatedText
from vllm_specvlm.engine.tree_grammars import TreeGrammars

BATCH = SCENARIOS[0]
BACKENDS = ("xgrammar", "guidance")


def under(backend: str) -> dict[str, Any]:
    """The engine's options: left to itself, a random model fills its JSON with blanks."""
    return {"structured_outputs_config": {"backend": backend, "disable_any_whitespace": backend != "outlines"}}


def mixed(backend: str, count: int, **changes: Any) -> list[SamplingParams]:
    """Parameters of a batch: every request with another grammar, every fourth with none."""
    kinds: list[str | None] = [*KINDS[:3], None, *KINDS[3:]]
    return [
        SamplingParams(
            **{"temperature": 0.0, "max_tokens": 40, "ignore_eos": True, **changes},
            structured_outputs=None if kind is None else grammar(kind, backend),
        )
        for kind, _ in zip(kinds * count, range(count), strict=False)
    ]


def knowing(reference: Sequence[RequestOutput], monkeypatch: pytest.MonkeyPatch, **options: Any) -> LLM:
    """A speculative engine whose drafter knows these answers and surrounds them with wrong ones."""
    known = {tuple(o.prompt_token_ids or ()): tuple(o.outputs[0].token_ids) for o in reference}
    llm = engine(target_of("llava"), {"num_speculative_tokens": 12}, **options)
    speculator = runner(llm).drafter
    monkeypatch.setattr(speculator, "_drafter", OracleDrafter(known, 500))
    monkeypatch.setattr(speculator, "shape", ORACLE_SHAPE)
    monkeypatch.setattr(speculator._text, "_told", {})
    return llm


def accepted_by(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Drafted tokens accepted per request from now on."""
    counted: dict[str, int] = {}
    speculator = runner(llm).drafter
    stock = speculator.observe_accepted

    def observe(places: Any, accepted: Any) -> None:
        ids = runner(llm).input_batch.req_ids
        for place in places:
            name = ids[place.request]
            counted[name] = counted.get(name, 0) + len(accepted[place.request].path)
        stock(places, accepted)

    monkeypatch.setattr(speculator, "observe_accepted", observe)
    return counted


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_grammars_beside_each_other(backend: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch, every request with another grammar or none, through every way a request can take."""
    options = {**scenario.options, **under(backend)}
    batch = prompts("llava") * scenario.copies

    def play(llm: LLM) -> list[RequestOutput]:
        count_preemptions(llm)
        said: list[RequestOutput] = []
        for _ in range(scenario.rounds):
            said += answers(llm, batch, mixed(backend, len(batch), max_tokens=scenario.max_tokens))
        assert (preemptions(llm) > 0) == (scenario.name == "preemption")
        return said

    reference = play(engine(target_of("llava"), **options))
    free = tokens(answers(engine(target_of("llava"), **options), batch, scenario.params()))
    llm = knowing(reference, monkeypatch, **options)
    before, counted = tally(llm), accepted_by(llm, monkeypatch)
    outputs = play(llm)
    after = tally(llm)
    assert tokens(outputs) == tokens(reference)
    assert [o.outputs[0].finish_reason for o in outputs] == [o.outputs[0].finish_reason for o in reference]
    assert after["accepted"] - before["accepted"] > after["trees"] - before["trees"] > 20
    constrained = [i for i, params in enumerate(mixed(backend, len(batch))) if params.structured_outputs is not None]
    # Two prompts differ only in their pictures; the drafter knows the second one's answer for both.
    constrained = [i for i in constrained if i % len(prompts("llava")) != 1]
    assert all(counted[_internal(counted, outputs[i])] > 0 for i in constrained), f"no draft accepted: {counted}"
    assert all(tokens(reference)[i] != free[i] for i in constrained), "a grammar changed nothing"


def _internal(counted: dict[str, int], output: RequestOutput) -> str:
    """The id under which the engine core knows a request: the user's, and a random part."""
    return next(name for name in counted if name.split("-")[0] == output.request_id)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_of_a_model(backend: str, kind: str) -> None:
    """The draft knows no grammar; what it says is filtered. Answers end where the grammar does."""
    target = target_of("llava")
    options = under(backend)
    speculative = {"model": str(target), "num_speculative_tokens": 10}
    batch = prompts("llava")

    def params() -> SamplingParams:
        return SamplingParams(temperature=0.0, max_tokens=48, structured_outputs=grammar(kind, backend))

    reference, ours = answers(engine(target, **options), batch, params()), engine(target, speculative, **options)
    before = tally(ours)
    outputs = answers(ours, batch, params())
    after = tally(ours)
    assert tokens(outputs) == tokens(reference)
    assert [o.outputs[0].finish_reason for o in outputs] == [o.outputs[0].finish_reason for o in reference]
    if kind in ("regex", "choice"):
        assert {o.outputs[0].finish_reason for o in outputs} == {"stop"}
    if kind in ("regex", "grammar", "open regex"):
        assert after["accepted"] - before["accepted"] > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_grammar_forbids_is_never_verified(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every drafted node is either forbidden, and counted, or verified, and so is what was dictated; what is verified
    are the grammar's letters."""
    target = target_of("llava")
    ours = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **under(backend))
    manager: TreeGrammars = ours.llm_engine.engine_core.engine_core.structured_output_manager
    speculator, drafted, verified = runner(ours).drafter, [0], list[str]()
    draft, observe = speculator.draft, speculator.observe_accepted

    def drafts(*arguments: Any) -> dict[str, list[int]]:
        codes = draft(*arguments)
        drafted[0] += sum(code >= 0 for each in codes.values() for code in each)
        return codes

    def observed(places: Any, accepted: Any) -> None:
        verified.extend(ours.get_tokenizer().decode([token]) for place in places for token in place.tree.tokens)
        observe(places, accepted)

    monkeypatch.setattr(speculator, "draft", drafts)
    monkeypatch.setattr(speculator, "observe_accepted", observed)
    before = manager.forbidden - manager.dictated
    params = SamplingParams(temperature=0.0, max_tokens=40, structured_outputs=grammar("open regex", backend))
    answers(ours, prompts("llava"), params)
    forbidden = manager.forbidden - manager.dictated - before
    assert forbidden > 50 and len(verified) > 50 and forbidden + len(verified) == drafted[0]
    assert set("".join(verified)) <= set("abcdefghijklmnopqrstuvwxyz ")


def manager_of(llm: LLM) -> TreeGrammars:
    manager: TreeGrammars = llm.llm_engine.engine_core.engine_core.structured_output_manager
    return manager


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_plans_under_grammars(backend: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees for some, for all, for nobody: what grammars dictate is verified in any case, and answers are plain's."""
    target, batch = target_of("llava"), prompts("llava") * scenario.copies
    options = {**scenario.options, **under(backend)}

    def play(llm: LLM) -> list[RequestOutput]:
        params = mixed(backend, len(batch), max_tokens=scenario.max_tokens, ignore_eos=False)
        return [output for _ in range(scenario.rounds) for output in answers(llm, batch, params)]

    reference = play(engine(target, **options))
    ours = engine(target, {"model": str(target), "num_speculative_tokens": 12, "planner": True}, **options)
    planner = with_random_plans(ours, 5, monkeypatch)
    before, dictated = tally(ours), manager_of(ours).dictated
    outputs = play(ours)
    after = tally(ours)
    assert tokens(outputs) == tokens(reference)
    assert [o.outputs[0].finish_reason for o in outputs] == [o.outputs[0].finish_reason for o in reference]
    assert len(set(planner.plans)) > 2 and after["drafter_failures"] == 0
    assert manager_of(ours).dictated > dictated + 20
    assert after["accepted"] > before["accepted"] + 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dictated_comes_at_once(backend: str) -> None:
    """With a drafter that knows nothing, names and brackets of JSON still come several a step; sampled ones too."""
    plain, options = engine(target_of("llava"), **under(backend)), {"lookup_min_match": 16, "planner": False}
    ours = engine(target_of("llava"), {"num_speculative_tokens": 12, **options}, **under(backend))
    batch = prompts("llava")

    def params(**more: Any) -> SamplingParams:
        return SamplingParams(
            **{"temperature": 0.0, **more}, max_tokens=40, structured_outputs=grammar("json", backend)
        )

    before = tally(ours)
    outputs = answers(ours, batch, params())
    after = tally(ours)
    assert tokens(outputs) == tokens(answers(plain, batch, params()))
    assert after["accepted"] - before["accepted"] > 3 * len(batch)
    sampled = tokens(answers(ours, batch, params(temperature=0.8, seed=3)))
    assert tally(ours)["accepted"] > after["accepted"] + 3 * len(batch)
    off = {"extra_args": {"specvlm": "off"}}
    before = tally(ours)
    assert sampled == tokens(answers(ours, batch, params(temperature=0.8, seed=3, **off)))
    assert tally(ours)["trees"] == before["trees"], "who wants no tree gets none"


def test_control_what_is_dictated_wrongly_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token too many at each place: the target decides, not the grammar's reader."""
    options, batch = under("xgrammar"), prompts("llava")
    ours = engine(target_of("llava"), {"num_speculative_tokens": 12, "lookup_min_match": 16}, **options)

    def params() -> SamplingParams:
        return SamplingParams(temperature=0.0, max_tokens=40, structured_outputs=grammar("open regex"))

    reference = tokens(answers(engine(target_of("llava"), **options), batch, params()))
    letters = [i for i in range(512) if (text := ours.get_tokenizer().decode([i])).isalpha() and text.islower()]
    monkeypatch.setattr(DictatedText, "after", lambda self, grammar, most: letters[7 : 7 + most])
    before = tally(ours)
    assert tokens(answers(ours, batch, params())) == reference
    after = tally(ours)
    nodes = after["nodes"] - before["nodes"]
    assert nodes > 100 and after["accepted"] - before["accepted"] < nodes / 20


def test_a_backend_of_another_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outlines keeps its own state, and forgets it in its own way."""
    options = under("outlines")

    def params() -> list[SamplingParams]:
        kinds = ("json", "regex", "choice", "open regex", "regex", "choice", "json")
        return [SamplingParams(temperature=0.0, max_tokens=40, structured_outputs=grammar(kind)) for kind in kinds]

    reference = answers(engine(target_of("llava"), **options), prompts("llava"), params())
    llm = knowing(reference, monkeypatch, **options)
    before = tally(llm)["accepted"]
    assert tokens(answers(llm, prompts("llava"), params())) == tokens(reference)
    assert tally(llm)["accepted"] > before + 30


FEATURES: tuple[dict[str, Any], ...] = (
    {"logprobs": 3},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "logprobs": 1},
    {"min_tokens": 12},
    {"allowed_token_ids": list(range(2, 300))},
)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: " ".join(f))
def test_features_beside_grammars(feature: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties, log-probs and the like of the same request; a minimum length gives way where a grammar has ended."""
    batch = prompts("llava")
    plain = engine(target_of("llava"), **under("xgrammar"))
    reference = answers(plain, batch, mixed("xgrammar", len(batch), ignore_eos=False, **feature))
    llm = knowing(reference, monkeypatch, **under("xgrammar"))
    before = tally(llm)["accepted"]
    outputs = answers(llm, batch, mixed("xgrammar", len(batch), ignore_eos=False, **feature))
    assert tokens(outputs) == tokens(reference)
    for a, b in zip(outputs, reference, strict=True):
        same_logprobs(a, b)
    assert tally(llm)["accepted"] > before + 30


@pytest.mark.parametrize("seed", [None, 4])
def test_sampled_grammars_do_not_depend_on_the_tree(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft's trees, trees of somebody who knows the answer, and no trees at all: one text."""
    target, options = target_of("llava"), under("xgrammar")
    batch = prompts("llava")
    kept = {"temperature": 0.8, "top_p": 0.9, "ignore_eos": False}

    def params(**more: Any) -> list[SamplingParams]:
        made = mixed("xgrammar", len(batch), **kept, **more)
        for i, each in enumerate(made):
            each.seed = None if seed is None else seed + i
        return made

    def ask(llm: LLM, **more: Any) -> list[RequestOutput]:
        runner(llm).tree_sampler._admitted = 0  # unseeded requests draw by their running number
        # ... which must not depend on whose grammar is compiled first.
        monkeypatch.setattr(manager_of(llm), "_use_async_grammar_compilation", False)
        return answers(llm, batch, params(**more))

    drafted = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **options)
    without = ask(drafted, extra_args={"specvlm": "off"})
    assert tokens(ask(drafted)) == tokens(without)
    llm = knowing(without, monkeypatch, **options)
    before = tally(llm)["accepted"]
    assert tokens(ask(llm)) == tokens(without)
    assert tally(llm)["accepted"] > before + 30


def test_several_answers_under_a_grammar() -> None:
    target = target_of("llava")
    ours = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **under("xgrammar"))

    def params() -> SamplingParams:
        return SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=20, structured_outputs=grammar("regex"))

    first, second = (answers(ours, prompts("llava")[:2], params()) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        texts = [tuple(o.token_ids) for o in a.outputs]
        assert texts == [tuple(o.token_ids) for o in b.outputs] and len(set(texts)) == 3


def test_masks_shifted_by_a_row_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: each row with its neighbour's mask."""

    def shift(masks: np.ndarray) -> np.ndarray:
        return np.roll(masks, 1, axis=0)

    assert _with_other_masks(shift, monkeypatch) < 4


def test_the_roots_mask_everywhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: what vLLM would do if it took a tree for its root."""

    def first(masks: np.ndarray) -> np.ndarray:
        return np.repeat(masks[:1], len(masks), axis=0)

    assert _with_other_masks(first, monkeypatch) < 4


def _with_other_masks(change: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of four answers survive, one at a time, when a step's masks are changed."""
    batch = prompts("llava")[:4]

    def params() -> SamplingParams:
        return SamplingParams(temperature=0.0, max_tokens=40, structured_outputs=grammar("json"))

    reference = answers(engine(target_of("llava"), **under("xgrammar")), batch, params())
    llm = knowing(reference, monkeypatch, **under("xgrammar"))
    stock = TreeGrammars.grammar_bitmask
    assert tokens(answers(llm, batch, params())) == tokens(reference)

    def changed(self: TreeGrammars, *args: Any) -> Any:
        masks = stock(self, *args)
        return None if masks is None else change(masks.copy())

    monkeypatch.setattr(TreeGrammars, "grammar_bitmask", changed)
    said = [tokens(answers(llm, [prompt], params()))[0] for prompt in batch]
    return sum(a == b for a, b in zip(said, tokens(reference), strict=True))
