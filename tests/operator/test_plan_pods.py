"""What a real node taught about pods: each of these was a defect that no API server alone showed."""

from typing import Any

import crd_cases
from plan_world import World


def ray_cluster() -> dict[str, Any]:
    (made,) = [body for body in World(crd_cases.manifest()).plan().objects if body["kind"] == "RayService"]
    found: dict[str, Any] = dict(made)["spec"]["rayClusterConfig"]
    return found


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def test_the_head_names_the_port_without_which_kuberay_gives_a_rayservice_up() -> None:
    (head,) = ray_cluster()["headGroupSpec"]["template"]["spec"]["containers"]
    assert "serve" in {port["name"] for port in head["ports"]}


def test_the_autoscaler_is_not_the_first_process_which_would_ignore_sigterm() -> None:
    cluster = ray_cluster()
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["template"]["spec"]["shareProcessNamespace"] is True


def test_the_head_waits_in_its_hook_and_not_once_more_in_ray() -> None:
    (head,) = ray_cluster()["headGroupSpec"]["template"]["spec"]["containers"]
    assert variables(head)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"
    assert head["lifecycle"]["preStop"]["exec"]["command"][-3:-1] == ["head", "--timeout"]


def test_a_worker_s_drain_fits_into_its_grace() -> None:
    for group in ray_cluster()["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (worker,) = pod["containers"]
        drain = float(worker["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert drain <= float(variables(worker)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) <= pod["terminationGracePeriodSeconds"]
