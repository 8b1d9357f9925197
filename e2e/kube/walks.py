"""Walks of specs, after Acto: random declared states, one after the other, against the product's reconciler on a real API server.

Promise: after every step the cluster holds exactly what a plan from nothing would make of the spec, field by field as the API
server itself compares them; a spec that is refused, or paused, touches nothing; there and back again is where it began.
"""

import asyncio
import copy
import json
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from hypothesis import strategies as st
from kube.lives import State, children, state_of
from kube.stage import APPLY, LLM, Asker

from penstock_operator.operate import ClusterPlanner
from penstock_operator.plan import Cluster, OperatorSettings, read, reconcile
from penstock_operator.plan.names import FIELD_MANAGER
from penstock_operator.plan.permissions import CHILDREN
from penstock_operator.shell.access import from_kubeconfig
from penstock_operator.shell.api_server import ApiServer
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.kinds import LLM_SERVICE
from penstock_operator.shell.ports import Key, Refused
from penstock_operator.shell.reconciler import Reconciler
from penstock_operator.shell.sight import Sight

Spec = dict[str, Any]
PATIENCE_S = 120.0


def specs() -> st.SearchStrategy[Spec]:
    """Specs that the operator carries out."""
    quantity = st.sampled_from(["1", "1000m", "0.5", "2"])
    # Never `{}`: where an apply empties a map that it filled before, the API server itself makes it null, and refuses that.
    # Nor an empty list: where the next apply leaves it out, the API server keeps it.
    resources = st.fixed_dictionaries({"requests": st.fixed_dictionaries({"cpu": quantity})})
    toleration = st.sampled_from([{"key": "gpu", "operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoSchedule"}])
    pool = st.fixed_dictionaries(
        {"replicas": st.integers(1, 3)},
        optional={
            "resources": resources,
            "nodeSelector": st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["a", "b"]), min_size=1),
            "tolerations": st.lists(toleration, min_size=1, max_size=2, unique_by=str),
        },
    )
    topology = st.one_of(
        st.fixed_dictionaries({"mode": st.just("colocated"), "workers": pool}),
        st.fixed_dictionaries({"mode": st.just("disaggregated"), "prefill": pool, "decode": pool}),
    )
    engine = st.fixed_dictionaries(
        {"device": st.just("cpu")},
        optional={
            "image": st.sampled_from(["penstock/worker-cpu:a", "penstock/worker-cpu:b"]),
            "shm": st.sampled_from(["1Gi", "1024Mi"]),
            "env": st.just([{"name": "A", "value": "1"}]),
            "args": st.sampled_from([{"max-model-len": 512}, {"max-num-seqs": 8, "max-model-len": 512}]),
        },
    )
    surge = st.sampled_from([(1, 0), (0, 1), (2, 1)]).map(lambda pair: {"maxSurge": pair[0], "maxUnavailable": pair[1]})
    classes = st.lists(st.sampled_from(["chat", "batch"]), min_size=1, max_size=2, unique=True).map(
        lambda names: {"classes": [{"name": name, "ttft": "1s", "tpot": "0.1s"} for name in names]}
    )
    router = st.fixed_dictionaries({"replicas": st.integers(1, 3)}, optional={"resources": resources})
    return st.fixed_dictionaries(
        {"model": st.just({"source": "penstock://tiny"}), "topology": topology, "engine": engine},
        optional={"slo": classes, "rollout": surge, "router": router},
    )


# What makes a spec one that the API server takes and the operator does not carry out.
REFUSED: dict[str, Spec] = {
    "tls": {"tls": {"mode": "chart"}},
    "tenants": {"fairness": {"tenants": [{"name": "a", "weight": 2}]}},
    "adapters": {"model": {"source": "penstock://tiny", "adapters": [{"name": "a", "source": "hf://a/b"}]}},
    "paused": {"paused": True},
}
# And what the API server does not take.
NOT_TAKEN: dict[str, Spec] = {
    "replicas": {"topology": {"mode": "colocated", "workers": {"replicas": -1}}},
    "pools": {"topology": {"mode": "disaggregated", "prefill": {"replicas": 1}}},
    "device": {"engine": {"device": "tpu"}},
}


@dataclass
class Walker:
    """One service, and the reconciler that follows it."""

    asker: Asker
    namespace: str
    planner: ClusterPlanner = field(default_factory=lambda: ClusterPlanner(OperatorSettings()))
    steps: int = 0

    def begin(self) -> None:
        self.asker.send("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    @property
    def path(self) -> str:
        return f"{LLM}/namespaces/{self.namespace}/llmservices/chat"

    def declare(self, spec: Spec) -> int:
        """As a person's own manager, so that a field left out is one that is gone; gives the API server's answer."""
        body = {"apiVersion": LLM_SERVICE.api_version, "kind": "LLMService", "metadata": {"name": "chat"}, "spec": spec}
        return self.asker.status("PATCH", f"{self.path}?fieldManager=person&force=true", body, APPLY)

    def settle(self, complete: bool = True) -> int:
        """Reconciles until nothing is written; gives the number of writes."""
        self.steps += 1
        return asyncio.run(self._settle(complete))

    async def _settle(self, complete: bool) -> int:
        api = ApiServer(from_kubeconfig(self.asker.cluster.kubeconfig), write_timeout_s=10.0)
        figures = Figures()
        one = Reconciler(api, self.planner, lambda: True, figures, time.time, "walker", Sight(api))
        one.offered = await _offered(api, self.planner)
        key, end = Key(self.namespace, "chat"), time.monotonic() + PATIENCE_S
        try:
            while True:
                before = _writes(figures)
                await one.sight.everything([LLM_SERVICE, *one.kinds], [self.namespace])
                try:
                    await one.reconcile(key)
                except Refused as error:
                    # A child changed between the look and the write: the work queue looks again, and so does this.
                    if error.status != HTTPStatus.CONFLICT:
                        raise
                    continue
                if _writes(figures) == before and (not complete or self._complete()):
                    return int(before)
                assert time.monotonic() < end, self.asker.read(self.path)
                await asyncio.sleep(0.02)
        finally:
            await api.close()

    def _complete(self) -> bool:
        found = self.asker.read(self.path)
        status = found.get("status") or {}
        return bool(status.get("phase") == "Ready" and status["observedGeneration"] == found["metadata"]["generation"])

    def state(self) -> State:
        """Without generations, which count the steps that led here."""
        found: State = _without_generations(state_of(self.asker, self.namespace))
        return found

    def at_rest(self) -> State:
        """The state once the stand-in has no more to tell: the same twice, a second apart."""
        before: State = {}
        while (now := self.state()) != before:
            before = now
            time.sleep(1.0)
            self.settle()
        return now

    def versions(self) -> dict[str, str]:
        """Of every child that is the operator's: a write of any kind changes one."""
        ours = {child.kind for child in CHILDREN if child.pruned} - {"PodDisruptionBudget"}
        found = [one for one in children(self.asker, self.namespace) if one["kind"] in ours]
        return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"] for one in found}

    def differences(self) -> list[str]:
        """Between the children and a plan made from nothing: what is missing, surplus, or would be changed by an apply."""
        document = self.asker.read(self.path)
        bare = {key: value for key, value in document.items() if key != "status"}
        cluster = Cluster(frozenset({"RayService"}), storage_class=False)
        plan = reconcile(bare, read(bare, [], cluster), OperatorSettings(), time.time())
        live = {(one["kind"], one["metadata"]["name"]): one for one in children(self.asker, self.namespace)}
        made = {name: one for name, one in live.items() if name[0] != "Pod"}
        wanted = {(one["kind"], one["metadata"]["name"]): one for one in plan.objects}
        told = [f"{name} is {'missing' if name in wanted else 'surplus'}" for name in sorted(set(wanted) ^ set(made))]
        for name in sorted(set(wanted) & set(made)):
            told += self._would_change(wanted[name], made[name])
        return told

    def _would_change(self, body: Any, live: Any) -> list[str]:
        plural = next(child.plural for child in CHILDREN if child.kind == body["kind"])
        root = "apis" if "/" in body["apiVersion"] else "api"
        path = f"/{root}/{body['apiVersion']}/namespaces/{self.namespace}/{plural}/{body['metadata']['name']}"
        asked = f"{path}?fieldManager={FIELD_MANAGER}&force=true&dryRun=All"
        after = self.asker.send("PATCH", asked, body, APPLY)
        return [f"{body['kind']} {body['metadata']['name']}{told}" for told in differences(_content(live), _content(after), "")]


def differences(old: Any, new: Any, at: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [told for key in sorted({*old, *new}) for told in differences(old.get(key), new.get(key), f"{at}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [told for n, pair in enumerate(zip(old, new, strict=True)) for told in differences(*pair, f"{at}[{n}]")]
    return [] if old == new else [f"{at}: {json.dumps(old)[:200]} would become {json.dumps(new)[:200]}"]


def _content(one: Any) -> Any:
    kept = copy.deepcopy({key: value for key, value in one.items() if key != "status"})
    for entry in kept["metadata"].get("managedFields") or ():
        entry.pop("time", None)
    for given in ("resourceVersion", "generation"):
        kept["metadata"].pop(given, None)
    kept["metadata"]["managedFields"] = sorted(
        (one for one in kept["metadata"].get("managedFields") or () if one["manager"] == FIELD_MANAGER), key=str
    )
    return kept


def _writes(figures: Figures) -> float:
    return sum(
        sample.value
        for metric in figures.registry.collect()
        for sample in metric.samples
        if sample.name == "penstock_operator_writes_total"
    )


async def _offered(api: ApiServer, planner: ClusterPlanner) -> Any:
    from penstock_operator.shell.ports import Offered

    versions = sorted({kind.api_version for kind in planner.kinds if kind.optional})
    served = [await api.served(version) for version in versions]
    return Offered(frozenset().union(*served), await api.storage_class())


def _without_generations(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_generations(one) for key, one in value.items() if key != "observedGeneration"}
    return [_without_generations(one) for one in value] if isinstance(value, list) else value
