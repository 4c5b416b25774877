"""Every family with every drafter, every sampling feature and every way through the engine, two by two.

Each case is one of a covering array (`pairs`): any two values of different axes meet in at least one of them. Answers
of greedy requests are plain vLLM's, token for token; sampled ones are those of their seeds without a tree, and their
law is plain vLLM's. `--support FILE` notes what came out, for the README.

All other combinations run with `-m nightly`, or a family's by hand (`all_pairs`).
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, RequestOutput, SamplingParams

from tests.exactness.engines import (
    answers,
    count_preemptions,
    engine,
    preemptions,
    tally,
    target_of,
    tokens,
)
from tests.exactness.grammars import grammar
from tests.exactness.pairs import Case, pairs_of
from tests.exactness.support_cases import AXES, CASES, CORE, SAMPLING, SCENARIOS, VIDEO
from tests.exactness.test_requests import same_logprobs
from tests.exactness.test_sampling import p_value
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import Prompt, clips, prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.compress.compressor import CompressorConfig


def test_every_two_values_meet() -> None:
    met = set().union(*(pairs_of(case) for case in CASES))
    assert len(met) == sum(len(a) * len(b) for at, a in enumerate(AXES.values()) for b in list(AXES.values())[at + 1 :])
    assert len(CASES) == len(AXES["family"]) * len(AXES["sampling"]), "more cases than two axes alone need"


def speculative(family: str, drafter: str) -> dict[str, Any]:
    folders: dict[str, Callable[[], Path]] = {
        "draft VLM": lambda: build(family, seed=7, size=DRAFT, vocab_padding=64),
        "the target, other vocabulary": lambda: build(family, tokenizer="renumbered"),
        "draft VLM, other vocabulary": lambda: build(family, seed=7, size=DRAFT, tokenizer="other"),
        "feature head": lambda: build_head(family, CompressorConfig(kind="pool", ratio=4)),
        "early exit": lambda: build_exit(family),
    }
    model = {"model": str(folders[drafter]())} if drafter in folders else {}
    return {**model, "token_map": drafter.endswith("other vocabulary"), "num_speculative_tokens": 12}


def asked(family: str, videos: bool, scenario: str) -> list[Prompt]:
    batch = clips(family) if videos else prompts(family)
    return batch * 2 if scenario == "preemption" else batch


def parameters(sampling: str, scenario: str, count: int, **changes: Any) -> list[SamplingParams]:
    """Every request's. In a mixed batch every third one is greedy; who is to be preempted has to last."""
    spared = {"mixed batch": 3, "preemption": 2 if sampling in ("stops", "grammar") else None}.get(scenario)
    length = 90 if scenario == "preemption" else 36
    found = []
    for at in range(count):
        feature: dict[str, Any] = {}
        if spared is None or at % spared != 1:
            feature = (
                {"structured_outputs": grammar("open regex" if at % 2 else "regex")}
                if sampling == "grammar"
                else SAMPLING[sampling]
            )
        found.append(
            SamplingParams(**{"temperature": 0.0, "max_tokens": length, "ignore_eos": True, **feature, **changes})
        )
    return found


def play(llm: LLM, batch: Sequence[Prompt], scenario: str, params: Sequence[SamplingParams]) -> list[RequestOutput]:
    """All answers of all rounds."""
    count_preemptions(llm)
    said: list[RequestOutput] = []
    rounds = {"prefix hit": 2, "multi-turn": 2}.get(scenario, 1)
    for _ in range(rounds):
        outputs = answers(llm, batch, list(params))
        said += outputs
        if scenario == "multi-turn":
            batch = [p.follow_up(o.outputs[0].text, "go on") for p, o in zip(batch, outputs, strict=True)]
    assert (preemptions(llm) > 0) == (scenario == "preemption")
    if rounds > 1:
        assert sum(output.num_cached_tokens or 0 for output in said[len(said) // 2 :]) > 0, "nothing was cached"
    return said


def texts(outputs: Sequence[RequestOutput]) -> list[list[tuple[int, ...]]]:
    """Of all of a request's answers."""
    return [[tuple(answer.token_ids) for answer in output.outputs] for output in outputs]


def law(llm: LLM, prompt: Prompt) -> Counter[tuple[int, ...]]:
    """How often each three-token answer comes, in 400."""
    torch.manual_seed(0)  # plain vLLM draws from it
    params = SamplingParams(temperature=2.0, top_k=4, max_tokens=3, ignore_eos=True)
    return Counter(tokens(answers(llm, [prompt] * 400, params)))


def marked(case: Case) -> Any:
    marks = [pytest.mark.support(**dict(zip(AXES, case, strict=True)))]
    if case not in CORE:
        marks.append(pytest.mark.slow)
    return pytest.param(*case, marks=marks, id="-".join(case))


# Cases of the same engines lie beside each other.
@pytest.mark.parametrize(tuple(AXES), [marked(case) for case in sorted(CASES)])
def test_pair(family: str, drafter: str, sampling: str, scenario: str) -> None:
    compare(family, drafter, sampling, scenario)


@pytest.mark.nightly
@pytest.mark.parametrize("family", AXES["family"])
def test_all_other_cases(family: str) -> None:
    """Of every combination those that the covering array leaves out; in a process of its own, since engines stay."""
    command = [sys.executable, "-m", "tests.exactness.all_pairs", family]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def watched(
    llm: LLM, drafter: str, batch: Sequence[Prompt], sampling: str, scenario: str
) -> tuple[list[RequestOutput], int]:
    """All answers of a case, and how many drafted tokens were accepted; trees there must be."""
    before = tally(llm)
    said = play(llm, batch, scenario, parameters(sampling, scenario, len(batch)))
    after = tally(llm)
    assert after["drafter_failures"] == 0
    if drafter != "lookup":  # which finds little to look up in sampled texts
        assert after["trees"] - before["trees"] > 10
    return said, after["accepted"] - before["accepted"]


def compare(family: str, drafter: str, sampling: str, scenario: str) -> None:
    """One case."""
    videos = family.endswith(VIDEO)
    family = family.removesuffix(VIDEO)
    options = {
        "limit_mm_per_prompt": {"image": 1, "video": 1} if videos else {"image": 2},
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "kv_cache_memory_bytes": 24 << 20,
        **SCENARIOS[scenario],
    }
    plain = engine(target_of(family), **options)
    ours = engine(target_of(family), speculative(family, drafter), **options)
    batch = asked(family, videos, scenario)
    said, accepted = watched(ours, drafter, batch, sampling, scenario)
    if drafter.endswith("other vocabulary") and not accepted:
        # Random weights that lack tokens may never be right by chance; the target's own under other ids have to be.
        drafter = "the target, other vocabulary"
        ours = engine(target_of(family), speculative(family, drafter), **options)
        again, accepted = watched(ours, drafter, batch, sampling, scenario)
        assert texts(again) == texts(said)
    # Under a grammar the draft guesses badly, and stops leave it little to guess; sampled texts hardly repeat.
    spared = ("grammar", "stops", "sampled") if drafter == "lookup" else ("grammar", "stops")
    assert accepted or sampling in spared, "no draft was accepted"
    if sampling == "sampled":
        assert ours.reset_prefix_cache()
        off = parameters(sampling, scenario, len(batch), extra_args={"specvlm": "off"})
        assert texts(said) == texts(play(ours, batch, scenario, off))
        assert len({text for both in texts(said) for text in both}) > len({prompt.name for prompt in batch})
        assert p_value(law(ours, batch[1]), law(plain, batch[1])) > 1e-4
        return
    reference = play(plain, batch, scenario, parameters(sampling, scenario, len(batch)))
    assert texts(said) == texts(reference)
    for a, b in zip(said, reference, strict=True):
        same_logprobs(a, b)
