"""A worker's Prometheus metrics, beside those of the process (vLLM's `vllm:*`).

Promise: one registry per worker, so that several workers in a process do not mix; labels come from closed lists.
"""

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock_proto.v1.fleet_pb2 import CostReport

TERMS = ("base_s", "prefill_s", "decode_s", "context_s", "transfer_base_s", "transfer_token_s")


class _OfProcess(Collector):
    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()


class WorkerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._cost = Gauge("penstock_worker_cost_coefficient", "Seconds per unit of a term", ["term"], registry=self.registry)
        self._cost_error = Gauge(
            "penstock_worker_cost_error_ratio", "Relative error of predicted steps", ["quantile"], registry=self.registry
        )
        self.transfer_tokens = Counter("penstock_worker_kv_transfer_tokens", "Tokens whose KV was pulled", registry=self.registry)
        self._transfers = Counter("penstock_worker_kv_transfers", "KV pulls", ["outcome"], registry=self.registry)
        self._reports = Counter("penstock_worker_reports", "Reports sent to routers", ["kind"], registry=self.registry)
        self._legs = Gauge("penstock_worker_legs", "Legs now", ["state"], registry=self.registry)
        self.legs_started = Counter("penstock_worker_legs_started", "Legs given to the engine", registry=self.registry)
        self._ended = Counter("penstock_worker_legs_ended", "Legs that ended", ["outcome"], registry=self.registry)
        self.draining = Gauge("penstock_worker_draining", "1 while the worker drains", registry=self.registry)
        self._routers = Gauge("penstock_worker_routers", "Routers by stream", ["stream"], registry=self.registry)
        self._steps = Gauge("penstock_worker_steps", "Engine steps since the incarnation began", registry=self.registry)
        self._held = Gauge("penstock_worker_kv_held_legs", "Ended legs whose KV is held for the next", registry=self.registry)
        self._of_process = _OfProcess()
        self._reports_by_kind: dict[str, Counter] = {}

    def watch(
        self, legs: Callable[[str], int], routers: Callable[[str], int], steps: Callable[[], int], held: Callable[[], int]
    ) -> None:
        """Figures read when somebody asks."""
        for state in ("running", "waiting"):
            self._legs.labels(state).set_function(lambda s=state: legs(s))  # type: ignore[misc]
        for stream in ("joined", "attached"):
            self._routers.labels(stream).set_function(lambda s=stream: routers(s))  # type: ignore[misc]
        self._steps.set_function(steps)
        self._held.set_function(held)

    def transfer(self, tokens: int, failed: bool) -> None:
        self._transfers.labels("failed" if failed else "ok").inc()
        if not failed:
            self.transfer_tokens.inc(tokens)

    def report(self, kind: str) -> None:
        counter = self._reports_by_kind.get(kind)
        if counter is None:
            counter = self._reports_by_kind[kind] = self._reports.labels(kind)
        counter.inc()

    def ended(self, outcome: str, count: int = 1) -> None:
        self._ended.labels(outcome).inc(count)

    def cost(self, report: CostReport) -> None:
        for term in TERMS:
            self._cost.labels(term).set(getattr(report, term))
        self._cost_error.labels("0.5").set(report.error_p50)
        self._cost_error.labels("0.9").set(report.error_p90)

    def serve(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """Serves /metrics; returns the port and what stops it."""
        self.registry.register(self._of_process)
        server, thread = start_http_server(port, host, self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop
