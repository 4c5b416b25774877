from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, MinPLogitsProcessor

from tests.engine.test_sampling import metadata
from vllm_specvlm.engine.draft_choice import DraftChoice, Place
from vllm_specvlm.engine.sampling import target_tokens

VOCAB = 300
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.6},
    {"temperature": 1.0, "top_k": 100, "top_p": 0.8},
    {"temperature": 1.2, "min_p": 0.1},
    {"temperature": 0.9, "min_p": 0.001, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.05, "top_k": 6, "top_p": 0.9},
]


@dataclass
class Batch:
    """One request per entry of `params`, with `text` confirmed tokens each."""

    params: list[SamplingParams]
    text: int = 10
    kv_cache_config: Any = None
    max_model_len: int = 512
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        count = len(self.params)
        self.requests = {str(i): SimpleNamespace(sampling_params=p) for i, p in enumerate(self.params)}
        self.input_batch = SimpleNamespace(
            req_id_to_index={str(i): i for i in range(count)},
            num_tokens_no_spec=np.full(count, self.text),
            token_ids_cpu=np.zeros((count, 64), dtype=np.int32),
        )
        self.tree_sampler = SimpleNamespace(seed=lambda request_id: 1000 + int(request_id))


def target(logits: torch.Tensor, params: SamplingParams, places: list[Place], seed_shift: int = 0) -> list[int]:
    """The tokens that the target draws at these places, from these logits."""
    one = metadata([params.temperature])
    if params.top_k > 0:
        one.top_k = torch.tensor([params.top_k])
    if params.top_p < 1:
        one.top_p = torch.tensor([params.top_p])
    min_p = MinPLogitsProcessor(SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4)), "cpu", False)
    min_p.update_state(BatchUpdate(batch_size=1, removed=(), added=[(0, params, None, [])], moved=()))
    one.logitsprocs = LogitsProcessors([min_p])
    seeds = torch.tensor([1000 + int(request_id) + seed_shift for request_id, _ in places])
    positions = torch.tensor([position for _, position in places])
    return target_tokens(logits, torch.zeros(len(places), dtype=torch.int64), one, seeds, positions).tolist()


def peaked(rows: int) -> torch.Tensor:
    """Logits whose 64 best tokens hold nearly all of the law."""
    return 7 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_first_candidate_is_the_targets_token_if_the_laws_agree(setting: dict[str, Any]) -> None:
    params = SamplingParams(**setting)
    places = [(str(row % 4), row) for row in range(400)]
    logits = peaked(400)
    found = DraftChoice(Batch([params] * 4)).candidates(logits, places, 3)
    assert found.tokens[:, 0].tolist() == target(logits, params, places)
    assert len(set(found.tokens[:, 0])) > 50
    for wrong in ([(r, p + 1) for r, p in places], [(str((int(r) + 1) % 4), p) for r, p in places]):
        control = np.array(target(logits, params, wrong)) == found.tokens[:, 0]
        assert control.mean() < 0.9, "noise of another position or request is told apart"


def test_greedy_rows_get_the_likeliest_whatever_their_neighbours() -> None:
    params = [SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)]
    logits = peaked(20)
    places = [(str(row % 2), row) for row in range(20)]
    found = DraftChoice(Batch(params)).candidates(logits, places, 4)
    likely = logits[::2].log_softmax(-1).topk(4)
    assert found.tokens[::2].tolist() == likely.indices.tolist()
    assert np.allclose(found.log_probs[::2], likely.values, atol=1e-5)
    alone = DraftChoice(Batch(params)).candidates(logits[1::2], places[1::2], 4)
    assert found.tokens[1::2].tolist() == alone.tokens.tolist()
    assert np.array_equal(found.log_probs[1::2], alone.log_probs)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_rows_are_descending_log_probabilities(setting: dict[str, Any]) -> None:
    places = [("0", row) for row in range(50)]
    found = DraftChoice(Batch([SamplingParams(**setting)])).candidates(peaked(50), places, 8)
    assert found.log_probs.dtype == np.float32 and found.tokens.shape == (50, 8)
    assert (np.diff(found.log_probs[np.isfinite(found.log_probs).all(1)], axis=1) <= 0).all()
    assert (np.exp(found.log_probs).sum(1) < 1 + 1e-5).all()
    assert all(len(set(row)) == 8 for row in found.tokens.tolist())


def test_what_top_k_excludes_is_no_candidate() -> None:
    params = SamplingParams(temperature=1.0, top_k=3)
    found = DraftChoice(Batch([params])).candidates(peaked(9), [("0", row) for row in range(9)], 5)
    assert np.isfinite(found.log_probs[:, :3]).all()
    assert np.isneginf(found.log_probs[:, 3:]).all()


def test_a_vocabulary_smaller_than_the_candidates() -> None:
    found = DraftChoice(Batch([SamplingParams()])).candidates(torch.randn(2, 5), [("0", 3), ("0", 4)], 8)
    assert found.tokens.shape == (2, 5)
    assert sorted(found.tokens[0].tolist()) == list(range(5))


def test_more_children_than_candidates() -> None:
    found = DraftChoice(Batch([SamplingParams()])).candidates(peaked(1), [("0", 3)], 100)
    assert found.tokens.shape == (1, 100)


def test_the_draft_is_measured_by_the_tokens_drawn_behind_the_confirmed_text(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=1.0)
    batch = Batch([params])
    choice = DraftChoice(batch)
    learned: list[int] = []
    monkeypatch.setattr(choice._calibration, "learn", lambda logits, noise, drawn: learned.append(drawn))
    choice.candidates(peaked(3), [("0", 10), ("0", 11), ("0", 12)], 2)
    choice.learn()
    assert not learned  # nothing was drawn yet
    found = choice.candidates(peaked(1), [("0", 10)], 2)
    batch.input_batch.token_ids_cpu[0, 10:13] = (int(found.tokens[0, 0]), 1, 2)
    batch.input_batch.num_tokens_no_spec[0] = 13
    choice.learn()
    assert len(learned) == 1
    choice.learn()
    assert len(learned) == 1  # once each
    choice.candidates(peaked(1), [("0", 13)], 2)
    batch.input_batch.req_id_to_index.clear()  # the request ended
    choice.learn()
    assert len(learned) == 1


def test_a_flat_draft_of_a_sharp_target_learns_to_mind_the_noise_less() -> None:
    params = SamplingParams(temperature=0.7)
    batch = Batch([params], text=0)
    choice = DraftChoice(batch)
    sharp = peaked(400)
    rough = torch.randn(400, VOCAB, generator=torch.Generator().manual_seed(1))
    hits = []
    for row in range(400):
        place, position = ("0", row % 60), row % 60
        batch.input_batch.num_tokens_no_spec[0] = position
        found = choice.candidates(sharp[row : row + 1] / 3 + rough[row : row + 1], [place], 1)
        (drawn,) = target(sharp[row : row + 1], params, [place])
        hits.append(int(found.tokens[0, 0]) == drawn)
        batch.input_batch.token_ids_cpu[0, position] = drawn
        batch.input_batch.num_tokens_no_spec[0] = position + 1
        choice.learn()
    assert choice._calibration.belief.trust < 1.0
    assert sum(hits[200:]) > 20
