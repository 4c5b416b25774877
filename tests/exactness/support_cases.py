"""The cases whose outcome is the README's table of what is supported: families, drafters, features, ways."""

from __future__ import annotations

from typing import Any

from tests.exactness.pairs import core_of, pairwise_cases
from tests.tiny.families import FAMILIES

VIDEO = ", videos"
SCENARIOS: dict[str, dict[str, Any]] = {
    "prefix hit": {},
    "chunked prefill": {"max_num_batched_tokens": 40, "max_num_seqs": 3},
    "preemption": {"num_gpu_blocks_override": 17, "max_num_seqs": 7},
    "multi-turn": {},
    "mixed batch": {},
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "min_p": 0.02, "seed": 7, "n": 2},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    "restricted": {
        "logit_bias": {token: -3.0 if token % 2 else 1.0 for token in range(40, 200)},
        "allowed_token_ids": list(range(20, 420)),
        "bad_words": [" e", "n"],
        "min_tokens": 9,
    },
    "grammar": {},
    "log-probs": {"logprobs": 2},
    "stops": {"ignore_eos": False, "stop": ["th"], "stop_token_ids": list(range(100, 140)), "min_tokens": 3},
}
AXES = {
    "family": [*FAMILIES, *(name + VIDEO for name, facts in FAMILIES.items() if facts.video is not None)],
    "drafter": ["draft VLM", "draft VLM, other vocabulary", "feature head", "early exit", "lookup"],
    "sampling": list(SAMPLING),
    "scenario": list(SCENARIOS),
}
CASES = pairwise_cases(AXES)
# The families have cases of their own that always run: `test_identity`, `test_videos`.
CORE = core_of(CASES, [1, 2, 3])
