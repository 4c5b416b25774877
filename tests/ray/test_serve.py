"""The Serve application under load: replicas that die or are replaced cost no client anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from ray import serve
from ray.serve.llm import build_openai_app

from tests.ray.local_cluster import kill, local_cluster, wait_for
from tests.ray.serve_case import ENGINE, MODEL, NAME, Reply, ask, crowd, free_port, plain, questions
from vllm_specvlm.cluster.application import Arguments, application

pytestmark = pytest.mark.slow  # two engines of three processes

REPLICA, CORE = "ray::ServeReplica:default:Replica", "VLLM::EngineCore"


def arguments(**changes: Any) -> Arguments:
    two = {"min_replicas": 2, "max_replicas": 2, "ingress_replicas": 1, "patience_s": 60}
    return Arguments(**{"model": MODEL, "name": NAME, "engine": ENGINE, **two, **changes})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_cluster(cpus=16):
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(arguments()))
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    return questions(48)


@pytest.fixture(scope="module")
def reference(asked: list[dict[str, Any]]) -> list[Reply]:
    return plain(asked)


def differing(found: list[Reply | str], reference: list[Reply]) -> list[Any]:
    return [pair for pair in zip(found, reference, strict=True) if pair[0] != pair[1]]


def test_answers_are_plain_vllms(url: str, asked: list[dict[str, Any]], reference: list[Reply]) -> None:
    assert differing(asyncio.run(crowd(url, asked)), reference) == []
    models = httpx.get(f"{url}/v1/models", timeout=30).json()
    assert [model["id"] for model in models["data"]] == [NAME]


@pytest.mark.parametrize("title", [REPLICA, CORE], ids=["replica", "engine in a replica"])
def test_a_death_under_load(url: str, asked: list[dict[str, Any]], reference: list[Reply], title: str) -> None:
    """Every client, streaming or not, gets its one answer, from the beginning to the end."""
    before = wait_for(title, 2)
    found = asyncio.run(crowd(url, asked, lambda: kill(before[0])))
    assert differing(found, reference) == []
    after = wait_for(title, 2)
    assert len(set(after) & set(before)) == 1
    assert differing(asyncio.run(crowd(url, asked[:8])), reference[:8]) == []


def test_a_rolling_restart_under_load(url: str, asked: list[dict[str, Any]], reference: list[Reply]) -> None:
    """Deployed again, with another environment: every replica is another process, and nobody notices."""
    before = wait_for(REPLICA, 2)

    def restart() -> None:
        serve.run(application(arguments(environment={"SPECVLM_TEST_ROUND": "2"})))

    async def scene() -> list[list[Reply | str]]:
        restarting = asyncio.create_task(asyncio.to_thread(restart))
        rounds = []
        while not restarting.done():
            rounds.append(await crowd(url, asked[:16]))
        await restarting
        return rounds

    rounds = asyncio.run(scene())
    assert len(rounds) > 1
    assert [differing(found, reference[:16]) for found in rounds] == [[]] * len(rounds)
    assert not set(wait_for(REPLICA, 2)) & set(before)


def test_a_stream_goes_on_after_every_replica_died(url: str) -> None:
    """All of them in the middle of it: it waits for a new one, and comes to the same end."""
    (question,) = questions(1, tokens=300)
    question["stream"] = True
    (whole,) = plain([question])
    before = wait_for(REPLICA, 2)
    seen: list[str] = []

    def watch(line: str) -> None:
        seen.append(line)
        if len(seen) == 20:
            for pid in before:
                kill(pid)

    async def scene() -> Reply | str:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            return await ask(client, question, watch)

    assert asyncio.run(scene()) == whole
    assert not set(wait_for(REPLICA, 2)) & set(before)


def test_rays_own_front_loses_requests(url: str, asked: list[dict[str, Any]], reference: list[Reply]) -> None:
    """The control: the same death under the same load is felt without our ingress."""
    serve.delete("default")  # two more engines would take too much memory
    stock = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
    serve.run(build_openai_app({"llm_configs": [arguments().llm_config()], "ingress_deployment_config": stock}))
    before = wait_for(REPLICA, 2)
    found = asyncio.run(crowd(url, asked, lambda: kill(before[0])))
    assert differing(found, reference) != []
