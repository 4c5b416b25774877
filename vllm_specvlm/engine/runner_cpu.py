"""vLLM's CPU runner with trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.config import CompilationMode
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_specvlm.engine import attention_cpu
from vllm_specvlm.engine.runner import TreeModelRunner


class TreeCPUModelRunner(TreeModelRunner, CPUModelRunner):
    """Verifies trees on a CPU."""

    def adopt_attention(self, layers: Mapping[str, Any]) -> None:
        """As described there."""
        attention_cpu.adopt(layers.items())

    def attention_ways(self) -> list[str]:
        """There is one."""
        return ["CPU kernel"]

    def warming_up_model(self) -> None:
        """Compile target and draft before the first request."""
        super().warming_up_model()
        if self.compilation_config.mode != CompilationMode.NONE:
            self.drafter.warm_up()
