"""The GPU's model runner on the CPU device: the same Python, with vLLM's CPU runner below it."""

from __future__ import annotations

from vllm.forward_context import BatchDescriptor
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.worker_base import CompilationTimes

from vllm_specvlm.engine.runner_gpu import TreeGPUModelRunner
from vllm_specvlm.engine.worker_cpu import TreeCPUWorker

GRAPHS = (64, 16, 4)
"""Sizes of the draft's passes, the largest first. Nothing is captured on a CPU, but passes are padded as for graphs."""


class GPURunnerOnCPU(TreeGPUModelRunner, CPUModelRunner):
    """As its name says."""


class GPUWorkerOnCPU(TreeCPUWorker):
    """Calls the runner as vLLM's GPU worker does."""

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.__class__ = GPURunnerOnCPU
        self.model_runner.adopt()

    def determine_available_memory(self) -> int:
        self.model_runner.profile_run()
        return super().determine_available_memory()

    def compile_or_warm_up_model(self) -> CompilationTimes:
        for rows in GRAPHS:
            self.model_runner.drafter.capture(BatchDescriptor(num_tokens=rows))
        return super().compile_or_warm_up_model()
