"""One engine, one picture, one question, several runs: what `specvlm demo` starts in a process of its own.

Run as `python -m vllm_specvlm.cli.measurement REQUEST RESULT`: two JSON files, `Request` and `Measurement` below, or an
object whose `problem` says why the draft does not fit the target.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

MODEL_LENGTH = 2048  # tokens: a picture, a question and an answer
# The same fixed KV memory for both engines, in bytes: neither may profit from what the other left of the machine.
KV_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True)
class Request:
    """What to measure. `speculative` is vLLM's speculative_config, None for plain decoding."""

    target: str
    picture: str
    prompt: str
    dtype: str
    max_tokens: int
    runs: int
    speculative: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The answer and its speed: medians over the runs.

    tokens_per_s counts from the first to the last token, so that the time of the picture and the prompt is not in it;
    first_token_s is that time; total_s is the whole request. acceptance_length is tokens per verification step, the
    bonus token counted: 1.0 when nothing was drafted. rates are the tokens_per_s of the single runs.
    """

    text: str
    token_ids: list[int]
    tokens_per_s: float
    first_token_s: float
    total_s: float
    acceptance_length: float
    drafts: int
    rates: list[float]


def _counters(engine: Any) -> tuple[int, int]:
    values = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return (
        int(values.get("vllm:spec_decode_num_drafts", 0)),
        int(values.get("vllm:spec_decode_num_accepted_tokens", 0)),
    )


def measure(request: Request) -> Measurement:
    """Start the engine, warm it up with one run, and measure `request.runs` more.

    Eager, one request at a time, no prefix cache (every run does the same work).
    """
    from PIL import Image
    from vllm import LLM, SamplingParams

    speculation = {} if request.speculative is None else {"speculative_config": request.speculative}
    engine = LLM(
        model=request.target,
        dtype=request.dtype,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=MODEL_LENGTH,
        max_num_seqs=1,
        kv_cache_memory_bytes=KV_BYTES,
        limit_mm_per_prompt={"image": 1},
        disable_log_stats=False,
        seed=0,
        **speculation,
    )
    with Image.open(request.picture) as file:
        picture = file.convert("RGB")
    content = [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": request.prompt}]
    sampling = SamplingParams(temperature=0.0, max_tokens=request.max_tokens)

    rates: list[float] = []
    first: list[float] = []
    total: list[float] = []
    drafts = accepted = 0
    for run in range(request.runs + 1):
        if run == 1:  # run 0 was the warm-up
            drafts, accepted = _counters(engine)
        started = time.perf_counter()
        (output,) = engine.chat([{"role": "user", "content": content}], sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        if run == 0:
            continue
        stats = output.metrics
        decoding = stats.last_token_ts - stats.first_token_ts
        rates.append((len(output.outputs[0].token_ids) - 1) / decoding if decoding > 0 else 0.0)
        first.append(stats.first_token_latency)
        total.append(seconds)
    last_drafts, last_accepted = _counters(engine)
    drafts, accepted = last_drafts - drafts, last_accepted - accepted
    answer = output.outputs[0]
    return Measurement(
        text=answer.text,
        token_ids=list(answer.token_ids),
        tokens_per_s=statistics.median(rates),
        first_token_s=statistics.median(first),
        total_s=statistics.median(total),
        acceptance_length=1 + accepted / drafts if drafts else 1.0,
        drafts=drafts,
        rates=rates,
    )


def main(request_path: str, result_path: str) -> None:
    """Read a request, measure it in this process, write the result."""
    # The engine inside this process: it computes with all threads, and there is no other process to wait for.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    request = Request(**json.loads(Path(request_path).read_text()))
    problem = _problem(request)
    result = {"problem": problem} if problem else dataclasses.asdict(measure(request))
    Path(result_path).write_text(json.dumps(result))


def _problem(request: Request) -> str | None:
    """Why the draft does not fit, before the models are loaded."""
    draft = (request.speculative or {}).get("model")
    if draft is None:
        return None
    from vllm_specvlm.engine import compat_pair

    blind = bool((request.speculative or {}).get("text_only_draft"))
    return next(iter(compat_pair.check(request.target, draft, text_only_draft=blind)), None)


if __name__ == "__main__":
    main(*sys.argv[1:3])
