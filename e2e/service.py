"""Runs `penstock up` as a user does, and finds its processes.

Promise: whatever a test does, the service is brought down afterwards, and what remained is reported, then ended by PID.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from rig import ROOT, free_ports

from penstock_client import Client, PenstockError
from penstock_client.service import WorkerStatus

PENSTOCK = str(Path(sys.executable).parent / "penstock")


def environ(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/environ").read_bytes()
        return dict(x.split("=", 1) for x in raw.decode(errors="replace").split("\0") if "=" in x)
    return {}


def cmdline(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return ""


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


@dataclass
class Service:
    """A running local service; the run's id in their environment marks its processes."""

    http: str
    grpc: str
    state_dir: Path
    process: subprocess.Popen[str]
    log: Path
    run_id: str = ""
    _client: Client | None = None

    def pids(self) -> list[int]:
        """Every live process of this service but the zombies."""
        mine = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                pid = int(entry.name)
                if environ(pid).get("PENSTOCK_RUN_ID", "") == self.identify() and state(pid) not in {"Z", ""}:
                    mine.append(pid)
        return sorted(mine)

    def identify(self) -> str:
        for record in self.state_dir.glob("*/run.json"):
            self.run_id = self.run_id or json.loads(record.read_text())["run_id"]
        return self.run_id or "none was recorded"

    def find(self, words: str) -> list[int]:
        return [p for p in self.pids() if words in cmdline(p)]

    def replicas(self, pool: str = "") -> list[int]:
        """Serve's replica processes; a forked engine core has their name, and one of them as its parent."""
        named = self.find(f"ray::ServeReplica:penstock:{pool}")
        return [p for p in named if parent(p) not in named]

    def engine_cores(self, pool: str = "") -> list[int]:
        return [core for replica in self.replicas(pool) for core in self.cores_of(replica)]

    def cores_of(self, replica: int) -> list[int]:
        return [p for p in self.pids() if parent(p) == replica and "resource_tracker" not in cmdline(p)]

    def routers(self) -> list[int]:
        return self.find("penstock_router.main")

    def listener(self, address: str) -> int:
        """The process that listens on host:port."""
        port = int(address.rpartition(":")[2])
        return next(pid for pid in self.pids() if port in listening(pid))

    def workers(self) -> list[WorkerStatus]:
        """The router's workers that can be sent legs. One connection: on a busy machine a new one may take seconds."""
        if self._client is None:
            self._client = Client(self.grpc)
        return [one for one in self._client.status(timeout_s=20).workers if one.state == "ready"]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def wait_for_workers(self, count: int, without: str = "", timeout_s: float = 300) -> list[WorkerStatus]:
        """Until so many are ready, none of them the one named."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(PenstockError):
                found = self.workers()
                if len(found) == count and all(one.worker_id != without for one in found):
                    return found
            time.sleep(0.2)
        raise TimeoutError(f"no {count} workers were ready after {timeout_s} s\n{self.log.read_text()[-4000:]}")


def listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).net_connections("tcp")
        return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
    return set()


@contextlib.contextmanager
def up(manifest: str | None = None, *, env: dict[str, str] | None = None, timeout_s: float = 240) -> Iterator[Service]:
    """Starts the service, yields it when ready, ends it with Ctrl-C, and fails if anything of it remains."""
    http, grpc, reports = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="pst-") as tmp:
        state_dir, log = Path(tmp) / "s", Path(tmp) / "up.log"
        args = [PENSTOCK, "up", "--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}"]
        args += ["--reports", f"127.0.0.1:{reports}"]
        if manifest is not None:
            (Path(tmp) / "llm.yaml").write_text(manifest)
            args += ["-f", f"{tmp}/llm.yaml"]
        out = log.open("w")
        process = subprocess.Popen(
            args, stdout=out, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PENSTOCK_STATE_DIR": str(state_dir), **(env or {})},
        )  # fmt: skip
        out.close()
        service = Service(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", state_dir, process, log)
        try:
            _wait_ready(service, timeout_s)
            service.identify()
            yield service
        finally:
            service.close()
            left = _end(service)
        assert not left, f"left running: {left}\n{log.read_text()[-4000:]}"


def _wait_ready(service: Service, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        text = service.log.read_text()
        if any(line.startswith("ready http=") for line in text.splitlines()):
            return
        if service.process.poll() is not None:
            raise RuntimeError(f"penstock up ended with {service.process.returncode}\n{text[-6000:]}")
        time.sleep(0.2)
    raise TimeoutError(f"not ready after {timeout_s} s\n{service.log.read_text()[-6000:]}")


def _end(service: Service) -> list[str]:
    if service.process.poll() is None:
        service.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.process.wait(90)
    left = [f"{p} {cmdline(p)[:100]}" for p in service.pids()]
    for pid in service.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
