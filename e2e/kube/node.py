"""A real node in namespaces of its own: containerd, kubelet, kube-scheduler, kube-proxy, CoreDNS.

Promise: nothing binds on the host, pods have no way out, and ending one process ends every pod, mount and rule; the cgroups are
removed. Needs root and cgroups; `Missing` says what a machine lacks.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kube import image, node_volumes
from kube.build import Missing, Say, distribution, ensure
from kube.control import SERVICE_CIDR, Cluster, begin
from kube.pins import CONTROL_PLANE, NODE, RAY
from kube.processes import NotUp, Processes

IMAGE = "local.test/host:1"
NODE_IP = "10.99.0.1"
POD_CIDR = "10.244.0.0/24"
_CHECKOUT = Path(__file__).resolve().parents[2]
_HOLD = "import os,signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"
# All pods together otherwise weigh as much as one process of the host.
_CPU_SHARES = "4096"


@contextlib.contextmanager
def node(say: Say, *, ray: bool = False, images: Sequence[str] = (), fake_gpus: int = 0, volumes: int = 0) -> Iterator[Cluster]:
    """One Ready node. `ray`: the image holds KubeRay's operator as /manager, for the chart to run; `images`: further names of
    the one image; `fake_gpus`: an extended resource without a device; `volumes`: that many, of a default StorageClass."""
    _fit()
    programs = ensure([*CONTROL_PLANE, *NODE, *(RAY if ray else ())], say)
    tools = distribution(say)
    with tempfile.TemporaryDirectory(prefix="pk-") as tmp:
        state, processes = Path(tmp), Processes(Path(tmp))
        group = f"penstock-{os.getpid()}"
        try:
            inside = _namespaces(processes, tools)
            cluster = begin(state, programs, processes, (2379, 2380, 6443, 10257), inside=inside, node_ip=NODE_IP)
            cluster.start(
                "kube-scheduler", "--kubeconfig", cluster.kubeconfig, "--bind-address=127.0.0.1", "--leader-elect=false"
            )  # fmt: skip
            _containers(cluster, tools, images)
            _kubelet(cluster, group)
            _network(cluster)
            _wait_ready(cluster, fake_gpus)
            if volumes:
                node_volumes.add(cluster, volumes)
            yield cluster
        finally:
            processes.end()
            _remove_cgroups(group)


def _fit() -> None:
    for need, there in (
        ("root", os.geteuid() == 0),
        ("cgroups of version 1", any(Path("/sys/fs/cgroup/").glob("cpu/tasks"))),
        *((name, shutil.which(name) is not None) for name in ("unshare", "nsenter", "ip", "mount")),
    ):
        if not there:
            raise Missing(f"a node needs {need}")
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        raise Missing(f"a node needs namespaces of its own: {tried.stderr.strip()}")


def _namespaces(processes: Processes, tools: Path) -> list[str]:
    """Starts the process that holds them; gives what to put before a command that is to run in them."""
    flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"]
    unshare = processes.start("holder", ["unshare", *flags, sys.executable, "-S", "-c", _HOLD])
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    processes.wait_for("holder", lambda: children.read_text().strip() != "", 10)
    holder = children.read_text().split()[0]
    search = f"{tools}/usr/bin:{tools}/usr/sbin:{os.environ['PATH']}"
    env = ["env", f"PATH={search}", f"LD_LIBRARY_PATH={tools}/usr/lib/x86_64-linux-gnu"]
    inside = ["nsenter", "-t", holder, "-n", "-m", "-p", "--", *env]
    route = f"ip link set lo up; ip addr add {NODE_IP}/32 dev lo; ip route add {SERVICE_CIDR} dev lo src {NODE_IP}"
    # Without the bridge setting, a pod that reaches a pod of its own bridge by a Service's address gets answers from a stranger.
    settings = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables || true"
    _run([*inside, "sh", "-ec", f"mount --make-rshared /; {route}; {settings}"])
    return inside


def _run(words: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotUp(f"{' '.join(words[-4:])}: {done.stderr.strip()[-800:]}")
    return done.stdout


def _containers(cluster: Cluster, tools: Path, images: Sequence[str]) -> None:
    state, socket = cluster.state, cluster.state / "ctrd.sock"
    kuberay = cluster.programs.get("kuberay-operator")
    shared = [_CHECKOUT, Path(sys.prefix), Path(sys.base_prefix), *([kuberay.parent] if kuberay else [])]
    mounts = image.mounts(shared)
    spec = json.loads(_run([*cluster.inside, "ctr", "oci", "spec"]))
    (state / "spec.json").write_text(json.dumps(_container_spec(spec, mounts)))
    (state / "cni").mkdir()
    (state / "cni/10-bridge.conflist").write_text(json.dumps(_cni(state)))
    (state / "containerd.toml").write_text(_containerd(state, tools))
    cluster.processes.start(
        "containerd", [*cluster.inside, "containerd", "--config", state / "containerd.toml", "--log-level", "warn"]
    )
    ctr = [*cluster.inside, "ctr", "-a", str(socket), "-n", "k8s.io"]
    cluster.processes.wait_for("containerd", lambda: subprocess.run([*ctr, "version"], capture_output=True).returncode == 0, 30)
    search = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    image.write(state / "host.tar", IMAGE, mounts, search, {"manager": str(kuberay)} if kuberay else {})
    _run([*ctr, "images", "import", str(state / "host.tar")])
    for name in images:
        _run([*ctr, "images", "tag", IMAGE, name])


def _container_spec(spec: dict[str, Any], mounts: Sequence[str]) -> dict[str, Any]:
    """Of every container: the host's directories; no limits that this machine may not set."""
    kept = [mount for mount in spec["mounts"] if mount["destination"] != "/run"]
    options = ["rbind", "ro", "rprivate"]
    spec["mounts"] = kept + [{"destination": one, "type": "bind", "source": one, "options": options} for one in mounts]
    spec["linux"].pop("seccomp", None)
    spec["process"].pop("rlimits", None)
    spec["linux"]["resources"] = {"devices": spec["linux"].get("resources", {}).get("devices", [])}
    return spec


def _cni(state: Path) -> dict[str, Any]:
    ranges = [[{"subnet": POD_CIDR}]]
    ipam = {"type": "host-local", "dataDir": f"{state}/ipam", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "0.4.0", "name": "penstock", "plugins": [bridge]}


def _containerd(state: Path, tools: Path) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE a negative score kills runc's init.
    cri, runc = 'plugins."io.containerd.grpc.v1.cri"', "containerd.runtimes.runc"
    return f"""version = 2
root = "{state}/ctrd/root"
state = "{state}/ctrd/state"
[grpc]
  address = "{state}/ctrd.sock"
[ttrpc]
  address = "{state}/ctrd.sock.ttrpc"
[{cri}]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [{cri}.cni]
    bin_dir = "{tools}/usr/lib/cni"
    conf_dir = "{state}/cni"
  [{cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [{cri}.{runc}]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "{state}/spec.json"
      [{cri}.{runc}.options]
        SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/ctrd/opt"
"""


def _kubelet(cluster: Cluster, group: str) -> None:
    state = cluster.state
    _make_cgroups(group)
    (state / "resolv.conf").write_text(f"nameserver {NODE_IP}\n")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "failCgroupV1": False, "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{group}", "enforceNodeAllocatable": [],
        "failSwapOn": False, "containerRuntimeEndpoint": f"unix://{state}/ctrd.sock", "address": NODE_IP, "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": f"{state}/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"}, "clusterDNS": [NODE_IP], "clusterDomain": "cluster.local",
        "resolvConf": f"{state}/resolv.conf", "serializeImagePulls": False, "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "4s", "imageGCHighThresholdPercent": 100, "podLogsDir": f"{state}/podlogs", "maxPods": 250,
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }  # fmt: skip
    (state / "kubelet.json").write_text(json.dumps(config))
    cluster.start(
        "kubelet", "--config", state / "kubelet.json", "--kubeconfig", cluster.kubeconfig, "--root-dir", state / "kubelet",
        "--hostname-override=node1", f"--node-ip={NODE_IP}", "--v=1",
    )  # fmt: skip


def _network(cluster: Cluster) -> None:
    state = cluster.state
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
        "bindAddress": "127.0.0.1", "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": str(cluster.kubeconfig)}, "clusterCIDR": POD_CIDR, "hostnameOverride": "node1",
        "conntrack": {"maxPerCore": 0}, "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }  # fmt: skip
    (state / "proxy.json").write_text(json.dumps(config))
    cluster.start("kube-proxy", "--config", state / "proxy.json")
    names = f"kubeconfig {cluster.kubeconfig}\n pods insecure\n ttl 2"
    zones = "cluster.local in-addr.arpa"
    (state / "Corefile").write_text(f".:53 {{\n bind {NODE_IP}\n errors\n kubernetes {zones} {{\n {names}\n }}\n cache 2\n}}\n")
    cluster.start("coredns", "-conf", state / "Corefile")
    # What runs inside reaches Services by their names, as pods do.
    _run([*cluster.inside, "mount", "--bind", str(state / "resolv.conf"), "/etc/resolv.conf"])


def _wait_ready(cluster: Cluster, fake_gpus: int) -> None:
    end = time.monotonic() + 120
    while cluster.kubectl("wait", "--for=condition=Ready", "node/node1", "--timeout=2s", check=False) == "":
        if time.monotonic() > end:
            raise NotUp(f"the node is not Ready: {cluster.processes.log('kubelet').read_text(errors='replace')[-1500:]}")
    if fake_gpus:
        paths = ("/status/capacity/nvidia.com~1gpu", "/status/allocatable/nvidia.com~1gpu")
        patch = json.dumps([{"op": "add", "path": path, "value": str(fake_gpus)} for path in paths])
        cluster.kubectl("patch", "node", "node1", "--subresource=status", "--type=json", "-p", patch)


def kill_pod(cluster: Cluster, namespace: str, name: str) -> int:
    """SIGKILL to every process of a pod at once, as a machine that fails would; gives how many there were."""
    uid = cluster.kubectl("get", "pod", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    lists = Path("/sys/fs/cgroup/memory").glob(f"penstock-{os.getpid()}/**/pod{uid}/**/cgroup.procs")
    pids = [int(pid) for one in lists for pid in one.read_text().split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def _make_cgroups(group: str) -> None:
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        ours = hierarchy / group
        with contextlib.suppress(OSError):
            ours.mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (ours / name).exists():
                (ours / name).write_text((hierarchy / name).read_text())
        if (ours / "cpu.shares").exists():
            (ours / "cpu.shares").write_text(_CPU_SHARES)


def _remove_cgroups(group: str) -> None:
    """The processes are gone a moment after their namespace; a cgroup goes when its last one has."""
    for _ in range(50):
        left = [path for hierarchy in Path("/sys/fs/cgroup").iterdir() if (path := hierarchy / group).is_dir()]
        if not left:
            return
        for path in left:
            for folder, _, _ in os.walk(path, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        time.sleep(0.1)
