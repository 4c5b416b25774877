"""Configurations of engines that do not ask for us, from a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.exactness.engines import target_of

_PROGRAM = """
import json, sys
if sys.argv[1] == "with":
    from vllm_specvlm.engine import plugin
    plugin.register()
from vllm import EngineArgs
arguments = {"model": sys.argv[2], "dtype": "float32", "enforce_eager": True, "max_model_len": 512}
ngram = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
found = []
for speculative in (None, ngram):
    config = EngineArgs(**arguments, speculative_config=speculative).create_engine_config()
    spec = config.speculative_config
    found.append([
        config.parallel_config.worker_cls, config.additional_config, config.scheduler_config.async_scheduling,
        str(config.scheduler_config.scheduler_cls),
        None if spec is None else [spec.method, spec.num_speculative_tokens],
        config.compute_hash(),
    ])
print(json.dumps(found))
"""


def configurations(*, with_plugin: bool) -> object:
    """What vLLM makes of a plain and an ngram engine; vLLM itself loads no plugin, so that one side has none."""
    environment = {**os.environ, "VLLM_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "with" if with_plugin else "without", str(target_of("llava"))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
