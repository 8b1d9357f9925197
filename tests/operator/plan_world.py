"""A cluster in memory for plans: what is applied is there, what is asked for starts when told to."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from penstock_operator.plan import Cluster, OperatorSettings, Plan, read, reconcile
from penstock_operator.plan.names import COMPONENT_LABEL, POOL_LABEL, REVISION_LABEL, SERVICE_LABEL

Object = dict[str, Any]
UID = "5a7d0c8e-0000-4000-8000-000000000001"


@dataclass
class World:
    document: Object
    settings: OperatorSettings = field(default_factory=OperatorSettings)
    cluster: Cluster = field(default_factory=lambda: Cluster(frozenset({"RayService", "PodMonitor"}), storage_class=True))
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    pods: list[Object] = field(default_factory=list)
    now_s: float = 1_800_000_000.0
    writes: int = 0
    events: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0
    answers: list[Object] = field(default_factory=list)  # to what a plan wants to know beyond objects
    told: list[str] = field(default_factory=list)  # the messages of events

    def __post_init__(self) -> None:
        self.document["metadata"] |= {"uid": UID, "generation": 1, "namespace": "prod"}

    def change(self, spec: Object) -> None:
        if self.document["spec"] != spec:
            self.document["spec"] = deepcopy(spec)
            self.document["metadata"]["generation"] += 1

    def plan(self) -> Plan:
        children = [*self.objects.values(), *self.pods, *self.answers]
        return reconcile(self.document, read(self.document, children, self.cluster), self.settings, self.now_s)

    def step(self) -> Plan:
        plan = self.plan()
        for body in plan.objects:
            self._apply(deepcopy(dict(body)))
        for ref in plan.deletions:
            self.writes += self.objects.pop((ref.kind, ref.name), None) is not None
            if ref.kind == "RayService":
                self.pods = [pod for pod in self.pods if f"-{pod['metadata']['labels'].get(REVISION_LABEL)}" not in ref.name]
        if self.document.get("status") != plan.status:
            self.document["status"] = deepcopy(dict(plan.status))
            self.writes += 1
        self.events += [(event.type, event.reason) for event in plan.events]
        self.told += [event.message for event in plan.events]
        self.now_s += 1
        return plan

    def _apply(self, body: Object) -> None:
        key = (body["kind"], body["metadata"]["name"])
        old = self.objects.get(key)
        if old is not None and {k: v for k, v in old.items() if k != "status"} == _stamped(body, old):
            return
        self.writes += 1
        self.made += old is None
        stamp = f"2026-11-21T00:00:{self.made:02d}Z" if old is None else old["metadata"]["creationTimestamp"]
        body["metadata"]["creationTimestamp"] = stamp
        self.objects[key] = body | ({"status": old["status"]} if old and "status" in old else {})

    def sizes(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for (kind, _), body in self.objects.items():
            if kind == "RayService":
                applications = json.loads(body["spec"]["serveConfigV2"])["applications"]
                revision = body["metadata"]["labels"][REVISION_LABEL]
                found[revision] = {one["name"]: one["deployments"][0]["num_replicas"] for one in applications}
        return found

    def run_routers(self) -> None:
        for (kind, _), body in self.objects.items():
            if kind == "Deployment":
                number = body["spec"]["replicas"]
                body["status"] = {"readyReplicas": number, "updatedReplicas": number}

    def run_pods(self, bad: frozenset[str] = frozenset()) -> None:
        """Every worker that is asked for has a ready pod; those of a bad revision cannot pull their image."""
        self.pods = [
            pod(revision, pool, number, self.document["metadata"]["name"], ready=revision not in bad)
            for revision, pools in self.sizes().items()
            for pool, size in pools.items()
            for number in range(size)
        ]

    def settle(self, limit: int = 60) -> Plan:
        for _ in range(limit):
            before = self.writes
            plan = self.step()
            self.run_routers()
            self.run_pods()
            if self.writes == before and self.plan() == plan:
                return plan
        raise AssertionError(f"no end: {self.sizes()}, {self.document['status']}")

    def condition(self, kind: str) -> tuple[str, str]:
        found = self._condition(kind)
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        return str(self._condition(kind)["message"])

    def _condition(self, kind: str) -> Object:
        (found,) = [one for one in self.document["status"]["conditions"] if one["type"] == kind]
        return dict(found)


def _stamped(body: Object, old: Object) -> Object:
    return {**body, "metadata": {**body["metadata"], "creationTimestamp": old["metadata"]["creationTimestamp"]}}


def pod(
    revision: str, pool: str, number: int, service: str = "tiny", ready: bool = True, waiting: str = "ImagePullBackOff"
) -> Object:
    labels = {SERVICE_LABEL: service, REVISION_LABEL: revision, POOL_LABEL: pool, COMPONENT_LABEL: "engine"}
    container: Object = {"name": "ray-worker", "state": {"running": {}}}
    if not ready:
        container["state"] = {"waiting": {"reason": waiting, "message": "Back-off pulling image"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{revision}-{pool}-{number}", "labels": labels},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [container],
        },
    }
