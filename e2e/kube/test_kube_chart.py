"""The chart on a real API server: installed, upgraded without a new key, and gone without an orphan."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube.asked import or_skip
from kube.build import ensure
from kube.control import Cluster, control_plane

from penstock_operator.api import crd

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
CHART = Path(__file__).resolve().parents[2] / "deploy/helm/penstock"
SPACE = "penstock-system"
KINDS = "deployments,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"


@pytest.fixture(scope="module")
def bare(say: Callable[[str], None]) -> Iterator[Cluster]:
    with or_skip(_with_helm, say) as cluster:
        yield cluster


@contextlib.contextmanager
def _with_helm(say: Callable[[str], None]) -> Iterator[Cluster]:
    with control_plane(say) as cluster:
        cluster.programs |= ensure(["helm"], say)
        yield cluster


def helm(cluster: Cluster, *words: str | Path) -> str:
    command = [cluster.programs["helm"], "--kubeconfig", cluster.kubeconfig, "-n", SPACE, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def key(cluster: Cluster) -> str:
    found: str = json.loads(cluster.kubectl("get", "secret", "penstock-tickets", "-n", SPACE, "-o", "json"))["data"]["key"]
    return found


def left(cluster: Cluster) -> list[str]:
    names = cluster.kubectl("get", KINDS, "-n", SPACE, "-l", "app.kubernetes.io/managed-by=Helm", "-o", "name").split()
    return (
        names
        + cluster.kubectl(
            "get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=penstock", "-o", "name"
        ).split()
    )


def test_an_upgrade_keeps_the_tickets_key_and_an_uninstallation_leaves_the_definition_alone(bare: Cluster) -> None:
    told = helm(bare, "install", "penstock", CHART, "--create-namespace", "--set", "kuberay.enabled=true")
    assert "kubectl get llm" in told
    first = key(bare)
    assert bare.kubectl("get", "crd", crd.NAME, "rayservices.ray.io", "-o", "name").count("customresourcedefinition") == 2
    assert len(left(bare)) >= 10
    helm(bare, "upgrade", "penstock", CHART, "--set", "operator.replicas=1", "--set", "kuberay.enabled=true")
    assert key(bare) == first
    helm(bare, "uninstall", "penstock")
    assert left(bare) == [] and crd.NAME in bare.kubectl("get", "crd", "-o", "name")
