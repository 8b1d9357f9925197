"""Which processes belong to a run, proven by their environment, and ending them by process id.

Promise: 1. a process is ended only if its environment carries the run's id and it started, in this
boot, after the run was recorded, or if it descends from such a process; 2. a process id that was
reused between the look and the signal is never hit, because signals go through a pidfd.
"""

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RUN_ID = "PENSTOCK_RUN_ID"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Mark:
    """What every process of a run carries or follows."""

    run_id: str
    boot_id: str
    since_ticks: int  # clock ticks after boot


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    start_ticks: int
    command: str


def boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def look(pid: int) -> Process | None:
    """The live process of this id; a zombie runs no more and is None."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
        command = (_PROC / str(pid) / "cmdline").read_bytes()
    except (OSError, UnicodeDecodeError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name may hold spaces and parentheses
    if fields[0] in "ZX":
        return None
    words = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(fields[1]), int(fields[19]), words or stat[: stat.rindex(")") + 1])


def find(mark: Mark) -> list[Process]:
    """The run's live processes, but for this one."""
    if mark.boot_id != boot_id():
        return []
    entry = f"{RUN_ID}={mark.run_id}".encode()
    seen = [one for one in map(look, _pids()) if one is not None and one.start_ticks >= mark.since_ticks]
    owned = {one.pid for one in seen if entry in _environment(one.pid)}
    # A process that overwrote its environment is still the child of one that did not.
    grown = True
    while grown:
        children = {one.pid for one in seen if one.parent in owned} - owned
        owned |= children
        grown = bool(children)
    return [one for one in seen if one.pid in owned and one.pid != os.getpid()]


def end(mark: Mark, grace_s: float, limit_s: float = 15.0) -> list[Process]:
    """SIGTERM, after `grace_s` SIGKILL, until none is left; returns what survived `limit_s` (nothing, normally)."""
    started = time.monotonic()
    asked: set[tuple[int, int]] = set()
    while remaining := find(mark):
        passed_s = time.monotonic() - started
        if passed_s > grace_s + limit_s:
            return remaining
        for one in remaining:
            identity = (one.pid, one.start_ticks)
            if passed_s >= grace_s:
                send(one, signal.SIGKILL)
            elif identity not in asked:
                asked.add(identity)
                send(one, signal.SIGTERM)
        time.sleep(0.05)
    return []


def send(process: Process, number: signal.Signals) -> bool:
    """Signals exactly this process; False where it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)
        if now is None or now.start_ticks != process.start_ticks:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        return True
    finally:
        os.close(descriptor)


def wait_gone(process: Process, timeout_s: float) -> bool:
    """Whether this process ended within `timeout_s`."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        now = look(process.pid)
        if now is None or now.start_ticks != process.start_ticks:
            return True
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        return bool(ready)
    finally:
        os.close(descriptor)


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or gone: not this run's
        return []
