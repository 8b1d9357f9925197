"""Models are fetched by real pods of a real node: what goes wrong and how far it is stand in the LLMService.

KubeRay is not here: the test makes one pod of the template that the operator gives it, with a worker that only waits.
"""

import json
import sys
from pathlib import Path

import pytest
import yaml
from kube.asked import or_skip
from kube.node import IMAGE, NODE_IP, node
from kube.processes import Processes
from kube.waiting import until

from penstock_operator.plan.names import POOL_LABEL, REVISION_LABEL

pytestmark = [pytest.mark.e2e, pytest.mark.pods]
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/penstock"
HUB, S3 = 8088, 8089
# Ten seconds or more: long enough to be seen on the way. huggingface_hub writes 10 MB at a time.
BYTES, PACE = 90_000_000, 6_000_000
SETTINGS = {"images": {"cpu": IMAGE, "router": IMAGE}, "fakeEngine": True}
KEYS = {
    "hf": ({"token": "hf_wrong"}, {"token": "hf_right"}, "key token"),
    "s3": (
        {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wrong"},
        {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "the secret"},
        "keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
}
SOURCES = {"hf": "hf://org/chat", "s3": "s3://models/team/chat"}


@pytest.fixture(scope="module")
def real(say):
    with or_skip(lambda told: node(told, volumes=4), say, "node") as cluster:
        cluster.apply(yaml.safe_load((CHART / "files/llmservices.yaml").read_text()))
        cluster.apply(json.loads((CHART / "charts/kuberay/crds/rayservices.json").read_text()))
        cluster.established("llmservices.serving.penstock.dev", "rayservices.ray.io")
        started: Processes = cluster.processes
        standins = [sys.executable, ROOT / "tests/workers/model_standins.py", NODE_IP, str(HUB), str(S3), str(BYTES), str(PACE)]
        started.start("standins", [*cluster.inside, *standins])
        started.wait_for("standins", lambda: "ready" in started.log("standins").read_text(), 60)
        settings = cluster.state / "operator.yaml"
        settings.write_text(json.dumps(SETTINGS))
        operator = [Path(sys.executable).parent / "penstock", "operator", "--config", settings, "--listen", "127.0.0.1:8085"]
        started.start("operator", [*cluster.inside, "env", f"KUBECONFIG={cluster.kubeconfig}", *operator])
        yield cluster


class Service:
    def __init__(self, cluster, kind):
        self.cluster, self.name, self.kind = cluster, f"chat-{kind}", kind
        self.seen = set()

    def apply(self):
        variables = [
            {"name": "HF_ENDPOINT", "value": f"http://{NODE_IP}:{HUB}"},
            {"name": "AWS_ENDPOINT_URL", "value": f"http://{NODE_IP}:{S3}"},
        ]
        model = {"source": SOURCES[self.kind], "name": "chat", "secretRef": {"name": f"{self.name}-keys"}}
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        meta = {"name": self.name, "namespace": "default"}
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim},
            {
                "apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMService", "metadata": meta,
                "spec": {
                    "model": {**model, "cache": {"pvc": self.name}}, "engine": {"device": "cpu", "env": variables},
                    "topology": {"mode": "colocated", "workers": {"replicas": 2}},
                },
            },
        )  # fmt: skip

    def secret(self, data):
        meta = {"name": f"{self.name}-keys", "namespace": "default"}
        self.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})

    def ray(self):
        found = until(
            lambda: [one for one in self.cluster.objects("rayservices") if one["metadata"]["name"].startswith(self.name)]
        )
        return found[0]

    def pods(self, count, command=("sleep", "infinity")):
        """As KubeRay makes them, but for the worker."""
        group = self.ray()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        template = group["template"]
        assert template["metadata"]["labels"].keys() >= {REVISION_LABEL, POOL_LABEL}
        worker = template["spec"]["containers"][0]
        waits = {key: worker[key] for key in ("name", "image", "imagePullPolicy", "securityContext", "volumeMounts")}
        waits["command"] = list(command)
        spec = {**template["spec"], "containers": [waits], "terminationGracePeriodSeconds": 1}
        for number in range(count):
            meta = {**template["metadata"], "name": f"{self.name}-worker-{number}", "namespace": "default"}
            self.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    def status(self):
        (found,) = [one for one in self.cluster.objects("llmservices") if one["metadata"]["name"] == self.name]
        status = found.get("status", {})
        if "download" in status:
            self.seen.add((status["phase"], status["download"]["percent"]))
        return status

    def condition(self, kind, reason):
        """The message, once it has that reason."""
        conditions = self.status().get("conditions", ())
        return next((one["message"] for one in conditions if (one["type"], one["reason"]) == (kind, reason)), None)


@pytest.mark.parametrize("kind", ["hf", "s3"])
def test_a_model_comes_with_its_secret_and_the_service_says_how_far_it_is(kind, real, say):
    service = Service(real, kind)
    wrong, right, keys = KEYS[kind]
    service.apply()
    service.pods(2)
    told = until(lambda: service.condition("Degraded", "ModelSecretMissing"))
    assert f"{service.name}-keys" in told and keys.rpartition(" and ")[2].rpartition(" ")[2] in told
    service.secret(wrong)
    told = until(lambda: service.condition("Degraded", "ModelAccessDenied"))
    assert f"Secret {service.name}-keys, {keys}" in told and SOURCES[kind] in told
    say(f"{kind}: {told}")
    service.secret(right)
    # The pods share a volume: one fetches, the other waits for it.
    until(lambda: service.status()["pools"][0]["ready"] == 2, 400)
    assert "download" not in service.status()
    percents = sorted(percent for _, percent in service.seen)
    say(f"{kind}: seen on the way: {sorted(service.seen)}")
    assert any(0 < percent < 100 for percent in percents)
    assert "Fetching" in {phase for phase, _ in service.seen}
    events = {one["reason"] for one in real.objects("events") if one["involvedObject"]["name"] == service.name}
    assert {"ModelSecretMissing", "ModelAccessDenied", "RolloutStarted"} <= events
    real.kubectl("delete", "llmservice", service.name)
    real.kubectl("delete", "pod", *[f"{service.name}-worker-{number}" for number in range(2)])


def test_a_model_of_a_claim_is_read_where_it_is_mounted(real, say):
    service = Service(real, "pvc")
    meta = {"name": "shelf", "namespace": "default"}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    real.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim})
    fill = "mkdir -p /shelf/team/chat && echo '{}' > /shelf/team/chat/config.json && sleep infinity"
    filler = {
        "name": "fill", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-ec", fill],
        "volumeMounts": [{"name": "shelf", "mountPath": "/shelf"}],
    }  # fmt: skip
    spec = {
        "containers": [filler], "securityContext": {"runAsUser": 10001, "fsGroup": 10001}, "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "shelf", "persistentVolumeClaim": {"claimName": "shelf"}}],
    }  # fmt: skip
    real.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "name": "fill"}, "spec": spec})
    real.kubectl("wait", "--for=condition=Ready", "pod/fill", "--timeout=120s", seconds=130)
    real.apply(
        {
            "apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMService", "metadata": {**meta, "name": service.name},
            "spec": {
                "model": {"source": "pvc://shelf/team/chat"}, "engine": {"device": "cpu"},
                "topology": {"mode": "colocated", "workers": {"replicas": 1}},
            },
        }
    )  # fmt: skip
    ray = service.ray()
    (application,) = json.loads(ray["spec"]["serveConfigV2"])["applications"]
    source = application["args"]["pools"]["workers"]["worker"]["source"]
    service.pods(1, ["sh", "-c", f"python -m penstock_workers.model {source} --cache /cache && sleep infinity"])
    told = until(lambda: real.kubectl("logs", f"{service.name}-worker-0", check=False).strip())
    say(f"pvc: {told}")
    assert json.loads(told) == {"penstock_model": {"ready": "/models/shelf/team/chat"}}
    real.kubectl("delete", "llmservice", service.name)
    real.kubectl("delete", "pod", "fill", f"{service.name}-worker-0")
