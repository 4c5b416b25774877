"""docs/metrics.md and docs/grafana.json name every metric of the code and no other, and of vLLM's those that exist."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_specvlm.engine.metric import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
DASHBOARD = json.loads((DOCS / "grafana.json").read_text())

_OURS = {sample: metric for metric in METRICS for sample in metric.samples}
_NAME = re.compile(r"(?:specvlm_|vllm:)\w+")
_ENGINE_LABELS = {"model_name", "engine"}
_WORDS = {"sum", "max", "by", "without", "ignoring", "rate", "histogram_quantile"}


def _vllm_sources() -> str:
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent / "v1"
    files = ("metrics/loggers.py", "spec_decode/metrics.py")
    return "".join((folder / file).read_text() for file in files)


_VLLM = set(re.findall(r'"(vllm:\w+)"', _vllm_sources()))
_VLLM_LABELS = _ENGINE_LABELS | {"position", "le"}


def _known(sample: str) -> bool:
    if sample.startswith("specvlm_"):
        return sample in _OURS
    return any(sample.removesuffix(end) in _VLLM for end in ("", "_total", "_bucket", "_sum", "_count"))


def _labels(sample: str) -> set[str]:
    if sample.startswith("vllm:"):
        return _VLLM_LABELS
    le = {"le"} if sample.endswith("_bucket") else set()
    return _ENGINE_LABELS | {name for name, _ in _OURS[sample].labels} | le


def _trouble(query: str) -> str | None:
    """What is wrong with a query: the subset of PromQL that the dashboard and the page are written in."""
    depth: list[str] = []
    for sign in re.sub(r'"[^"]*"', '""', query):
        if sign in "([{":
            depth.append({"(": ")", "[": "]", "{": "}"}[sign])
        elif sign in ")]}" and (not depth or depth.pop() != sign):
            return f"bracket {sign!r} closes nothing"
    if depth:
        return f"bracket {depth[-1]!r} is missing"
    samples = _NAME.findall(query)
    if not samples:
        return "no metric"
    if unknown := [sample for sample in samples if not _known(sample)]:
        return f"no metric {unknown[0]}"
    # counters and histograms grow for ever: only their rates mean anything
    for sample in samples:
        gauge = sample in ("specvlm_drafter_off", "vllm:num_requests_running")
        rated = re.search(rf"rate\({re.escape(sample)}(\{{[^}}]*\}})?\[(\$__rate_interval|\d+m)\]\)", query)
        if bool(rated) == gauge:
            return f"{sample} is {'a gauge' if gauge else 'no gauge'}"
    common = set.intersection(*(_labels(sample) for sample in samples))
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
    for group in re.findall(r"\b(?:by|without|ignoring) \(([^)]*)\)", query):
        used |= {label.strip() for label in group.split(",")}
    if wrong := used - set.union(*(_labels(sample) for sample in samples)):
        return f"no label {sorted(wrong)[0]}"
    if wrong := set(re.findall(r"\bby \((\w+)\)", query)) - common:
        return f"label {sorted(wrong)[0]} is not on both sides"
    bare = re.sub(r'\{[^}]*\}|\[[^]]*\]|"[^"]*"|\b(?:by|without|ignoring) \([^)]*\)', " ", _NAME.sub(" ", query))
    words = set(re.findall(r"[A-Za-z_]\w*", bare)) - _WORDS
    return f"no function {sorted(words)[0]}" if words else None


def _queries() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"], panel


def test_the_page_lists_every_metric_as_it_is() -> None:
    rows = re.findall(r"^\| `(specvlm_\w+)` \| (\w+) \|(.*?)\| .+ \|$", PAGE, re.MULTILINE)
    expected = [
        (metric.name, metric.kind, "; ".join(f"`{name}` = {', '.join(values)}" for name, values in metric.labels))
        for metric in METRICS
    ]
    assert [(name, kind, labels.strip()) for name, kind, labels in rows] == expected


def test_the_page_names_nothing_else() -> None:
    names = {"specvlm_tally"} | {metric.name for metric in METRICS}
    assert [name for name in _NAME.findall(PAGE) if not _known(name) and name not in names] == []


def test_queries_of_the_page() -> None:
    block = PAGE.split("Useful queries:")[1].split("\n## ")[0]
    written = "\n".join(line[4:] for line in block.splitlines() if line.startswith("    "))
    queries = [" ".join(part.splitlines()[1:]) for part in f"\n{written}".split("\n# ")[1:]]
    assert len(queries) == 3
    assert [trouble for query in queries if (trouble := _trouble(query))] == []


def test_queries_of_the_dashboard() -> None:
    found = {f"{panel['title']}: {trouble}" for query, panel in _queries() if (trouble := _trouble(query))}
    assert found == set()


def test_the_dashboard_shows_every_metric() -> None:
    shown = {_OURS[sample].name for query, _ in _queries() for sample in _NAME.findall(query) if sample in _OURS}
    assert shown == {metric.name for metric in METRICS}


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert all(0 <= x < 24 for x, _ in cells)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used == variables
    for query, panel in _queries():
        for label in re.findall(r"{{(\w+)}}", json.dumps(panel["targets"])):
            assert re.search(rf"by \([^)]*\b{label}\b", query)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sum (rate(specvlm_steps_total[5m])", "is missing"),
        ("sum (rate(specvlm_steps_total[5m]}", "closes nothing"),
        ("rate(specvlm_step_total[5m])", "no metric specvlm_step_total"),
        ("rate(vllm:no_such_thing_total[5m])", "no metric vllm:no_such_thing_total"),
        ("rate(specvlm_tree_nodes[5m])", "no metric specvlm_tree_nodes"),
        ("sum (specvlm_steps_total)", "no gauge"),
        ("rate(specvlm_drafter_off[5m])", "a gauge"),
        ("sum by (mode) (rate(specvlm_steps_total[5m]))", "no label mode"),
        ('rate(specvlm_steps_total{sampling="greedy"}[5m])', "no label sampling"),
        ("sum by (kind) (rate(specvlm_steps_total[5m])) / sum by (kind) (rate(specvlm_plans_total[5m]))", "both sides"),
        ("total (rate(specvlm_steps_total[5m]))", "no function total"),
        ("sum (1)", "no metric"),
    ],
)
def test_a_wrong_query_is_found(query: str, says: str) -> None:
    assert says in (_trouble(query) or "")
