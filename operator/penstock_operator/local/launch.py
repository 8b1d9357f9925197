"""Starting a child process of a run.

Promise: a child carries the run's id from its first instruction, is told when its supervisor dies,
and never receives the terminal's Ctrl-C, so that the supervisor alone decides the order of ending.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Asks for a signal at the parent's death, then becomes the child. A program of its own and not a
# preexec_fn: running Python between fork and exec deadlocks in a process that has threads.
_BECOME = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,int(sys.argv[1]))\n"
    "os.getppid()==int(sys.argv[2]) or os._exit(0)\n"
    "os.execv(sys.argv[3],sys.argv[3:])\n"
)


def start(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None,
    *,
    at_parent_death: signal.Signals = signal.SIGTERM,
    pipe: bool = False,
) -> subprocess.Popen[bytes]:
    """`python -m module arguments`; stderr, and stdout where it is no pipe, go to `log`, or where this process's go.

    To be called on the main thread: the kernel signals at the death of the thread that forked.
    """
    command = [sys.executable, "-m", module, *arguments]
    wrapped = [sys.executable, "-I", "-S", "-c", _BECOME, str(int(at_parent_death)), str(os.getpid()), *command]
    if log is None:
        return _spawn(wrapped, environment, None, subprocess.PIPE if pipe else None)
    with log.open("ab") as output:
        return _spawn(wrapped, environment, output, subprocess.PIPE if pipe else output)


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes] | None, output: IO[bytes] | int | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        cwd="/",
    )


def tail(log: Path, lines: int = 5) -> list[str]:
    """The last lines of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
