"""What the children hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import crd_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_world import World

from penstock_operator.api import LLMService, judge
from penstock_operator.plan import Cluster, OperatorSettings, load_settings
from penstock_operator.plan.permissions import CHILDREN, NAMESPACED
from penstock_operator.plan.render import serve_config
from penstock_operator.plan.revision import Record, engine_inputs, revision_hash
from penstock_router.config import RouterConfig
from penstock_workers.config import WorkerConfig

GPU = [
    ("spec.engine", {"device": "gpu", "shm": "8Gi", "env": [{"name": "A", "value": "b"}], "args": {"max-model-len": 512}}),
    ("spec.model", {"source": "pvc://models/qwen/3", "name": "qwen", "cache": {"pvc": "cache"}}),
    (
        "spec.topology.prefill",
        {"parallelism": {"tensor": 4}, "nodeSelector": {"gpu": "h"}, "tolerations": [{"operator": "Exists"}]},
    ),
    ("spec.rollout.drainTimeout", "10m"),
]


def service(*edits: tuple[str, Any]) -> LLMService:
    made, faults = judge(crd_cases.manifest(*edits))
    assert made is not None, faults
    return made


def children(*edits: tuple[str, Any], **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    here = World(crd_cases.manifest(*edits), **options)
    return {(body["kind"], body["metadata"]["name"]): dict(body) for body in here.plan().objects}


def of_kind(found: dict[tuple[str, str], dict[str, Any]], kind: str) -> dict[str, Any]:
    (body,) = [body for (one, _), body in found.items() if one == kind]
    return body


def pods(found: dict[tuple[str, str], dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "router", of_kind(found, "Deployment")["spec"]["template"]["spec"]
    cluster = of_kind(found, "RayService")["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


# Hashes that running services have: one that changes here rolls every fleet at the next upgrade of the operator.
GOLDEN = {
    "tiny": ((), "811c0c2e"),
    "colocated": ((("spec.topology", {"mode": "colocated", "workers": {"replicas": 2}}),), "fda05de5"),
    "gpu": ((*GPU, ("spec.model.secretRef", {"name": "hf"})), "b1e28f55"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_hashes_of_revisions_are_those_of_earlier_releases(name: str) -> None:
    edits, golden = GOLDEN[name]
    assert revision_hash(service(*edits).spec) == golden


NEEDED = [
    ("spec.model.source", "hf://other/tiny"),
    ("spec.model.cache", {"pvc": "c"}),
    ("spec.model.secretRef", {"name": "s"}),
    ("spec.engine.image", "other"),
    ("spec.engine.shm", "1Gi"),
    ("spec.engine.args", {"max-model-len": 256}),
    ("spec.engine.env", [{"name": "A", "value": "b"}]),
    ("spec.topology.prefill.nodeSelector", {"a": "b"}),
    ("spec.topology.decode.tolerations", [{"operator": "Exists"}]),
    ("spec.topology.decode.resources", {"limits": {"cpu": 2}}),
    ("spec.rollout.drainTimeout", "7m"),
]


@pytest.mark.parametrize("edit", NEEDED, ids=[path for path, _ in NEEDED])
def test_what_engines_need_makes_another_revision(edit: tuple[str, Any]) -> None:
    assert revision_hash(service(edit).spec) != revision_hash(service().spec)


def test_a_value_that_is_spelled_out_at_its_default_changes_no_hash() -> None:
    plain, spelled = service(), service(("spec.topology.prefill.parallelism", {"tensor": 1}), ("spec.engine.args", {}))
    assert revision_hash(plain.spec) == revision_hash(spelled.spec)
    assert engine_inputs(plain.spec)["pools"] == {"decode": {}, "prefill": {}}


def test_every_pod_meets_the_restricted_standard_and_has_a_read_only_root() -> None:
    for name, spec in pods(children(*GPU)):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["enableServiceLinks"] is False, name
        assert all("hostPath" not in volume for volume in spec["volumes"]), name
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}, name


def test_service_account_tokens_are_in_no_router_and_no_worker() -> None:
    for name, spec in pods(children()):
        assert name == "head" or spec["automountServiceAccountToken"] is False  # Ray's autoscaler needs the head's


def test_the_grace_of_pods_covers_the_drain() -> None:
    for name, spec in pods(children(("spec.rollout.drainTimeout", "90s"))):
        assert spec["terminationGracePeriodSeconds"] == (150 if name == "head" else 120), name
    found = children(("spec.rollout.drainTimeout", "90s"))
    serve = json.loads(of_kind(found, "RayService")["spec"]["serveConfigV2"])
    for application in serve["applications"]:
        assert application["deployments"][0]["graceful_shutdown_timeout_s"] > 90
    worker = next(spec for name, spec in pods(found) if name == "prefill")["containers"][0]
    environment = {one["name"]: one.get("value") for one in worker["env"]}
    assert 90 <= int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0) < 120
    assert worker["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["--timeout", "90"]


def test_configurations_pass_the_models_of_those_who_read_them() -> None:
    found = children(*GPU)
    router = RouterConfig.model_validate_json(of_kind(found, "ConfigMap")["data"]["router.json"])
    assert router.model == "qwen" and router.grace_s == 600 and [one.name for one in router.classes] == ["interactive", "batch"]
    serve = json.loads(of_kind(found, "RayService")["spec"]["serveConfigV2"])
    workers = {
        one["name"]: WorkerConfig.model_validate(one["args"]["pools"][one["name"]]["worker"]) for one in serve["applications"]
    }
    assert (
        workers["prefill"].engine_args["tensor_parallel_size"] == 4
        and "tensor_parallel_size" not in workers["decode"].engine_args
    )
    assert workers["decode"].routers == ("tiny-reports:9001",) and workers["decode"].source == "file:///models/models/qwen/3"
    assert workers["decode"].engine_args["max_model_len"] == 512


def test_a_worker_with_several_gpus_has_a_bundle_for_each_in_one_pod() -> None:
    found = children(*GPU)
    serve = json.loads(of_kind(found, "RayService")["spec"]["serveConfigV2"])
    deployments = {one["name"]: one["deployments"][0] for one in serve["applications"]}
    assert deployments["prefill"]["placement_group_bundles"] == [{"GPU": 1, "prefill": 0.25}] * 4
    assert deployments["prefill"]["placement_group_strategy"] == "STRICT_PACK"
    assert deployments["decode"]["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 1, "resources": {"decode": 1}}
    groups = {g["groupName"]: g for g in of_kind(found, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert groups["prefill"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert groups["prefill"]["rayStartParams"]["num-gpus"] == "4"
    assert json.loads(json.loads(groups["prefill"]["rayStartParams"]["resources"])) == {"prefill": 1}
    assert groups["prefill"]["template"]["spec"]["nodeSelector"] == {"gpu": "h"}
    assert groups["prefill"]["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_a_cpu_worker_asks_for_no_gpu() -> None:
    assert "nvidia" not in json.dumps(list(pods(children()))) and "num_gpus" not in json.dumps(of_kind(children(), "RayService"))


def test_ray_asks_for_its_token_and_scales_with_its_second_autoscaler() -> None:
    cluster = of_kind(children(), "RayService")["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
    assert of_kind(children(), "RayService")["spec"]["upgradeStrategy"] == {"type": "None"}


def test_a_head_keeps_its_state_on_the_volume_of_its_revision_only() -> None:
    found = children()
    name = of_kind(found, "PersistentVolumeClaim")["metadata"]["name"]
    head = next(spec for pod, spec in pods(found) if pod == "head")
    assert {"name": "gcs", "persistentVolumeClaim": {"claimName": name}} in head["volumes"]
    assert {"name": "RAY_gcs_storage", "value": "rocksdb"} in head["containers"][0]["env"]
    assert revision_hash(service().spec) in name
    memory = children(cluster=Cluster(frozenset({"RayService"}), storage_class=False))
    assert "rocksdb" not in json.dumps(list(pods(memory)))


def test_workers_reach_routers_that_are_not_ready_and_clients_only_those_that_are() -> None:
    found = children()
    reports, clients = found["Service", "tiny-reports"]["spec"], found["Service", "tiny"]["spec"]
    assert reports["clusterIP"] == "None" and reports["publishNotReadyAddresses"] is True
    assert [one["port"] for one in reports["ports"]] == [9001]
    assert "publishNotReadyAddresses" not in clients and [one["port"] for one in clients["ports"]] == [9000, 8000]


def test_a_change_of_the_router_s_configuration_rolls_the_routers() -> None:
    def digest(*edits: tuple[str, Any]) -> Any:
        return of_kind(children(*edits), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert digest() != digest(("spec.slo.classes", [{"name": "interactive", "ttft": "9s", "tpot": "1s"}]))
    assert digest() == digest(("spec.router", {"replicas": 3}))


@pytest.mark.parametrize(("size", "unavailable", "least"), [(1, 0, 0), (4, 0, 3), (4, 2, 2)])
def test_evictions_take_one_worker_at_a_time_or_what_rollouts_may(size: int, unavailable: int, least: int) -> None:
    found = children(("spec.topology.decode.replicas", size), ("spec.rollout.maxUnavailable", unavailable))
    assert found["PodDisruptionBudget", "tiny-decode"]["spec"]["minAvailable"] == least


def test_only_kinds_that_the_operator_may_write_are_rendered() -> None:
    may = {(child.api_version, child.kind) for child in CHILDREN if "patch" in child.verbs}
    assert {(body["apiVersion"], body["kind"]) for body in children(*GPU).values()} == may


def test_permissions_name_each_resource_once() -> None:
    named = [(rule.group, resource) for rule in NAMESPACED for resource in rule.resources]
    assert len(named) == len(set(named))
    assert not any("*" in (*rule.verbs, *rule.resources, rule.group) for rule in NAMESPACED)


def test_settings_are_read_from_a_file_and_others_are_refused(tmp_path: Any) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("images: {router: a}\nprogressDeadlineS: 5\n")
    assert load_settings(file).images.router == "a" and load_settings(file).progress_deadline_s == 5
    assert load_settings(None) == OperatorSettings()
    file.write_text("image: a\n")
    with pytest.raises(ValueError, match=str(file)):
        load_settings(file)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(edits=st.lists(st.sampled_from([*NEEDED, *GPU]), max_size=3, unique_by=str))
def test_rendering_is_repeatable(edits: list[tuple[str, Any]]) -> None:
    made, _ = judge(crd_cases.manifest(*edits))
    if made is not None:
        assert children(*edits) == children(*edits)


@pytest.mark.slow
@pytest.mark.parametrize("edits", [(), tuple(GPU)], ids=["cpu", "gpu"])
def test_serve_s_own_schema_accepts_the_application_of_every_size(edits: tuple[Any, ...]) -> None:
    """In a process of its own: Ray is heavy, and warns at import."""
    record = Record.of(of_kind(children(*edits), "ControllerRevision")["data"])
    texts = [serve_config(record, sizes) for sizes in ({"prefill": 1, "decode": 2}, {"decode": 1}, {})]
    load = "[ServeDeploySchema(**json.loads(text)) for text in json.load(sys.stdin)]"
    code = f"import json, sys; from ray.serve.schema import ServeDeploySchema; {load}"
    subprocess.run([sys.executable, "-c", code], input=json.dumps(texts), text=True, check=True, capture_output=True)
    assert [len(json.loads(text)["applications"]) for text in texts] == [2, 1, 0]
