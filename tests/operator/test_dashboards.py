"""Dashboards ask for what is exported, and for nothing else."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from penstock_operator.plan import dashboards
from penstock_operator.shell.figures import Figures
from penstock_router import view
from penstock_router.metrics import RouterMetrics
from penstock_workers.metrics import WorkerMetrics

ROOT = Path(__file__).resolve().parents[2]
FROM_PROMETHEUS = {"namespace", "pod", "le"}
WORDS = {
    "sum", "by", "rate", "deriv", "max", "min", "avg", "histogram_quantile", "label_values",
}  # fmt: skip
# The names that the project's interfaces fix.
RELIED_ON = (
    *(f"penstock_router_{name}" for name in (
        "requests_total", "ttft_seconds", "tpot_seconds", "slo_attained_total", "slo_judged_total", "prompt_tokens_total",
        "generated_tokens_total", "request_prompt_tokens", "request_output_tokens", "queue_requests", "queue_tokens",
        "decision_seconds", "ttft_prediction_error_seconds", "legs_total", "failovers_total", "dropped_total", "workers",
        "index_blocks", "tenant_service_tokens_total",
    )),
    *(f"penstock_operator_{name}" for name in ("reconcile_seconds", "writes_total", "pool_replicas", "scale_decisions_total")),
    "penstock_worker_cost_coefficient",
)  # fmt: skip
QUERIES = [
    pytest.param(one, query, id=f"{one.uid}: {panel.title} {number}")
    for one in dashboards.DASHBOARDS
    for panel in one.panels
    for number, (query, _) in enumerate(panel.targets)
]


def _names(kind: str, name: str) -> set[str]:
    return {
        "counter": {f"{name}_total"},
        "histogram": {f"{name}_bucket", f"{name}_count", f"{name}_sum"},
    }.get(kind, {name})


def _of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Series -> labels, of families whose labels a scrape without samples does not show."""
    found: dict[str, set[str]] = {}
    for collector in registry._collector_to_names:
        name, labels = getattr(collector, "_name", ""), getattr(collector, "_labelnames", ())
        if name:
            found |= {one: set(labels) for one in _names(str(getattr(collector, "_type", "")), name)}
    return found


def _of_router() -> dict[str, set[str]]:
    metrics, found = RouterMetrics(), {}
    for family in metrics._families:
        kind = "histogram" if hasattr(family, "bounds") else "counter"
        found |= {one: set(family.label_names) for one in _names(kind, family.name)}

    def gauge(name: str, _: str, labels: tuple[str, ...], __: Any) -> None:
        found[name] = set(labels)

    made: Any = type("Core", (), {"metrics": type("Metrics", (), {"gauge": staticmethod(gauge)})()})()
    view.register_gauges(made)
    return found


def _of_vllm() -> dict[str, set[str]]:
    """From its source: importing it takes half a minute."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    names = set(re.findall(r'name="(vllm:\w+)"', text))
    return {name: {"model_name", "engine"} for one in names for name in (one, f"{one}_total")}


EXPORTED = {**_of(Figures().registry), **_of(WorkerMetrics().registry), **_of_router(), **_of_vllm()}


def test_the_processes_metrics_are_known() -> None:
    assert EXPORTED["penstock_operator_writes_total"] == {"kind"}
    assert EXPORTED["penstock_worker_cost_coefficient"] == {"term"}
    assert EXPORTED["penstock_router_workers"] == {"pool", "role", "state"}
    assert "outcome" in EXPORTED["penstock_router_requests_total"] and "vllm:num_preemptions_total" in EXPORTED


@pytest.mark.parametrize(("dashboard", "query"), QUERIES)
def test_a_query_names_metrics_and_labels_that_are_exported(dashboard: dashboards.Dashboard, query: str) -> None:
    metrics = re.findall(r"\b(?:penstock_|vllm:)[\w:]+", query)
    assert metrics and [one for one in metrics if one not in EXPORTED] == []
    known = set.intersection(*(EXPORTED[one] for one in metrics)) | FROM_PROMETHEUS
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", query)
    used = {label.strip() for group in re.findall(r"by \(([^)]*)\)", bare) for label in group.split(",")}
    used |= set(re.findall(r"(\w+)=~?", bare))
    assert used - known == set()
    words = set(re.findall(r"\b[a-z_]+\b", re.sub(r"\{[^}]*\}|by \([^)]*\)|(?:penstock_|vllm:)[\w:]+", "", bare)))
    assert words <= WORDS and query.count("(") == query.count(")")


@pytest.mark.parametrize("one", dashboards.DASHBOARDS, ids=lambda one: one.uid)
def test_a_legend_names_labels_that_its_query_keeps(one: dashboards.Dashboard) -> None:
    for panel in one.panels:
        for query, legend in panel.targets:
            kept = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
            assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= kept, panel.title


@pytest.mark.parametrize("one", dashboards.DASHBOARDS, ids=lambda one: one.uid)
def test_panels_have_titles_of_their_own_and_do_not_overlap(one: dashboards.Dashboard) -> None:
    panels = json.loads(dashboards.text(one))["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places) and all(x + 8 <= 24 for x, _ in places)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


@pytest.mark.parametrize("name", RELIED_ON)
def test_what_users_rely_on_is_exported_and_on_a_dashboard(name: str) -> None:
    shown = [query for one in dashboards.DASHBOARDS for panel in one.panels for query, _ in panel.targets]
    assert any(re.search(rf"\b{name}(_bucket|_count)?\b", query) for query in shown)
    assert {name, f"{name}_bucket"} & EXPORTED.keys()
