"""What every vLLM process pays for having the plugin installed."""

from __future__ import annotations

import json
import subprocess
import sys


def test_registering_loads_no_networks() -> None:
    """vLLM loads plugins in each of its processes, whether the engine asks for us or not."""
    code = """
import json, sys
import vllm_specvlm.engine.configure
heavy = ("transformers", "vllm_specvlm.draft.feature_head", "vllm_specvlm.engine.speculator")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
