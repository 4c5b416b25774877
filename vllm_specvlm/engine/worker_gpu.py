"""vLLM's worker for NVIDIA GPUs with our runner in it."""

from __future__ import annotations

from typing import Any

from vllm.utils.torch_utils import set_random_seed
from vllm.v1.worker.worker_base import CompilationTimes

from vllm_specvlm.engine import admission
from vllm_specvlm.engine.runner_gpu import TreeGPUModelRunner
from vllm_specvlm.engine.worker import TreeWorker


class TreeGPUWorker(TreeWorker):
    """The worker for NVIDIA GPUs, whose model runner verifies trees."""

    def init_device(self) -> None:
        """As vLLM's."""
        self.check_configuration()
        super().init_device()

    def _make_model_runner(self) -> Any:
        """The stock runner, made ours (see `worker_cpu.TreeCPUWorker.init_device`)."""
        with admission.all_processors():
            runner: Any = super()._make_model_runner()
        runner.__class__ = TreeGPUModelRunner
        runner.adopt()
        return runner

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """The last call before requests: graphs are captured, then passes are measured as requests will run them."""
        times = super().compile_or_warm_up_model()
        self.model_runner.start_planning()
        set_random_seed(self.model_config.seed)
        return times
