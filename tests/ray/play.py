"""`tests.exactness.play` with vLLM's Ray executor on CPUs, which vLLM offers for GPUs alone.

vLLM asks its platform what Ray calls the device, and the CPU platform has no name for it. Here it says "GPU", in every
process, and Ray is told that this machine has two: what Ray hands out are mere numbers.
"""

from __future__ import annotations

from tests.exactness import engines, play
from tests.ray.local_cluster import local_cluster


def lend_a_name() -> None:
    """In every process of the cluster, before anything else."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.ray_device_key = "GPU"


if __name__ == "__main__":
    lend_a_name()
    hook = {"worker_process_setup_hook": "tests.ray.play.lend_a_name"}
    with local_cluster(cpus=4, num_gpus=2, runtime_env=hook):
        play.main()
        for llm in engines._kept.values():  # while Ray is there
            llm.llm_engine.engine_core.shutdown()
