"""Sampled answers follow the target's own law, and depend on the request's seed alone, not on the trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import LLM, SamplingParams

from tests.exactness.engines import answers, engine, runner, tally, target_of, tokens
from tests.tiny.prompts import prompts
from vllm_specvlm.engine import draft_choice

SAMPLES = 2048
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.15},
    {"temperature": 1.1, "min_p": 0.02, "top_p": 0.9},
)
# Biases, which the draft knows nothing of, change what is likely.
LAWS = (*SETTINGS[:-1], {"temperature": 1.0, "min_p": 0.05, "top_p": 0.9, "logit_bias": {80: 4.0, 300: 4.0}})
# Random weights give flat laws; with few prompts and a low temperature a handful of texts carries the mass.
PROMPT = 1


def sample(llm: LLM, setting: dict[str, Any], count: int = SAMPLES) -> Counter[tuple[int, ...]]:
    """How often each three-token answer came."""
    params = SamplingParams(max_tokens=3, ignore_eos=True, **setting)
    outputs = answers(llm, [prompts("llava")[PROMPT]] * count, params)
    return Counter(tokens(outputs))


def p_value(ours: Counter[tuple[int, ...]], theirs: Counter[tuple[int, ...]]) -> float:
    """Of a chi-square test that both samples have one law; rare answers are pooled by their first tokens' order."""
    keys = sorted(ours.keys() | theirs.keys())
    table: list[list[int]] = []
    pool = np.zeros(2, dtype=int)
    for key in keys:
        cell = np.array([ours[key], theirs[key]])
        pool += cell
        if pool.sum() >= 20:
            table.append(pool.tolist())
            pool = np.zeros(2, dtype=int)
    table[-1] = (np.array(table[-1]) + pool).tolist()
    assert len(table) > 5, "too few different answers to tell laws apart"
    counts = torch.tensor(table, dtype=torch.float64)
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(table) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


@pytest.fixture(scope="module")
def plain() -> LLM:
    return engine(target_of("llava"), max_num_seqs=64)


@pytest.fixture(scope="module")
def chain() -> LLM:
    """The draft is the target itself: its likeliest token is proposed first, so trees do get accepted."""
    speculative = {"model": str(target_of("llava")), "num_speculative_tokens": 12}
    return engine(target_of("llava"), speculative, max_num_seqs=64)


@pytest.mark.parametrize("setting", LAWS, ids=str)
def test_same_law_as_plain(setting: dict[str, Any], plain: LLM, chain: LLM) -> None:
    assert p_value(sample(chain, setting), sample(plain, setting)) > 1e-3


def test_the_test_can_fail(plain: LLM, chain: LLM) -> None:
    """Controls: another temperature is found out, and so is a `min_p` that somebody forgot."""
    assert p_value(sample(chain, {"temperature": 0.75}), sample(plain, {"temperature": 1.0})) < 1e-6
    assert p_value(sample(chain, {"temperature": 1.2}), sample(plain, {"temperature": 1.2, "min_p": 0.15})) < 1e-6


@pytest.mark.parametrize("setting", LAWS, ids=str)
def test_seeded_text_does_not_depend_on_the_tree(setting: dict[str, Any], chain: LLM) -> None:
    """With one seed, the big tree, lookup's trees and hardly any tree give one text."""

    def seeded(llm: LLM) -> Sequence[tuple[int, ...]]:
        batch = prompts("llava")
        params = [SamplingParams(max_tokens=40, ignore_eos=True, seed=i, **setting) for i in range(len(batch))]
        return tokens(answers(llm, batch, params))

    target = target_of("llava")
    reference = seeded(chain)
    assert len(set(reference)) == len(reference)
    assert seeded(engine(target, {})) == reference
    assert seeded(engine(target, {"num_speculative_tokens": 1, "lookup_min_match": 16})) == reference


FAMILIES = ("llava", "qwen2_5_vl")


def chain_of_its_own(family: str, monkeypatch: pytest.MonkeyPatch) -> LLM:
    """The target drafts for itself, in chains. Its flat laws need more candidates than those of trained models."""
    monkeypatch.setattr(draft_choice, "CANDIDATES", 1 << 20)
    target = target_of(family)
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"})
    choice = runner(llm).drafter._model._choice
    monkeypatch.setattr(choice, "_calibration", type(choice._calibration)())
    return llm


def drafted(llm: LLM, family: str, setting: dict[str, Any], seeded: bool) -> tuple[int, int]:
    """Drafted nodes and those accepted, over all prompts."""
    batch = prompts(family)
    before = tally(llm)
    params = [
        SamplingParams(max_tokens=40, ignore_eos=True, seed=i if seeded else None, **setting) for i in range(len(batch))
    ]
    answers(llm, batch, params)
    after = tally(llm)
    return after["nodes"] - before["nodes"], after["accepted"] - before["accepted"]


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "unseeded"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_draft_with_the_targets_weights_foresees_every_draw(
    family: str, setting: dict[str, Any], seeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for greedy requests: its law, its noise and its positions are the target's, so nothing is rejected."""
    nodes, accepted = drafted(chain_of_its_own(family, monkeypatch), family, setting, seeded)
    assert nodes > 50
    assert accepted == nodes, "a draft equal to its target was rejected"


@pytest.mark.parametrize("wrong", ["seed", "position"])
def test_control_wrong_noise_is_rejected(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = chain_of_its_own("llava", monkeypatch)
    choice = runner(llm).drafter._model._choice
    stock = choice._draw

    def shifted(request_id: str, position: int) -> Any:
        draw = stock(request_id, position)
        return replace(draw, **{wrong: getattr(draw, wrong) + 1})

    monkeypatch.setattr(choice, "_draw", shifted)
    nodes, accepted = drafted(llm, "llava", {"temperature": 1.0}, seeded=True)
    assert accepted < nodes / 2


def test_greedy_and_sampled_in_one_batch(plain: LLM, chain: LLM) -> None:
    """Greedy neighbours are untouched by sampled ones, and sampled ones repeat under their seed."""
    batch = prompts("llava")
    greedy = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    sampled = SamplingParams(temperature=1.0, seed=11, max_tokens=30, ignore_eos=True)
    mixed = [greedy if i % 2 else sampled for i in range(len(batch))]
    first, second = tokens(answers(chain, batch, mixed)), tokens(answers(chain, batch, mixed))
    alone = tokens(answers(plain, batch, greedy))
    assert first == second
    assert first[1::2] == alone[1::2]
    assert first[0::2] != alone[0::2]


def test_unseeded_requests_differ(chain: LLM) -> None:
    assert len(sample(chain, {"temperature": 1.0}, 64)) > 10


def test_no_probability_is_nan_without_top_k(chain: LLM) -> None:
    """Regression of a prototype's NaN at T=1 without top-k: every draw is a token, over many steps and pictures."""
    batch = prompts("llava") * 4
    params = SamplingParams(temperature=1.0, max_tokens=120, ignore_eos=True)
    vocabulary = chain.llm_engine.model_config.get_vocab_size()
    for text in tokens(answers(chain, batch, params)):
        assert len(text) == 120 and all(0 <= token < vocabulary for token in text)
