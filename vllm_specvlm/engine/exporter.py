"""The worker's counts in the registry of the process that answers `/metrics`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
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
        self._cells: memoryview[float] | None = None
        self._model_name = ""

    def show(self, shared: SharedCells | memoryview[float] | None, model_name: str) -> None:
        """Show these cells under this name, in the place of an older engine's; `SharedCells` are closed by the next."""
        if self._shared is not None:
            self._shared.close()
        self._shared = shared if isinstance(shared, SharedCells) else None
        self._cells = shared.cells if isinstance(shared, SharedCells) else shared
        self._model_name = model_name

    def collect(self) -> Iterator[Family]:
        """All metrics of the newest engine; none without one."""
        if self._cells is not None:
            for metric in METRICS:
                yield _family(metric, self._cells, (self._model_name, "0"))


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


def export(model_name: str, *, beside_others: bool = False) -> None:
    """In the process that configures an engine: show what its first rank is going to count.

    An engine whose counts cannot be shared runs all the same.

    Args:
        model_name: as clients call it.
        beside_others: this is one of several front ends of an engine, which was configured before in the process that
            started them all.
    """
    if _EXPORTER not in REGISTRY._collector_to_names:
        REGISTRY.register(_EXPORTER)
    _show_beside_files()
    try:
        shared: SharedCells | memoryview[float] | None = found(CELLS) if beside_others else SharedCells(CELLS)
    except OSError as error:
        shared = None
        logger.warning("The metrics specvlm_* will be missing at /metrics: %s.", error)
    _EXPORTER.show(shared, model_name)


def _show_beside_files() -> None:
    """In prometheus_client's multi-process mode, be in every registry that gathers the processes' files.

    vLLM sets this mode for several front ends. Each `/metrics` then makes a registry of its own, which knows the files
    only: there is nothing to register with.
    """
    stock = MultiProcessCollector.__init__
    if getattr(stock, "_specvlm", False):
        return

    @functools.wraps(stock)
    def construct(self: MultiProcessCollector, registry: CollectorRegistry | None, path: str | None = None) -> None:
        stock(self, registry, path)
        if registry is not None:
            registry.register(_EXPORTER)

    construct._specvlm = True  # type: ignore[attr-defined]
    MultiProcessCollector.__init__ = construct  # type: ignore[method-assign]


def metrics() -> Metrics:
    """In the worker of the first rank, and in the scheduler's process: the counters that `export` shows."""
    try:
        return Metrics(found(CELLS))
    except OSError as error:
        logger.warning("The metrics specvlm_* will stay zero or be missing at /metrics: %s.", error)
        return Metrics()
