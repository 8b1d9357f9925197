"""What the test cluster is made of, and the versions it is pinned to.

Promise: a program's folder in the cache is named by everything its bytes depend on, so a changed pin builds anew and
an unchanged one never does.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "v1.36.3"
STAGING = "v0.36.3"
_STAMP = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
# Clients that parse versions fail on the placeholder that a build without these says.
_MAJOR, _MINOR = KUBERNETES[1:].split(".")[:2]
_LDFLAGS = " ".join(
    f"-X {package}.gitVersion={KUBERNETES} -X {package}.gitMajor={_MAJOR} -X {package}.gitMinor={_MINOR}" for package in _STAMP
)


@dataclass(frozen=True, slots=True)
class Program:
    """One Go program of one module; `files` are (folder, globs in the module) to keep beside it."""

    name: str
    module: str
    version: str
    package: str
    ldflags: str = ""
    files: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def folder(self) -> Path:
        made_of = repr((self.module, self.version, self.package, self.ldflags, self.files))
        return cache() / f"{self.name}-{self.version}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"

    @property
    def path(self) -> Path:
        return self.folder / self.name


def cache() -> Path:
    """Outside of the tree: a checkout is thrown away, 12 minutes of building are not."""
    return Path(os.environ.get("PENSTOCK_CACHE") or Path.home() / ".cache/penstock") / "kube"


def _kubernetes(name: str) -> Program:
    return Program(name, "k8s.io/kubernetes", KUBERNETES, f"k8s.io/kubernetes/cmd/{name}", _LDFLAGS)


_KUBERAY = "github.com/ray-project/kuberay/ray-operator"
_STAGES = (
    "kustomize/stage/node/fast/node-initialize.yaml",
    "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "kustomize/stage/pod/fast/pod-*.yaml",
)
PROGRAMS = {
    one.name: one
    for one in (
        Program("etcd", "go.etcd.io/etcd/server/v3", "v3.6.8", "go.etcd.io/etcd/server/v3"),
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl"),
        Program("helm", "helm.sh/helm/v4", "v4.3.1", "helm.sh/helm/v4/cmd/helm"),
        _kubernetes("kube-controller-manager"),
        Program("kuberay-operator", _KUBERAY, "v1.6.1", _KUBERAY, files=(("crds", ("config/crd/bases/*.yaml",)),)),
        _kubernetes("kube-scheduler"),
        Program("kwok", "sigs.k8s.io/kwok", "v0.8.0", "sigs.k8s.io/kwok/cmd/kwok", files=(("stages", _STAGES),)),
        _kubernetes("kubelet"),
        _kubernetes("kube-proxy"),
        Program("coredns", "github.com/coredns/coredns", "v1.15.0", "github.com/coredns/coredns"),
    )
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager")
RAY = ("kuberay-operator",)
FAKE_NODES = ("kube-scheduler", "kwok")
NODE = ("kube-scheduler", "kubelet", "kube-proxy", "coredns")
TESTED = (*CONTROL_PLANE, "helm", *RAY, *NODE)  # what the tests run; KWOK is for whoever wants many nodes
# Of the distribution: C programs, and Go programs that need a C library; unpacked into the cache, not installed.
DISTRIBUTION = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "nftables",
    "libnftables1",
    "libnftnl11",
    "libmnl0",
    "libjansson4",
)
