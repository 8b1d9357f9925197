"""A service without Ray: one router and N fake workers, pinned, for benches and whole-process tests.

Promise: every process started here ends with the rig, whatever the body raises; traffic stays on loopback.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "workers/penstock_workers/tiny/model"
CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, ROUTER_CORE = CORES[0], CORES[-1]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in socks:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in socks]


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used, all of its threads, nanosecond clock."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Rig:
    """Addresses and processes of a running service."""

    grpc: str
    http: str
    folder: Path
    router_config: dict[str, Any]
    router: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    pin: bool = True

    def start_router(self) -> None:
        path = self.folder / "router.json"
        path.write_text(json.dumps(self.router_config))
        self.router = self._spawn("router", ["-m", "penstock_router.main", "--config", str(path)], ROUTER_CORE)

    def start_workers(self, config: dict[str, Any], count: int, tag: str = "workers") -> None:
        path = self.folder / f"{tag}.json"
        path.write_text(json.dumps(config))
        self.workers.append(
            self._spawn(tag, ["-m", "penstock_workers.main", "--config", str(path), "--count", str(count)], LOAD_CORE)
        )

    def _spawn(self, name: str, args: list[str], core: int) -> subprocess.Popen[bytes]:
        pin = (lambda: os.sched_setaffinity(0, {core})) if self.pin else None
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, *args], stdout=log, stderr=log, preexec_fn=pin, cwd=ROOT)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))

    def wait(self, workers: int, timeout_s: float = 60) -> None:
        """Returns when the router counts so many ready workers."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(OSError, urllib.error.URLError):
                with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=2) as answer:
                    text = answer.read().decode()
                lines = [x for x in text.splitlines() if x.startswith("penstock_router_workers{") and 'state="ready"' in x]
                if sum(float(x.split()[-1]) for x in lines) >= workers:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{workers} workers were not ready after {timeout_s} s\n{self.logs()}")

    def close(self) -> None:
        processes = [p for p in [self.router, *self.workers] if p is not None]
        for p in processes:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        for p in processes:
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


@contextlib.contextmanager
def fake_service(
    count: int = 16,
    *,
    fake: dict[str, Any] | None = None,
    router: dict[str, Any] | None = None,
    pin: bool = True,
    worker: dict[str, Any] | None = None,
    ready_s: float = 60.0,
) -> Iterator[Rig]:
    """A router with `count` fake workers of the tiny model's tokenizer, ready."""
    grpc_port, http_port, reports_port = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="penstock-rig-") as tmp:
        config = {
            "router_id": "router-0", "grpc_listen": f"127.0.0.1:{grpc_port}", "http_listen": f"127.0.0.1:{http_port}",
            "reports_listen": f"127.0.0.1:{reports_port}", "model": "tiny", "cache_dir": f"{tmp}/cache", **(router or {}),
        }  # fmt: skip
        rig = Rig(f"127.0.0.1:{grpc_port}", f"127.0.0.1:{http_port}", Path(tmp), config, pin=pin)
        workers = {
            "worker_id": "fake", "pool": "workers", "engine": "fake", "source": "penstock://tiny", "model": "tiny",
            "routers": [f"127.0.0.1:{reports_port}"], "fake": fake or {}, **(worker or {}),
        }  # fmt: skip
        try:
            rig.start_router()
            rig.start_workers(workers, count)
            rig.wait(count, ready_s)
            yield rig
        finally:
            rig.close()
