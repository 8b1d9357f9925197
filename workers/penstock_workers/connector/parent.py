"""Ends a child process when its parent is gone.

Promise: an EngineCore does not outlive the worker that started it, whatever ended the worker.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="penstock-parent-watch", daemon=True).start()
