"""Operator processes for tests, forked from one that has everything imported: a start costs milliseconds, not seconds.

Promise: each is a process of its own that can be killed at any moment; those that are left are killed when the `with` ends.
Run as a module, it is the process that forks.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kube.control import kubeconfig
from kube.processes import free_ports


@dataclass
class Operator:
    pid: int
    log: Path
    port: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def alive(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return False

    def wait(self, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > end:
                raise AssertionError(f"operator {self.pid} goes on: {self.said()[-3000:]}")
            time.sleep(0.02)

    def said(self) -> str:
        # One that was killed as it began has not opened it.
        return self.log.read_text() if self.log.exists() else ""

    def page(self, path: str) -> tuple[int, str]:
        """(status, body); (0, "") while it does not listen."""
        with contextlib.suppress(urllib.error.URLError, OSError):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
        return 0, ""


@dataclass
class Nursery:
    folder: Path
    forker: "subprocess.Popen[str]"
    born: list[Operator] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, server: str, **options: Any) -> Operator:
        """An operator against `server` (the proxy, or the API server itself), with the stand-in plan; `whole`: the product's."""
        with self._lock:
            return self._start(server, options)

    def _start(self, server: str, options: dict[str, Any]) -> Operator:
        number = len(self.born)
        config, log = self.folder / f"{number}.conf", self.folder / f"{number}.log"
        ca, token, whole = options.pop("ca_pem", ""), options.pop("token", "none"), options.pop("whole", False)
        config.write_text(kubeconfig(server, ca, token))
        (port,) = free_ports(1)
        options = {"listen": f"127.0.0.1:{port}", **options}
        assert self.forker.stdin and self.forker.stdout
        asked = {"kubeconfig": str(config), "log": str(log), "options": options, "whole": whole}
        self.forker.stdin.write(json.dumps(asked) + "\n")
        self.forker.stdin.flush()
        operator = Operator(int(self.forker.stdout.readline()), log, port)
        self.born.append(operator)
        return operator


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    forker = subprocess.Popen(
        [sys.executable, "-m", "kube.operators"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # PYTHONSAFEPATH, which `make` sets, keeps the working folder off the path.
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    made = Nursery(folder, forker)
    try:
        yield made
    finally:
        for operator in made.born:
            operator.kill()
        assert forker.stdin and forker.stdout
        forker.stdin.close()
        forker.stdout.close()
        forker.wait(60)


def _fork_on_demand() -> None:
    from kube.standin import StandIn, options

    from penstock_operator.operate import ClusterPlanner
    from penstock_operator.shell.main import main

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    born: list[int] = []
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid:
            born.append(pid)
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["KUBECONFIG"] = asked["kubeconfig"]
        code = 70
        try:
            told = options(["--options", json.dumps(asked["options"])])
            code = main(told, None, ClusterPlanner if asked["whole"] else lambda _: StandIn())
        except BaseException:  # noqa: BLE001  the process ends here; its log must say why
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for pid in born:
        # The test run has ended, perhaps without a word; an operator of it may have gone before.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _fork_on_demand()
