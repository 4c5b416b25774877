"""One engine in a process of its own: prints its answers as JSON. Run by the tests of modes that need that."""

from __future__ import annotations

import argparse
import json

from tests.tiny.prompts import prompts


def main() -> None:
    """Answer the family's prompts twice and print tokens and tallies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("--options", default="{}", help="engine options, JSON")
    parser.add_argument("--speculative", default="null", help="speculative config, JSON")
    parser.add_argument("--sampling", default="{}", help="sampling parameters, JSON")
    arguments = parser.parse_args()

    from torch._dynamo.utils import counters
    from vllm import SamplingParams

    from tests.exactness.engines import answers, engine, target_of, tokens

    llm = engine(target_of(arguments.family), json.loads(arguments.speculative), **json.loads(arguments.options))
    params = SamplingParams(
        **{"temperature": 0.0, "max_tokens": 40, "ignore_eos": True, **json.loads(arguments.sampling)}
    )
    compiled = counters["stats"]["unique_graphs"]
    rounds = [tokens(answers(llm, prompts(arguments.family), params)) for _ in range(2)]
    tallies = llm.collective_rpc("specvlm_tally") if arguments.speculative != "null" else []
    late = counters["stats"]["unique_graphs"] - compiled
    print("ANSWERS " + json.dumps({"rounds": rounds, "tallies": tallies, "compiled_late": late}), flush=True)


if __name__ == "__main__":
    main()
