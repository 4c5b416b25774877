"""vLLM's own load generator drives the server, and reads the right acceptance from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.client import metrics
from tests.server.process import NAME, Server, environment
from tests.tiny.checkpoints import build

pytestmark = pytest.mark.slow  # two servers of three processes

PROMPTS, LENGTH = 20, 32


def bench(server: Server, folder: Path, *options: str) -> dict[str, Any]:
    """Its result file, for requests with a picture of random noise and a text of random tokens."""
    command = [
        *(sys.executable, "-m", "tests.server.bench", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", server.url, "--model", str(build("llava")), "--served-model-name", NAME),
        *("--dataset-name", "random-mm", "--num-prompts", str(PROMPTS), "--max-concurrency", "8"),
        *("--random-input-len", "24", "--random-output-len", str(LENGTH), "--random-mm-base-items-per-request", "1"),
        *("--random-mm-bucket-config", "{(56, 84, 1): 1.0}", "--ignore-eos", "--ready-check-timeout-sec", "0"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "result.json", "--disable-tqdm"),
        *options,
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_its_acceptance_figures_are_ours(temperature: str, always_server: Server, tmp_path: Path) -> None:
    before = metrics(always_server)
    result = bench(always_server, tmp_path, "--temperature", temperature)
    after = metrics(always_server)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}

    def counted(part: str) -> float:
        """Counted by the worker where trees are walked, not by vLLM's scheduler, from whose figures the tool's come."""
        return sum(value for name, value in grown.items() if name.startswith(f"specvlm_{part}"))

    assert (result["completed"], result["failed"]) == (PROMPTS, 0)
    assert result["total_output_tokens"] == grown["vllm:generation_tokens_total"] == PROMPTS * LENGTH
    trees, nodes = counted("acceptance_length_count"), counted("tree_nodes_sum")
    accepted = counted("acceptance_length_sum") - trees
    assert trees > PROMPTS and accepted > trees / 10
    assert result["spec_decode_num_drafts"] == trees
    assert result["spec_decode_draft_tokens"] == nodes
    assert result["spec_decode_accepted_tokens"] == accepted
    assert result["spec_decode_acceptance_length"] == pytest.approx(1 + accepted / trees)
    assert result["spec_decode_acceptance_rate"] == pytest.approx(100 * accepted / nodes)
    # A place is a depth: trees of eight nodes grow no deeper than six levels, and acceptance falls with depth.
    places = result["spec_decode_per_position_acceptance_rates"]
    assert sum(places) == pytest.approx(accepted / trees) and places == sorted(places, reverse=True)
    assert not any(places[6:])
