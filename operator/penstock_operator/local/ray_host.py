"""The process that owns the local Ray: starts it, runs the Serve application, ends both.

Promise: it says on stdout, one JSON object a line, what happens; on SIGUSR1 it reads its file again and
deploys what has changed; on SIGTERM it drains the replicas and ends Ray. Its supervisor never imports Ray,
so the command line stays small and quick.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO, Any

APPLICATION = "penstock"
# Each look costs about 30 ms of CPU: often while people wait, seldom afterwards.
_LOOK_EVERY_S = 1.0
_LOOK_EVERY_RUNNING_S = 5.0
_TICK_S = 0.1
_OBJECT_STORE_BYTES = 80 * 2**20
# Parts of a Ray head that a one-machine service does not use: autoscaler, forwarding of worker logs, dashboard.
# Ray has no setting that leaves them out; they cost 5 CPU seconds of every start and 330 MiB.
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")


class Events:
    """The supervisor's end is a pipe; when it is gone, so is the reason to run."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self.broken = False

    def __call__(self, event: str, **facts: Any) -> None:
        try:
            print(json.dumps({"event": event, **facts}), file=self._out, flush=True)
        except BrokenPipeError:
            self.broken = True


class Flag:
    """A signal's handler."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def main(argv: list[str]) -> int:
    config = json.loads(Path(argv[0]).read_text())
    # Libraries print to stdout; the supervisor's pipe is for events only.
    events = Events(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    stop, changed = Flag(), Flag()
    start_ray(config, events)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets its own
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, changed)
    from ray import serve

    try:
        if not stop.asked:
            serve.start(proxy_location="Disabled")
            _deploy(config["builder"], config["app"], events)
            while not stop.asked and not events.broken:
                _watch(events, stop, changed)
                if changed.asked:
                    changed.asked = False
                    _deploy(config["builder"], json.loads(Path(argv[0]).read_text())["app"], events)
    finally:
        events("stopping")
        _end(serve, events)
    return 0


def start_ray(config: dict[str, Any], events: Events) -> None:
    began = time.monotonic()
    import ray
    from ray._private.node import Node

    for name in _UNUSED:
        if not hasattr(Node, name):
            print(f"this Ray has no Node.{name}: it starts all of its head", file=sys.stderr)
        setattr(Node, name, _start_nothing)
    ray.init(
        address="local",
        num_cpus=config["num_cpus"],
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        namespace="penstock",
        _temp_dir=config["ray_dir"],
        _node_ip_address="127.0.0.1",
    )
    events("ray", seconds=round(time.monotonic() - began, 1))


def _start_nothing(node: Any, *arguments: Any, **options: Any) -> None:
    """In place of the methods named in _UNUSED."""


def _deploy(builder: str, app: dict[str, Any], events: Events) -> None:
    """Hands the application to Serve and returns at once: the engines load while the supervisor reports."""
    from ray.serve.api import RunTarget, run_many

    module, _, name = builder.partition(":")
    build = getattr(import_module(module), name)
    run_many(
        [RunTarget(target=build(app), name=APPLICATION, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    events("deployed")


def _watch(events: Events, stop: Flag, changed: Flag) -> None:
    from ray import serve

    last: dict[str, Any] = {}
    due_s = 0.0
    while not stop.asked and not changed.asked and not events.broken:
        if time.monotonic() >= due_s:
            found = _summary(serve.status())
            if found != last:
                events("serve", **found)
                last = found
            due_s = time.monotonic() + (_LOOK_EVERY_RUNNING_S if found["state"] == "RUNNING" else _LOOK_EVERY_S)
        time.sleep(_TICK_S)


def _summary(status: Any) -> dict[str, Any]:
    application = status.applications.get(APPLICATION)
    if application is None:
        return {"state": "NOT_STARTED", "message": "", "pools": {}}
    pools = {
        name: {
            "state": str(deployment.status.value),
            "message": deployment.message,
            "replicas": {str(state): count for state, count in deployment.replica_states.items()},
        }
        for name, deployment in application.deployments.items()
    }
    return {"state": str(application.status.value), "message": application.message, "pools": pools}


def _end(serve: Any, events: Events) -> None:
    import ray

    try:
        serve.shutdown()
    except Exception as error:  # noqa: BLE001 - a Ray that is half dead fails in many ways, and its end must follow
        print(f"serve.shutdown failed: {type(error).__name__}: {error}", file=sys.stderr)
    ray.shutdown()
    events("ended")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
