"""`penstock operator` with the real plan, on a real API server with the real CRD and KubeRay's: no pods, every object.

Every call it makes is one its Role allows, and every verb its Role holds for writing is one it needs: see the last test.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from kube.asked import or_skip
from kube.control import control_plane, kubeconfig
from kube.faults import proxy
from kube.processes import free_ports
from kube.waiting import until

from penstock_operator.api import default_text
from penstock_operator.plan.permissions import CLUSTER, NAMESPACED, OWN

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/penstock"


@pytest.fixture(scope="module")
def world(say, tmp_path_factory):
    """A control plane of its own (the shell's tests have another CRD of this name), and one operator behind a proxy."""
    folder = tmp_path_factory.mktemp("whole")
    with or_skip(control_plane, say) as cluster:
        cluster.apply(yaml.safe_load((CHART / "files/llmservices.yaml").read_text()))
        cluster.apply(json.loads((CHART / "charts/kuberay/crds/rayservices.json").read_text()))
        cluster.established("llmservices.serving.penstock.dev", "rayservices.ray.io")
        with proxy(cluster.server, cluster.ca_pem, cluster.token) as through:
            yield World(cluster, through, folder)


class World:
    def __init__(self, cluster, through, folder):
        self.cluster, self.through, self.folder = cluster, through, folder

    def start(self):
        (self.port,) = free_ports(1)
        config, log = self.folder / "kubeconfig", self.folder / "operator.log"
        config.write_text(kubeconfig(self.through.url, "", "none"))
        command = [Path(sys.executable).parent / "penstock", "operator", "--listen", f"127.0.0.1:{self.port}"]
        with log.open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env={"KUBECONFIG": str(config), "PATH": "/usr/bin:/bin"})

    def looks(self):
        """Reconciles so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("penstock_operator_reconcile_seconds_count"))

    def stands_still(self):
        """No write in a second that had no reconcile either: what the last write woke is over."""
        before = (len(self.through.changes), self.looks())
        time.sleep(1)
        return before == (len(self.through.changes), self.looks())

    def service(self):
        return self.cluster.read("/apis/serving.penstock.dev/v1alpha1/namespaces/default/llmservices/tiny")

    def condition(self, kind):
        found = [one for one in self.service().get("status", {}).get("conditions", ()) if one["type"] == kind]
        return found[0] if found else None

    def log(self):
        return (self.folder / "operator.log").read_text()


def test_the_built_in_service_is_made_whole_then_left_alone_then_goes(world):
    operator = world.start()
    try:
        world.cluster.kubectl("apply", "--server-side", "-f", "-", text=default_text())
        until(lambda: world.cluster.objects("rayservices.ray.io", "-n", "default"))
        generation = world.service()["metadata"]["generation"]
        until(lambda: world.service().get("status", {}).get("observedGeneration") == generation)
        until(world.stands_still)
        before, looks = len(world.through.changes), world.looks()
        world.cluster.kubectl("annotate", "llm", "tiny", "look=again")
        until(lambda: world.looks() > looks)
        assert world.through.changes[before:] == [], "a look that finds nothing to do writes nothing"
        assert world.condition("Accepted")["status"] == "True", world.service()["status"]
        names = {(one["kind"], one["metadata"]["name"]) for one in children(world)}
        assert {("Deployment", "tiny-router"), ("ServiceAccount", "tiny-router"), ("Service", "tiny")} <= names, names
        assert "Traceback" not in world.log()
        assert "again in" not in world.log(), world.log()
        world.cluster.kubectl("delete", "llm", "tiny", "--wait=true")
        until(lambda: [one for one in children(world) if one["kind"] != "RayService"] == [])
    finally:
        operator.terminate()
        assert operator.wait(20) == 0


def children(world):
    kinds = "serviceaccounts,configmaps,services,deployments.apps,controllerrevisions.apps,rayservices.ray.io,networkpolicies"
    return world.cluster.objects(kinds, "-n", "default", "-l", "serving.penstock.dev/service=tiny")


def test_every_call_is_one_that_the_roles_allow(world):
    allowed = {
        (verb, rule.group, resource)
        for rule in (*NAMESPACED, *OWN, *CLUSTER)
        for resource in rule.resources
        for verb in rule.verbs
    }
    made = {(call.verb, call.group, call.resource) for call in world.through.calls if call.resource}
    discovery = {call for call in made if call[0] in ("get", "list") and call[2] in ("", "v1", "v1alpha1")}
    assert made - discovery - allowed == set()
    assert ("patch", "serving.penstock.dev", "llmservices/status") in made
