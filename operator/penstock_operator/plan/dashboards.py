"""Grafana dashboards of a service, of its workers, and of the operator.

Promise: pure; `make gen` writes them, and a test compares every query with the metrics that the processes export.
"""

import json
from dataclasses import dataclass
from typing import Any

_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8
_RATE = "$__rate_interval"
_ROUTER = 'namespace="$namespace",pod=~"$service-router-[a-z0-9]+-[a-z0-9]+"'
_WORKER = 'namespace="$namespace",pod=~"$service-[0-9a-f]{8}-.+"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`targets` are (query, legend); `unit` is Grafana's name of it."""

    title: str
    unit: str
    targets: tuple[tuple[str, str], ...]
    told: str = ""  # what a reader should make of it


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    panels: tuple[Panel, ...]
    by_service: bool = True


def _sum(metric: str, chosen: str, by: str = "") -> str:
    return f"sum by ({by}) ({metric}{{{chosen}}})" if by else f"sum({metric}{{{chosen}}})"


def _rate(metric: str, chosen: str, by: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[{_RATE}]))" if by else f"sum(rate({metric}{{{chosen}}}[{_RATE}]))"


def _quantile(share: float, metric: str, chosen: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{chosen}}}[{_RATE}])))"


def _quantiles(metric: str, chosen: str, by: str) -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(share, metric, chosen, by), f"p{share * 100:.0f} {{{{{by}}}}}") for share in (0.5, 0.9, 0.99))


def _ratio(part: str, whole: str, chosen: str, by: str) -> str:
    return f"{_rate(part, chosen, by)} / {_rate(whole, chosen, by)}"


_ATTAINED = _ratio("penstock_router_slo_attained_total", "penstock_router_slo_judged_total", _ROUTER, "service_class, objective")

SERVICE = Dashboard(
    "penstock-service",
    "Penstock / Service",
    (
        Panel("Requests by outcome", "reqps", ((_rate("penstock_router_requests_total", _ROUTER, "outcome"), "{{outcome}}"),)),
        Panel(
            "Objectives attained", "percentunit", ((_ATTAINED, "{{service_class}} {{objective}}"),), "Asked for: slo.attainment."
        ),
        Panel("Time to first token", "s", _quantiles("penstock_router_ttft_seconds", _ROUTER, "service_class")),
        Panel("Time per further token", "s", _quantiles("penstock_router_tpot_seconds", _ROUTER, "service_class")),
        Panel(
            "Prompt tokens by where their KV came from",
            "short",
            ((_rate("penstock_router_prompt_tokens_total", _ROUTER, "source"), "{{source}}"),),
            "cached and transferred tokens cost no prefill.",
        ),
        Panel("Tokens made", "short", ((_rate("penstock_router_generated_tokens_total", _ROUTER), "tokens/s"),)),
        Panel(
            "Waiting and open",
            "short",
            (
                (_sum("penstock_router_queue_requests", _ROUTER), "waiting requests"),
                (_sum("penstock_router_open_streams", _ROUTER), "open answers"),
            ),
        ),
        Panel("Waiting tokens", "short", ((_sum("penstock_router_queue_tokens", _ROUTER), "tokens"),)),
        Panel(
            "Workers as routers see them",
            "short",
            ((f"max by (pool, state) (sum by (pod, pool, state) (penstock_router_workers{{{_ROUTER}}}))", "{{pool}} {{state}}"),),
        ),
        Panel(
            "Requests moved to another worker",
            "reqps",
            ((_rate("penstock_router_failovers_total", _ROUTER, "reason"), "{{reason}}"),),
        ),
        Panel(
            "Hand-offs",
            "reqps",
            ((_rate("penstock_router_handoffs_total", _ROUTER, "reason, outcome"), "{{reason}} {{outcome}}"),),
        ),
        Panel("Dropped", "reqps", ((_rate("penstock_router_dropped_total", _ROUTER, "reason"), "{{reason}}"),)),
        Panel(
            "Error of predicted first tokens, p90",
            "s",
            ((_quantile(0.9, "penstock_router_ttft_prediction_error_seconds", _ROUTER, "sign"), "{{sign}}"),),
            "over: predicted more than it took.",
        ),
        Panel("Decisions, p99", "s", ((_quantile(0.99, "penstock_router_decision_seconds", _ROUTER), "p99"),)),
        Panel("Legs", "reqps", ((_rate("penstock_router_legs_total", _ROUTER, "kind, outcome"), "{{kind}} {{outcome}}"),)),
        Panel(
            "Length of requests, p90",
            "short",
            (
                (_quantile(0.9, "penstock_router_request_prompt_tokens", _ROUTER), "prompt tokens"),
                (_quantile(0.9, "penstock_router_request_output_tokens", _ROUTER), "output tokens"),
            ),
        ),
        Panel("KV blocks known", "short", ((_sum("penstock_router_index_blocks", _ROUTER, "pod"), "{{pod}}"),)),
        Panel(
            "Tokens by tenant",
            "short",
            ((_rate("penstock_router_tenant_service_tokens_total", _ROUTER, "tenant"), "{{tenant}}"),),
        ),
    ),
)

WORKERS = Dashboard(
    "penstock-workers",
    "Penstock / Workers",
    (
        Panel("Legs", "short", ((_sum("penstock_worker_legs", _WORKER, "state"), "{{state}}"),)),
        Panel("Legs that ended", "reqps", ((_rate("penstock_worker_legs_ended_total", _WORKER, "outcome"), "{{outcome}}"),)),
        Panel("Draining workers", "short", ((_sum("penstock_worker_draining", _WORKER), "draining"),)),
        Panel(
            "KV cache in use",
            "percentunit",
            ((f"max by (pod) (vllm:kv_cache_usage_perc{{{_WORKER}}})", "{{pod}}"),),
            "Above 0.9 running answers are preempted.",
        ),
        Panel("Preemptions", "short", ((_rate("vllm:num_preemptions_total", _WORKER, "pod"), "{{pod}}"),)),
        Panel(
            "Prefix cache hits",
            "percentunit",
            ((_ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total", _WORKER, "pod"), "{{pod}}"),),
        ),
        Panel("KV pulled, tokens", "short", ((_rate("penstock_worker_kv_transfer_tokens_total", _WORKER, "pod"), "{{pod}}"),)),
        Panel("KV pulls", "reqps", ((_rate("penstock_worker_kv_transfers_total", _WORKER, "outcome"), "{{outcome}}"),)),
        Panel("KV held for next legs", "short", ((_sum("penstock_worker_kv_held_legs", _WORKER, "pod"), "{{pod}}"),)),
        Panel("Cost of a step, by term", "s", ((f"avg by (term) (penstock_worker_cost_coefficient{{{_WORKER}}})", "{{term}}"),)),
        Panel(
            "Error of predicted steps",
            "percentunit",
            ((f"max by (quantile) (penstock_worker_cost_error_ratio{{{_WORKER}}})", "p{{quantile}}"),),
            "Routers place by these predictions.",
        ),
        Panel("Routers joined", "short", ((f"min by (stream) (penstock_worker_routers{{{_WORKER}}})", "least {{stream}}"),)),
        Panel("Reports", "reqps", ((_rate("penstock_worker_reports_total", _WORKER, "kind"), "{{kind}}"),)),
        Panel(
            "Running and waiting in engines",
            "short",
            (
                (_sum("vllm:num_requests_running", _WORKER), "running"),
                (_sum("vllm:num_requests_waiting", _WORKER), "waiting"),
            ),
        ),
        Panel("Steps", "short", ((f"sum by (pod) (deriv(penstock_worker_steps{{{_WORKER}}}[{_RATE}]))", "{{pod}}"),)),
    ),
)

OPERATOR = Dashboard(
    "penstock-operator",
    "Penstock / Operator",
    (
        Panel("Leaders", "short", (("sum(penstock_operator_leading)", "leading"),), "Anything but 1 for a minute is a fault."),
        Panel(
            "Workers",
            "short",
            (
                (
                    "sum by (namespace, service, pool, state) (penstock_operator_pool_replicas)",
                    "{{namespace}}/{{service}} {{pool}} {{state}}",
                ),
            ),
        ),
        Panel(
            "Reconciles by outcome",
            "reqps",
            ((_rate("penstock_operator_reconcile_seconds_count", "", "outcome"), "{{outcome}}"),),
        ),
        Panel("Reconcile, p99", "s", ((_quantile(0.99, "penstock_operator_reconcile_seconds", ""), "p99"),)),
        Panel(
            "Writes",
            "reqps",
            ((_rate("penstock_operator_writes_total", "", "kind"), "{{kind}}"),),
            "0 while nothing changes.",
        ),
        Panel("Faults", "reqps", ((_rate("penstock_operator_faults_total", "", "reason"), "{{reason}}"),)),
        Panel("Queue", "short", (("sum(penstock_operator_queue_keys)", "LLMServices"),)),
        Panel("Sizes changed", "reqps", ((_rate("penstock_operator_scale_decisions_total", "", "reason"), "{{reason}}"),)),
        Panel("Resync, p99", "s", ((_quantile(0.99, "penstock_operator_resync_seconds", ""), "p99"),)),
    ),
    by_service=False,
)

DASHBOARDS = (SERVICE, WORKERS, OPERATOR)


def text(dashboard: Dashboard) -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(_document(dashboard), indent=1) + "\n"


def files() -> dict[str, str]:
    """By the path in the chart."""
    return {f"files/dashboards/{one.uid}.json": text(one) for one in DASHBOARDS}


def _document(one: Dashboard) -> dict[str, Any]:
    return {
        "uid": one.uid,
        "title": one.title,
        "tags": ["penstock"],
        "editable": False,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_SOURCE, *(_SERVICE_VARIABLES if one.by_service else ())]},
        "panels": [_panel(place, panel) for place, panel in enumerate(one.panels)],
    }


_SOURCE = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: str, label: str, query: str, **more: str) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "$datasource"}
    return {"name": name, "label": label, "type": "query", "datasource": source, "query": query, "refresh": 2, "sort": 1, **more}


_SERVICE_VARIABLES = (
    _variable("namespace", "Namespace", "label_values(penstock_router_workers, namespace)"),
    _variable(
        "service",
        "Service",
        'label_values(penstock_router_workers{namespace="$namespace"}, pod)',
        regex="/(.*)-router-[a-z0-9]+-[a-z0-9]+$/",
    ),
)


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(place, _COLUMNS)
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        **({"description": panel.told} if panel.told else {}),
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(panel.targets)
        ],
    }
