"""A model that is fetched comes before its engine, with its credentials; how far it is and why it fails stand in the status."""

import json
from typing import Any

import crd_cases
import pytest
from plan_world import World, pod

from penstock_operator.plan.looks import LogTail, answer, looks

HUB = [("spec.model.source", "hf://org/chat"), ("spec.model.name", "chat"), ("spec.model.secretRef", {"name": "hf-token"})]
BUCKET = [("spec.model.source", "s3://models/chat"), ("spec.model.name", "chat"), ("spec.model.secretRef", {"name": "keys"})]
WORKERS = ("spec.topology", {"mode": "colocated", "workers": {"replicas": 2}})


def world(*edits: tuple[str, Any]) -> World:
    return World(crd_cases.manifest(*edits))


def template(here: World) -> dict[str, Any]:
    here.step()
    (ray,) = [body for (kind, _), body in here.objects.items() if kind == "RayService"]
    found: dict[str, Any] = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    return found


def variables(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "secretKeyRef" in one.get("valueFrom", {})
    }


def test_a_hub_s_model_is_fetched_before_the_engine_with_the_token_of_the_secret() -> None:
    made = template(world(*HUB))
    (fetcher,) = made["initContainers"]
    assert fetcher["command"][2:] == ["penstock_workers.model", "hf://org/chat", "--cache", "/cache", "--secret", "hf-token"]
    assert variables(fetcher) == variables(made["containers"][0]) == {"HF_TOKEN": {"name": "hf-token", "key": "token"}}
    assert fetcher["image"] == made["containers"][0]["image"] and fetcher["securityContext"]["readOnlyRootFilesystem"]
    assert {one["mountPath"] for one in fetcher["volumeMounts"]} == {"/cache", "/tmp", "/home/penstock"}


def test_a_bucket_s_keys_are_named_as_aws_names_them_and_what_few_need_is_optional() -> None:
    (fetcher,) = template(world(*BUCKET))["initContainers"]
    found = variables(fetcher)
    assert {name for name, ref in found.items() if not ref.get("optional")} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert {name for name, ref in found.items() if ref.get("optional")} == {"AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"}


def test_the_fetcher_sees_the_engine_s_own_variables() -> None:
    endpoint = {"name": "HF_ENDPOINT", "value": "http://hub.prod.svc"}
    (fetcher,) = template(world(*HUB, ("spec.engine.env", [endpoint])))["initContainers"]
    assert endpoint in fetcher["env"]


def test_a_shared_cache_is_mounted_where_fetcher_and_engine_look() -> None:
    made = template(world(*HUB, ("spec.model.cache", {"pvc": "model-cache"})))
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "model-cache"}} in made["volumes"]


@pytest.mark.parametrize("source", ["penstock://tiny", "pvc://claim/chat", "file:///models/chat"])
def test_what_lies_there_already_is_not_fetched(source: str) -> None:
    made = template(world(("spec.model.source", source), ("spec.model.name", "chat")))
    assert "initContainers" not in made and variables(made["containers"][0]) == {}


def fetching(here: World, **container: Any) -> None:
    """Its two pods are at their init container."""
    here.step()
    here.run_routers()
    ((revision, _),) = here.sizes().items()
    here.pods = [pod(revision, "workers", number, ready=False) for number in range(2)]
    for one in here.pods:
        one["status"] |= {"phase": "Pending", "containerStatuses": [], "initContainerStatuses": [{"name": "model", **container}]}


def line(done: int, total: int, waiting: bool = False) -> dict[str, Any]:
    return {"penstock_model": {"done_bytes": done, "total_bytes": total, "waiting": waiting}}


def test_how_far_the_model_is_stands_in_the_status_until_it_is_there() -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"running": {}})
    asked = looks(here.document, here.pods, here.settings)
    assert asked == tuple(LogTail(one["metadata"]["name"], "model") for one in here.pods)
    here.answers = [answer(asked[0], line(3 << 30, 16 << 30)), answer(asked[1], line(3 << 30, 16 << 30, waiting=True))]
    plan = here.step()
    status = here.document["status"]
    assert status["phase"] == "Fetching" and here.condition("Progressing") == ("True", "FetchingModel")
    assert status["download"] == {"pods": 2, "percent": 15, "doneBytes": (16 << 30) * 15 // 100, "totalBytes": 16 << 30}
    assert "2 pods fetch the model (1 of them wait for another's" in here.message("Progressing")
    assert "15 % of 16.0 GiB" in here.message("Progressing") and plan.again_in_s == 5.0
    here.answers = []
    here.settle()
    assert "download" not in here.document["status"] and here.document["status"]["phase"] == "Ready"


def test_a_byte_more_changes_no_status() -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"running": {}})
    asked = looks(here.document, here.pods, here.settings)
    here.answers = [answer(one, line(4_000_000, 100_000_000)) for one in asked]
    here.step()
    before = here.writes
    here.answers = [answer(one, line(4_000_001, 100_000_000)) for one in asked]
    here.step()
    assert here.writes == before


@pytest.mark.parametrize("value", [None, {}, {"penstock_model": {"ready": "/cache/x"}}, {"penstock_model": 3}])
def test_a_log_that_says_nothing_of_bytes_leaves_that_it_fetches(value: Any) -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"running": {}})
    here.answers = [answer(one, value, "not reached") for one in looks(here.document, here.pods, here.settings)]
    here.step()
    assert here.condition("Progressing") == ("True", "FetchingModel") and "not begun" in here.message("Progressing")


def ended(message: str, code: int = 2) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Error", "message": message}}


SAID = json.dumps({"penstock_model": {"reason": "ModelAccessDenied", "message": "the hub refuses; Secret hf-token, key token"}})


@pytest.mark.parametrize(
    "container",
    [
        {"state": ended(SAID)},
        {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(SAID)},
        {"state": {"running": {}}, "lastState": ended(SAID)},
    ],
)
def test_the_fetcher_s_last_words_become_the_condition_and_an_event(container: dict[str, Any]) -> None:
    here = world(*HUB, WORKERS)
    fetching(here, **container)
    here.step()
    assert here.condition("Progressing") == ("False", "ModelAccessDenied") == ("False", here.condition("Degraded")[1])
    assert "Secret hf-token, key token" in here.message("Degraded")
    assert here.document["status"]["phase"] == "Degraded" and ("Warning", "ModelAccessDenied") in here.events


def test_a_fetcher_that_has_found_the_model_is_no_longer_in_trouble() -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"running": {}}, lastState=ended(SAID))
    here.answers = [answer(one, line(1, 100)) for one in looks(here.document, here.pods, here.settings)]
    here.step()
    assert here.condition("Degraded")[0] == "False" and here.condition("Progressing") == ("True", "FetchingModel")


def test_a_variable_of_the_engine_goes_before_the_secret_s() -> None:
    endpoint = {"name": "AWS_ENDPOINT_URL", "value": "http://store.prod.svc"}
    (fetcher,) = template(world(*BUCKET, ("spec.engine.env", [endpoint])))["initContainers"]
    assert [one for one in fetcher["env"] if one["name"] == "AWS_ENDPOINT_URL"] == [endpoint]


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ('secret "hf-token" not found', ("hf-token", "key token")),
        ("couldn't find key token in Secret prod/hf-token", ("prod/hf-token", "key token")),
    ],
)
def test_a_secret_that_is_missing_is_named_with_its_key(said: str, names: tuple[str, ...]) -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"waiting": {"reason": "CreateContainerConfigError", "message": said}})
    here.step()
    assert here.condition("Degraded") == ("True", "ModelSecretMissing")
    assert all(name in here.message("Degraded") for name in names)


def test_a_fetcher_that_was_killed_is_told_as_such() -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    here.step()
    assert here.condition("Degraded") == ("True", "ModelFetchFailed") and "OOMKilled (137)" in here.message("Degraded")


def test_an_image_that_is_missing_is_told_of_the_fetcher_too() -> None:
    here = world(*HUB, WORKERS)
    fetching(here, state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})
    here.step()
    assert here.condition("Degraded") == ("True", "ImagePullBackOff")


def test_a_model_that_cannot_be_had_leaves_the_revision_that_serves() -> None:
    here = world(WORKERS)
    here.settle()
    (old,) = here.sizes()
    here.change(crd_cases.manifest(WORKERS, ("spec.model.source", "hf://org/other"), ("spec.model.name", "tiny"))["spec"])
    here.step()
    here.run_pods()
    (new,) = set(here.sizes()) - {old}
    for one in here.pods:
        if one["metadata"]["labels"]["serving.penstock.dev/revision"] == new:
            one["status"] = {"phase": "Pending", "initContainerStatuses": [{"name": "model", "state": ended(SAID)}]}
    here.step()
    assert here.condition("Ready") == ("True", "Serving") and here.sizes()[old] == {"workers": 2}
    assert here.condition("Progressing") == ("False", "ModelAccessDenied")


def test_a_pod_without_a_node_is_told_and_counts_as_no_trouble() -> None:
    here = world(WORKERS)
    here.step()
    here.run_routers()
    ((revision, _),) = here.sizes().items()
    here.pods = [pod(revision, "workers", 0, ready=False)]
    told = '0/3 nodes are available: persistentvolumeclaim "model-cache" not found'
    here.pods[0]["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": told}]}
    here.step()
    assert here.condition("Progressing") == ("True", "RollingOut") and told in here.message("Progressing")
    assert here.condition("Degraded")[0] == "False"
