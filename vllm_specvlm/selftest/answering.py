"""An engine that answers some questions: what the self-test starts in a process of its own.

Run as `python -m vllm_specvlm.selftest.answering REQUEST RESULT`: two JSON files, `Request` and `Answers` below.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

MODEL_LENGTH = 2048
KV_BYTES = 512 << 20
LIKELY = 20
"""Tokens whose log-probabilities are kept at every position."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to ask. `speculative` is vLLM's speculative_config, None for plain decoding."""

    target: str
    dtype: str
    eager: bool
    questions: int
    max_tokens: int
    speculative: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
    """Greedy answers, all asked at once and then one by one, as token ids.

    `likely` holds per answer and position the likeliest tokens' log-probabilities, of plain engines only. `ways` are
    the ways in which tree rows were attended, `trees` and `accepted` count trees and the drafted tokens accepted.
    """

    tokens: list[list[int]]
    likely: list[list[dict[str, float]]]
    ways: list[str]
    trees: int
    accepted: int
    failures: int


def answer(request: Request) -> Answers:
    """Start the engine and ask it."""
    from vllm import LLM, SamplingParams

    from vllm_specvlm import zoo

    speculation = {} if request.speculative is None else {"speculative_config": request.speculative}
    engine = LLM(
        model=request.target,
        dtype=request.dtype,
        enforce_eager=request.eager,
        max_model_len=MODEL_LENGTH,
        max_num_seqs=8,
        kv_cache_memory_bytes=KV_BYTES,
        limit_mm_per_prompt={"image": 1},
        seed=0,
        **speculation,
    )
    plain = request.speculative is None
    params = SamplingParams(temperature=0.0, max_tokens=request.max_tokens, logprobs=LIKELY if plain else None)
    chats = [
        [
            {
                "role": "user",
                "content": [{"type": "image_pil", "image_pil": p.picture}, {"type": "text", "text": p.question}],
            }
        ]
        for p in zoo.prompts(request.questions, seed=11)
    ]
    outputs = list(engine.chat(chats, params, use_tqdm=False))
    for chat in chats:
        outputs += engine.chat(chat, params, use_tqdm=False)
    found = [output.outputs[0] for output in outputs]
    likely = [
        [{str(token): value.logprob for token, value in at.items()} for at in one.logprobs or ()] for one in found
    ]
    tally = {} if plain else engine.collective_rpc("specvlm_tally")[0]
    return Answers(
        tokens=[list(one.token_ids) for one in found],
        likely=likely,
        ways=[] if plain else engine.collective_rpc("specvlm_attention")[0],
        trees=tally.get("trees", 0),
        accepted=tally.get("accepted", 0),
        failures=tally.get("drafter_failures", 0),
    )


def main(request_path: str, result_path: str) -> None:
    """Read a request, answer it in this process, write the result."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    request = Request(**json.loads(Path(request_path).read_text()))
    Path(result_path).write_text(json.dumps(dataclasses.asdict(answer(request))))


if __name__ == "__main__":
    main(*sys.argv[1:3])
