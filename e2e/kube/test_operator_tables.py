"""The product's operator on a real API server, with a stand-in for what runs pods.

Whose fields are whose, who owns what, what the conditions say through a life, who writes after the leader's death, and whether
the Role holds every verb that is used and no other.
"""

import copy
import itertools
import json
import threading
import time

import pytest
from kube.faults import Fault, proxy
from kube.lives import children, manifest
from kube.operators import nursery
from kube.stage import APPLY, LLM, Asker
from kube.waiting import until

from penstock_operator.plan.models import CONTAINER
from penstock_operator.plan.names import SERVICE_LABEL
from penstock_operator.plan.permissions import CHILDREN, CLUSTER, NAMESPACED, OWN

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
QUICK = {"resync_s": 1.0, "timing": (30.0, 15.0, 0.5), "whole": True}
_numbers = itertools.count()
MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com", "scope": "Namespaced",
        "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
        "versions": [
            {
                "name": "v1", "served": True, "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}  # fmt: skip


class World:
    """A namespace, and operators for it alone."""

    def __init__(self, cluster, operators, asker):
        self.cluster, self.operators, self.asker = cluster, operators, asker
        self.namespace = f"table-{next(_numbers)}"
        asker.send("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    @property
    def path(self):
        return f"{LLM}/namespaces/{self.namespace}/llmservices/chat"

    def start(self, server, **options):
        options = {"home": self.namespace, "namespaces": [self.namespace], **QUICK, **options}
        return self.operators.start(server, **options)

    def declare(self, stage="create", **spec):
        body = manifest(stage)
        body["spec"] |= spec
        self.asker.send("PATCH", f"{self.path}?fieldManager=person&force=true", body, APPLY)

    def service(self):
        return self.asker.read(self.path)

    def children(self):
        return children(self.asker, self.namespace)

    def says(self, **wanted):
        """Whether the status is of this generation and its conditions are so."""
        found = self.service()
        status = found.get("status") or {}
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return False
        now = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
        return all(now.get(kind) == pair for kind, pair in wanted.items())

    def ready(self):
        def complete():
            return self.says(Ready=("True", "Serving"), Progressing=("False", "Complete")) and self.service()

        return until(complete, told=lambda: (self.service(), [one.said()[-2000:] for one in self.operators.born]))

    def at(self, root, plural, name):
        return f"/{root}/namespaces/{self.namespace}/{plural}/{name}"


@pytest.fixture
def world(staged, tmp_path):
    with nursery(tmp_path) as operators, Asker(staged) as asker:
        made = World(staged, operators, asker)
        yield made
        for operator in operators.born:
            assert "penstock_operator/" not in operator.said(), operator.said()


@pytest.fixture
def through(staged):
    with proxy(staged.server, staged.ca_pem, staged.token) as made:
        yield made


def test_anothers_fields_stay_ours_come_back_and_every_child_has_its_owner(world, through):
    world.start(through.url)
    world.declare()
    uid = world.ready()["metadata"]["uid"]
    found = [one for one in world.children() if one["kind"] != "Pod"]
    assert len({one["kind"] for one in found}) == 8, sorted({one["kind"] for one in found})
    for one in found:
        (owner,) = one["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["kind"], owner["controller"]) == (uid, "LLMService", True), one["metadata"]["name"]
        assert one["metadata"]["labels"][SERVICE_LABEL] == "chat" and not one["metadata"].get("finalizers")
    front, routers = world.at("api/v1", "services", "chat"), world.at("apis/apps/v1", "deployments", "chat-router")
    config = world.at("api/v1", "configmaps", "chat-router")
    before = {path: world.asker.read(path) for path in (front, routers, config)}
    (key, value), *_ = before[config]["data"].items()
    meta = {"annotations": {"them": "1"}, "labels": {"theirs": "x", SERVICE_LABEL: "chat"}}
    theirs = {
        front: {
            "kind": "Service",
            "apiVersion": "v1",
            "spec": {"ports": [{"name": "more", "port": 7777}], "selector": {"a": "b"}},
        },
        routers: {"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"replicas": 5, "revisionHistoryLimit": 2}},
        config: {"kind": "ConfigMap", "apiVersion": "v1", "data": {key: "theirs", "more": "theirs"}},
    }
    for path, body in theirs.items():
        named = {**body, "metadata": {**meta, "name": path.rpartition("/")[2]}}
        world.asker.send("PATCH", f"{path}?fieldManager=them&force=true", named, APPLY)
    until(lambda: world.asker.read(routers)["spec"]["replicas"] == before[routers]["spec"]["replicas"])
    until(lambda: world.asker.read(config)["data"].get(key) == value)
    until(lambda: world.asker.read(front)["spec"]["selector"] == before[front]["spec"]["selector"])
    after = {path: world.asker.read(path) for path in theirs}
    assert after[config]["data"] == {**before[config]["data"], "more": "theirs"}
    assert after[routers]["spec"]["revisionHistoryLimit"] == 2
    assert ports(world, front) == {port["port"] for port in before[front]["spec"]["ports"]} | {7777}
    assert after[front]["spec"]["selector"] == before[front]["spec"]["selector"], "owned whole, and taken back whole"
    for path, one in after.items():
        assert one["metadata"]["annotations"]["them"] == "1" and one["metadata"]["labels"]["theirs"] == "x", path


def ports(world, path):
    return {port["port"] for port in world.asker.read(path)["spec"]["ports"]}


class Statuses:
    """Every status that a service ever had, by a watch."""

    def __init__(self, world):
        self.seen, self.world = [], world
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        path = f"{LLM}/namespaces/{self.world.namespace}/llmservices?watch=1&timeoutSeconds=600"
        with self.world.cluster.open(path, seconds=620) as answer:
            for line in answer:
                event = json.loads(line)
                if event["type"] == "DELETED":
                    return
                self.seen.append(event["object"].get("status") or {})

    def of(self, kind):
        """The condition's (status, reason), one after the other."""
        told = [one for status in list(self.seen) for one in status.get("conditions", ()) if one["type"] == kind]
        return [pair for pair, _ in itertools.groupby((one["status"], one["reason"]) for one in told)]


def test_conditions_tell_a_whole_life(world, through):
    statuses = Statuses(world)
    world.start(through.url)
    world.declare()
    world.ready()
    world.declare(paused=True)
    until(lambda: world.says(Accepted=("False", "Paused"), Ready=("True", "Serving")))
    world.declare(tls={"mode": "chart"})
    until(lambda: world.says(Accepted=("False", "NotBuilt"), Degraded=("True", "NotBuilt"), Ready=("True", "Serving")))
    world.declare("rollout")
    world.ready()
    good = world.service()["status"]["revision"]["current"]
    world.declare("rollout", engine={"device": "cpu", "image": "penstock/worker-cpu:missing"})
    pull = "ImagePullBackOff"
    until(lambda: world.says(Ready=("True", "Serving"), Progressing=("False", pull), Degraded=("True", pull)))
    assert world.service()["status"]["revision"]["current"] == good, "the old one serves"
    world.declare("rollout")
    world.ready()
    assert [one["metadata"]["name"] for one in world.children() if one["kind"] == "RayService"] == [f"chat-{good}"]
    world.asker.send("DELETE", world.path)
    until(lambda: world.children() == [])
    statuses.thread.join(30)
    assert statuses.of("Accepted")[:5] == [
        ("True", "Accepted"), ("False", "Paused"), ("False", "NotBuilt"), ("True", "Accepted"),
    ]  # fmt: skip
    assert statuses.of("Ready")[-1] == ("True", "Serving") and statuses.of("Ready")[0][0] == "False"
    assert ("True", "RollingOut") in statuses.of("Progressing") and ("False", pull) in statuses.of("Progressing")
    stamps(statuses.seen)


def stamps(seen):
    """The time of a condition changes with its status, and with nothing else."""
    old = {}
    for status in seen:
        for one in status.get("conditions", ()):
            at, was = one["lastTransitionTime"], old.get(one["type"])
            assert was is None or was[0] != one["status"] or was[1] == at, one
            old[one["type"]] = (one["status"], at)


def test_the_leader_is_killed_in_the_middle_of_a_rollout_and_another_ends_it_within_20_s(world, staged, through):
    """With the timing of production."""
    timing = {"timing": (15.0, 10.0, 2.0)}
    first = world.start(through.url, **timing)
    until(lambda: first.page("/readyz") == (200, "leading\n"))
    with proxy(staged.server, staged.ca_pem, staged.token) as other:
        second = world.start(other.url, **timing)
        until(lambda: second.page("/readyz") == (200, "standing by\n"))
        world.declare("scale")
        world.ready()
        assert other.changes == [], "a standby writes nothing"
        killed = []
        through.set(Fault("kill after", 3), lambda: (first.kill(), killed.append(time.monotonic())))
        world.declare("rollout")
        until(lambda: other.changes)
        gap = time.monotonic() - killed[0]
        print(f"new writer after {gap:.1f} s")
        assert gap < 20
        world.ready()
        assert len([one for one in world.children() if one["kind"] == "RayService"]) == 1
        written = [(call.verb, call.resource, call.name) for call in other.changes if call.resource == "rayservices"]
        assert written, "the second ended what the first began"


def test_the_role_holds_every_verb_that_is_used_and_no_other(world, staged):
    cluster = world.cluster
    default = {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}, "name": "standard"}
    cluster.apply(
        MONITORS, {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": default, "provisioner": "none/none"}
    )
    cluster.established("podmonitors.monitoring.coreos.com")
    try:
        with proxy(staged.server, staged.ca_pem, _bound_account(world)) as through:
            _whole_life(world, through)
            used = {(call.verb, call.group, call.resource) for call in through.calls} | {("create", *one) for one in through.made}
    finally:
        cluster.kubectl("delete", "storageclass/standard", "crd/podmonitors.monitoring.coreos.com")
    used = {one for one in used if one[2] not in ("", "v1", "v1alpha1", "customresourcedefinitions", "namespaces")}
    held = {
        (verb, rule.group, resource)
        for rule in (*NAMESPACED, *OWN, *CLUSTER)
        for resource in rule.resources
        for verb in rule.verbs
    }
    assert used - held == set(), "asked for, and not held"
    assert held - used == set(), "held, and not needed"


def _bound_account(world):
    """The token of a service account that holds the chart's rules, and nothing else: the API server itself refuses the rest."""
    space, api = world.namespace, "rbac.authorization.k8s.io"

    def rules(table):
        return [{"apiGroups": [one.group], "resources": list(one.resources), "verbs": list(one.verbs)} for one in table]

    account = {"kind": "ServiceAccount", "name": "operator", "namespace": space}
    documents = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": space}}]
    for sort, name, table in (("", "operator", (*NAMESPACED, *OWN)), ("Cluster", f"{space}-operator", CLUSTER)):
        meta = {"name": name, **({} if sort else {"namespace": space})}
        reference = {"apiGroup": api, "kind": f"{sort}Role", "name": name}
        documents.append({"apiVersion": f"{api}/v1", "kind": f"{sort}Role", "metadata": meta, "rules": rules(table)})
        binding = {"apiVersion": f"{api}/v1", "kind": f"{sort}RoleBinding", "metadata": meta}
        documents.append({**binding, "roleRef": reference, "subjects": [account]})
    world.cluster.apply(*documents)
    return world.cluster.kubectl("create", "token", "operator", "-n", space, "--duration=1h").strip()


def _whole_life(world, through):
    """Made, rolled out, pruned of a surplus child of every kind, looked at where a watch was silent, deleted."""
    operator = world.start(through.url)
    world.declare()
    world.ready()
    surplus = _surplus(world)
    world.declare("rollout")
    world.ready()
    until(lambda: not {name for name in surplus if world.asker.read(name) is not None})
    pod = next(one["metadata"]["name"] for one in world.children() if one["kind"] == "Pod")
    path = world.at("api/v1", "pods", pod)
    fetcher = {"name": CONTAINER, "ready": False, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}
    world.asker.send("PATCH", f"{path}/status", {"status": {"initContainerStatuses": [fetcher]}}, "application/merge-patch+json")
    until(lambda: any(call.resource == "pods/log" for call in list(through.calls)))
    through.fault = Fault("drop event", through.events + 1, times=10**6)
    world.asker.send("PATCH", path, {"metadata": {"annotations": {"un": "told"}}}, "application/merge-patch+json")
    until(lambda: any((call.verb, call.resource) == ("get", "pods") for call in list(through.calls)))
    assert " 403 " not in operator.said(), operator.said()[-3000:]


def _surplus(world):
    """A child of every kind that is pruned, which no plan names; gives their paths."""
    made = []
    for kind in [child for child in CHILDREN if child.pruned]:
        one = next(one for one in _of_kind(world, kind))
        body = copy.deepcopy({key: value for key, value in one.items() if key != "status"})
        meta = one["metadata"]
        body["metadata"] = {
            "name": f"surplus-{kind.plural}"[:40],
            "labels": meta["labels"],
            "ownerReferences": meta["ownerReferences"],
        }
        for given in ("clusterIP", "clusterIPs", "volumeName"):
            body.get("spec", {}).pop(given, None)
        root = f"{'apis' if kind.group else 'api'}/{kind.api_version}"
        world.asker.send("POST", f"/{root}/namespaces/{world.namespace}/{kind.plural}", body)
        made.append(world.at(root, kind.plural, body["metadata"]["name"]))
    return made


def _of_kind(world, kind):
    root = f"{'apis' if kind.group else 'api'}/{kind.api_version}"
    found = world.asker.read(f"/{root}/namespaces/{world.namespace}/{kind.plural}?labelSelector={SERVICE_LABEL}%3Dchat")
    return [{"apiVersion": kind.api_version, "kind": kind.kind, **one} for one in found["items"]]
