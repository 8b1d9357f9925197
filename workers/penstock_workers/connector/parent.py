"""How an EngineCore process ends.

Promise: it does not outlive the worker that started it, whatever ended the worker and however far the start had
come; and it leaves as soon as vLLM has torn its engine down, without the seconds that Python takes to free every
module. Importing this needs no vLLM.
"""

import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from typing import Any

_LOOK_EVERY_S = 0.2


def watch_parent() -> None:
    """In a child that was forked, where nothing is unpickled."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        watch(parent.pid)


def watch(parent_pid: int) -> "ParentWatch":
    """Kills this process when it is no longer a child of `parent_pid`. Idempotent."""
    name = f"penstock-parent-{parent_pid}"
    if all(thread.name != name for thread in threading.enumerate()):

        def look() -> None:
            while os.getppid() == parent_pid:
                time.sleep(_LOOK_EVERY_S)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=look, name=name, daemon=True).start()
    return ParentWatch(parent_pid)


class ParentWatch:
    """Starts the watch where it is unpickled: in a spawned child, before the child's own target is imported."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return watch, (self.pid,)


def watch_children() -> None:
    """Every process that this one spawns from now on ends with it.

    A spawned child unpickles the configuration that its parent's process object gives to all children before it
    imports what it is to run; importing vLLM takes longer than many a parent lives.
    """
    multiprocessing.process.current_process()._config["penstock_parent"] = ParentWatch(os.getpid())  # type: ignore[attr-defined]


def leave_at_once() -> None:
    """Where this is a multiprocessing child: its last finalizer ends the process."""
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _leave, exitpriority=-1_000)


def _leave() -> None:
    failure = sys.exc_info()[1]
    os._exit(0 if failure is None or isinstance(failure, SystemExit) else 1)
