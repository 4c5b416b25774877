"""One engine in a process of its own: prints its answers as JSON. Run by the tests of modes that need that."""

from __future__ import annotations

import argparse
import json
from operator import attrgetter
from typing import Any

from tests.tiny.prompts import prompts


def _break(worker: Any, rank: int, call: str) -> None:
    """Let one rank's draft fail, in the second call from now of this name."""
    if worker.rank != rank:
        return
    path, _, name = f"_model.{call}".rpartition(".")
    owner = attrgetter(path)(worker.model_runner.drafter)
    stock, calls = getattr(owner, name), []

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("injected")
        return stock(*args, **kwargs)

    setattr(owner, name, sometimes)


def main() -> None:
    """Answer the family's prompts twice and print tokens, tallies and metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("--options", default="{}", help="engine options, JSON")
    parser.add_argument("--speculative", default="null", help="speculative config, JSON")
    parser.add_argument("--break-rank", type=int, metavar="RANK", help="let this rank's drafter fail once")
    parser.add_argument("--break-call", default="propose_level", help="this one of its calls")
    parser.add_argument("--sampling", default="{}", help="sampling parameters, JSON")
    arguments = parser.parse_args()

    from prometheus_client import REGISTRY
    from torch._dynamo.utils import counters
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from tests.exactness.engines import answers, engine, target_of, tokens

    llm = engine(target_of(arguments.family), json.loads(arguments.speculative), **json.loads(arguments.options))
    sampling = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True, **json.loads(arguments.sampling)}
    if "structured_outputs" in sampling:
        sampling["structured_outputs"] = StructuredOutputsParams(**sampling["structured_outputs"])
    params = SamplingParams(**sampling)
    if arguments.break_rank is not None:
        llm.collective_rpc(_break, args=(arguments.break_rank, arguments.break_call))
    compiled = counters["stats"]["unique_graphs"]
    rounds = [tokens(answers(llm, prompts(arguments.family), params)) for _ in range(2)]
    tallies = llm.collective_rpc("specvlm_tally") if arguments.speculative != "null" else []
    late = counters["stats"]["unique_graphs"] - compiled
    shown = {sample.name: 0.0 for family in REGISTRY.collect() for sample in family.samples}
    for sample in (sample for family in REGISTRY.collect() for sample in family.samples):
        shown[sample.name] += sample.value
    found = {"rounds": rounds, "tallies": tallies, "compiled_late": late, "metrics": shown}
    print("ANSWERS " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
