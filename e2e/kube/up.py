"""`python -m kube.up cp|ray|node`: a real cluster on this machine, until Ctrl-C. Run it in e2e/.

Promise: prints a KUBECONFIG and how to use it; ends everything it started.
"""

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from kube.build import Missing
from kube.control import Cluster, control_plane
from kube.processes import NotUp


@contextlib.contextmanager
def _asked(what: str, fake_nodes: int) -> Iterator[Cluster]:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if what == "node":
        from kube.node import node

        with node(say) as cluster:
            yield cluster
    else:
        with control_plane(say, ray=what == "ray", fake_nodes=fake_nodes) as cluster:
            yield cluster


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
            kubectl = " ".join([*cluster.inside, str(cluster.programs["kubectl"])])
            print(f"up in {time.monotonic() - begun:.1f} s; Ctrl-C ends it")
            print(f"export KUBECONFIG={cluster.kubeconfig}\n{kubectl} get all -A", flush=True)
            over.wait()
    except (Missing, NotUp) as error:
        print(f"kube: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
