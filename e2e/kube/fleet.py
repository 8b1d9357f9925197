"""`python -m kube.fleet --services N`: many LLMServices under one operator, and what that costs.

Promise: every figure is of the operator's process alone: its processor time, its resident memory, the writes that a proxy counted
or its own metrics tell. The extrapolation is a straight line from an operator without services.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kube.build import Missing
from kube.control import Cluster
from kube.lives import PATIENCE_S, Say, manifest
from kube.operators import Nursery, Operator, nursery
from kube.stage import LLM, Asker, stage
from kube.waiting import until

SPACE = "fleet"
_GOAL = 2000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operator process, from its start to a moment."""

    wall_s: float
    cpu_s: float
    rss_mib: float
    peak_mib: float
    writes: int


@dataclass(frozen=True, slots=True)
class Figures:
    services: int
    objects: int  # the operator's snapshot: services, children, pods
    made: Cost  # from nothing to every service Ready
    empty: Cost  # an operator where there is no service
    sync: Cost  # a new operator where all are Ready: until each has been looked at
    steady_writes: int  # in ten resyncs
    resync_cpu_s: float  # of one
    reconciles: int
    within_100_ms: float  # share of reconciles, by processor time

    def at(self, services: int) -> dict[str, float]:
        """A straight line through the empty operator."""
        times = services / self.services
        return {
            "sync_cpu_s": self.empty.cpu_s + (self.sync.cpu_s - self.empty.cpu_s) * times,
            "sync_wall_s": self.empty.wall_s + (self.sync.wall_s - self.empty.wall_s) * times,
            "rss_mib": self.empty.rss_mib + (self.sync.rss_mib - self.empty.rss_mib) * times,
        }


@dataclass
class Watched:
    """An operator process, looked at from outside."""

    operator: Operator
    begun: float

    def cost(self) -> Cost:
        fields = Path(f"/proc/{self.operator.pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.operator.pid}/status").read_text().splitlines() if ":" in line
        )
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        rss, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        writes = int(sum(self.samples("penstock_operator_writes_total").values()))
        return Cost(round(time.monotonic() - self.begun, 2), cpu, round(rss, 1), round(peak, 1), writes)

    def samples(self, name: str) -> dict[str, float]:
        """By labels, as the page writes them."""
        found = {}
        for line in self.operator.page("/metrics")[1].splitlines():
            left, _, value = line.rpartition(" ")
            if left == name or left.startswith(f"{name}{{"):
                found[left.removeprefix(name)] = float(value)
        return found

    def synced(self) -> bool:
        return self.operator.page("/readyz") == (200, "leading\n") and not sum(
            self.samples("penstock_operator_queue_keys").values()
        )

    def until(self, what: Callable[[], Any], seconds: float) -> Any:
        def found() -> Any:
            assert self.operator.alive(), self.operator.said()[-3000:]
            return what()

        return until(found, seconds, lambda: self.operator.said()[-3000:], 0.2)

    def end(self) -> None:
        self.operator.kill()
        self.operator.wait()


def _start(operators: Nursery, cluster: Cluster, resync_s: float) -> Watched:
    with Asker(cluster) as asker:
        asker.send("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{SPACE}/leases/penstock-operator")
    options = {"home": SPACE, "namespaces": [SPACE], "resync_s": resync_s, "workers": 8}
    begun = time.monotonic()
    return Watched(operators.start(cluster.server, whole=True, ca_pem=cluster.ca_pem, token=cluster.token, **options), begun)


def run(cluster: Cluster, operators: Nursery, services: int, say: Say) -> Figures:
    with Asker(cluster) as asker:
        return _run(cluster, asker, operators, services, say)


def _run(cluster: Cluster, asker: Asker, operators: Nursery, services: int, say: Say) -> Figures:
    patience = PATIENCE_S + services * 3
    asker.send("POST", "/api/v1/namespaces", {"metadata": {"name": SPACE}})
    empty = _start(operators, cluster, 60.0)
    empty.until(empty.synced, patience)
    nothing = empty.cost()
    empty.end()
    say(f"an empty operator: {nothing}")
    _declare(cluster, services)
    first = _start(operators, cluster, 60.0)
    first.until(lambda: _ready(asker, services, say), patience)
    first.until(first.synced, patience)
    made = first.cost()
    first.end()
    say(f"made: {made}")
    second = _start(operators, cluster, 3.0)
    second.until(second.synced, patience)
    sync = second.cost()
    say(f"a new operator: {sync}")
    looks = "penstock_operator_resync_seconds_count"

    def resyncs() -> float:
        return sum(second.samples(looks).values())

    done = resyncs()
    second.until(lambda: resyncs() >= done + 1, patience)
    before, done = second.cost(), resyncs()
    second.until(lambda: resyncs() >= done + 10, patience)
    after, looked = second.cost(), resyncs() - done
    buckets = second.samples("penstock_operator_reconcile_cpu_seconds_bucket")
    count = sum(second.samples("penstock_operator_reconcile_cpu_seconds_count").values())
    second.end()
    objects = _objects(asker)
    return Figures(
        services, objects, made, nothing, sync, after.writes - sync.writes, round((after.cpu_s - before.cpu_s) / looked, 3),
        int(count), buckets['{le="0.1"}'] / count,
    )  # fmt: skip


def _declare(cluster: Cluster, services: int) -> None:
    """Four at a time, each on a connection of its own."""

    def some(numbers: range) -> None:
        with Asker(cluster) as asker:
            for number in numbers:
                body = manifest("create")
                body["metadata"]["name"] = f"s{number:04d}"
                asker.send("POST", f"{LLM}/namespaces/{SPACE}/llmservices", body)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, [range(first, services, 4) for first in range(4)]))


def _ready(asker: Asker, services: int, say: Say) -> bool:
    time.sleep(5.0)
    items = asker.read(f"{LLM}/namespaces/{SPACE}/llmservices")["items"]
    ready = sum((one.get("status") or {}).get("phase") == "Ready" for one in items)
    say(f"{ready} of {services} are Ready")
    return ready == services


def _objects(asker: Asker) -> int:
    from penstock_operator.plan.permissions import CHILDREN

    count = 0
    for kind in CHILDREN:
        if kind.kind == "PodMonitor":
            continue
        path = f"/{'apis' if kind.group else 'api'}/{kind.api_version}/namespaces/{SPACE}/{kind.plural}?limit=1"
        found = asker.read(path)
        count += len(found["items"]) + int(found["metadata"].get("remainingItemCount") or 0)
    return count


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kube.fleet", description=__doc__)
    parser.add_argument("--services", type=int, default=500, metavar="N")
    given = parser.parse_args(words)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-"))
            cluster = stack.enter_context(stage(say))
            operators = stack.enter_context(nursery(Path(folder)))
            found = run(cluster, operators, given.services, say)
    except Missing as error:
        print(f"kube.fleet: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**asdict(found), f"at_{_GOAL}": found.at(_GOAL)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
