"""Ending a local service from another process: `penstock down`.

Promise: when it returns, no process of the run is left, whether its supervisor was alive or dead.
"""

import signal
from pathlib import Path

from penstock_operator.local import owned, state
from penstock_operator.local.state import LocalError
from penstock_operator.local.supervisor import Say, clean_up

_AFTER_DRAIN_S = 60.0


def down(name: str | None, say: Say) -> str | None:
    """Ends the named service, or the only one; its name, or None where nothing ran."""
    name = name or _only_one()
    if name is None:
        return None
    folder = state.root() / name
    run = state.read(folder)
    if run is None:
        raise LocalError(f"{name}: is not running here; running: {', '.join(state.names()) or 'none'}")
    supervisor = run.supervisor()
    if supervisor is not None:
        owned.send(supervisor, signal.SIGTERM)
        if not owned.wait_gone(supervisor, run.drain_s + _AFTER_DRAIN_S):
            say(f"{name} did not end in {run.drain_s + _AFTER_DRAIN_S:.0f} s; ending it now")
            owned.send(supervisor, signal.SIGKILL)
            owned.wait_gone(supervisor, 10)
    _clean_up(folder, say)
    return name


def _clean_up(folder: Path, say: Say) -> None:
    with state.lock(folder) as held:
        if held:  # else another `up` has begun meanwhile and cleans up itself
            clean_up(folder, say)


def _only_one() -> str | None:
    names = state.names()
    if len(names) > 1:
        raise LocalError(f"several services run here; name one: {', '.join(names)}")
    return names[0] if names else None
