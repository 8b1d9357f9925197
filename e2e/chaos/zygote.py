"""Processes without their start-up: a parent that has imported everything forks workers and routers.

Promise: a restart costs milliseconds, not the second or more of imports that would otherwise be most of a run's work. What is
forked is the product's own main in a process of its own; it ends with the runner, and signals reach it by pidfd, never by a
number that may have been given to somebody else.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL_S = 0.02


class Forked:
    """What `subprocess.Popen` is to a spawned process."""

    def __init__(self, zygote: "Zygote", pid: int, control: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._pidfd = os.pidfd_open(pid)
        self._control = control

    def poll(self) -> int | None:
        return self._zygote.code(self.pid)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                signal.pidfd_send_signal(self._pidfd, number)

    def command(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            os.write(self._control, line)

    def wait(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)
        return self.poll() is not None

    def close(self) -> None:
        os.close(self._control)
        os.close(self._pidfd)


class Zygote:
    """The runner's end."""

    def __init__(self, root: Path, log: Path) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPATH"] = str(root / "e2e")
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.zygote", str(far.fileno())],
                pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=root, env=environment,
            )  # fmt: skip
        far.close()
        self._socket = near
        self._codes: dict[int, int] = {}

    def fork(self, kind: str, arguments: list[str], log: Path) -> Forked:
        read, write = os.pipe()
        with log.open("ab") as out:
            socket.send_fds(self._socket, [json.dumps([kind, *arguments]).encode()], [read, out.fileno()])
        os.close(read)
        while "forked" not in (notice := self._hear()):
            pass
        self._codes.pop(notice["forked"], None)  # the number of one that ended long ago
        return Forked(self, notice["forked"], write)

    def code(self, pid: int) -> int | None:
        while select.select([self._socket], [], [], 0)[0]:
            self._hear()
        return self._codes.get(pid)

    def _hear(self) -> dict[str, int]:
        data = self._socket.recv(4096)
        if not data:
            raise RuntimeError(f"the zygote ended with {self._process.wait()}")
        notice: dict[str, int] = json.loads(data)
        if "ended" in notice:
            self._codes[notice["ended"]] = notice["code"]
        return notice

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _serve(near: socket.socket) -> None:
    """The zygote's loop: fork what is asked for, tell who ended. Ends with the runner."""
    while True:
        if select.select([near], [], [], POLL_S)[0]:
            data, fds, _, _ = socket.recv_fds(near, 1 << 16, 2)
            if not data:
                return
            pid = os.fork()
            if not pid:
                near.close()
                _become(json.loads(data), *fds)
            for fd in fds:
                os.close(fd)
            near.send(json.dumps({"forked": pid}).encode())
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                near.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(words: list[str], control: int, log: int) -> None:
    """The child's life."""
    from chaos import child

    code: Any = 1
    try:
        os.dup2(control, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, max(control, log) + 1)
        sys.stdin = os.fdopen(0)
        code = child.run(words[0], words[1:])
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the process's outermost frame: said in its log, as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    from chaos import child

    child.prepare()
    _serve(socket.socket(fileno=int(sys.argv[1])))
