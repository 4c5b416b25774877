"""The Ray Serve application: `serve run vllm_specvlm.cluster.application:application model=...`, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray.serve import Application
from ray.serve.llm import LLMConfig, build_openai_app

from vllm_specvlm import zoo
from vllm_specvlm.cluster.ingress import Ingress
from vllm_specvlm.cluster.replica import Replica


class Arguments(BaseModel):
    """What the application is built from; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Directory or name of the target, or one of the models that come with the plugin."""
    name: str | None = None
    """What clients call it; by default `model`."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of vLLM's engine and frontend: speculative_config, dtype, max_model_len and so on."""
    min_replicas: int = Field(1, ge=0)
    """Fewest engines."""
    max_replicas: int = Field(1, ge=1)
    """Most engines."""
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests of a replica at which Ray adds another: as many as an engine answers well at once."""
    ingress_replicas: int = Field(2, ge=1)
    """Processes that speak HTTP. A request is lost to its client with the process that holds it."""
    autoscaling: dict[str, Any] = Field(default_factory=dict)
    """More of Ray's `AutoscalingConfig`, such as upscale_delay_s and downscale_delay_s."""
    cpus: float = Field(1, gt=0)
    """CPUs that Ray sets aside for each worker of an engine without GPUs."""
    process_cpus: float = Field(1, ge=0)
    """CPUs that Ray sets aside for each process that only passes requests on: an engine's replica, an ingress."""
    gpu: bool = False
    """Whether each worker of an engine takes a GPU; the tensor_parallel_size says how many workers there are."""
    patience_s: float = Field(600, gt=0)
    """How long a replica that is to leave (scaling down, a rolling restart) may finish its requests."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the replicas; a change of any is reason enough for a rolling restart."""

    @field_validator("model")
    @classmethod
    def _is_no_slip_of_the_pen(cls, model: str) -> str:
        """Otherwise every replica would look for it at a model hub, in vain, again and again."""
        if model.startswith("specvlm/") and model not in zoo.MODELS:
            raise ValueError(f"There is no model {model}: the models are {', '.join(zoo.MODELS)}.")
        return model

    def llm_config(self) -> LLMConfig:
        """The replicas, for Ray."""
        hardware: dict[str, Any] = {}
        if not self.gpu:
            bundle = {"bundle_per_worker": {"CPU": self.cpus}}
            hardware = {"accelerator_config": {"kind": "cpu"}, "placement_group_config": bundle}
        return LLMConfig(
            model_loading_config={"model_id": self.name or self.model, "model_source": zoo.resolve(self.model)},
            engine_kwargs=self.engine,
            server_cls=Replica,
            runtime_env={"env_vars": self.environment},
            deployment_config={
                "autoscaling_config": {
                    "min_replicas": self.min_replicas,
                    "max_replicas": self.max_replicas,
                    "target_ongoing_requests": self.target_ongoing_requests,
                    **self.autoscaling,
                },
                "ray_actor_options": {"num_cpus": self.process_cpus},
                "graceful_shutdown_timeout_s": self.patience_s,
            },
            **hardware,
        )


def application(arguments: Arguments | Mapping[str, Any]) -> Application:
    """An OpenAI API before a number of engines.

    Deploying it again replaces its replicas one after the other; those that leave finish their requests first.

    Args:
        arguments: as `Arguments`, or as the dictionary of them that Ray Serve reads from a file or a command line.

    Raises:
        pydantic.ValidationError: an argument is unknown or wrong.
    """
    arguments = Arguments.model_validate(arguments)
    return build_openai_app(
        {
            "llm_configs": [arguments.llm_config()],
            "ingress_cls_config": {"ingress_cls": Ingress},
            "ingress_deployment_config": {
                "autoscaling_config": {
                    "min_replicas": arguments.ingress_replicas,
                    "max_replicas": arguments.ingress_replicas,
                },
                "ray_actor_options": {"num_cpus": arguments.process_cpus},
                "graceful_shutdown_timeout_s": arguments.patience_s,
            },
        }
    )
