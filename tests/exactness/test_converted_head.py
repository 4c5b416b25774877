"""A converted ViSpec head computes in the engine, on prompts with pictures, what its published formula says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.exactness import plain_pass
from tests.exactness.engines import SCENARIOS, Scenario, engine, tally, target_of
from tests.exactness.plain_pass import Seen, pictures_by_hash, recorded
from tests.exactness.test_identity import plain, play
from tests.tiny.sizes import POSITIONS, TARGET
from tests.train.convert.checkpoints import LLAMA, Weights, vispec, write
from tests.train.convert.reference import Reference
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.train.convert import conversion
from vllm_specvlm.train.convert import target as targets
from vllm_specvlm.train.convert.parts import Wishes

QUERIES = 3


def published(family: str) -> tuple[Weights, dict[str, Any]]:
    """A ViSpec head of the tiny target with random weights, and its configuration."""
    weights = vispec(queries=QUERIES, hidden=TARGET.hidden, inner=TARGET.mlp)
    with safe_open(target_of(family) / "model.safetensors", framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith("embed_tokens.weight"))  # noqa: SIM118
        weights["embed_tokens.weight"] = file.get_tensor(name).float()
    sizes = {"hidden_size": TARGET.hidden, "intermediate_size": TARGET.mlp, "max_position_embeddings": POSITIONS}
    return weights, LLAMA | sizes | {"vocab_size": len(weights["embed_tokens.weight"])}


def converted(folder: Path, family: str) -> tuple[Path, Weights]:
    """The folder of the converted head, and what it was made of."""
    weights, config = published(family)
    source = write(folder / "source", weights, config)
    result = conversion.convert(source, Wishes(target=targets.of_folder(target_of(family))))
    head_checkpoint.save(folder / "head", result.head, result.target, result.provenance)
    return folder / "head", weights


def expected(seen: Seen, features: torch.Tensor, embedded: torch.Tensor, weights: Weights) -> torch.Tensor:
    """[hidden]: the head's state after `seen.text` and `seen.drafted` by the formula."""
    reference, root = Reference(weights, "layers.0"), len(seen.text) - 1
    # The drafter's spans are of slots, which stand one before the placeholders.
    pictures = [(start + 1, stop + 1, embedded[start + 1 : stop + 1]) for start, stop, _, _ in seen.pictures]
    said, vector = reference.vispec_prompt(features[:root], torch.tensor(seen.text), pictures)
    state = said[root - 1]
    for depth, token in enumerate(seen.drafted):
        state = reference.vispec(state[None], torch.tensor([token]), torch.tensor([root + depth]), vector)[0]
    return state


@pytest.mark.parametrize(
    ("family", "scenario"),
    [
        ("llava", SCENARIOS[1]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("qwen2_5_vl", SCENARIOS[0]),)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_engine_and_formula_agree(
    family: str, scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, weights = converted(tmp_path, family)
    options = {"model": str(head), "tree": "chain", "num_speculative_tokens": 4}
    llm = engine(target_of(family), options, **scenario.options)
    images = pictures_by_hash(llm, family)
    with recorded(llm, monkeypatch) as recorder:
        assert play(llm, scenario, family) == plain(family, scenario)
    counted = tally(llm)
    assert counted["drafter_failures"] == 0 and counted["compressions"]["adaptor"] > 0
    reference = plain_pass.Reference(family, recorder.drafter._network.head)
    some = recorder.seen[:: max(1, len(recorder.seen) // 40)]
    assert len(some) >= 40 and {len(seen.drafted) for seen in some} == {0, 1, 2, 3}
    differences = []
    for seen in some:
        features = reference.features(seen.text, [images[name] for name in seen.shown])
        with torch.inference_mode():
            state = expected(seen, features, reference.embedded, weights)
            torch.testing.assert_close(seen.logits, reference.model.lm_head(state)[: seen.logits.shape[-1]], **CLOSE)
            blind = expected(Seen(seen.text, seen.drafted, seen.visible, (), (), seen.logits), features, state, weights)
        differences += [float((blind - state).abs().max())] * bool(seen.pictures)
        assert seen.visible.tolist() == visible(seen).tolist()
    assert differences and min(differences) > 0.05, "pictures make no difference"


CLOSE = {"atol": 2e-3, "rtol": 1e-3}


def visible(seen: Seen) -> np.ndarray:
    """bool: all slots but those of pictures' that hold no token."""
    found = np.ones(len(seen.visible), dtype=bool)
    for start, stop, _, _ in seen.pictures:
        found[start : stop - (QUERIES - 1)] = False
    return found
