"""Pictures whose ranges hold separators: what a compressor leaves stands in places of visual tokens, and nowhere else.

Idefics3, SmolVLM, InternVL and Mistral 3 put ids of tiles, rows and edges among a picture's visual tokens. For a draft
VLM these stay text between the few tokens that are left; a head's few tokens stand for the whole range. LLaVA-NeXT and
LLaVA-OneVision have separators that are visual tokens themselves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM

from tests.exactness.engines import SCENARIOS, engine, runner, tally, target_of
from tests.exactness.plain_pass import Reference, check, pictures_by_hash, recorded
from tests.exactness.test_early_exit import Said, listen, pictures
from tests.exactness.test_identity import plain, play
from tests.tiny.heads import build_head
from tests.tiny.sizes import TARGET
from vllm_specvlm.compress.compressor import Compressor, CompressorConfig, build
from vllm_specvlm.draft import picture_compressor
from vllm_specvlm.engine.draft_vision import left_out
from vllm_specvlm.engine.draft_vlm import DraftVLM

SCENARIO = SCENARIOS[1]
SEPARATED = ("idefics3", "smolvlm", "internvl", "mistral3")


def slow(*values: Any) -> Any:
    """The same road as another case, in another family."""
    return pytest.param(*values, marks=pytest.mark.slow)


BY_COST = ["idefics3", slow("smolvlm"), slow("internvl"), "mistral3", slow("llava_next"), slow("llava_onevision")]


def pool(ratio: float) -> Compressor:
    return build(CompressorConfig("pool", ratio=ratio), TARGET.hidden).eval()


def with_compressor(family: str, compressor: Compressor, folder: Path) -> LLM:
    """The target drafts for itself, and reads pictures as the compressor leaves them."""
    shutil.copytree(target_of(family), folder)
    picture_compressor.save(folder, compressor, TARGET.hidden)
    return engine(
        target_of(family),
        {"model": str(folder), "num_speculative_tokens": 4, "tree": "chain"},
        **SCENARIO.options,
    )


@pytest.mark.parametrize("family", BY_COST)
def test_a_draft_that_leaves_all_is_always_right(family: str, tmp_path: Path) -> None:
    """Means of one token each, put where the tokens were."""
    llm = with_compressor(family, pool(1), tmp_path / "draft")
    assert play(llm, SCENARIO, family) == plain(family, SCENARIO)
    counted = tally(llm)
    assert counted["compressions"]["pool"] > 5
    assert counted["accepted"] == counted["nodes"] > 50


class _Last:
    """What `Reference.features` asks a head for: the last layer."""

    feature_layers = ()

    @property
    def config(self) -> _Last:
        return self


def expected(reference: Reference, compressor: Compressor, said: Said, images: dict[str, Any]) -> torch.Tensor:
    """float32 [vocabulary]: of one pass over the text, without the visual tokens that are left out."""
    reference.features(said.text, [images[name] for name in said.shown])
    embedded, kept = reference.embedded.clone(), torch.ones(len(said.text), dtype=torch.bool)
    for place in said.places:
        marks = torch.ones(place.length, dtype=torch.bool) if place.is_embed is None else place.is_embed
        at = place.offset + marks.nonzero().flatten()
        few = compressor(embedded[at], embedded.new_zeros(embedded.shape[-1])).tokens
        embedded[at[: len(few)]] = few
        kept[at[len(few) :]] = False
    positions = kept.nonzero().flatten()
    hidden = reference.model.get_decoder()(
        inputs_embeds=embedded[kept][None],
        position_ids=positions[None],
        attention_mask=torch.ones(1, len(positions)).long(),
        use_cache=False,
    ).last_hidden_state[0, -1]
    found: torch.Tensor = reference.model.lm_head(hidden)
    return found


@pytest.mark.parametrize("family", BY_COST)
def test_engine_and_plain_pass_agree(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = pool(4)
    llm = with_compressor(family, compressor, tmp_path / "draft")
    images = pictures(llm, family)
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, DraftVLM)
    with monkeypatch.context() as patch:
        heard = listen(drafter, patch)
        assert play(llm, SCENARIO, family) == plain(family, SCENARIO)
    assert tally(llm)["drafter_failures"] == 0
    places = [place for each in heard for place in each.places]
    assert {place.is_embed is not None for place in places} == {family in SEPARATED}
    reference = Reference(family, _Last())  # type: ignore[arg-type]
    chosen = heard[:: max(1, len(heard) // 40)]
    assert len(chosen) > 30 and any(each.shown for each in chosen)
    with torch.inference_mode():
        for each in chosen:
            wanted = expected(reference, compressor, each, images)
            torch.testing.assert_close(each.logits, wanted, atol=2e-3, rtol=1e-3)


def test_control_separators_that_are_left_out_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done before: the first places of the range, whatever they hold, and no separators."""
    compressor = pool(4)
    llm = with_compressor("idefics3", compressor, tmp_path / "draft")
    images = pictures(llm, "idefics3")
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, DraftVLM)

    def all_behind(request: str) -> list[tuple[int, int]]:
        places = [feature.mm_position for feature in runner(llm).requests[request].mm_features]
        return [(left_out(at, -(-at.get_num_embeds() // 4))[0][0], at.offset + at.length) for at in places]

    with monkeypatch.context() as patch:
        patch.setattr(drafter, "_dropped", all_behind)
        heard = listen(drafter, patch)
        assert play(llm, SCENARIO, "idefics3") == plain("idefics3", SCENARIO), "a wrong draft never changes answers"
    reference = Reference("idefics3", _Last())  # type: ignore[arg-type]
    shown = next(each for each in heard if each.shown)
    with torch.inference_mode(), pytest.raises(AssertionError):
        wanted = expected(reference, compressor, shown, images)
        torch.testing.assert_close(shown.logits, wanted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", BY_COST)
def test_a_heads_few_tokens_stand_for_the_range(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = build_head(family, CompressorConfig("pool", ratio=4))
    speculative = {"model": str(head), "num_speculative_tokens": 4, "tree": "chain"}
    llm = engine(target_of(family), speculative, **SCENARIO.options)
    images = pictures_by_hash(llm, family)
    with recorded(llm, monkeypatch) as recorder:
        assert play(llm, SCENARIO, family) == plain(family, SCENARIO)
    assert tally(llm)["drafter_failures"] == 0
    assert check(recorder, family, images) > 40


def test_a_tower_with_deeper_features_is_refused(tmp_path: Path) -> None:
    """Qwen3-VL: its visual tokens carry more than the decoder's first layer reads."""
    with pytest.raises(ValueError, match="give a draft without its folder 'compressor'"):
        with_compressor("qwen3_vl", pool(4), tmp_path / "draft")
