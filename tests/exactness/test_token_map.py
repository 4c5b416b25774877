"""Drafts with another vocabulary: the answers stay the target's, token for token, and drafts are accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM, EngineArgs

from tests.exactness.engines import SCENARIOS, Scenario, engine, runner, tally, target_of
from tests.exactness.test_identity import plain, play
from tests.exactness.test_sampling import drafted
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.sizes import DRAFT
from vllm_specvlm.engine import draft_choice

CHUNKED = SCENARIOS[1]


def slow(*values: Any) -> Any:
    """The same road as another case, in another family or scenario."""
    return pytest.param(*values, marks=pytest.mark.slow)


def renumbered(family: str, scenario: Scenario) -> LLM:
    """The target drafts for itself under other ids."""
    draft = build(family, tokenizer="renumbered")
    speculative = {"model": str(draft), "token_map": True, "num_speculative_tokens": 4, "tree": "chain"}
    return engine(target_of(family), speculative, **scenario.options)


@pytest.mark.parametrize(
    ("family", "scenario"),
    [
        ("llava", CHUNKED),
        ("qwen2_5_vl", CHUNKED),
        *(slow("llava", SCENARIOS[at]) for at in (0, 2, 3, 4)),
        *(slow(family, CHUNKED) for family in ("idefics3", "internvl", "qwen3_vl", "llava_next", "mistral3")),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_targets_weights_under_other_ids_are_always_right(family: str, scenario: Scenario) -> None:
    llm = renumbered(family, scenario)
    before = tally(llm)
    assert play(llm, scenario, family) == plain(family, scenario)
    after = tally(llm)
    nodes = after["nodes"] - before["nodes"]
    assert after["accepted"] - before["accepted"] == nodes > 50


def test_control_a_wrong_map_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one token off: the answers stay, the acceptance does not."""
    llm = renumbered("llava", CHUNKED)
    drafter = runner(llm).drafter._model
    monkeypatch.setattr(drafter, "_ids", lambda tokens, ids=drafter._ids: ids(np.maximum(tokens - 1, 0)))
    drafter._cache.blocks.clear(range(runner(llm).kv_cache_config.num_blocks))
    before = tally(llm)
    assert play(llm, CHUNKED, "llava") == plain("llava", CHUNKED)
    after = tally(llm)
    assert after["accepted"] - before["accepted"] < (after["nodes"] - before["nodes"]) / 2


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "unseeded"])
def test_draws_are_foreseen(seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is that of the target's ids."""
    monkeypatch.setattr(draft_choice, "CANDIDATES", 1 << 20)
    llm = renumbered("llava", SCENARIOS[0])
    choice = runner(llm).drafter._model._choice
    monkeypatch.setattr(choice, "_calibration", type(choice._calibration)())
    nodes, accepted = drafted(llm, "llava", {"temperature": 1.0, "top_p": 0.9}, seeded)
    assert accepted == nodes > 50


@pytest.mark.parametrize("scenario", [CHUNKED, slow(SCENARIOS[2])], ids=lambda s: s.name)
@pytest.mark.parametrize("blind", [False, True], ids=["VLM", "text model"])
def test_a_draft_that_lacks_tokens(blind: bool, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = build("llava", seed=7, size=DRAFT, tokenizer="other", text_only=blind)
    speculative = {"model": str(draft), "token_map": True, "text_only_draft": blind, "num_speculative_tokens": 12}
    llm = engine(target_of("llava"), speculative, **scenario.options)
    drafter = runner(llm).drafter._model
    assert 100 < len(drafter._map.meant) < 500
    proposed: set[int] = set()
    candidates = drafter._choice.candidates

    def noted(*arguments: Any) -> Any:
        proposal = candidates(*arguments)
        proposed.update(proposal.tokens.ravel().tolist())
        return proposal

    monkeypatch.setattr(drafter._choice, "candidates", noted)
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    assert proposed and proposed <= set(drafter._map.meant.tolist())
    counted = tally(llm)
    assert counted["trees"] > 20 and counted["drafter_failures"] == 0


def refused(draft: Path | None, **options: Any) -> str:
    """What is said when an engine of the tiny LLaVA is configured with this draft."""
    model = {} if draft is None else {"model": str(draft)}
    given = {"method": "specvlm", **model, **options}
    with pytest.raises(ValueError) as caught:
        EngineArgs(model=str(target_of("llava")), speculative_config=given).create_engine_config()
    return str(caught.value)


def test_refusals() -> None:
    assert "or set 'token_map': true." in refused(build("llava", seed=3, tokenizer="other"))
    assert "has the target's tokenizer; leave 'token_map' out" in refused(build("llava", seed=3), token_map=True)
    assert "drafts in the target's own tokens" in refused(build_exit("llava"), token_map=True)
    assert "'token_map' is for a draft 'model'" in refused(None, token_map=True)
    assert "uses M-RoPE positions" in refused(build("qwen2_5_vl", seed=3), token_map=True)


def test_pictures_have_to_be_read_alike() -> None:
    """Tokens can be translated, tiles cannot."""
    assert re.search(r"gives a picture \d+ visual tokens", refused(build("idefics3", seed=3), token_map=True))
