"""The router's Prometheus metrics.

Promise: counting costs an addition. Values live in plain objects that request code binds once; Prometheus' own
classes, whose locks and label look-ups cost ten times that, see them only when somebody scrapes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PER_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
DECISION: Final = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)
TOKENS: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)

Labels = tuple[str, ...]


class Count:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Spread:
    """A histogram's figures."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class CounterFamily:
    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        self.name, self.help, self.label_names = name, help_text, labels
        self._children: dict[Labels, Count] = {}

    def child(self, *labels: str) -> Count:
        found = self._children.get(labels)
        if found is None:
            found = self._children[labels] = Count()
        return found

    def collect(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=self.label_names)
        for labels, count in list(self._children.items()):
            family.add_metric(labels, count.value)
        return family


class HistogramFamily:
    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...], labels: Labels = ()) -> None:
        self.name, self.help, self.bounds, self.label_names = name, help_text, bounds, labels
        self._children: dict[Labels, Spread] = {}

    def child(self, *labels: str) -> Spread:
        found = self._children.get(labels)
        if found is None:
            found = self._children[labels] = Spread(self.bounds)
        return found

    def collect(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.label_names)
        for labels, spread in list(self._children.items()):
            running, buckets = 0, []
            for bound, count in zip([*map(repr, self.bounds), "+Inf"], spread.counts, strict=True):
                running += count
                buckets.append((bound, running))
            family.add_metric(labels, buckets, spread.total)
        return family


Gauge = Callable[[], Iterable[tuple[Labels, float]]]


class RouterMetrics(Collector):
    """All `penstock_router_*` metrics. Register it in a registry of its own: `registry()`."""

    def __init__(self) -> None:
        slo = ("service_class", "objective")
        model = ("model", "service_class", "placement")
        self.requests = CounterFamily(
            "penstock_router_requests", "Requests by how they ended.", ("model", "service_class", "outcome")
        )
        self.ttft = HistogramFamily("penstock_router_ttft_seconds", "Receipt to first token.", LATENCY, model)
        self.tpot = HistogramFamily("penstock_router_tpot_seconds", "Per output token after the first.", PER_TOKEN, model)
        self.slo_judged = CounterFamily("penstock_router_slo_judged", "Choices judged against an objective.", slo)
        self.slo_attained = CounterFamily("penstock_router_slo_attained", "Choices that met it.", slo)
        self.prompt_tokens = CounterFamily(
            "penstock_router_prompt_tokens", "Prompt tokens by where their KV came from.", ("source",)
        )
        self.generated_tokens = CounterFamily("penstock_router_generated_tokens", "Tokens sent to clients.")
        self.request_prompt = HistogramFamily("penstock_router_request_prompt_tokens", "Prompt length, tokens.", TOKENS)
        self.request_output = HistogramFamily("penstock_router_request_output_tokens", "Output length, tokens.", TOKENS)
        self.decision = HistogramFamily("penstock_router_decision_seconds", "Match, prediction and booking.", DECISION)
        self.ttft_error = HistogramFamily(
            "penstock_router_ttft_prediction_error_seconds", "|predicted - observed|; over: predicted more.", LATENCY, ("sign",)
        )
        self.legs = CounterFamily("penstock_router_legs", "Legs by how they ended.", ("kind", "outcome"))
        self.failovers = CounterFamily("penstock_router_failovers", "Requests moved to another worker.", ("reason",))
        self.handoffs = CounterFamily(
            "penstock_router_handoffs", "Running legs told to move, by what became of it.", ("reason", "outcome")
        )
        self.dropped = CounterFamily("penstock_router_dropped", "Requests that got no answer.", ("reason",))
        self.tenant_tokens = CounterFamily("penstock_router_tenant_service_tokens", "Tokens served by tenant.", ("tenant",))
        self.kv_gaps = CounterFamily("penstock_router_kv_gaps", "Snapshots asked for because a worker's sequence had a gap.")
        self.kv_expired = CounterFamily("penstock_router_kv_expired", "KV refused because its lease was about to end.")
        self._families: tuple[CounterFamily | HistogramFamily, ...] = tuple(
            value for value in vars(self).values() if isinstance(value, CounterFamily | HistogramFamily)
        )
        self._gauges: dict[str, tuple[str, Labels, Gauge]] = {}
        self.generated = self.generated_tokens.child()
        self.tenant_tokens.child("default")

    def gauge(self, name: str, help_text: str, labels: Labels, read: Gauge) -> None:
        """A value that its owner knows; read at scrapes."""
        self._gauges[name] = (help_text, labels, read)

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield family.collect()
        for name, (help_text, labels, read) in self._gauges.items():
            gauge = GaugeMetricFamily(name, help_text, labels=labels)
            for values, number in read():
                gauge.add_metric(values, number)
            yield gauge

    def registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return registry
