"""The definition and the children on a real API server: every rule refuses by its field's name, every object is valid."""

import itertools
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import crd_cases
import pytest
from kube.asked import or_skip
from kube.control import Cluster, control_plane
from plan_world import World

from penstock_operator.api import crd, default_text, judge

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
PATH = "/apis/serving.penstock.dev/v1alpha1/namespaces/{}/llmservices"
PODS = "/api/v1/namespaces/{}/pods"


@pytest.fixture(scope="module")
def defined(say: Callable[[str], None]) -> Iterator[Cluster]:
    """A control plane of its own: the shell's tests have another definition of this name."""
    with or_skip(control_plane, say) as cluster:
        cluster.apply(crd.definition())
        cluster.established(crd.NAME)
        yield cluster


@pytest.fixture
def namespace(defined: Cluster) -> str:
    name = f"t{next(_numbers)}"
    defined.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


_numbers = itertools.count()


def request(cluster: Cluster, verb: str, path: str, body: dict[str, Any], kind: str = "application/json") -> str:
    """What the API server says against it; without kubectl, which takes a second of CPU for every call."""
    asked = urllib.request.Request(f"{cluster.server}{path}", json.dumps(body).encode(), method=verb)
    asked.add_header("Authorization", f"Bearer {cluster.token}")
    asked.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(asked, timeout=60, context=ssl.create_default_context(cadata=cluster.ca_pem)):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            told: str = json.load(error)["message"]
            return told


def attempt(cluster: Cluster, namespace: str, document: dict[str, Any], where: str = PATH) -> str:
    """Server-side apply, without doing it."""
    name = document["metadata"]["name"]
    path = f"{where.format(namespace)}/{name}?dryRun=All&fieldManager=test&force=true&fieldValidation=Strict"
    return request(cluster, "PATCH", path, document, "application/apply-patch+yaml")


def test_the_schema_is_structural_and_every_rule_is_cheap_enough(defined: Cluster) -> None:
    conditions = json.loads(defined.kubectl("get", "crd", crd.NAME, "-o", "json"))["status"]["conditions"]
    assert {one["type"]: one["status"] for one in conditions} == {"NamesAccepted": "True", "Established": "True"}


def test_what_the_models_refuse_the_api_server_refuses_with_the_field_s_name(defined: Cluster, namespace: str) -> None:
    told = {
        (path, str(value)): attempt(defined, namespace, crd_cases.manifest((path, value))) for path, value, _ in crd_cases.REFUSED
    }
    silent = [(path, value) for path, value, field in crd_cases.REFUSED if field not in told[path, str(value)]]
    assert silent == []


def test_what_the_models_accept_the_api_server_accepts(defined: Cluster, namespace: str) -> None:
    told = [attempt(defined, namespace, crd_cases.manifest((path, value))) for path, value in crd_cases.ACCEPTED]
    assert [one for one in told if one] == []


@pytest.mark.parametrize("name", ["1st", "a" * 37])
def test_a_name_that_children_could_not_carry_is_refused(defined: Cluster, namespace: str, name: str) -> None:
    assert "metadata.name" in attempt(defined, namespace, crd_cases.manifest(name=name))


def test_changes_are_judged_by_what_was_before(defined: Cluster, namespace: str) -> None:
    for wanted, changes in ((True, crd_cases.REFUSED_CHANGES), (False, crd_cases.ACCEPTED_CHANGES)):
        for number, (old, new) in enumerate(changes):
            name = f"s{number}-{str(wanted).lower()}"
            path = PATH.format(namespace)
            assert request(defined, "POST", path, crd_cases.manifest(("spec.model", old), name=name)) == ""
            stored = json.loads(defined.kubectl("get", "llm", name, "-n", namespace, "-o", "json"))
            told = request(defined, "PUT", f"{path}/{name}", stored | {"spec": crd_cases.manifest(("spec.model", new))["spec"]})
            assert ("spec.model" in told and "served name may not change" in told) is wanted, told


def test_defaults_are_filled_in_and_the_stored_object_is_read_as_the_manifest_was(defined: Cluster, namespace: str) -> None:
    text = default_text() + "  autoscaling:\n    mode: on\n"  # a boolean to YAML 1.1, which kubectl reads
    defined.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", text=text)
    stored = json.loads(defined.kubectl("get", "llm", "tiny", "-n", namespace, "-o", "json"))
    assert stored["spec"]["rollout"] == {"drainTimeout": "30s", "maxSurge": 1, "maxUnavailable": 0}
    service, faults = judge(stored)
    assert faults == [] and service is not None and service.spec.autoscaling.mode == "on"


def test_lists_are_merged_by_name_between_appliers(defined: Cluster, namespace: str) -> None:
    base = crd_cases.manifest(name="merged")
    theirs = {
        "apiVersion": base["apiVersion"], "kind": base["kind"], "metadata": {"name": "merged"},
        "spec": {"slo": {"classes": [{"name": "bulk", "ttft": "9m", "tpot": "1s"}]}, "model": base["spec"]["model"]},
    }  # fmt: skip
    for manager, document in (("ours", base), ("theirs", theirs)):
        words = ("apply", "--server-side", "-n", namespace, f"--field-manager={manager}", "-f", "-")
        defined.kubectl(*words, text=json.dumps(document))
    classes = json.loads(defined.kubectl("get", "llm", "merged", "-n", namespace, "-o", "json"))["spec"]["slo"]["classes"]
    assert sorted(one["name"] for one in classes) == ["batch", "bulk", "interactive"]


def test_columns_print_what_users_rely_on(defined: Cluster, namespace: str) -> None:
    defined.kubectl("create", "-n", namespace, "-f", "-", text=json.dumps(crd_cases.manifest()))
    here = World(crd_cases.manifest())
    here.settle()
    status = {"status": here.document["status"]}
    words = ("patch", "llm", "tiny", "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status))
    defined.kubectl(*words)
    head, row = defined.kubectl("get", "llm", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "MODEL", "MODE", "PREFILL", "DECODE", "PHASE", "SLO", "AGE"]
    assert row.split()[:6] == ["tiny", "tiny", "disaggregated", "1/1", "1/1", "Ready"]


def test_the_whole_status_is_kept_by_the_schema(defined: Cluster, namespace: str) -> None:
    defined.kubectl("create", "-n", namespace, "-f", "-", text=json.dumps(crd_cases.manifest()))
    here = World(crd_cases.manifest())
    here.settle()
    meta = {"name": "tiny", "namespace": namespace}
    body = {key: here.document[key] for key in ("apiVersion", "kind", "status")} | {"metadata": meta}
    words = ("apply", "--server-side", "--subresource=status", "--field-manager=op", "--validate=strict", "-f", "-")
    defined.kubectl(*words, text=json.dumps(body))
    stored = json.loads(defined.kubectl("get", "llm", "tiny", "-n", namespace, "-o", "json"))["status"]
    assert stored == here.document["status"]


def test_every_child_is_valid_and_its_pods_are_admitted_by_the_restricted_standard(defined: Cluster, namespace: str) -> None:
    defined.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    here = World(crd_cases.manifest())
    here.document["metadata"]["namespace"] = namespace
    pods: list[dict[str, Any]] = []
    for body in here.plan().objects:
        if body["kind"] == "RayService":
            cluster = body["spec"]["rayClusterConfig"]
            templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
            pods += [{"metadata": one["metadata"], "spec": one["spec"]} for one in templates]
        elif body["kind"] == "PodMonitor":
            continue  # this cluster does not serve the kind
        else:
            words = ("apply", "--server-side", "--field-manager=penstock-operator", "--validate=strict", "-f", "-")
            # Its owner is not here, and the garbage collector would take it.
            unowned = {key: value for key, value in body["metadata"].items() if key != "ownerReferences"}
            defined.kubectl(*words, text=json.dumps({**body, "metadata": unowned}))
            if body["kind"] == "Deployment":
                pods.append(body["spec"]["template"])
    assert len(pods) == 4
    account = json.dumps({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
    defined.kubectl("apply", "--server-side", "--force-conflicts", "-n", namespace, "-f", "-", text=account)
    for number, template in enumerate(pods):
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": f"p{number}"}}
        told = _admitted(defined, namespace, pod)
        assert told == "", told


def _admitted(cluster: Cluster, namespace: str, pod: dict[str, Any]) -> str:
    """A new account takes a moment to be seen by admission."""
    for _ in range(120):
        told = attempt(cluster, namespace, pod, PODS)
        if "service account" not in told:
            return told
        time.sleep(0.5)
    return told
