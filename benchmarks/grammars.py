"""What trees are worth to requests with a grammar: tokens per decoding pass, one greedy request at a time.

Plain decoding makes one token a pass. The draft knows no grammar; what the grammar forbids is taken out of its trees
before they are verified, and what it leaves no choice about is put in; both are counted. Answers must be those of plain
vLLM under the same grammar. No timings.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from machine import write_report

GRAMMARS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "a sentence": {"regex": "[A-Z][A-Za-z0-9 ,'-]{4,160}\\."},
    "lower case": {"regex": "[a-z]+(,? [a-z]+){2,30}\\."},
    "JSON": {
        "json": {
            "type": "object",
            "properties": {"answer": {"type": "string", "maxLength": 120}, "count": {"type": "integer"}},
            "required": ["answer", "count"],
            "additionalProperties": False,
        }
    },
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    arguments = parse(argv)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from vllm_specvlm import zoo
    from vllm_specvlm.engine import plugin

    plugin.register()
    options: dict[str, Any] = {
        "model": zoo.resolve(arguments.target),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 1,
        "kv_cache_memory_bytes": 256 << 20,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    speculative = {"method": "specvlm", "model": zoo.resolve(arguments.draft), "num_speculative_tokens": 8}
    engines = [LLM(**options), LLM(**options, speculative_config={**speculative, "planner": False})]
    prompts = held_out.prompts(arguments.target, arguments.prompts, seed=1)

    core: Any = engines[1].llm_engine.engine_core

    def tally() -> dict[str, Any]:
        counted: dict[str, Any] = engines[1].collective_rpc("specvlm_tally")[0]
        grammars = core.engine_core.structured_output_manager
        return {**counted, "forbidden": grammars.forbidden, "dictated": grammars.dictated}

    table = []
    for name, grammar in GRAMMARS.items():
        texts = []
        for llm in engines:
            structured = None if grammar is None else StructuredOutputsParams(**grammar)
            params = SamplingParams(temperature=0.0, max_tokens=arguments.max_tokens, structured_outputs=structured)
            before = tally()
            texts.append([o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)])
        after = tally()
        passes = sum(after[kind] - before[kind] for kind in ("tree_steps", "plain_steps")) - len(prompts)
        made = sum(map(len, texts[1])) - len(prompts)  # the first token of each comes with its prompt
        row = {
            "grammar": name,
            "tokens_per_pass": round(made / passes, 3),
            "accepted": after["accepted"] - before["accepted"],
            "trees": after["trees"] - before["trees"],
            "nodes_verified": after["nodes"] - before["nodes"],
            "nodes_forbidden": after["forbidden"] - before["forbidden"],
            "nodes_dictated": after["dictated"] - before["dictated"],
            "identical": sum(a == b for a, b in zip(*texts, strict=True)),
            "answers": len(prompts),
        }
        table.append(row)
        print(*row.values(), sep="\t", flush=True)
    if any(row["identical"] < row["answers"] for row in table):
        raise SystemExit("Answers differ from plain vLLM's: that must not be.")
    if arguments.json:
        write_report(arguments.json, "grammars", argv, {"dtype": "float32", "compiled": False}, table)


if __name__ == "__main__":
    main()
