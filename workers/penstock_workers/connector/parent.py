"""How an EngineCore process ends.

Promise: it does not outlive the worker that started it, whatever ended the worker; and it leaves as soon as
vLLM has torn its engine down, without the seconds that Python takes to free every module.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import sys
import threading


def die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="penstock-parent-watch", daemon=True).start()


def leave_at_once() -> None:
    """Where this is a multiprocessing child: its last finalizer ends the process."""
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _leave, exitpriority=-1_000)


def _leave() -> None:
    failure = sys.exc_info()[1]
    os._exit(0 if failure is None or isinstance(failure, SystemExit) else 1)
