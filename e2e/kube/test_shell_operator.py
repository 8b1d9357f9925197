"""The operator's shell as a process, on a real API server, with a small plan."""

import asyncio
import json
import signal
import time

import pytest
from kube.faults import Fault
from kube.standin import service
from kube.waiting import until

from penstock_operator.plan.names import FIELD_MANAGER

pytestmark = pytest.mark.e2e
QUICK = {"resync_s": 0.3, "timing": (6.0, 4.0, 0.3)}


@pytest.fixture
def world(cluster, namespace, operators, days):
    return World(cluster, namespace, operators, days)


class World:
    def __init__(self, cluster, namespace, operators, days):
        self.cluster, self.namespace, self.operators, self.days = cluster, namespace, operators, days

    def start(self, **options):
        """An operator for this namespace alone, and the proxy that it talks through."""
        through = self.days()
        options = {"home": self.namespace, "namespaces": [self.namespace], **QUICK, **options}
        return self.operators.start(through.url, **options), through

    def apply(self, name, **spec):
        self.cluster.apply(service(self.namespace, name, **spec))

    def get(self, what, name):
        root = "apis/serving.penstock.dev/v1alpha1" if what == "llmservices" else "api/v1"
        return self.cluster.read(f"/{root}/namespaces/{self.namespace}/{what}/{name}")

    def values(self, name, count):
        found = [self.get("configmaps", f"{name}-{number}") for number in range(count)]
        return [one and one["data"].get("value") for one in found]

    def ready(self, name):
        def look():
            found = self.get("llmservices", name)
            status = found.get("status", {})
            return status.get("phase") == "Ready" and status["observedGeneration"] == found["metadata"]["generation"]

        until(look)
        return self.get("llmservices", name)

    def figure(self, operator, name):
        lines = operator.page("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def test_a_service_is_made_told_of_and_then_left_alone(world):
    operator, through = world.start()
    world.apply("chat", configs=3, value="a")
    world.ready("chat")
    assert world.values("chat", 3) == ["a"] * 3
    (said,) = [one for one in world.cluster.objects("events", "-n", world.namespace) if one["reason"] == "Ready"]
    assert said["involvedObject"]["name"] == "chat"
    written = len(through.changes)
    assert written <= 3 + 1 + 2 + 1, through.changes
    through.set(None)
    looks = world.figure(operator, "penstock_operator_resync_seconds_count")
    until(lambda: world.figure(operator, "penstock_operator_resync_seconds_count") >= looks + 10)
    assert through.changes == [], "ten resyncs write nothing"
    assert operator.page("/healthz")[0] == operator.page("/readyz")[0] == 200
    assert world.figure(operator, "penstock_operator_pool_replicas") == 6
    assert "Traceback" not in operator.said()


def test_a_restarted_operator_writes_nothing_either(world):
    first, _ = world.start()
    world.apply("chat", configs=2)
    world.ready("chat")
    first.kill(signal.SIGTERM)
    first.wait()
    second, through = world.start()
    until(lambda: second.page("/readyz") == (200, "leading\n"))
    looks = world.figure(second, "penstock_operator_resync_seconds_count")
    until(lambda: world.figure(second, "penstock_operator_resync_seconds_count") >= looks + 2)
    assert through.changes == []


def test_anothers_fields_stay_and_ours_come_back(world):
    world.start()
    world.apply("chat", configs=1, value="ours")
    world.ready("chat")
    meta = {"namespace": world.namespace, "name": "chat-0", "annotations": {"them": "1"}}
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"value": "theirs", "more": "theirs"}}
    world.cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=them", "-f", "-", text=json.dumps(theirs)
    )
    until(lambda: world.values("chat", 1) == ["ours"])
    found = world.get("configmaps", "chat-0")
    assert found["data"] == {"value": "ours", "more": "theirs"}
    assert found["metadata"]["annotations"] == {"them": "1"}


def test_a_child_that_is_deleted_is_made_again_and_a_surplus_one_goes(world):
    world.start()
    world.apply("chat", configs=3)
    world.ready("chat")
    old = world.get("configmaps", "chat-1")["metadata"]["uid"]
    world.cluster.kubectl("delete", "-n", world.namespace, "configmap", "chat-1")
    until(lambda: (world.get("configmaps", "chat-1") or {}).get("metadata", {}).get("uid") not in (None, old))
    world.apply("chat", configs=1)
    until(lambda: world.get("configmaps", "chat-2") is None and world.get("configmaps", "chat-1") is None)
    assert world.values("chat", 1) == ["v"]


def test_many_changes_of_one_service_are_few_reconciles(world):
    operator, through = world.start(resync_s=60)
    world.apply("chat", configs=1, value="0")
    world.ready("chat")
    before = world.figure(operator, "penstock_operator_reconcile_seconds_count")
    seen = world.figure(operator, "penstock_operator_watch_events_total")
    through.set(None)
    patches = "\n---\n".join(json.dumps(service(world.namespace, "chat", value=str(number))) for number in range(1, 41))
    world.cluster.kubectl("apply", "--server-side", "-f", "-", text=patches)
    until(lambda: world.values("chat", 1) == ["40"])
    world.ready("chat")
    events = world.figure(operator, "penstock_operator_watch_events_total") - seen
    looks = world.figure(operator, "penstock_operator_reconcile_seconds_count") - before
    assert looks < events, "what arrives during a reconcile is one more, whatever its number"


def test_a_paused_service_keeps_its_children_and_says_so(world):
    operator, through = world.start()
    world.apply("chat", configs=2, value="a")
    world.ready("chat")
    world.apply("chat", configs=1, value="b", paused=True)
    until(lambda: world.get("llmservices", "chat")["status"]["observedGeneration"] == 2)
    through.set(None)
    looks = world.figure(operator, "penstock_operator_resync_seconds_count")
    until(lambda: world.figure(operator, "penstock_operator_resync_seconds_count") >= looks + 3)
    assert world.values("chat", 2) == ["a", "a"]
    assert through.changes == []
    world.apply("chat", configs=1, value="b", paused=False)
    until(lambda: world.values("chat", 2) == ["b", None])


def test_what_belongs_to_somebody_else_is_never_taken(world):
    meta = {"namespace": world.namespace, "name": "chat-1"}
    world.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"value": "theirs"}})
    operator, _ = world.start()
    world.apply("chat", configs=2, value="ours")
    until(lambda: "ConfigMap chat-1 exists and does not belong to LLMService" in operator.said())
    found = world.get("configmaps", "chat-1")
    assert found["data"] == {"value": "theirs"}
    assert FIELD_MANAGER not in {one["manager"] for one in found["metadata"]["managedFields"]}
    world.cluster.kubectl("delete", "-n", world.namespace, "configmap", "chat-1")
    world.ready("chat")


def test_a_watch_that_falls_silent_makes_the_operator_unhealthy_while_the_resync_still_works(world):
    operator, through = world.start(grace_s=4.0)
    world.apply("chat", configs=1, value="a")
    world.ready("chat")
    until(lambda: operator.page("/healthz")[0] == 200)
    through.set(Fault("drop event", 1, times=10**6))
    world.apply("chat", configs=1, value="b")
    until(lambda: world.values("chat", 1) == ["b"])
    until(lambda: operator.page("/healthz")[0] == 503)
    assert "tells nothing of changes that a list shows" in operator.page("/healthz")[1]
    through.set(None)
    world.apply("chat", configs=1, value="c")
    until(lambda: operator.page("/healthz")[0] == 200)


def test_the_leader_is_killed_and_a_standby_writes_within_20_s(world):
    """With the timing of production: 15 s, 10 s, 2 s."""
    timing = {"timing": (15.0, 10.0, 2.0)}
    first, _ = world.start(**timing)
    until(lambda: first.page("/readyz") == (200, "leading\n"))
    second, through = world.start(**timing)
    until(lambda: second.page("/readyz") == (200, "standing by\n"))
    world.apply("chat", configs=1, value="a")
    world.ready("chat")
    assert through.changes == [], "a standby writes nothing"
    first.kill()
    killed = time.monotonic()
    world.apply("chat", configs=1, value="b")
    until(lambda: through.changes)
    gap = time.monotonic() - killed
    print(f"new writer after {gap:.1f} s")
    assert gap < 20
    world.ready("chat")
    assert world.values("chat", 1) == ["b"]


def test_a_leader_that_stood_still_writes_nothing_when_it_goes_on(world):
    timing = {"timing": (3.0, 2.0, 0.2)}
    first, through = world.start(**timing)
    until(lambda: first.page("/readyz") == (200, "leading\n"))
    second, _ = world.start(**timing)
    world.apply("chat", configs=1, value="a")
    world.ready("chat")
    first.kill(signal.SIGSTOP)
    world.apply("chat", configs=1, value="b")
    until(lambda: second.page("/readyz") == (200, "leading\n"))
    until(lambda: world.values("chat", 1) == ["b"])
    through.set(None)
    first.kill(signal.SIGCONT)
    first.wait()
    assert through.changes == []
    assert "the Lease is lost" in first.said()


def test_a_leader_that_leaves_in_order_is_followed_at_once(world):
    timing = {"timing": (60.0, 40.0, 0.3)}
    first, _ = world.start(**timing)
    until(lambda: first.page("/readyz") == (200, "leading\n"))
    second, _ = world.start(**timing)
    until(lambda: second.page("/readyz") == (200, "standing by\n"))
    first.kill(signal.SIGTERM)
    first.wait()
    until(lambda: second.page("/readyz") == (200, "leading\n"), seconds=20)


async def test_two_who_ask_at_once_are_one_leader(world):
    started = [world.start()[0] for _ in range(3)]
    until(lambda: sorted(one.page("/readyz")[1] for one in started) == ["leading\n", "standing by\n", "standing by\n"])
    await asyncio.sleep(1)
    assert sorted(one.page("/readyz")[1] for one in started) == ["leading\n", "standing by\n", "standing by\n"]
