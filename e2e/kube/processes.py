"""The test cluster's processes: started, recorded, ended.

Promise: every process is ended by its PID and only while that PID still is the process that was started; a caller
that is killed takes them along.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


class NotUp(Exception):
    """Something did not come up; the message holds the end of its log."""


@dataclass
class Processes:
    state: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, words: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        (self.state / "log").mkdir(exist_ok=True)
        # Dies with us, however we end: a test run that is killed leaves no cluster behind.
        leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with self.log(name).open("wb") as out:
            process = subprocess.Popen(
                [*leash, *map(str, words)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, **(env or {})},
            )  # fmt: skip
        self.started.append(process)
        with (self.state / "pids").open("a") as record:
            record.write(f"{process.pid} {_born(process.pid)} {name}\n")
        return process

    def log(self, name: str) -> Path:
        return self.state / "log" / f"{name}.log"

    def wait_for(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Until `ready`; raises with the log of `name` if its process ends or time is up."""
        process = self.started[-1]
        end = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                how = "ended" if process.poll() is not None else f"was not ready in {seconds:.0f} s"
                raise NotUp(f"{name} {how}: {self.log(name).read_text(errors='replace')[-1500:]}")
            time.sleep(0.05)

    def end(self, seconds: float = 3.0) -> None:
        """Last started, first ended; what does not go in time is killed (an API server drains its watches for a minute)."""
        end_recorded(self.state, seconds)
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        self.started.clear()


def end_recorded(state: Path, seconds: float = 3.0) -> None:
    record = state / "pids"
    lines = record.read_text().splitlines() if record.exists() else []
    entries = [(int(pid), born) for pid, born, _ in (line.split(maxsplit=2) for line in reversed(lines))]
    for number, patience_s in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        for pid, born in entries:
            if _born(pid) == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        end = time.monotonic() + patience_s
        while any(_born(pid) == born for pid, born in entries) and time.monotonic() < end:
            time.sleep(0.05)
    record.unlink(missing_ok=True)


def _born(pid: int) -> str:
    """When the process began, in ticks since boot: a PID that is used again has another. Empty for none, and for a zombie."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""
