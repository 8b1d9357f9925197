"""The fleet under test: worker and router processes, the links between them, and what restarts them.

Promise: a process that ends is started anew, as Serve and Kubernetes do; an end that no nemesis asked for is noted as a
crash; nothing of it outlives `close`, nor the runner itself.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.links import Link
from chaos.relay import Relay
from chaos.zygote import Forked, Zygote

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "workers/penstock_workers/tiny/model"
POLL_S = 0.05
RESTART_S = {"worker": 1.0, "router": 0.5}
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
# Lines that no run may have; everything that chaos does is a warning or less, or the death of an engine.
BAD_LINE = re.compile(
    r"Traceback|Exception in callback|handler failed|delivery failed|internal error|malformed step outputs"
    r"|never retrieved|Task was destroyed"
)

FAKE = {
    "base_s": 0.02, "prefill_s": 0.0002, "decode_s": 0.0001, "block_size": 16, "kv_blocks": 640, "max_running": 16,
    "max_batched_tokens": 512, "transfer_base_s": 0.005, "transfer_token_s": 0.00001, "max_model_len": 4096,
}  # fmt: skip
# A small cache is full early: what grows after that is no cache.
ROUTER: dict[str, Any] = {"text_cache_mib": 2, "hold_s": 10.0, "grace_s": 60.0, "log_level": "info"}
WORKER: dict[str, Any] = {"kv_lease_s": 6.0, "drain_timeout_s": 60.0, "hang_floor_s": 2.0, "first_step_s": 4.0}


def free_ports(count: int) -> list[int]:
    """Below the range that the kernel gives to connections and to those who ask for port 0: a restart finds its port free."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = secrets.randbelow(12_000) + 20_000
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


@dataclass
class Process:
    """One process of the fleet over all its incarnations."""

    name: str  # w3 or r0
    kind: str
    arguments: list[str]
    log: Path
    http: str = ""
    grpc: str = ""
    forked: Forked | None = None
    incarnation: int = 0
    doomed: bool = False  # a nemesis asked this incarnation to end
    killed: set[int] = field(default_factory=set)  # incarnations that ended by SIGKILL

    def spawn(self, zygote: Zygote) -> None:
        self.incarnation += 1
        self.doomed = False
        self.forked = zygote.fork(self.kind, self.arguments, self.log)

    @property
    def alive(self) -> bool:
        return self.forked is not None and self.forked.poll() is None

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.killed.add(self.incarnation)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.doomed = True
        if self.forked is not None:
            self.forked.send_signal(number)

    def command(self, **command: Any) -> None:
        if self.forked is not None:
            self.forked.command(json.dumps(command).encode() + b"\n")

    def rss_mib(self) -> float:
        """0 where it does not run."""
        with contextlib.suppress(OSError, IndexError):
            if self.forked is not None:
                return int(Path(f"/proc/{self.forked.pid}/statm").read_text().split()[1]) * PAGE_MIB
        return 0.0


class Fleet:
    """`async with Fleet(folder) as fleet`: everything is up and every router sees every worker."""

    def __init__(
        self, folder: Path, pools: Iterable[str], routers: int = 2, *, fake: dict[str, Any] | None = None,
        router: dict[str, Any] | None = None, worker: dict[str, Any] | None = None, restart: bool = True,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.crashes: list[str] = []
        self.restart = restart
        self.spared = ""  # a process that no nemesis may end
        self._pools = list(pools)
        self._settings = ({**FAKE, **(fake or {})}, {**ROUTER, **(router or {})}, {**WORKER, **(worker or {})})
        self.routers: list[Process] = []
        self.workers: list[Process] = []
        self.links: dict[tuple[int, int], Link] = {}
        self.relays: dict[tuple[int, int], Relay] = {}
        self._count = routers
        self._zygote = Zygote(ROOT, folder / "zygote.log")
        self._watch: asyncio.Task[None] | None = None
        self._restarts: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> Process:
        return (self.routers if name.startswith("r") else self.workers)[int(name[1:])]

    @property
    def processes(self) -> list[Process]:
        return [*self.routers, *self.workers]

    async def __aenter__(self) -> "Fleet":
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _open(self) -> None:
        fake, router, worker = self._settings
        ports = free_ports(3 * self._count + len(self._pools))
        for r in range(self._count):
            grpc, http, reports = (f"127.0.0.1:{ports[3 * r + i]}" for i in range(3))
            config = {
                "router_id": f"router-{r}", "grpc_listen": grpc, "http_listen": http, "reports_listen": reports, "model": "tiny",
                "cache_dir": str(self.folder / "cache"), "topology_mode": "disaggregated" if r % 2 else "auto", **router,
            }  # fmt: skip
            self.routers.append(self._process(f"r{r}", "router", config, http=http, grpc=grpc))
            for w in range(len(self._pools)):
                link = self.links[r, w] = Link(f"127.0.0.1:{ports[3 * self._count + w]}")
                await link.open()
                relay = self.relays[r, w] = Relay(reports, link.address)
                await relay.open()
        for w, pool in enumerate(self._pools):
            config = {
                "worker_id": f"w{w}", "pool": pool, "engine": "fake", "source": "penstock://tiny", "model": "tiny", "fake": fake,
                "port": ports[3 * self._count + w], "routers": [self.relays[r, w].address for r in range(self._count)], **worker,
            }  # fmt: skip
            self.workers.append(self._process(f"w{w}", "worker", config))
        for process in self.processes:
            process.spawn(self._zygote)
        self._watch = asyncio.create_task(self._supervise())
        await self.wait_ready(len(self._pools))

    def _process(self, name: str, kind: str, config: dict[str, Any], *, http: str = "", grpc: str = "") -> Process:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        return Process(name, kind, ["--config", str(path)], self.folder / f"{name}.log", http, grpc)

    async def wait_ready(self, workers: int, timeout_s: float = 90.0) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.crashes:
                raise RuntimeError(f"{self.crashes[0]} before the fleet was ready; logs in {self.folder}")
            counts = [await asyncio.to_thread(ready_workers, r) for r in self.routers]
            if all(n >= workers for n in counts):
                return
            await asyncio.sleep(0.2)
        raise TimeoutError(f"{workers} workers were not ready at every router after {timeout_s} s; logs in {self.folder}")

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            for process in self.processes:
                code = process.forked.poll() if process.forked is not None else None
                if code is None:
                    continue
                if not process.doomed:
                    self.crashes.append(f"{process.name} incarnation {process.incarnation} ended with {code}")
                self._forget(process)
                if self.restart:
                    task = asyncio.create_task(self._spawn_later(process))
                    self._restarts.add(task)
                    task.add_done_callback(self._restarts.discard)

    def _forget(self, process: Process) -> None:
        if process.forked is not None:
            process.forked.close()
        process.forked = None

    async def _spawn_later(self, process: Process) -> None:
        await asyncio.sleep(RESTART_S[process.kind])
        process.spawn(self._zygote)

    def bad_log_lines(self) -> list[str]:
        found = []
        for process in self.processes:
            for line in process.log.read_text(errors="replace").splitlines():
                if BAD_LINE.search(line):
                    found.append(f"{process.name}: {line[:300]}")
        return found

    async def close(self) -> None:
        for task in [t for t in (self._watch, *self._restarts) if t is not None]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for process in self.processes:
            if process.alive:
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGTERM)
        await asyncio.to_thread(self._reap)
        for relay in self.relays.values():
            await relay.close()
        for link in self.links.values():
            await link.close()

    def _reap(self) -> None:
        end = time.monotonic() + 3.0
        for process in self.processes:
            if process.forked is not None and not process.forked.wait(max(0.1, end - time.monotonic())):
                process.signal(signal.SIGKILL)
                process.forked.wait(5.0)
            self._forget(process)
        self._zygote.close()


def scrape(address: str) -> dict[str, float]:
    """Samples by name and labels; empty where nobody answers."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/metrics", timeout=2) as answer:
        lines = answer.read().decode().splitlines()
        return {x.rpartition(" ")[0]: float(x.rpartition(" ")[2]) for x in lines if x and not x.startswith("#")}
    return {}


def ready_workers(router: Process) -> int:
    samples = scrape(router.http).items()
    return int(sum(v for k, v in samples if k.startswith("penstock_router_workers{") and 'state="ready"' in k))
