"""A control plane with the product's definitions and a stand-in for everything that would run pods.

Promise: what it yields is proven ready: kinds served, pods made up by `rays`, and the garbage collector knowing the kinds,
without which nothing that is deleted would take its children along.
"""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kube.build import Say
from kube.control import Cluster, control_plane
from kube.processes import NotUp
from kube.rays import hands

CHART = Path(__file__).resolve().parents[2] / "deploy/helm/penstock"
LLM = "/apis/serving.penstock.dev/v1alpha1"
APPLY = "application/apply-patch+yaml"
_COLLECTOR_S = 90.0  # it looks for new kinds every half a minute


@contextlib.contextmanager
def stage(say: Say) -> Iterator[Cluster]:
    with control_plane(say, without=("deployment-controller", "replicaset-controller")) as cluster:
        cluster.apply(yaml.safe_load((CHART / "files/llmservices.yaml").read_text()))
        cluster.apply(json.loads((CHART / "charts/kuberay/crds/rayservices.json").read_text()))
        cluster.established("llmservices.serving.penstock.dev", "rayservices.ray.io")
        with hands(cluster):
            with Asker(cluster) as asker:
                _collector_knows(asker)
            yield cluster


def _collector_knows(asker: "Asker") -> None:
    """A RayService and its pod go with the LLMService that owns them."""
    space = "canary"
    asker.send("POST", "/api/v1/namespaces", {"metadata": {"name": space}})
    spec = {"model": {"source": "penstock://tiny"}, "topology": {"mode": "colocated", "workers": {}}}
    service = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMService", "metadata": {"name": "canary"}, "spec": spec}
    path = f"{LLM}/namespaces/{space}/llmservices/canary"
    meta = asker.send("PATCH", f"{path}?fieldManager=person", service, APPLY)["metadata"]
    owner = {"apiVersion": service["apiVersion"], "kind": "LLMService", "name": "canary", "uid": meta["uid"]}
    serve = {"applications": [{"name": "workers", "deployments": [{"num_replicas": 1}]}]}
    container: dict[str, Any] = {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}
    ray = {
        "apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "canary", "ownerReferences": [owner]},
        "spec": {
            "serveConfigV2": json.dumps(serve), "rayClusterConfig": {"headGroupSpec": {"rayStartParams": {}, **container}},
        },
    }  # fmt: skip
    asker.send("POST", f"/apis/ray.io/v1/namespaces/{space}/rayservices", ray)
    pods = f"/api/v1/namespaces/{space}/pods"
    _until(lambda: asker.read(pods)["items"], "the stand-in made no pod")
    asker.send("DELETE", path)
    _until(lambda: not asker.read(pods)["items"], "the garbage collector does not know the new kinds")


def _until(what: Any, otherwise: str) -> None:
    end = time.monotonic() + _COLLECTOR_S
    while not what():
        if time.monotonic() > end:
            raise NotUp(otherwise)
        time.sleep(0.2)


@dataclass
class Asker:
    """Requests on one connection, for one thread: a handshake each would cost more than the answer."""

    cluster: Cluster
    _connection: http.client.HTTPSConnection | None = field(default=None, repr=False)

    def read(self, path: str) -> Any:
        """None for 404."""
        status, found = self._ask("GET", path, None, "")
        if status == 404:
            return None
        if status >= 400:
            raise RuntimeError(f"GET {path}: {status} {found.get('message')}")
        return found

    def send(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        """Raises for anything but success; a delete of what is gone is one."""
        status, found = self._ask(method, path, body, content)
        if status >= 400 and not (method == "DELETE" and status == 404):
            raise RuntimeError(f"{method} {path}: {status} {found.get('message')}")
        return found

    def status(self, method: str, path: str, body: Any, content: str = "application/json") -> int:
        return self._ask(method, path, body, content)[0]

    def _ask(self, method: str, path: str, body: Any, content: str) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.cluster.token}"} | ({"Content-Type": content} if body is not None else {})
        for attempt in (1, 2):
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(
                    "127.0.0.1", self.cluster.port, context=self.cluster.secure(), timeout=30
                )
            try:
                self._connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = self._connection.getresponse()
                return answer.status, json.loads(answer.read() or b"{}")
            except (http.client.HTTPException, OSError):
                # The server ends connections that were idle; whatever is asked here may be asked twice.
                self.close()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
