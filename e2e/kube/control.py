"""A control plane of real programs: etcd, kube-apiserver, kube-controller-manager and, on demand, more.

Promise: up in seconds, listening nowhere but on loopback (or inside of its own namespaces), state in one folder, and nothing
left when the `with` ends.
"""

import base64
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kube import certs
from kube.build import Say, ensure
from kube.pins import CONTROL_PLANE, FAKE_NODES, PROGRAMS, RAY
from kube.processes import NotUp, Processes, free_ports

SERVICE_CIDR = "10.96.0.0/16"
_SERVICE_API = "10.96.0.1"
# Talks to itself faster than a person could make it; the defaults of 20 a second are for shared clusters.
_QPS = ("--kube-api-qps=300", "--kube-api-burst=600")


@dataclass
class Cluster:
    """A running control plane. `inside` is put before a command that must run in the cluster's namespaces."""

    state: Path
    programs: dict[str, Path]
    port: int
    token: str
    processes: Processes
    inside: Sequence[str] = ()
    node_ip: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.conf"

    @property
    def ca_pem(self) -> str:
        return (self.state / "pki/ca.crt").read_text()

    def kubectl(self, *words: str, text: str | None = None, check: bool = True, seconds: float = 60) -> str:
        """Its stdout; raises with its stderr."""
        command = [*self.inside, str(self.programs["kubectl"]), "--kubeconfig", str(self.kubeconfig), *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr.strip()[-1500:]}")
        return done.stdout

    def objects(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", "-o", "json", *words)).get("items", [])
        return found

    def read(self, path: str) -> dict[str, Any] | None:
        """A GET without kubectl's half second; None for 404. Not for a cluster in namespaces of its own."""
        with contextlib.suppress(urllib.error.HTTPError), self.open(path) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
        return None

    def send(self, method: str, path: str, document: Any = None, content: str = "application/json") -> None:
        """A write without kubectl's half second; raises HTTPError."""
        with self.open(path, method, None if document is None else json.dumps(document).encode(), content):
            pass

    def open(
        self, path: str, method: str = "GET", body: bytes | None = None, content: str = "application/json", seconds: float = 10
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content}
        request = urllib.request.Request(self.server + path, data=body, headers=headers, method=method)
        return urllib.request.urlopen(request, context=self.secure(), timeout=seconds)

    def secure(self) -> ssl.SSLContext:
        if self.tls is None:
            self.tls = ssl.create_default_context(cadata=self.ca_pem)
        return self.tls

    def apply(self, *documents: Any) -> str:
        """Server-side apply of documents, as kubectl's own field manager."""
        return self.kubectl("apply", "--server-side", "-f", "-", text="\n---\n".join(json.dumps(one) for one in documents))

    def established(self, *crds: str) -> None:
        """Until these are served; `kubectl wait` fails on one that is too new to have a status."""
        end = time.monotonic() + 30
        while not all(self._is_established(crd) for crd in crds):
            if time.monotonic() > end:
                raise NotUp(f"not established: {', '.join(crds)}")
            time.sleep(0.1)

    def _is_established(self, crd: str) -> bool:
        status = json.loads(self.kubectl("get", "crd", crd, "-o", "json")).get("status") or {}
        return any(one["type"] == "Established" and one["status"] == "True" for one in status.get("conditions") or ())

    def start(self, name: str, *words: str | Path) -> None:
        self.processes.start(name, [*self.inside, self.programs[name], *words])


def kubeconfig(server: str, ca_pem: str, token: str) -> str:
    """As JSON, which is YAML."""
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca_pem.encode()).decode()}
    if not server.startswith("https"):
        del cluster["certificate-authority-data"]
    return json.dumps(
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
    )  # fmt: skip


@contextlib.contextmanager
def control_plane(say: Say, *, ray: bool = False, fake_nodes: int = 0, without: Sequence[str] = ()) -> Iterator[Cluster]:
    """On loopback, without nodes. `ray`: KubeRay's CRDs and operator. `fake_nodes`: that many, whose pods run at once.

    `without`: controllers of Kubernetes' own that a test stands in for.
    """
    names = [*CONTROL_PLANE, *(RAY if ray else ()), *(FAKE_NODES if fake_nodes else ())]
    programs = ensure(names, say)
    with tempfile.TemporaryDirectory(prefix="pk-") as tmp:
        processes = Processes(Path(tmp))
        try:
            etcd, peer, port, controllers = free_ports(4)
            cluster = begin(Path(tmp), programs, processes, (etcd, peer, port, controllers), without=without)
            if fake_nodes:
                add_fake_nodes(cluster, fake_nodes)
            if ray:
                add_ray(cluster)
            yield cluster
        finally:
            processes.end()


def begin(
    state: Path, programs: dict[str, Path], processes: Processes, ports: Sequence[int], *,
    inside: Sequence[str] = (), node_ip: str = "127.0.0.1", without: Sequence[str] = (),
) -> Cluster:  # fmt: skip
    """etcd, API server and controllers, ready."""
    etcd, peer, port, controllers = ports
    token = certs.make(state / "pki", sorted({"127.0.0.1", _SERVICE_API, node_ip}))
    cluster = Cluster(state, programs, port, token, processes, inside, node_ip)
    with os.fdopen(os.open(cluster.kubeconfig, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(kubeconfig(cluster.server, cluster.ca_pem, token))
    url, peer_url = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peer}"
    cluster.start(
        "etcd", "--data-dir", state / "etcd", "--unsafe-no-fsync", "--log-level", "warn",
        "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer_url,
        "--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}",
    )  # fmt: skip
    _api_server(cluster, url, "127.0.0.1" if node_ip == "127.0.0.1" else "0.0.0.0")
    processes.wait_for("kube-apiserver", lambda: answers(cluster, "/readyz"), 90)
    pki = state / "pki"
    cluster.start(
        "kube-controller-manager", "--kubeconfig", cluster.kubeconfig, "--bind-address=127.0.0.1", "--leader-elect=false", *_QPS,
        f"--secure-port={controllers}", "--service-account-private-key-file", pki / "sa.key", "--root-ca-file", pki / "ca.crt",
        "--use-service-account-credentials=false", "--controllers=" + ",".join(["*", *(f"-{one}" for one in without)]),
    )  # fmt: skip
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    processes.wait_for("kube-controller-manager", lambda: answers(cluster, account), 60)
    return cluster


def _api_server(cluster: Cluster, etcd: str, bind: str) -> None:
    pki = cluster.state / "pki"
    # Endpoints may not hold a loopback address: without a node, nobody asks for the Service `kubernetes`.
    reconciler = "none" if cluster.node_ip == "127.0.0.1" else "lease"
    cluster.start(
        "kube-apiserver", f"--etcd-servers={etcd}", f"--bind-address={bind}", f"--advertise-address={cluster.node_ip}",
        f"--secure-port={cluster.port}", "--tls-cert-file", pki / "srv.crt", "--tls-private-key-file", pki / "srv.key",
        "--client-ca-file", pki / "ca.crt", "--kubelet-client-certificate", pki / "srv.crt",
        "--kubelet-client-key", pki / "srv.key", "--kubelet-certificate-authority=", "--token-auth-file", pki / "tokens.csv",
        "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file", pki / "sa.pub",
        "--service-account-signing-key-file", pki / "sa.key", "--authorization-mode=RBAC",
        f"--service-cluster-ip-range={SERVICE_CIDR}", "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP", f"--endpoint-reconciler-type={reconciler}",
    )  # fmt: skip


def answers(cluster: Cluster, path: str) -> bool:
    if cluster.inside:
        return cluster.kubectl("get", "--raw", path, check=False) != ""
    with contextlib.suppress(urllib.error.URLError, OSError), cluster.open(path) as answer:
        return bool(answer.status == 200)
    return False


def add_fake_nodes(cluster: Cluster, count: int) -> None:
    """A scheduler, and KWOK: pods of its nodes are Running and Ready without a container."""
    scheduler, kwok = free_ports(2)
    cluster.start(
        "kube-scheduler", "--kubeconfig", cluster.kubeconfig, "--bind-address=127.0.0.1", "--leader-elect=false",
        f"--secure-port={scheduler}", *_QPS,
    )  # fmt: skip
    stages = [word for stage in sorted((PROGRAMS["kwok"].folder / "stages").iterdir()) for word in ("--config", stage)]
    cluster.start(
        "kwok", *stages, "--kubeconfig", cluster.kubeconfig, "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake", "--node-lease-duration-seconds=40",
        "--cidr=10.200.0.0/16", "--node-ip=10.250.0.1", f"--server-address=127.0.0.1:{kwok}",
    )  # fmt: skip
    room = {"cpu": "64", "memory": "512Gi", "pods": "250", "nvidia.com/gpu": "8"}
    nodes = [
        {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": f"fake{n}", "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": f"fake{n}"}}, "status": {"allocatable": room, "capacity": room},
        }
        for n in range(count)
    ]  # fmt: skip
    cluster.kubectl("create", "-f", "-", text="\n---\n".join(json.dumps(node) for node in nodes))
    cluster.kubectl("wait", "--for=condition=Ready", "node", "-l", "type=kwok", "--timeout=60s", seconds=70)


def add_ray(cluster: Cluster) -> None:
    """KubeRay's CRDs and its operator as a process."""
    metrics, probes = free_ports(2)
    cluster.kubectl("apply", "--server-side", "-f", str(PROGRAMS["kuberay-operator"].folder / "crds"))
    cluster.established("rayclusters.ray.io", "rayservices.ray.io")
    cluster.start(
        "kuberay-operator", "--kubeconfig", cluster.kubeconfig, "--enable-leader-election=false", "--log-stdout-encoder=console",
        f"--metrics-addr=127.0.0.1:{metrics}", f"--health-probe-bind-address=127.0.0.1:{probes}",
    )  # fmt: skip
    cluster.processes.wait_for("kuberay-operator", _healthy(cluster, f"http://127.0.0.1:{probes}/healthz"), 60)


def _healthy(cluster: Cluster, url: str) -> Callable[[], bool]:
    ask = [*cluster.inside, sys.executable, "-c", f"import urllib.request as u; u.urlopen({url!r}, timeout=2)"]
    return lambda: subprocess.run(ask, capture_output=True).returncode == 0
