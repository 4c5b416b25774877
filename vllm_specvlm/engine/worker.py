"""What our workers have in common; those themselves are in `worker_cpu.py` and `worker_gpu.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from vllm_specvlm import ops
from vllm_specvlm.engine import compat
from vllm_specvlm.engine.tracing_runner import TracingRunner


class TreeWorker(Worker):
    """What both workers answer when they are asked by `LLM.collective_rpc`."""

    def check_configuration(self) -> None:
        """Before a device is touched.

        Raises:
            RuntimeError: this vLLM, or this configuration, cannot run trees.
        """
        broken = [finding for finding in compat.check() if not finding.ok]
        if broken:
            raise RuntimeError(
                f"Method 'specvlm' does not fit this vLLM: {broken[0].symbol} {broken[0].detail}; "
                "run `specvlm doctor` and install a supported version."
            )
        if self.vllm_config.kv_transfer_config is not None or self.use_v2_model_runner:
            raise RuntimeError(
                "Method 'specvlm' does not run with a KV connector or vLLM's second model runner; "
                "leave them out of the configuration."
            )
        ops.load()

    def specvlm_tally(self) -> dict[str, Any]:
        """Counters of this worker since start, for `LLM.collective_rpc("specvlm_tally")`."""
        tally: dict[str, Any] = self.model_runner.drafter.tally.as_dict()
        return tally

    def specvlm_attention(self) -> list[str]:
        """The ways in which this worker attends tree rows, for `LLM.collective_rpc("specvlm_attention")`."""
        ways: list[str] = self.model_runner.attention_ways()
        return ways

    def specvlm_profile(self) -> dict[str, Any] | None:
        """What passes cost as this worker knows it now (`schedule.profile.Profile`); None without a planner."""
        profile = self.model_runner.drafter.profile()
        return None if profile is None else profile.as_dict()

    def specvlm_force(self, nodes: int | None) -> None:
        """For calibration: trees of so many nodes in every step, 0 for none; None gives the planner back."""
        self.model_runner.drafter.force(nodes)

    def specvlm_timed(self) -> list[dict[str, Any]]:
        """The passes since `specvlm_force` (`schedule.reading.TimedPass`), as the first rank's clock has them."""
        return [dataclasses.asdict(each) for each in self.model_runner.drafter.timed()]

    def specvlm_record(self) -> None:
        """For the simulator: from now on draft at every position, verify nothing, and note what was drafted."""
        self.model_runner.drafter.record()

    def specvlm_recorded(self) -> list[dict[str, Any]]:
        """The requests answered since `specvlm_record` (`schedule.trace.TracedRequest`); the planner is back."""
        return [request.as_dict() for request in self.model_runner.drafter.recorded()]

    def specvlm_trace(self) -> None:
        """From now on note what every step does for every request. Raises RuntimeError where that is done already."""
        if isinstance(self.model_runner, TracingRunner):
            raise RuntimeError("A trace is being recorded already; call 'specvlm_traced' first.")
        TracingRunner.start(self.model_runner)

    def specvlm_traced(self) -> list[dict[str, Any]]:
        """The requests that came since `specvlm_trace` (`step_recorder.RecordedRequest`), in their order."""
        if not isinstance(self.model_runner, TracingRunner):
            raise RuntimeError("Nothing was traced; call 'specvlm_trace' first.")
        return [request.as_dict() for request in self.model_runner.stop()]
