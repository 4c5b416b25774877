"""An engine in a process of its own, which works when it is asked and sleeps otherwise.

So that several engines can take turns in one benchmark (a slow minute of the machine then hits all of them) without
sharing an interpreter, whose garbage and imports would slow each other down.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A row of a table: its name and the speculative configuration, None for plain vLLM."""

    name: str
    speculative: dict[str, Any] | None


@dataclass(frozen=True)
class Question:
    """A prompt as `LLM.generate` takes it and how to answer it; `arrival_s` counts from the start of the round."""

    prompt: dict[str, Any]
    temperature: float
    max_tokens: int
    seed: int
    arrival_s: float = 0.0
    logprobs: int | None = None
    extra_args: dict[str, Any] | None = None
    features: dict[str, Any] = field(default_factory=dict)
    """More arguments of `SamplingParams`; `structured_outputs` has those of `StructuredOutputsParams`."""


@dataclass(frozen=True)
class Answer:
    """One answer. `tpot_ms` is the time per output token after the first, None for answers of one token."""

    token_ids: tuple[int, ...]
    ttft_ms: float
    tpot_ms: float | None
    checks: int
    """Steps in which the target checked drafts of this request."""
    accepted: int
    """Drafted tokens it accepted."""
    first_logprobs: dict[int, float]
    """The likeliest first tokens, if the question asks for them."""


@dataclass(frozen=True)
class Round:
    """All answers to some questions, in their order, and the time they took together."""

    seconds: float
    answers: tuple[Answer, ...]

    @property
    def tokens(self) -> int:
        """Tokens answered."""
        return sum(len(answer.token_ids) for answer in self.answers)


class Engine:
    """A vLLM engine in another process. Engines of one benchmark are asked one at a time."""

    def __init__(self, method: Method, settings: dict[str, Any]) -> None:
        """Start loading; `ready` waits. `settings` are arguments of `LLM` beside the speculative configuration."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.name = method.name
        self._process = context.Process(target=_serve, args=(theirs, method, settings), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the model is loaded. Raises EOFError if the engine died, after its own words on stderr."""
        self._pipe.recv()

    def ask(self, questions: Sequence[Question], concurrency: int) -> Round:
        """Answer the questions, at most `concurrency` at a time, each not before its arrival."""
        self._pipe.send(("ask", list(questions), concurrency))
        answered: Round = self._pipe.recv()
        return answered

    def tally(self) -> dict[str, Any] | None:
        """The plugin's counters since the engine started; None without the plugin."""
        self._pipe.send(("tally",))
        counted: dict[str, Any] | None = self._pipe.recv()
        return counted

    def call(self, method: str, *arguments: Any) -> Any:
        """What the first worker's method of that name returns."""
        self._pipe.send(("call", method, arguments))
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def start(methods: Sequence[Method], settings: dict[str, Any]) -> dict[str, Engine]:
    """Engines by name, loaded one after the other."""
    engines: dict[str, Engine] = {}
    for method in methods:
        engine = Engine(method, settings)
        engine.ready()
        engines[method.name] = engine
    return engines


def _serve(pipe: Any, method: Method, settings: dict[str, Any]) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine computes in this process, with all threads
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM

    llm = LLM(
        **settings,
        seed=0,
        disable_log_stats=False,
        per_request_spec_decode_metrics="none" if method.speculative is None else "summary",
        speculative_config=method.speculative,
    )
    pipe.send("ready")
    rounds = 0
    while True:
        try:
            order, *arguments = pipe.recv()
        except EOFError:
            return
        if order == "tally":
            ours = (method.speculative or {}).get("method") == "specvlm"
            pipe.send(llm.collective_rpc("specvlm_tally")[0] if ours else None)
        elif order == "call":
            pipe.send(llm.collective_rpc(arguments[0], args=arguments[1])[0])
        else:
            rounds += 1
            pipe.send(_answer(llm.llm_engine, rounds, *arguments))


def _answer(engine: Any, number: int, questions: Sequence[Question], concurrency: int) -> Round:
    """A closed loop of `concurrency` clients, who ask as soon as they are free and the question has arrived."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    waiting = deque(enumerate(questions))
    answers: dict[int, Answer] = {}
    running = 0
    started = time.perf_counter()
    while waiting or running:
        while waiting and running < concurrency and time.perf_counter() - started >= waiting[0][1].arrival_s:
            index, question = waiting.popleft()
            features = dict(question.features)
            if "structured_outputs" in features:
                features["structured_outputs"] = StructuredOutputsParams(**features["structured_outputs"])
            params = SamplingParams(
                temperature=question.temperature,
                max_tokens=question.max_tokens,
                seed=question.seed,
                logprobs=question.logprobs,
                extra_args=question.extra_args,
                **features,
            )
            engine.add_request(f"{number}-{index}", question.prompt, params)
            running += 1
        if not running:
            time.sleep(1e-3)
            continue
        for output in engine.step():
            if output.finished:
                running -= 1
                answers[int(output.request_id.split("-")[1])] = _measured(output)
    return Round(time.perf_counter() - started, tuple(answers[i] for i in range(len(questions))))


def _measured(output: Any) -> Answer:
    answer, stats = output.outputs[0], output.metrics
    count = len(answer.token_ids)
    histogram = () if answer.spec_decode_metrics is None else answer.spec_decode_metrics.histogram
    return Answer(
        token_ids=tuple(answer.token_ids),
        ttft_ms=1e3 * stats.first_token_latency,
        tpot_ms=1e3 * (stats.last_token_ts - stats.first_token_ts) / (count - 1) if count > 1 else None,
        checks=sum(histogram),
        accepted=sum(length * times for length, times in enumerate(histogram)),
        first_logprobs={token: found.logprob for token, found in answer.logprobs[0].items()} if answer.logprobs else {},
    )


def acceptance_length(rounds: Sequence[Round]) -> float:
    """Tokens per check, the target's own token counted; 1.0 without checks."""
    answers = [answer for answered in rounds for answer in answered.answers]
    checks = sum(answer.checks for answer in answers)
    return 1 + sum(answer.accepted for answer in answers) / checks if checks else 1.0


def median_tpot_ms(rounds: Sequence[Round]) -> float:
    """Over all answers of more than one token."""
    return statistics.median(a.tpot_ms for answered in rounds for a in answered.answers if a.tpot_ms is not None)
