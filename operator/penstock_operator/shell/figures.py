"""The operator's metrics.

Promise: the names of the project's interfaces; no label is unbounded but those of LLMServices, which go when they go.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from penstock_operator.shell.ports import Key

_STATES = ("desired", "ready", "draining")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Figures:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.reconcile = Histogram(
            "penstock_operator_reconcile_seconds", "One look at one LLMService.", ["outcome"], buckets=_SECONDS, registry=to
        )
        self.cpu = Histogram(
            "penstock_operator_reconcile_cpu_seconds", "Processor time of one look.", buckets=_SECONDS, registry=to
        )
        self.writes = Counter("penstock_operator_writes", "Objects written or deleted.", ["kind"], registry=to)
        self.faults = Counter(
            "penstock_operator_faults", "Reconciles that ended early, by what the API server said.", ["reason"], registry=to
        )
        self.pools = Gauge("penstock_operator_pool_replicas", "Workers.", ["namespace", "service", "pool", "state"], registry=to)
        self.scale = Counter("penstock_operator_scale_decisions", "Sizes changed.", ["reason"], registry=to)
        self.leading = Gauge("penstock_operator_leading", "1 while this process may write.", registry=to)
        self.queue = Gauge("penstock_operator_queue_keys", "LLMServices waiting or being worked on.", registry=to)
        self.events = Counter("penstock_operator_watch_events", "Events that woke the queue.", ["kind"], registry=to)
        self.missed = Counter(
            "penstock_operator_missed_events", "Changes that the resync found and no watch had told.", ["kind"], registry=to
        )
        self.resync = Histogram("penstock_operator_resync_seconds", "One look at everything.", registry=to)
        self._known: dict[Key, set[str]] = {}

    def pool_sizes(self, key: Key, pools: Sequence[Mapping[str, Any]]) -> None:
        names = {str(pool["name"]) for pool in pools}
        for name in self._known.get(key, set()) - names:
            self._drop(key, name)
        self._known[key] = names
        for pool in pools:
            for state in _STATES:
                self.pools.labels(key.namespace, key.name, pool["name"], state).set(pool.get(state, 0))

    def forget(self, key: Key) -> None:
        for name in self._known.pop(key, set()):
            self._drop(key, name)

    def _drop(self, key: Key, pool: str) -> None:
        for state in _STATES:
            self.pools.remove(key.namespace, key.name, pool, state)
