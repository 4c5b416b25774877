"""Both checkpoints load in transformers, see their picture, and the draft speaks like the target."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vllm_specvlm import zoo
from vllm_specvlm.zoo import evaluate, parts
from vllm_specvlm.zoo.language_model import IM_END, IMAGE_TOKEN_ID
from vllm_specvlm.zoo.vision import VISUAL_TOKENS, pixels

TWO_LEVELS = 2 / 255 * 2  # two grey levels, after normalisation to [-1, 1]: resizers round differently


@pytest.fixture(scope="module")
def target(pair: zoo.ReferencePair) -> evaluate.Speaker:
    return evaluate.Speaker(pair.target)


@pytest.fixture(scope="module")
def draft(pair: zoo.ReferencePair) -> evaluate.Speaker:
    return evaluate.Speaker(pair.draft)


def test_processor_gives_the_pixels_the_towers_were_trained_on(draft: evaluate.Speaker) -> None:
    prompt = zoo.prompts(1, seed=0)[0]
    made = draft.inputs([prompt.question], [prompt.picture])
    assert (made["pixel_values"][0].float() - pixels(prompt.picture)).abs().max() <= TWO_LEVELS
    assert int((made["input_ids"] == IMAGE_TOKEN_ID).sum()) == VISUAL_TOKENS


def test_both_models_read_a_prompt_alike(target: evaluate.Speaker, draft: evaluate.Speaker) -> None:
    """Speculation needs the same tokens, placeholders and pixels from both processors."""
    prompt = zoo.prompts(1, seed=1)[0]
    one, two = (speaker.inputs([prompt.question], [prompt.picture]) for speaker in (target, draft))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["pixel_values"], two["pixel_values"])


@pytest.mark.parametrize("which", ["target", "draft"])
def test_the_answer_depends_on_the_picture(which: str, request: pytest.FixtureRequest) -> None:
    speaker: evaluate.Speaker = request.getfixturevalue(which)
    asked = [prompt for prompt in zoo.prompts(24, seed=2) if prompt.kind == "describe"][:5]
    right = wrong = 0.0
    for index, prompt in enumerate(asked):
        answer = [*speaker.processor.tokenizer(prompt.answer).input_ids, IM_END]
        other = asked[(index + 1) % len(asked)].picture
        for picture in (prompt.picture, other):
            nats = F.cross_entropy(speaker.logits(prompt.question, picture, answer), torch.tensor(answer)).item()
            if picture is prompt.picture:
                right += nats
            else:
                wrong += nats
    assert right < 0.5 * wrong


def test_the_sample_is_described(target: evaluate.Speaker) -> None:
    from PIL import Image

    with Image.open(zoo.sample_picture()) as picture:
        (said,) = target.answers([zoo.sample_question()], [picture.convert("RGB")])
    assert said[-1] == IM_END
    assert len(said) > 30


def _recorded() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((parts.FOLDER / "evaluation.json").read_text())
    return report


def test_recorded_figures_are_those_of_a_usable_pair() -> None:
    report = _recorded()
    right, wrong = report["target"]["right_picture"], report["target"]["wrong_picture"]
    assert right["facts"] > 0.65 > 0.3 > wrong["facts"]
    assert report["nll"]["right_picture"] < 0.5 * report["nll"]["wrong_picture"]
    seeing, blind = (report["acceptance"][key] for key in ("all", "all_with_wrong_picture_for_draft"))
    assert 1 + evaluate.CHAIN >= seeing["tokens_per_cycle"] > blind["tokens_per_cycle"] + 0.5


@pytest.mark.slow
def test_recorded_figures_can_be_had_again(pair: zoo.ReferencePair) -> None:
    """A smaller sample; five points of slack."""
    report, recorded = evaluate.evaluate(pair, count=48, seed=5), _recorded()
    assert report["target"]["right_picture"]["facts"] > recorded["target"]["right_picture"]["facts"] - 0.05
    measured = report["acceptance"]["all"]["tokens_per_cycle"]
    assert abs(measured - recorded["acceptance"]["all"]["tokens_per_cycle"]) < 0.5


def test_parts_are_small_and_what_the_provenance_says() -> None:
    import hashlib

    assert sum(path.stat().st_size for path in parts.FOLDER.iterdir()) < 20e6
    provenance = json.loads((parts.FOLDER / "provenance.json").read_text())
    for name, digest in provenance["parts_sha256"].items():
        assert hashlib.sha256(parts.path(name).read_bytes()).hexdigest() == digest
