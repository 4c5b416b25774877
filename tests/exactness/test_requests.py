"""Requests of every kind beside each other: features decoded plainly, aborts, crowds, evicted pictures."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

import pytest
from vllm import LLM, RequestOutput, SamplingParams
from vllm.logprobs import Logprob
from vllm.sampling_params import StructuredOutputsParams

from tests.exactness.engines import GREEDY, answers, engine, runner, tally, target_of, tokens
from tests.tiny.checkpoints import build
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.engine.tree_sampler import TreeSampler

PATH_FEATURES: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.8},
    {"presence_penalty": 0.8},
    {"bad_words": ["replaced by words of the answers"]},
    {"bad_words": ["replaced by stretches of the answers"], "presence_penalty": 0.0},
    {"min_tokens": 12, "stop_token_ids": list(range(100, 400))},
    {"logprobs": 2},
    {"logprobs": 0},
    {"allowed_token_ids": list(range(40, 300))},
    {"repetition_penalty": 1.1, "frequency_penalty": 0.3, "min_tokens": 5, "logprobs": 3},
    {"logit_bias": {token: 2.0 if token % 2 else -9.0 for token in range(40, 300)}},
    {"logit_bias": {80: 3.0, 81: -50.0, 313: -8.0}, "presence_penalty": 0.8, "logprobs": 2},
)
PLAIN_FEATURES: tuple[dict[str, Any], ...] = ({"logprob_token_ids": [40, 41, 42]}, {"logprob_token_ids": [40]})


@pytest.fixture(scope="module")
def engines() -> tuple[LLM, LLM]:
    target = target_of("llava")
    return engine(target), engine(target, {"model": str(target), "num_speculative_tokens": 10})


def same_logprobs(ours: RequestOutput, reference: RequestOutput) -> None:
    """Token for token the same candidates, ranks and (nearly) the same log-probabilities (of a masked token: -inf)."""
    found, wanted = ours.outputs[0].logprobs, reference.outputs[0].logprobs
    assert (found is None) == (wanted is None)
    for a, b in zip(found or (), wanted or (), strict=True):
        same_candidates(a, b)


def same_candidates(a: Mapping[int, Logprob], b: Mapping[int, Logprob]) -> None:
    """Of one place."""
    assert a.keys() == b.keys()
    assert all(a[k].rank == b[k].rank and isclose(a[k].logprob, b[k].logprob, rel_tol=0, abs_tol=1e-4) for k in a)


@pytest.mark.parametrize("feature", PATH_FEATURES, ids=lambda f: " ".join(f))
def test_features_of_the_path(feature: dict[str, Any], engines: tuple[LLM, LLM]) -> None:
    """Each node sees its own path as history: answers are plain vLLM's, and trees are accepted."""
    plain, ours = engines
    batch = prompts("llava")
    free = tokens(answers(plain, batch))
    if "bad_words" in feature:
        # Of a stretch the last token is forbidden behind the others, which lie on the path.
        long = 3 if "stretches" in feature["bad_words"][0] else 1
        words = [plain.get_tokenizer().decode(list(a[i : i + long])) for a in free for i in range(0, 12 * long, long)]
        feature = {"bad_words": [word for word in words if long > 1 or word.isalpha()]}
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, **feature)
    before = tally(ours)["accepted"]
    reference, outputs = answers(plain, batch, params), answers(ours, batch, params)
    assert tokens(outputs) == tokens(reference)
    for a, b in zip(outputs, reference, strict=True):
        same_logprobs(a, b)
    assert tally(ours)["accepted"] > before + 20
    if not feature.keys() & {"logprobs", "min_tokens"}:
        assert tokens(reference) != free, "the feature changed nothing"


HISTORIES: tuple[dict[str, Any], ...] = ({"repetition_penalty": 1.3}, {"bad_words": ["stretches"]})


@pytest.mark.parametrize("feature", HISTORIES, ids=lambda f: " ".join(f))
def test_nodes_that_see_the_root_s_history_are_noticed(
    feature: dict[str, Any], engines: tuple[LLM, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    stock = TreeSampler._paths
    monkeypatch.setattr(TreeSampler, "_paths", lambda *given: (found := stock(*given))[:1] * len(found))
    with pytest.raises(AssertionError, match="=="):
        test_features_of_the_path(feature, engines)


def test_features_beside_each_other(engines: tuple[LLM, LLM]) -> None:
    """One batch, every request with another feature or none."""
    plain, ours = engines
    grammar = {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{4,20}"), "logprobs": 1}
    features = [*PATH_FEATURES, grammar, {"min_p": 0.1}, {}]
    params = [SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, **feature) for feature in features]
    batch = (prompts("llava") * 3)[: len(params)]
    reference, outputs = answers(plain, batch, params), answers(ours, batch, params)
    assert tokens(outputs) == tokens(reference)
    for a, b in zip(outputs, reference, strict=True):
        same_logprobs(a, b)


@pytest.mark.parametrize("feature", PATH_FEATURES, ids=lambda f: " ".join(f))
def test_sampled_features_do_not_depend_on_the_tree(feature: dict[str, Any], engines: tuple[LLM, LLM]) -> None:
    """With a seed, the draft's trees and lookup's give one text: every node had the right history."""
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=40, ignore_eos=True, **feature)
    lookup = engine(target_of("llava"), {"num_speculative_tokens": 1, "lookup_min_match": 16})
    assert tokens(answers(engines[1], prompts("llava"), params)) == tokens(answers(lookup, prompts("llava"), params))


@pytest.mark.parametrize("feature", PLAIN_FEATURES, ids=lambda f: " ".join(f))
def test_unsupported_features_are_decoded_plainly(feature: dict[str, Any], engines: tuple[LLM, LLM]) -> None:
    """The request that uses the feature gets plain vLLM's answer, and its neighbours keep their trees."""
    plain, ours = engines
    batch = prompts("llava")
    featured = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, **feature)
    params = [featured, *([GREEDY] * (len(batch) - 1))]
    before = tally(ours)["accepted"]
    reference, outputs = answers(plain, batch, params), answers(ours, batch, params)
    assert tokens(outputs) == tokens(reference)
    for a, b in zip(outputs, reference, strict=True):
        same_logprobs(a, b)
    assert tally(ours)["accepted"] > before + 50


@pytest.mark.parametrize("chunked", [False, True], ids=["whole prompts", "in chunks beside trees"])
def test_prompt_logprobs(chunked: bool, engines: tuple[LLM, LLM]) -> None:
    """Value for value; in chunks they come in steps in which neighbours' trees are verified."""
    plain, ours = engines
    batch = prompts("llava")
    if chunked:
        options = {"max_num_batched_tokens": 40, "max_num_seqs": 3, "enable_prefix_caching": False}
        speculative = {"model": str(target_of("llava")), "num_speculative_tokens": 8}
        plain, ours = engine(target_of("llava"), **options), engine(target_of("llava"), speculative, **options)
    params = [
        SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, prompt_logprobs=2 if i % 2 else None)
        for i in range(len(batch))
    ]
    before = tally(ours)
    reference, outputs = answers(plain, batch, params), answers(ours, batch, params)
    assert tally(ours)["accepted"] > before["accepted"] + 20
    assert tokens(outputs) == tokens(reference)
    asked = 0
    for found, wanted in zip(outputs, reference, strict=True):
        assert (found.prompt_logprobs is None) == (wanted.prompt_logprobs is None)
        for a, b in zip(found.prompt_logprobs or (), wanted.prompt_logprobs or (), strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                same_candidates(a, b)
                asked += 1
    assert asked > 50


def test_seeded_requests_in_prompt_chunks() -> None:
    """vLLM's clean-up of a seeded request whose prompt comes in chunks fails on the CPU; ours must not get there."""
    target = target_of("llava")
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=20, ignore_eos=True)
    options = {"max_num_batched_tokens": 40, "max_num_seqs": 3}
    speculative = {"model": str(target), "num_speculative_tokens": 8}
    chunked = tokens(answers(engine(target, speculative, **options), prompts("llava"), params))
    assert chunked == tokens(answers(engine(target, {}), prompts("llava"), params))


def test_log_probs_of_given_tokens_beside_a_seeded_neighbour(engines: tuple[LLM, LLM]) -> None:
    """The neighbour's text is its seed's, whoever stands beside it."""
    _, ours = engines
    batch = prompts("llava")[:2]
    seeded = SamplingParams(temperature=1.0, seed=7, max_tokens=20, ignore_eos=True, logprobs=1)
    given = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprob_token_ids=[40, 41])
    alone = answers(ours, batch, [seeded, GREEDY])[0]
    beside = answers(ours, batch, [seeded, given])[0]
    assert tokens([beside]) == tokens([alone])
    for a, b in zip(beside.outputs[0].logprobs or (), alone.outputs[0].logprobs or (), strict=True):
        token = next(iter(b))
        assert abs(a[token].logprob - b[token].logprob) < 1e-4


def test_several_answers_to_one_prompt(engines: tuple[LLM, LLM]) -> None:
    """Each is the answer to its own seed, which vLLM counts up from the request's."""
    _, ours = engines
    batch = prompts("llava")[:2]
    kept: dict[str, Any] = {"temperature": 1.0, "max_tokens": 20, "ignore_eos": True}
    first, second = (answers(ours, batch, SamplingParams(n=3, seed=5, **kept)) for _ in range(2))
    alone = [tokens(answers(ours, batch, SamplingParams(seed=5 + i, **kept))) for i in range(3)]
    for prompt, (a, b) in enumerate(zip(first, second, strict=True)):
        texts = [tuple(o.token_ids) for o in a.outputs]
        assert texts == [tuple(o.token_ids) for o in b.outputs] == [said[prompt] for said in alone]
        assert len(set(texts)) == 3


def test_aborted_requests_leave_the_others_alone(engines: tuple[LLM, LLM]) -> None:
    plain, ours = engines
    batch = prompts("llava")
    reference = tokens(answers(plain, batch))
    finished: dict[str, tuple[int, ...]] = {}
    core = ours.llm_engine
    for i, prompt in enumerate(batch):
        core.add_request(f"abort-test-{i}", prompt.request(), GREEDY)
    steps = 0
    while core.has_unfinished_requests():
        for output in core.step():
            if output.finished:
                finished[output.request_id] = tuple(output.outputs[0].token_ids)
        steps += 1
        if steps == 3:
            core.abort_request(["abort-test-1", "abort-test-4"])
    kept = [i for i in range(len(batch)) if i not in (1, 4)]
    assert [finished[f"abort-test-{i}"] for i in kept] == [reference[i] for i in kept]
    ours.generate([prompts("llava")[0].request()], GREEDY, use_tqdm=False)
    speculator = runner(ours).drafter
    kept_by = (speculator._text._told, speculator._eligible._plain, speculator._model._fed, speculator._model._holes)
    for notes in (*kept_by, runner(ours).tree_sampler._seeds):
        assert not any(request_id.startswith("abort-test") for request_id in notes), "aborted ids are kept"


def test_a_crowd_with_repeated_pictures() -> None:
    """More than 64 requests at once over few pictures, half of them repeated."""
    target, draft = target_of("llava"), build("llava", seed=7, size=DRAFT)
    options = {"max_num_seqs": 96, "kv_cache_memory_bytes": 192 << 20}
    batch = prompts("llava") * 14
    reference = tokens(answers(engine(target, **options), batch))
    ours = engine(target, {"model": str(draft), "num_speculative_tokens": 8}, **options)
    assert tokens(answers(ours, batch)) == reference
    assert runner(ours).drafter.tally.trees > 98


def test_pictures_evicted_from_the_drafts_cache() -> None:
    """A cache too small for one picture: every one is encoded again when it is needed, and none is missed."""
    target = target_of("llava")
    speculative = {"model": str(target), "num_speculative_tokens": 4, "tree": "chain", "vision_cache_mib": 0}
    llm = engine(target, speculative, max_num_batched_tokens=40, max_num_seqs=3)
    before = tally(llm)
    reference = tokens(answers(engine(target, max_num_batched_tokens=40, max_num_seqs=3), prompts("llava") * 2))
    assert tokens(answers(llm, prompts("llava") * 2)) == reference
    after = tally(llm)
    assert after["accepted"] - before["accepted"] == after["nodes"] - before["nodes"] > 50
    assert not runner(llm).drafter._model._vision._cache


def test_text_only_draft_goes_blind_but_stays_exact() -> None:
    target, draft = target_of("llava"), build("llava", text_only=True, seed=7)
    speculative = {"model": str(draft), "num_speculative_tokens": 8, "text_only_draft": True}
    ours = engine(target, speculative)
    assert tokens(answers(ours, prompts("llava"))) == tokens(answers(engine(target), prompts("llava")))
    assert tally(ours)["trees"] > 0


@pytest.mark.parametrize("speculative", [{"tree": "chain"}, {"paths": [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]}])
def test_chain_and_fixed_tree(speculative: dict[str, Any], engines: tuple[LLM, LLM]) -> None:
    target = target_of("llava")
    ours = engine(target, {"model": str(target), **speculative})
    assert tokens(answers(ours, prompts("llava"))) == tokens(answers(engines[0], prompts("llava")))
    counted = tally(ours)
    assert counted["accepted"] > counted["trees"]


def test_shared_lookup() -> None:
    """Other requests' answers help the second time, and change nothing."""
    target = target_of("llava")
    ours = engine(target, {"lookup_shared_tokens": 4096, "num_speculative_tokens": 6})
    reference = tokens(answers(engine(target), prompts("llava")))
    accepted = []
    for _ in range(2):
        before = tally(ours)["accepted"]
        assert tokens(answers(ours, prompts("llava"))) == reference
        accepted.append(tally(ours)["accepted"] - before)
    assert accepted[1] > accepted[0]
