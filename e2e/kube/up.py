"""`python -m kube.up cp|ray|node`: a real cluster on this machine, until Ctrl-C. Run it in e2e/.

Promise: prints a KUBECONFIG and how to use it; ends everything it started. `node` prints a script that runs what follows it, or
a shell, where the cluster is reached, with kubectl, helm and the environment's programs on the PATH.
"""

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kube.build import Missing, ensure
from kube.control import Cluster, control_plane
from kube.processes import NotUp

_VOLUMES = 16


@contextlib.contextmanager
def _asked(what: str, fake_nodes: int) -> Iterator[Cluster]:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if what == "node":
        from kube.node import node

        with node(say, ray=True, volumes=_VOLUMES) as cluster:
            cluster.programs |= ensure(["helm"], say)
            yield cluster
    else:
        with control_plane(say, ray=what == "ray", fake_nodes=fake_nodes) as cluster:
            yield cluster


def _shell(cluster: Cluster) -> Path:
    """The cluster's namespaces hold its network and the names of its Services; files are the machine's."""
    holder = cluster.inside[cluster.inside.index("-t") + 1]
    search = ":".join([*sorted({str(one.parent) for one in cluster.programs.values()}), f"{sys.prefix}/bin"])
    script = cluster.state / "in"
    script.write_text(
        f"#!/bin/sh\nexport KUBECONFIG={cluster.kubeconfig} PATH={search}:$PATH\n"
        '[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"\n'
        f'exec nsenter -t {holder} -n -m -- sh -c \'cd "$0" && exec "$@"\' "$PWD" "$@"\n'
    )
    script.chmod(0o700)
    return script


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kube.up", description=__doc__)
    parser.add_argument("what", choices=["cp", "ray", "node"], help="cp: no nodes; ray: cp with KubeRay; node: real containers")
    parser.add_argument("--fake-nodes", type=int, default=0, metavar="N", help="nodes by KWOK, with cp and ray")
    chosen = parser.parse_args(words)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    begun = time.monotonic()
    try:
        with _asked(chosen.what, chosen.fake_nodes) as cluster:
            print(f"up in {time.monotonic() - begun:.1f} s; Ctrl-C ends it")
            print(_shell(cluster) if cluster.inside else f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
            over.wait()
    except (Missing, NotUp) as error:
        print(f"kube: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
