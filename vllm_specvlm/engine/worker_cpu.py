"""vLLM's CPU worker with our runner in it. Importing it empties torch's CUDA functions, as vLLM's own module does."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.worker_base import CompilationTimes

from vllm_specvlm.engine import admission
from vllm_specvlm.engine.runner_cpu import TreeCPUModelRunner
from vllm_specvlm.engine.worker import TreeWorker


class TreeCPUWorker(TreeWorker, CPUWorker):
    """The CPU worker, whose model runner verifies trees."""

    def init_device(self) -> None:
        """Build the stock runner, then make it ours.

        The stock worker names its runner class inside the method that also sets up the process; exchanging the class
        of the finished object keeps that method vLLM's own.
        """
        self.check_configuration()
        with admission.all_processors():
            super().init_device()
        self.model_runner.__class__ = TreeCPUModelRunner
        self.model_runner.adopt()

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """The last call before requests: measure what passes cost (vLLM then resets the random seed)."""
        self.model_runner.start_planning()
        return super().compile_or_warm_up_model()
