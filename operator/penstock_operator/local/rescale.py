"""`penstock up` for a service that runs here already: other replicas are applied to it, anything else is refused.

Promise: the running supervisor stays the only one that starts and ends processes; this one writes down what is wanted, tells it,
and waits. Workers that are no longer wanted drain, as on Kubernetes.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock_operator.api import LLMService
from penstock_operator.local import ask, owned, state
from penstock_operator.local.state import LocalError, Run

Say = Callable[[str], None]

RUNNING, WANTED = "service.json", "wanted.json"
_ASK_EVERY_S = 0.4
_LIMIT_S = 600.0


def write(folder: Path, name: str, service: LLMService) -> None:
    path = folder / name
    draft = path.with_suffix(".draft")
    draft.write_text(service.model_dump_json(by_alias=True))
    draft.replace(path)


def read(folder: Path, name: str) -> LLMService:
    try:
        return LLMService.model_validate_json((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise LocalError(f"{folder / name}: cannot be read: {type(error).__name__}") from error


def replicas(service: LLMService) -> dict[str, int]:
    return {name: pool.replicas for name, pool in service.spec.topology.pools.items()}


def only_replicas_differ(running: LLMService, wanted: LLMService) -> bool:
    return _without_replicas(running) == _without_replicas(wanted)


def _without_replicas(service: LLMService) -> dict[str, Any]:
    spec: dict[str, Any] = service.spec.model_dump(mode="json")
    for name in replicas(service):
        del spec["topology"][name]["replicas"]
    return spec


def rescale(wanted: LLMService, folder: Path, say: Say) -> int:
    """0 once the running service has as many workers as `wanted` says."""
    run = state.read(folder)
    running = read(folder, RUNNING) if run is not None and run.phase == "ready" else None
    if run is None or running is None or replicas(running) == replicas(wanted):
        raise LocalError(_already(wanted.metadata.name, run, ""))
    if not only_replicas_differ(running, wanted):
        raise LocalError(_already(wanted.metadata.name, run, "; while it runs only topology.*.replicas can be changed"))
    supervisor = run.supervisor()
    if supervisor is None:
        raise LocalError(f"{run.name}: its supervisor is gone; `penstock down {run.name}` clears what it left")
    write(folder, WANTED, wanted)
    changes = [f"{name} {old} -> {replicas(wanted)[name]}" for name, old in replicas(running).items()]
    say(f"scaling {run.name}: {', '.join(changes)}")
    owned.send(supervisor, signal.SIGUSR1)
    _await(wanted, folder, run)
    say(f"ready http={run.http} grpc={run.grpc}")
    return 0


def _await(wanted: LLMService, folder: Path, run: Run) -> None:
    until_s = time.monotonic() + _LIMIT_S
    while differing := ask.differing(replicas(wanted), ask.workers(run.grpc)):
        if run.supervisor() is None:
            raise LocalError(f"{run.name} ended; see {folder}")
        if time.monotonic() > until_s:
            raise LocalError(f"{run.name}: not scaled after {_LIMIT_S:.0f} s, too few (+) or too many (-) ready: {differing}")
        time.sleep(_ASK_EVERY_S)


def _already(name: str, run: Run | None, more: str) -> str:
    where = f" http={run.http} grpc={run.grpc}" if run else ""
    return f"{name} is running already:{where}; `penstock down {name}` ends it{more}"
