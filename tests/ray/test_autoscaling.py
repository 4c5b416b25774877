"""More requests than one engine is meant for: Ray starts another, and ends it when they are gone."""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from ray import serve

from tests.ray.local_cluster import local_cluster, processes, wait_for
from tests.ray.serve_case import ENGINE, MODEL, NAME, Reply, crowd, free_port, plain, questions
from vllm_specvlm.cluster.application import Arguments, application

pytestmark = pytest.mark.slow  # two engines of three processes

REPLICA = "ray::ServeReplica:default:Replica"
QUICK = {"upscale_delay_s": 2, "downscale_delay_s": 5, "metrics_interval_s": 1, "look_back_period_s": 3}
PATIENCE_S = 300


def test_replicas_come_and_go() -> None:
    """Every client gets plain vLLM's answer, while replicas are added and when they leave."""
    asked = questions(24, tokens=128)
    reference = plain(asked)
    found: list[list[Reply | str]] = []
    with local_cluster(cpus=3):  # of which these settings leave room for two engines
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = Arguments(
            model=MODEL,
            name=NAME,
            engine=ENGINE,
            max_replicas=2,
            target_ongoing_requests=4,
            autoscaling=QUICK,
            cpus=1,
            process_cpus=0.2,
            ingress_replicas=1,
        )
        serve.run(application(arguments))
        try:
            wait_for(REPLICA, 1)
            until = time.monotonic() + PATIENCE_S
            while len(processes(REPLICA)) < 2:
                assert time.monotonic() < until, "no replica was added"
                found.append(asyncio.run(crowd(f"http://127.0.0.1:{port}", asked)))
            for _ in range(3):  # one that has just been started loads its model first
                found.append(asyncio.run(crowd(f"http://127.0.0.1:{port}", asked)))
            wait_for(REPLICA, 1, PATIENCE_S)
            found.append(asyncio.run(crowd(f"http://127.0.0.1:{port}", asked[:4])))
        finally:
            serve.shutdown()
    assert [answers == reference[: len(answers)] for answers in found] == [True] * len(found)
