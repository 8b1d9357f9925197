"""A service's whole life on a cluster in memory."""

from copy import deepcopy
from typing import Any

import crd_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_world import UID, World, pod

from penstock_operator.api import judge
from penstock_operator.plan import Cluster, OperatorSettings, read
from penstock_operator.plan.names import REVISION_LABEL
from penstock_operator.plan.revision import revision_hash

COLOCATED = ("spec.topology", {"mode": "colocated", "workers": {"replicas": 2}})
NEW_IMAGE = ("spec.engine.image", "penstock/worker-cpu:other")


def world(*edits: tuple[str, Any]) -> World:
    return World(crd_cases.manifest(*edits))


def spec(*edits: tuple[str, Any]) -> Any:
    return crd_cases.manifest(*edits)["spec"]


def hash_of(document: dict[str, Any]) -> str:
    service, _ = judge(document)
    assert service is not None
    return revision_hash(service.spec)


def test_a_new_service_gets_its_children_and_is_ready_when_they_are() -> None:
    here = world()
    here.step()
    name = hash_of(here.document)
    assert here.sizes() == {name: {"prefill": 1, "decode": 1}}
    assert here.condition("Ready") == ("False", "NoRouter") and here.document["status"]["phase"] == "Starting"
    here.settle()
    status = here.document["status"]
    assert here.condition("Ready") == ("True", "Serving") and here.condition("Progressing") == ("False", "Complete")
    assert status["phase"] == "Ready" and status["columns"] == {"prefill": "1/1", "decode": "1/1"}
    assert status["revision"] == {"current": name, "updated": name} and status["observedGeneration"] == 1
    assert status["endpoint"] == {"grpc": "tiny.prod.svc:9000", "http": "tiny.prod.svc:8000"}
    assert here.events == [("Normal", "RolloutStarted"), ("Normal", "RolloutComplete"), ("Normal", "Ready")]


def test_a_settled_service_is_written_no_more() -> None:
    here = world()
    here.settle()
    before = here.writes
    for _ in range(10):
        here.now_s += 3600
        assert here.step().again_in_s is None
    assert here.writes == before


def test_every_child_is_owned_and_labelled_and_in_the_service_s_namespace() -> None:
    here = world()
    for body in here.plan().objects:
        meta = body["metadata"]
        assert [owner["uid"] for owner in meta["ownerReferences"]] == [UID], body["kind"]
        assert meta["labels"]["serving.penstock.dev/service"] == "tiny" and meta["namespace"] == "prod"
        assert "finalizers" not in meta


def test_a_change_that_engines_need_rolls_and_deletes_the_old_revision_with_its_volume() -> None:
    here = world()
    here.settle()
    old = hash_of(here.document)
    here.change(spec(NEW_IMAGE))
    here.step()
    new = hash_of(here.document)
    assert set(here.sizes()) == {old, new} and here.condition("Progressing") == ("True", "RollingOut")
    assert here.document["status"]["revision"] == {"current": old, "updated": new}
    assert here.document["status"]["phase"] == "Updating" and here.condition("Ready")[0] == "True"
    here.settle()
    assert here.sizes() == {new: {"prefill": 1, "decode": 1}}
    left = {one for one in here.objects if old in one[1]}
    assert left == set() and here.document["status"]["revision"]["current"] == new


@pytest.mark.parametrize(
    "edit",
    [
        ("spec.slo.attainment", 0.9),
        ("spec.slo.classes", [{"name": "interactive", "ttft": "9s", "tpot": "1s"}]),
        ("spec.router", {"replicas": 3}),
        ("spec.fairness", {"defaultWeight": 2}),
        ("spec.autoscaling", {"decode": {"max": 4}}),
        ("spec.topology.mode", "auto"),
        ("spec.topology.prefill.replicas", 2),
        ("spec.rollout.maxSurge", 2),
    ],
)
def test_a_change_that_engines_do_not_need_restarts_none(edit: tuple[str, Any]) -> None:
    here = world()
    here.settle()
    before = {
        name: deepcopy(body["spec"]["rayClusterConfig"]) for (kind, name), body in here.objects.items() if kind == "RayService"
    }
    here.change(spec(edit))
    here.settle()
    after = {name: body["spec"]["rayClusterConfig"] for (kind, name), body in here.objects.items() if kind == "RayService"}
    assert after == before


def test_another_operator_with_other_images_and_defaults_changes_no_revision() -> None:
    here = world()
    here.settle()
    before = deepcopy({key: body for key, body in here.objects.items() if key[0] in ("RayService", "ControllerRevision")})
    here.settings = OperatorSettings.model_validate(
        {
            "images": {"cpu": "penstock/worker-cpu:9", "router": "penstock/operator-router:9"},
            "rayVersion": "2.99.0",
            "idleTimeoutS": 5,
        }
    )
    here.settle()
    assert {key: here.objects[key] for key in before} == before
    router = here.objects["Deployment", "tiny-router"]["spec"]["template"]["spec"]["containers"][0]
    assert router["image"] == "penstock/operator-router:9"
    here.change(spec(("spec.engine.env", [{"name": "A", "value": "b"}])))
    here.settle()
    (ray,) = [body for (kind, _), body in here.objects.items() if kind == "RayService"]
    assert ray["spec"]["rayClusterConfig"]["rayVersion"] == "2.99.0"


def test_a_bad_revision_stops_with_its_reason_and_the_old_one_keeps_serving() -> None:
    here = world(COLOCATED)
    here.settle()
    old = hash_of(here.document)
    here.change(spec(COLOCATED, NEW_IMAGE))
    new = hash_of(here.document)
    for _ in range(10):
        here.step()
        here.run_pods(bad=frozenset({new}))
    assert here.sizes() == {old: {"workers": 2}, new: {"workers": 1}}
    assert here.condition("Progressing") == ("False", "ImagePullBackOff") and here.condition("Degraded")[0] == "True"
    assert here.condition("Ready") == ("True", "Serving") and here.document["status"]["phase"] == "Degraded"
    (message,) = [one["message"] for one in here.document["status"]["conditions"] if one["type"] == "Progressing"]
    assert new in message and "Back-off pulling image" in message
    assert here.events.count(("Warning", "ImagePullBackOff")) == 1
    here.change(spec(COLOCATED))
    here.settle()
    assert here.sizes() == {old: {"workers": 2}} and here.condition("Degraded") == ("False", "AsExpected")


def test_an_engine_that_serve_cannot_start_is_told_with_serve_s_words() -> None:
    here = world()
    here.step()
    (key,) = [one for one in here.objects if one[0] == "RayService"]
    failed = {"prefill": {"status": "DEPLOY_FAILED", "message": "SourceRefused:\n  no such model"}}
    here.objects[key]["status"] = {"pendingServiceStatus": {"applicationStatuses": failed}}
    here.step()
    assert here.condition("Progressing") == ("False", "EngineFailed")
    (message,) = [one["message"] for one in here.document["status"]["conditions"] if one["type"] == "Progressing"]
    assert "pool prefill: SourceRefused: no such model" in message


@pytest.mark.parametrize(
    ("edit", "reason", "phase"),
    [
        (("spec.topology.decode", ...), "Invalid", "Invalid"),
        (("spec.auth", {"apiKeysSecret": "k"}), "NotBuilt", "Refused"),
        (("spec.paused", True), "Paused", "Paused"),
    ],
)
def test_a_spec_that_cannot_be_carried_out_touches_no_child(edit: tuple[str, Any], reason: str, phase: str) -> None:
    here = world()
    here.settle()
    before = deepcopy(here.objects)
    here.change(spec(edit))
    plan = here.step()
    assert plan.objects == () and plan.deletions == () and here.objects == before
    assert here.condition("Accepted") == ("False", reason) and here.document["status"]["phase"] == phase
    assert here.condition("Ready") == ("True", "Serving") and here.document["status"]["columns"]["decode"] == "1/1"
    assert here.document["status"]["observedGeneration"] == 2 and here.events[-1][1] == reason
    here.change(spec())
    here.settle()
    assert here.objects == before and here.condition("Accepted") == ("True", "Accepted")


def test_a_refusal_names_every_field() -> None:
    here = world(("spec.auth", {"apiKeysSecret": "k"}), ("spec.tls", {"mode": "chart"}))
    here.step()
    (message,) = [one["message"] for one in here.document["status"]["conditions"] if one["type"] == "Accepted"]
    assert "spec.auth" in message and "spec.tls.mode" in message


def test_without_kuberay_nothing_is_made_and_the_condition_says_so() -> None:
    here = world()
    here.cluster = Cluster(frozenset(), storage_class=True)
    assert here.step().objects == () and here.condition("Accepted") == ("False", "KubeRayMissing")


def test_without_a_storage_class_heads_keep_no_state_and_a_warning_says_so() -> None:
    here = world()
    here.cluster = Cluster(frozenset({"RayService"}), storage_class=False)
    here.settle()
    assert here.condition("Durable") == ("False", "NoStorageClass") and ("Warning", "NoStorageClass") in here.events
    kinds = {kind for kind, _ in here.objects}
    assert "PersistentVolumeClaim" not in kinds and "PodMonitor" not in kinds


def test_children_of_other_owners_are_not_counted_and_not_deleted() -> None:
    here = world()
    here.settle()
    stranger = deepcopy(here.objects["ConfigMap", "tiny-router"])
    stranger["metadata"] |= {"name": "theirs", "ownerReferences": []}
    here.objects["ConfigMap", "theirs"] = stranger
    assert here.step().deletions == ()


def test_a_child_that_is_no_longer_wanted_is_deleted() -> None:
    here = world()
    here.settle()
    assert ("PodDisruptionBudget", "tiny-prefill") in here.objects
    here.change(spec(COLOCATED))
    here.settle()
    assert ("PodDisruptionBudget", "tiny-prefill") not in here.objects and ("PodDisruptionBudget", "tiny-workers") in here.objects
    assert [set(pools) for pools in here.sizes().values()] == [{"workers"}]


def test_a_lost_rayservice_is_made_again_as_it_was() -> None:
    here = world()
    here.settle()
    (key,) = [one for one in here.objects if one[0] == "RayService"]
    before = deepcopy(here.objects[key]["spec"])
    del here.objects[key]
    here.pods.clear()
    here.settle()
    assert here.objects[key]["spec"] == before


def test_a_worker_that_was_asked_to_go_counts_as_draining_until_its_pod_listens_no_more() -> None:
    here = world(COLOCATED)
    here.settle()
    here.change(spec(("spec.topology", {"mode": "colocated", "workers": {"replicas": 1}})))
    here.step()
    here.step()
    (pool,) = here.document["status"]["pools"]
    assert pool == {"name": "workers", "desired": 1, "ready": 1, "draining": 1}


def test_what_somebody_else_wrote_into_serve_s_config_is_put_right() -> None:
    here = world()
    here.settle()
    (key,) = [one for one in here.objects if one[0] == "RayService"]
    before = deepcopy(here.objects[key]["spec"])
    for broken in ("applications: [", '{"applications": [{"name": 1}]}', "[]", '{"applications": null}'):
        here.objects[key]["spec"]["serveConfigV2"] = broken
        here.settle()
        assert here.objects[key]["spec"] == before


LEAF = st.none() | st.booleans() | st.text(max_size=3) | st.integers()
KEYS = st.sampled_from(["metadata", "status", "spec", "labels", "kind", "conditions", "data"])
JUNK = st.recursive(LEAF, lambda part: st.lists(part, max_size=2) | st.dictionaries(KEYS, part, max_size=3), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(JUNK)
def test_a_child_without_an_owner_never_matters(junk: Any) -> None:
    body = {"kind": "RayService", "metadata": {"name": "x", "labels": {REVISION_LABEL: "y"}}, "data": junk, "spec": junk}
    assert read({"metadata": {"uid": UID}}, [body], Cluster()).revisions == ()


MOVES = [
    spec(),
    spec(COLOCATED),
    spec(NEW_IMAGE),
    spec(("spec.topology.prefill.replicas", 3), ("spec.rollout", {"maxSurge": 0, "maxUnavailable": 1})),
    spec(("spec.slo.attainment", 0.5), ("spec.router", {"replicas": 2})),
    spec(COLOCATED, ("spec.rollout.drainTimeout", "1m")),
    spec(("spec.topology.decode", ...)),
]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 4)), max_size=8), st.sampled_from(MOVES[:-1]))
def test_any_walk_of_specs_ends_where_its_last_spec_alone_would(walk: list[tuple[Any, int]], last: Any) -> None:
    here = world()
    for moved, steps in walk:
        here.change(moved)
        for _ in range(steps):
            here.step()
            here.run_routers()
            here.run_pods()
    here.change(last)
    here.settle()
    fresh = world()
    fresh.change(last)
    fresh.settle()
    assert _bare(here) == _bare(fresh)
    for part in ("phase", "pools", "columns", "revision", "endpoint", "model"):
        assert here.document["status"][part] == fresh.document["status"][part]


def _bare(here: World) -> dict[tuple[str, str], Any]:
    return {key: {k: v for k, v in body.items() if k != "metadata"} for key, body in here.objects.items()}


def test_a_pod_of_another_service_is_no_worker_of_this_one() -> None:
    here = world()
    here.settle()
    here.pods.append(pod("ffffffff", "prefill", 0, "other"))
    before = here.writes
    here.step()
    assert here.writes == before
