"""How much of a tree is accepted when answers are sampled: candidates by the draft's law alone, or coupled to the draw.

'top-k' proposes the draft's likeliest tokens, 'coupled' (what the plugin does) also minds the noise that the target
will draw with. Both sides run in one engine, and must give the same texts. No timings: acceptance lengths only, in
tokens per check, the target's own token counted. Besides the reference draft, the target drafts for itself, which
shows what a draft gains that knows its target better.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from machine import write_report

_SUBJECTS = """
the sea, a robot, winter, two friends, a lost dog, the moon, bread, an old house, music, a garden, rain, a train,
the king, a mountain, coffee, a school, birds, a market, fire, a letter, time, a river, stars, a secret, the city,
a doctor, a horse, paper, a bridge, snow, the desert, a clock
"""
_REQUESTS = ("Write a short story about {}.", "Explain to a child: {}.", "Give me three tips about {}.")


def free_text(target: str, count: int) -> list[dict[str, Any]]:
    """Prompts without pictures whose answers are not settled by the question, as `LLM.generate` takes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    subjects = " ".join(_SUBJECTS.split()).split(", ")
    asked = [request.format(subject) for subject in subjects for request in _REQUESTS][:count]
    turns = [[{"role": "user", "content": [{"type": "text", "text": question}]}] for question in asked]
    return [
        {"prompt": tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)} for turn in turns
    ]


class Bench:
    """One engine, and both ways to choose candidates."""

    def __init__(self, target: str, draft: str, shape: dict[str, Any]) -> None:
        """Load it, in this process."""
        from vllm import LLM

        self._llm = LLM(
            model=target,
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=16,
            kv_cache_memory_bytes=512 << 20,
            enable_prefix_caching=False,
            seed=0,
            speculative_config={"method": "specvlm", "model": draft, **shape},
        )
        engine: Any = self._llm.llm_engine.engine_core
        self._runner = engine.engine_core.model_executor.driver_worker.worker.model_runner

    def answer(
        self, drafting: str, prompts: Sequence[Any], temperature: float, max_tokens: int
    ) -> tuple[list[Any], float]:
        """The answers' tokens and the acceptance length; what was learned of earlier answers is forgotten."""
        from vllm import SamplingParams

        from vllm_specvlm.engine.draft_choice import DraftChoice

        class TopK(DraftChoice):
            """Takes every request for greedy: the draft's likeliest tokens."""

            def _draw(self, request_id: str, position: int) -> None:
                return None

        choice = {"top-k": TopK, "coupled": DraftChoice}[drafting]
        self._runner.drafter._model._choice = choice(self._runner)
        params = [
            SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed) for seed in range(len(prompts))
        ]
        before = self._tally()
        outputs = self._llm.generate(list(prompts), params, use_tqdm=False)
        trees, accepted = (after - earlier for after, earlier in zip(self._tally(), before, strict=True))
        return [output.outputs[0].token_ids for output in outputs], 1 + accepted / trees

    def _tally(self) -> tuple[int, int]:
        counted = self._llm.collective_rpc("specvlm_tally")[0]
        return counted["trees"], counted["accepted"]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.6])
    parser.add_argument("--prompts", type=int, default=48, help="of each kind, at most 96")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    arguments = parse(argv)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's objects are at hand in this process
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm_specvlm import zoo

    target, draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    kinds = {
        "pictures": held_out.prompts(arguments.target, arguments.prompts, seed=1),
        "free text": free_text(target, arguments.prompts),
    }
    shapes = {
        "chain-4": {"num_speculative_tokens": 4, "tree": "chain"},
        "tree-8": {"num_speculative_tokens": 8},
    }
    table: list[dict[str, Any]] = []
    benches = []  # kept: vLLM tears down its process groups when an engine goes, and they belong to all engines
    for drafter, folder, methods in (("draft", draft, ("chain-4", "tree-8")), ("target", target, ("chain-4",))):
        for method in methods:
            bench = Bench(target, folder, shapes[method])
            benches.append(bench)
            for kind, prompts in kinds.items():
                for temperature in arguments.temperature:
                    texts = []
                    for drafting in ("top-k", "coupled"):
                        said, length = bench.answer(drafting, prompts, temperature, arguments.max_tokens)
                        texts.append(said)
                        row = {
                            "questions": kind,
                            "temperature": temperature,
                            "drafter": drafter,
                            "method": method,
                            "drafting": drafting,
                            "acceptance_length": round(length, 3),
                            "answers": len(said),
                            "tokens": sum(map(len, said)),
                        }
                        table.append(row)
                        print(*row.values(), sep="\t", flush=True)
                    if texts[0] != texts[1]:
                        raise SystemExit("The texts depend on the trees: that must not be.")
    if arguments.json:
        write_report(arguments.json, "sampling", argv, {"dtype": "float32", "compiled": False}, table)


if __name__ == "__main__":
    main()
