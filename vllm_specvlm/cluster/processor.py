"""A Ray Data step: a dataset of questions becomes a dataset of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.data

from vllm_specvlm.cluster.answering_actor import AnsweringActor


@dataclass(frozen=True, slots=True)
class Processor:
    """A pool of engines that answers datasets. Ray Data keeps no more questions waiting than the engines soon need."""

    options: Mapping[str, Any]
    """Keyword arguments of vLLM's `AsyncEngineArgs`: model, speculative_config and so on."""
    engines: tuple[int, int] = (1, 1)
    """Fewest and most engines; the pool grows while questions wait."""
    batch_size: int = 32
    """Questions that are handed to an engine, and tried again after its death, together."""
    batches_at_once: int = 4
    """Batches that an engine answers at the same time, so that it stays full while one comes to its end."""
    attempts: int = 3
    """How often a question with an error is tried, and a batch whose engine died, in all."""
    cpus: float = 1
    """CPUs that Ray sets aside for an engine."""
    gpus: float = 0
    """GPUs that Ray sets aside for an engine: tensor_parallel_size of them where the model runs on GPUs."""

    def __call__(self, questions: ray.data.Dataset) -> ray.data.Dataset:
        """The answers, in no certain order.

        Args:
            questions: with columns "custom_id" and "body", the body of a chat request as JSON; others are dropped.

        Returns:
            columns "custom_id", "response" (the body of the chat response as JSON, or null) and "error" (JSON, or
            null). A batch whose engines all died is missing, if `DataContext.max_errored_blocks` allows that.
        """
        fewest, most = self.engines
        return questions.repartition(target_num_rows_per_block=self.batch_size).map_batches(
            AnsweringActor,
            fn_constructor_kwargs={"options": dict(self.options), "attempts": self.attempts},
            batch_size=self.batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=self.batches_at_once
            ),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_concurrency=self.batches_at_once,
            max_restarts=-1,
            max_task_retries=self.attempts - 1,
        )
