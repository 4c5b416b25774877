"""The worker's counts in the registry of the process that answers `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.metric import CELLS, METRICS, Metric, first_cell
from vllm_specvlm.engine.metrics import Metrics
from vllm_specvlm.engine.shared_cells import SharedCells, found

logger = logger_for(__name__)

_ENGINE_LABELS = ("model_name", "engine")
"""vLLM's own, so that a query can combine its metrics with ours. There is one engine: data parallelism is refused."""


class Exporter(Collector):
    """Reads the shared cells when it is asked, at no cost to the worker."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        self._shared: SharedCells | None = None
        self._model_name = ""

    def show(self, shared: SharedCells | None, model_name: str) -> None:
        """Show these cells under this name, in the place of an older engine's."""
        if self._shared is not None:
            self._shared.close()
        self._shared, self._model_name = shared, model_name

    def collect(self) -> Iterator[Family]:
        """All metrics of the newest engine; none without one."""
        if self._shared is not None:
            for metric in METRICS:
                yield _family(metric, self._shared.cells, (self._model_name, "0"))


def _family(metric: Metric, cells: memoryview[float], engine: tuple[str, ...]) -> Family:
    names = [*_ENGINE_LABELS, *(name for name, _ in metric.labels)]
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.help, labels=names)
        bounds = [floatToGoString(bound) for bound in (*metric.bounds, float("inf"))]
        for values in metric.series:
            *counts, total = cells[(at := first_cell(metric, *values)) : at + metric.width].tolist()
            family.add_metric([*engine, *values], list(zip(bounds, accumulate(counts), strict=True)), total)
        return family
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
        metric.name, metric.help, labels=names
    )
    for values in metric.series:
        family.add_metric([*engine, *values], cells[first_cell(metric, *values)])
    return family


_EXPORTER = Exporter()


def export(model_name: str) -> None:
    """In the process that configures an engine: show what its first rank is going to count.

    An engine whose counts cannot be shared runs all the same.
    """
    if _EXPORTER not in REGISTRY._collector_to_names:
        REGISTRY.register(_EXPORTER)
    try:
        shared: SharedCells | None = SharedCells(CELLS)
    except OSError as error:
        shared = None
        logger.warning("The metrics specvlm_* will be missing at /metrics: %s.", error)
    _EXPORTER.show(shared, model_name)


def metrics() -> Metrics:
    """In the worker of the first rank: the counters that `export` shows."""
    try:
        return Metrics(found(CELLS))
    except OSError as error:
        logger.warning("The metrics specvlm_* will stay zero or be missing at /metrics: %s.", error)
        return Metrics()
