"""What the application's arguments become for Ray, without a cluster."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from pydantic import ValidationError

from vllm_specvlm.cluster.application import Arguments, application
from vllm_specvlm.cluster.ingress import Ingress
from vllm_specvlm.cluster.replica import Replica

DRAFT = {"method": "specvlm", "model": "draft"}


def test_arguments_reach_the_replicas() -> None:
    given = Arguments(
        model="folder", name="eyes", engine={"speculative_config": DRAFT}, min_replicas=2, max_replicas=5, cpus=3
    )
    config = given.llm_config()
    assert config.model_id == "eyes" and config.server_cls is Replica
    engine = config.get_engine_config()
    assert engine.get_initialization_kwargs()["speculative_config"] == DRAFT
    assert engine.placement_bundles == [{"CPU": 3}]
    scaling = config.deployment_config["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 16)
    assert config.deployment_config["graceful_shutdown_timeout_s"] == 600


def test_autoscaling_and_shares_of_cpus() -> None:
    given = Arguments(model="folder", max_replicas=2, autoscaling={"downscale_delay_s": 5}, cpus=0.5, process_cpus=0.1)
    options = given.llm_config().deployment_config
    assert (
        options["autoscaling_config"]["downscale_delay_s"] == 5 and options["autoscaling_config"]["max_replicas"] == 2
    )
    assert options["ray_actor_options"]["num_cpus"] == 0.1
    assert application(given)._bound_deployment.ray_actor_options["num_cpus"] == 0.1


def test_a_gpu_for_each_worker() -> None:
    config = Arguments(model="folder", gpu=True, engine={"tensor_parallel_size": 2}).llm_config()
    assert [bundle["GPU"] for bundle in config.get_engine_config().placement_bundles] == [1, 1]


def test_the_front_is_ours() -> None:
    built = application({"model": "folder", "ingress_replicas": "3"})  # as `serve run` hands it over
    deployment = built._bound_deployment
    assert issubclass(deployment.func_or_class, Ingress)
    assert deployment._deployment_config.autoscaling_config.max_replicas == 3
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 600


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="speculative"):
        Arguments(model="folder", speculative=DRAFT)  # type: ignore[call-arg]


def test_a_model_that_does_not_come_with_the_plugin() -> None:
    with pytest.raises(ValidationError, match=r"There is no model specvlm/reference-taget: the models are .*-target"):
        application({"model": "specvlm/reference-taget"})
