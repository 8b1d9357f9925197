"""Crash, hide, stale, and every refusal: whatever happens on the way, the end is the undisturbed one.

The workload is a service that is made, then changed. Every write of it is killed before and after; every watch event is
dropped; looks are answered from an old state after a restart; each error is given at each place. `make test` runs a seeded
sample, PENSTOCK_FULL=1 all of them.
"""

import itertools
import os
import random
import time

import pytest
from kube.faults import Fault, proxy
from kube.standin import service

pytestmark = pytest.mark.e2e
SAMPLE = 30
TIMING = (6.0, 4.0, 0.3)
LLM = "apis/serving.penstock.dev/v1alpha1"


class Trial:
    """One life of one service in a namespace of its own."""

    def __init__(self, cluster, operators, through, namespace):
        self.cluster, self.operators, self.through, self.namespace = cluster, operators, through, namespace
        self.started = []

    def run(self, fault, stale_restart=False):
        self.through.forget()
        self.through.set(fault, self.kill)
        self.cluster.send("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.start()
        self.apply(configs=3, value="a")
        self.until_settled("a", 3)
        if stale_restart:
            self.kill()
        self.apply(configs=2, value="b")
        self.until_settled("b", 2)
        harmed, calls, events = self.through.harmed, self.through.changes, self.through.events
        late = self.writes_of_further_resyncs(3)
        end = self.end_state()
        self.kill()
        for operator in self.started:
            # Kopf tells of what ends it by a traceback of its own frames; one with ours is a fault of ours.
            assert "penstock_operator/shell" not in operator.said(), operator.said()
        return end, harmed, calls, events, late

    def start(self):
        # The Lease of the killed one: its running out is waited for elsewhere.
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/penstock-operator"
        if self.started and self.cluster.read(path):
            self.cluster.send("DELETE", path)
        options = {"home": self.namespace, "namespaces": [self.namespace], "resync_s": 0.15, "timing": TIMING}
        self.started.append(self.operators.start(self.through.url, **options))

    def kill(self):
        self.started[-1].kill()

    def apply(self, **spec):
        path = f"/{LLM}/namespaces/{self.namespace}/llmservices/chat?fieldManager=person&force=true"
        self.cluster.send("PATCH", path, service(self.namespace, "chat", **spec), "application/apply-patch+yaml")

    def until_settled(self, value, configs):
        end = time.monotonic() + 60
        while not self.settled(value, configs):
            if not self.started[-1].alive():
                self.start()
            assert time.monotonic() < end, (self.end_state(), self.started[-1].said()[-3000:])
            time.sleep(0.05)

    def settled(self, value, configs):
        found = self.cluster.read(f"/{LLM}/namespaces/{self.namespace}/llmservices/chat")
        status = found.get("status", {})
        if status.get("phase") != "Ready" or status.get("observedGeneration") != found["metadata"]["generation"]:
            return False
        return [data["value"] for _, data in self.configs()] == [value] * configs

    def configs(self):
        items = self.cluster.read(f"/api/v1/namespaces/{self.namespace}/configmaps")["items"]
        ours = [one for one in items if one["metadata"]["name"].startswith("chat")]
        return sorted((one["metadata"]["name"], one["data"]) for one in ours)

    def end_state(self):
        found = self.cluster.read(f"/{LLM}/namespaces/{self.namespace}/llmservices/chat")
        front = self.cluster.read(f"/api/v1/namespaces/{self.namespace}/services/chat")
        return self.configs(), front and (front["metadata"]["labels"], front["spec"]["ports"]), found.get("status")

    def writes_of_further_resyncs(self, count):
        """From the first resync that begins from now: what was under way may still end."""
        self.until_resyncs(1)
        self.through.set(None)
        self.until_resyncs(count)
        return self.through.changes

    def until_resyncs(self, count):
        def looks():
            return sum(call.verb == "list" and call.resource == "llmservices" for call in list(self.through.calls))

        before, end = looks(), time.monotonic() + 60
        while looks() < before + count:
            if not self.started[-1].alive():
                self.start()
            assert time.monotonic() < end, self.started[-1].said()[-3000:]
            time.sleep(0.05)


@pytest.fixture(scope="session")
def undisturbed(cluster, operators):
    with proxy(cluster.server, cluster.ca_pem, cluster.token) as through:
        end, _, changes, events, late = Trial(cluster, operators, through, "undisturbed").run(None)
    cluster.send("DELETE", "/api/v1/namespaces/undisturbed")
    assert late == []
    return end, len(changes), events


def all_faults(writes, events):
    """(name, fault, restart between the two halves)"""
    for k in range(1, writes + 1):
        yield f"killed before write {k}", Fault("kill before", k), False
        yield f"killed after write {k}", Fault("kill after", k), False
    for i in range(1, events + 1):
        yield f"event {i} dropped", Fault("drop event", i), False
    for first, times in itertools.product(range(1, 13), (2, 6)):
        yield f"looks {first} to {first + times - 1} after a restart are stale", Fault("stale", first, times, on="looks"), True
    for status, on in itertools.product((409, 422, 429, 500, 503, 410), ("changes", "looks")):
        for first in (1, 3, 6):
            yield f"{status} for {on} from {first}", Fault("answer", first, 2, on=on, status=status), False
    for on in ("changes", "looks"):
        for first in (1, 4):
            yield f"{on} from {first} cut short", Fault("truncate", first, 2, on=on), False
            yield f"{on} from {first} slow", Fault("slow", first, 2, on=on, seconds=1.0), False
    for status in (410, 500):
        yield f"watches end with {status}", Fault("end stream", 1, 2, on="watch", status=status), False
    yield "the Lease is refused twice", Fault("answer", 3, 2, on="lease", status=500), False


def test_every_fault_ends_where_no_fault_ends(cluster, operators, days, undisturbed, request):
    right, writes, events = undisturbed
    faults = list(all_faults(writes, events))
    seed = int(os.environ.get("PENSTOCK_SEED", "1"))
    chosen = faults if os.environ.get("PENSTOCK_FULL") else random.Random(seed).sample(faults, min(SAMPLE, len(faults)))
    through = days()
    wrong, harmless = [], []
    begun = time.monotonic()
    for number, (name, fault, restart) in enumerate(chosen):
        namespace = f"crash{number}"
        end, harmed, _, _, late = Trial(cluster, operators, through, namespace).run(fault, restart)
        if end != right or late:
            wrong.append((name, end, late))
        if not harmed:
            harmless.append(name)
        cluster.send("DELETE", f"/api/v1/namespaces/{namespace}")
    took = time.monotonic() - begun
    print(f"{len(chosen)} of {len(faults)} trials, seed {seed}, {took:.0f} s; harmed nothing: {harmless or 'none'}")
    assert wrong == []
    assert len(harmless) < len(chosen) / 3, "faults that never struck prove nothing"
