"""The metrics at `/metrics`: what each is called, and which cells of the shared memory hold its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

_TREE_LABELS = (("modality", ("text", "image")), ("sampling", ("greedy", "sampled")))


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric with a fixed set of series.

    A series of a counter or gauge is one cell. A series of a histogram is a cell per bucket (not cumulative, the last
    one above every bound) and one for the sum.
    """

    name: str
    """As Prometheus shows it; a histogram's samples add `_bucket`, `_sum` and `_count`."""
    kind: str
    """`counter`, `gauge` or `histogram`."""
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Each label with all its values."""
    bounds: tuple[int, ...] = ()
    """Inclusive upper bounds of a histogram's buckets, ascending."""

    @property
    def series(self) -> tuple[tuple[str, ...], ...]:
        """The label values of each series, in the order of their cells."""
        return tuple(product(*(values for _, values in self.labels)))

    @property
    def width(self) -> int:
        """Cells of one series."""
        return len(self.bounds) + 2 if self.bounds else 1

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that a query may use."""
        return tuple(self.name + end for end in (("_bucket", "_sum", "_count") if self.bounds else ("",)))


PLANS = Metric(
    "specvlm_plans_total",
    "counter",
    "Draftings by decision: the planner's plain, trees or probe; fixed where no planner decides.",
    (("mode", ("plain", "trees", "probe", "fixed")),),
)
STEPS = Metric(
    "specvlm_steps_total",
    "counter",
    "Steps of the target, with and without a tree to verify.",
    (("kind", ("tree", "plain")),),
)
TREE_NODES = Metric(
    "specvlm_tree_nodes",
    "histogram",
    "Drafted tokens in a verified tree.",
    _TREE_LABELS,
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 127),
)
ACCEPTANCE_LENGTH = Metric(
    "specvlm_acceptance_length",
    "histogram",
    "Tokens a verified tree brought: the accepted nodes and the bonus token.",
    _TREE_LABELS,
    (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 128),
)
FORBIDDEN_NODES = Metric(
    "specvlm_forbidden_nodes_total",
    "counter",
    "Drafted tokens that their request's grammar forbids, taken out of the tree before it is verified.",
)
DRAFT_SECONDS = Metric("specvlm_draft_seconds_total", "counter", "Seconds in drafting, the draft's passes included.")
DRAFT_PASS_SECONDS = Metric(
    "specvlm_draft_pass_seconds_total", "counter", "Seconds in the draft model's forward passes and logits."
)
VERIFY_SECONDS = Metric(
    "specvlm_verify_seconds_total",
    "counter",
    "Seconds that trees add to the target's steps outside its forward pass: inputs, acceptance, commit.",
)
COMPRESSED = Metric(
    "specvlm_compressed_pictures_total",
    "counter",
    "Pictures compressed for a head or a draft VLM, by the primitive that did it: a gate's choice, or the only one.",
    (("primitive", ("none", "text", "prune", "pool", "conv", "resampler", "global", "adaptor", "weight", "concat")),),
)
DRAFTER_OFF = Metric("specvlm_drafter_off", "gauge", "1 after the drafter failed and was switched off, else 0.")

METRICS = (
    PLANS,
    STEPS,
    TREE_NODES,
    ACCEPTANCE_LENGTH,
    FORBIDDEN_NODES,
    DRAFT_SECONDS,
    DRAFT_PASS_SECONDS,
    VERIFY_SECONDS,
    COMPRESSED,
    DRAFTER_OFF,
)


def _places() -> Iterator[tuple[tuple[str, tuple[str, ...]], int]]:
    cell = 0
    for metric in METRICS:
        for values in metric.series:
            yield (metric.name, values), cell
            cell += metric.width


_FIRST = dict(_places())

CELLS = sum(len(metric.series) * metric.width for metric in METRICS)
"""Cells of all metrics together."""


def first_cell(metric: Metric, *values: str) -> int:
    """Where the series with these label values begins."""
    return _FIRST[metric.name, values]
