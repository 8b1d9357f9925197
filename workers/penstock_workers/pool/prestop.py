"""Before a pod of Ray goes: `python -m penstock_workers.pool.prestop worker|head --timeout SECONDS`, as preStop hooks run it.

Promise: a worker's pod waits until its running answers have ended or moved; a head waits for the workers that are going, which
cannot leave in order without it, and for no others. It ends within its time and never fails: the pod goes anyway.

A head learns who is going from the API server. Where its own account is gone, so is the whole cluster, and Ray is asked instead
which workers are still there.
"""

import argparse
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORKER_PORT = 9100
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOOK_EVERY_S = 1.0
_SETTLE_S = 3.0  # between the deletion of the first pod of a cluster and of the last
_CALL_S = 5.0
_DASHBOARD = "http://127.0.0.1:8265"
_DISOWNED = (401, 403)


def drain_worker(address: str, timeout_s: float) -> str:
    """Asks the worker of this pod to drain; gives what to log."""
    import grpc

    from penstock_proto.v1.worker_pb2 import DrainRequest
    from penstock_proto.v1.worker_pb2_grpc import WorkerStub

    with grpc.insecure_channel(address) as channel:
        try:
            done = WorkerStub(channel).Drain(DrainRequest(reason="the pod is going", leave=False), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"no drain: {error.code().name}"
    return f"drained: {done.legs} legs, {done.cut} cut, {done.duration_s:.1f} s"


def wait_for_workers(
    going: Callable[[], int], timeout_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> str:
    """Until no worker of the cluster is going any more; `going` counts them."""
    begun = clock()
    left = going()
    while clock() - begun < timeout_s and (left or clock() - begun < _SETTLE_S):
        sleep(_LOOK_EVERY_S)
        left = going()
    return f"{left} workers left after {clock() - begun:.1f} s"


def count_going(pods: Sequence[dict[str, Any]]) -> int:
    over = ("Succeeded", "Failed")
    return sum(bool(one["metadata"].get("deletionTimestamp")) and one.get("status", {}).get("phase") not in over for one in pods)


def list_workers(server: str, cluster: str, account: Path) -> list[dict[str, Any]]:
    """Pods of this Ray cluster that are no head, by the head's own right to list pods."""
    selector = urllib.parse.quote(f"ray.io/cluster={cluster},ray.io/node-type=worker")
    namespace = (account / "namespace").read_text().strip()
    request = urllib.request.Request(f"{server}/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")
    request.add_header("Authorization", f"Bearer {(account / 'token').read_text().strip()}")
    tls = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https:") else None
    with urllib.request.urlopen(request, timeout=_CALL_S, context=tls) as answer:
        found: list[dict[str, Any]] = json.load(answer)["items"]
    return found


def count_alive(dashboard: str, token: str) -> int:
    """Ray's nodes beside the head."""
    request = urllib.request.Request(f"{dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=_CALL_S) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return sum(one["state"] == "ALIVE" and not one["is_head_node"] for one in nodes)


def going_workers(server: str, cluster: str, account: Path, dashboard: str) -> int:
    try:
        return count_going(list_workers(server, cluster, account))
    except urllib.error.HTTPError as error:
        if error.code not in _DISOWNED:
            raise
    return count_alive(dashboard, os.environ.get("RAY_AUTH_TOKEN", ""))


def _head(timeout_s: float) -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    cluster = os.environ.get("RAY_CLUSTER_NAME", "")

    try:
        return wait_for_workers(
            lambda: going_workers(server, cluster, _ACCOUNT, _DASHBOARD), timeout_s, time.monotonic, time.sleep
        )
    except (OSError, ValueError, KeyError, urllib.error.URLError) as error:
        return f"not waited: {type(error).__name__}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="penstock_workers.pool.prestop")
    parser.add_argument("what", choices=["worker", "head"])
    parser.add_argument("--timeout", type=float, required=True, metavar="SECONDS")
    given = parser.parse_args(argv)
    host = os.environ.get("PENSTOCK_HOST", "127.0.0.1")
    address = f"[{host}]:{WORKER_PORT}" if ":" in host else f"{host}:{WORKER_PORT}"
    told = drain_worker(address, given.timeout) if given.what == "worker" else _head(given.timeout)
    print(f"prestop {given.what}: {told}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
