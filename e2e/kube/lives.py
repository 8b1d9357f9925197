"""The life of one service under the product's operator: made, scaled, rolled out, deleted; with a fault somewhere on the way.

Promise: each stage ends where the undisturbed life ended it, compared object by object; after the rollout ten resyncs pass
without a write; after the deletion nothing is left.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kube.faults import Call, Fault, Proxy
from kube.operators import Nursery, Operator
from kube.stage import APPLY, LLM, Asker

from penstock_operator.plan.names import SERVICE_LABEL
from penstock_operator.plan.permissions import CHILDREN

# Long enough that a busy machine does not lose the Lease by itself: that is a fault of its own, tried elsewhere.
TIMING = (30.0, 15.0, 0.5)
RESYNC_S = 1.0
PATIENCE_S = 300.0  # for a machine that is busy; a trial that takes so long has not converged
STAGES = ("create", "scale", "rollout", "delete")
KINDS = [child for child in CHILDREN if child.kind != "PodMonitor"]
# What the API server gives, and what differs with time.
_GIVEN = {
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "lastTransitionTime", "since",
    "clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy", "sessionAffinity", "nodePort",
    "healthCheckNodePort",
}  # fmt: skip

State = dict[str, Any]


def manifest(stage: str) -> dict[str, Any]:
    """Two pools; scaled, then with an image that engines need to be started anew for."""
    decode = 1 if stage == "create" else 2
    engine = {"device": "cpu", **({"image": "penstock/worker-cpu:other"} if stage == "rollout" else {})}
    pools = {"prefill": {"replicas": 1}, "decode": {"replicas": decode}}
    spec = {
        "model": {"source": "penstock://tiny"}, "engine": engine, "topology": {"mode": "disaggregated", **pools},
        "rollout": {"maxSurge": 1, "maxUnavailable": 0, "drainTimeout": "10s"},
    }  # fmt: skip
    return {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMService", "metadata": {"name": "chat"}, "spec": spec}


@dataclass
class Outcome:
    states: dict[str, State] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    changes: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    events: int = 0
    harmed: int = 0
    late: list[Call] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Life:
    asker: Asker
    operators: Nursery
    proxy: Proxy
    namespace: str
    right: dict[str, State] | None = None  # of the undisturbed life; None: this is it
    started: list[Operator] = field(default_factory=list)

    def live(self, fault: Fault | None, restart: bool = False, kill_at: str = "", waits: bool = False) -> Outcome:
        """`restart`: the operator is killed between create and scale, and with `waits` the fault counts from there; `kill_at`: it
        is killed just after that stage's change was asked for."""
        begun, outcome = time.monotonic(), Outcome()
        self.proxy.forget()
        self.proxy.set(None if waits else fault, self.kill)
        self.asker.send("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.start()
        try:
            for stage in STAGES:
                if restart and stage == "scale":
                    self.kill()
                    if waits:
                        self.proxy.set(fault, self.kill)
                self._ask_for(stage)
                if kill_at == stage:
                    self.kill()
                outcome.states[stage] = self._settle(stage, outcome)
                if stage == "rollout":
                    outcome.harmed, outcome.changes = self.proxy.harmed, self.proxy.changes
                    outcome.calls, outcome.events = list(self.proxy.calls), self.proxy.events
                    outcome.late = self._writes_of_further_resyncs(10)
            # The fault may have waited for the deletion.
            outcome.harmed = max(outcome.harmed, self.proxy.harmed)
        finally:
            self.kill()
        self._read_logs(outcome)
        outcome.seconds = time.monotonic() - begun
        return outcome

    def start(self) -> None:
        # The Lease of the killed one: its running out is waited for in a test of its own.
        self.asker.send("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/penstock-operator")
        options = {"home": self.namespace, "namespaces": [self.namespace], "resync_s": RESYNC_S, "timing": TIMING, "workers": 2}
        self.started.append(self.operators.start(self.proxy.url, whole=True, **options))

    def kill(self) -> None:
        self.started[-1].kill()

    def _ask_for(self, stage: str) -> None:
        path = f"{LLM}/namespaces/{self.namespace}/llmservices/chat"
        if stage == "delete":
            self.asker.send("DELETE", path)
        else:
            self.asker.send("PATCH", f"{path}?fieldManager=person&force=true", manifest(stage), APPLY)

    def _settle(self, stage: str, outcome: Outcome) -> State:
        end = time.monotonic() + PATIENCE_S
        quiet_since, before = time.monotonic(), -1
        while True:
            self._alive()
            if stage == "delete" or self._complete():
                now = state_of(self.asker, self.namespace)
                if self.right is not None and now == self.right[stage]:
                    return now
                # The undisturbed life: nothing is written for three seconds.
                if len(self.proxy.changes) != before or (stage == "delete" and now):
                    before, quiet_since = len(self.proxy.changes), time.monotonic()
                if self.right is None and time.monotonic() - quiet_since > 3.0:
                    return now
            if time.monotonic() > end:
                found = state_of(self.asker, self.namespace)
                outcome.wrong.append(f"{stage}: {_difference(found, (self.right or {}).get(stage, {}))}")
                return found
            time.sleep(0.25)

    def _complete(self) -> bool:
        found = self.asker.read(f"{LLM}/namespaces/{self.namespace}/llmservices/chat")
        status = found.get("status") or {}
        return bool(status.get("phase") == "Ready" and status["observedGeneration"] == found["metadata"]["generation"])

    def _alive(self) -> None:
        if not self.started[-1].alive():
            self.start()

    def _writes_of_further_resyncs(self, count: int) -> list[Call]:
        """From the first resync that begins from now: what was under way may still end."""
        self._until_resyncs(1)
        before = len(self.proxy.changes)
        self.proxy.fault = None
        self._until_resyncs(count)
        return self.proxy.changes[before:]

    def _until_resyncs(self, count: int) -> None:
        def looks() -> int:
            return sum(call.verb == "list" and call.resource == "poddisruptionbudgets" for call in list(self.proxy.calls))

        before, end = looks(), time.monotonic() + PATIENCE_S
        while looks() < before + count and time.monotonic() < end:
            self._alive()
            time.sleep(0.1)

    def _read_logs(self, outcome: Outcome) -> None:
        for operator in self.started:
            # Kopf tells of what ends it by a traceback of its own frames; one with ours is a fault of ours.
            said = operator.said()
            if "penstock_operator/shell" in said or "penstock_operator/plan" in said:
                outcome.wrong.append(f"traceback: {said[-1500:]}")


def state_of(asker: Asker, namespace: str) -> State:
    """Everything that belongs to the service `chat`, without what differs from run to run."""
    service, found = asker.read(f"{LLM}/namespaces/{namespace}/llmservices/chat"), {}
    owner = service["metadata"]["uid"] if service else "none"
    for one in [*([service] if service else []), *children(asker, namespace)]:
        text = json.dumps(_kept(one, one["kind"])).replace(namespace, "SPACE").replace(owner, "OWNER")
        found[f"{one['kind']}/{one['metadata']['name']}"] = json.loads(text)
    return found


def children(asker: Asker, namespace: str) -> list[Any]:
    made = []
    for kind in KINDS:
        path = f"/{'apis' if kind.group else 'api'}/{kind.api_version}/namespaces/{namespace}/{kind.plural}"
        items = asker.read(f"{path}?labelSelector={SERVICE_LABEL}%3Dchat")["items"]
        made += [{"apiVersion": kind.api_version, "kind": kind.kind, **one} for one in items]
    return made


def _kept(one: Any, kind: str) -> Any:
    kept = _without(one)
    owners = one["metadata"].get("ownerReferences")
    if owners and kind != "Pod":
        kept["metadata"]["ownerReferences"] = owners
    if kind not in ("LLMService", "RayService", "Deployment"):
        # Of others' making: a disruption budget's counts, a claim's phase.
        kept.pop("status", None)
    return kept


def _without(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without(value) for key, value in node.items() if key not in _GIVEN}
    return [_without(one) for one in node] if isinstance(node, list) else node


def _difference(found: State, right: State) -> str:
    told = [f"missing {name}" for name in sorted(set(right) - set(found))]
    told += [f"surplus {name}" for name in sorted(set(found) - set(right))]
    for name in sorted(set(found) & set(right)):
        if found[name] != right[name]:
            told.append(f"{name} is {json.dumps(found[name])[:700]}, not {json.dumps(right[name])[:700]}")
    return "; ".join(told)


Say = Callable[[str], None]
