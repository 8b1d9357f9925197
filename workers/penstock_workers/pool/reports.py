"""Reports to routers: one Fleet.Join stream to each, dialled by the worker.

Promise: every router gets Hello, a snapshot, then each delta once and in order, and a load report at least every
`load_report_s`; a router that comes back is joined again within about a second; a slow one gets a new snapshot instead of an
endless backlog.
"""

import asyncio
import logging
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import grpc

from penstock_proto.v1.fleet_pb2 import CostReport, RouterNotice, SeenRequests, WorkerReport
from penstock_workers.engine.protocol import KvOp
from penstock_workers.pool.kv_feed import KvFeed
from penstock_workers.pool.roles import Assignment, assign
from penstock_workers.pool.seen import Seen
from penstock_workers.pool.state import WorkerState

log = logging.getLogger(__name__)

JOIN = "/penstock.v1.Fleet/Join"
OPTIONS = (
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
KV_EVERY_S = 0.02
LOAD_EVERY_S = 0.05  # under load; between such reports a router counts what it booked itself
COST_EVERY_S = 1.0
_BACKLOG_BYTES = 32 << 20
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.1, 1.0

Count = Callable[[str], None]


class Link:
    """One router: what is still to be sent to it."""

    __slots__ = ("_bytes", "_pending", "_wake", "behind", "router_id")

    def __init__(self) -> None:
        self.router_id = ""
        self.behind = False  # its backlog was dropped: it needs a snapshot
        self._pending: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def put(self, messages: Iterable[bytes]) -> None:
        if self.behind:
            return
        for message in messages:
            self._pending.append(message)
            self._bytes += len(message)
        if self._bytes > _BACKLOG_BYTES:
            self._pending.clear()
            self._bytes = 0
            self.behind = True
        self._wake.set()

    async def write_all(self, write: Callable[[bytes], Awaitable[None]], catch_up: Callable[["Link"], None]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending or self.behind:
                if self.behind:
                    catch_up(self)
                message = self._pending.popleft()
                self._bytes -= len(message)
                await write(message)


class Reports:
    """All routers of one worker. Call from the loop's thread only."""

    def __init__(
        self,
        state: WorkerState,
        routers: Sequence[str],
        *,
        load_report_s: float,
        resolve_every_s: float,
        cost: Callable[[], CostReport | None],
        count: Count,
    ) -> None:
        self.feed = KvFeed()
        self.seen = Seen()
        self._state = state
        self._routers = routers
        self._load_report_s = load_report_s
        self._resolve_every_s = resolve_every_s
        self._cost = cost
        self._count = count
        self._links: dict[str, Link] = {}
        self._dials: dict[str, asyncio.Task[None]] = {}
        self._resolver: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # of the timer; uvloop's handle cannot always tell
        self._load_dirty = False
        self._kv_at = self._load_at = self._cost_at = 0.0
        self._last_cost = b""

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = asyncio.create_task(self._resolve(), name="resolve routers")
        self._schedule(self._load_report_s)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tasks = [t for t in (self._resolver, *self._dials.values()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dials.clear()

    @property
    def joined(self) -> int:
        return sum(bool(link.router_id) for link in self._links.values())

    # --- what the engine says -----------------------------------------------------------------------------------------

    def kv(self, ops: list[KvOp]) -> None:
        self.feed.add(ops)
        self._hurry(self._kv_at + KV_EVERY_S)

    def load_changed(self) -> None:
        if not self._load_dirty:
            self._load_dirty = True
            self._hurry(self._load_at + LOAD_EVERY_S)

    def draining(self) -> None:
        """Tells every router now, and every router that joins later."""
        assert self._state.draining is not None
        self._flush_kv()
        self._send("draining", WorkerReport(draining=self._state.draining).SerializeToString())

    # --- timing -------------------------------------------------------------------------------------------------------

    def _schedule(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._tick)
        self._due = self._loop.time() + delay_s

    def _hurry(self, when: float) -> None:
        if self._timer is not None and self._due > when:
            self._schedule(max(0.0, when - self._loop.time()))

    def _tick(self) -> None:
        now = self._loop.time()
        if self.feed.pending and now >= self._kv_at + KV_EVERY_S:
            self._flush_kv()
        self._flush_seen(now)
        if (self._load_dirty and now >= self._load_at + LOAD_EVERY_S) or now >= self._load_at + 0.95 * self._load_report_s:
            self._load_at = now
            self._load_dirty = False
            for link in self._links.values():
                self._put_load(link)
        if now >= self._cost_at + COST_EVERY_S:
            self._cost_at = now
            self._send_cost()
        due = self._load_at + (LOAD_EVERY_S if self._load_dirty else self._load_report_s)
        if self.feed.pending:
            due = min(due, self._kv_at + KV_EVERY_S)
        self._schedule(max(0.001, due - now))

    def _flush_kv(self) -> None:
        message = self.feed.flush()
        if message is not None:
            self._kv_at = self._loop.time()
            self._send("kv", message)

    def _flush_seen(self, now: float) -> None:
        began = self._state.began()
        if began and (new := self.seen.note(began, now)):
            self._send("seen", WorkerReport(seen=SeenRequests(hashes=new)).SerializeToString())

    def _send_cost(self) -> None:
        report = self._cost()
        if report is None:
            return
        message = WorkerReport(cost=report).SerializeToString()
        if message != self._last_cost:
            self._last_cost = message
            self._send("cost", message)

    def _send(self, kind: str, message: bytes) -> None:
        for link in self._links.values():
            link.put((message,))
            self._count(kind)

    def _put_load(self, link: Link) -> None:
        link.put((WorkerReport(load=self._state.load(link.router_id)).SerializeToString(),))
        self._count("load")

    # --- routers ------------------------------------------------------------------------------------------------------

    async def _resolve(self) -> None:
        """Keeps one dial per address that the routers' names stand for."""
        while True:
            wanted: set[str] = set()
            for router in self._routers:
                wanted |= await self._addresses(router)
            for address in self._dials.keys() - wanted:
                self._dials.pop(address).cancel()
            for address in wanted - self._dials.keys():
                self._dials[address] = asyncio.create_task(self._dial(address), name=f"join {address}")
            await asyncio.sleep(self._resolve_every_s)

    async def _addresses(self, router: str) -> set[str]:
        host, _, port = router.rpartition(":")
        try:
            found = await self._loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            log.warning("router's name has no address", extra={"router": router, "error": str(error)})
            return {a for a in self._dials if a.endswith(f":{port}")}
        families = {family for family, *_ in found}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        hosts = {str(sockaddr[0]) for f, _, _, _, sockaddr in found if f == family}
        return {f"[{h}]:{port}" if ":" in h else f"{h}:{port}" for h in hosts}

    async def _dial(self, address: str) -> None:
        backoff = _FIRST_BACKOFF_S
        while True:
            began = self._loop.time()
            try:
                await self._join(address)
            except grpc.aio.AioRpcError as error:
                log.debug("join ended", extra={"router": address, "error": error.details()})
            except Exception:  # a defect ends one stream; a worker that no router hears of would do nothing for ever
                log.exception("join failed", extra={"router": address})
            if self._loop.time() - began > _LAST_BACKOFF_S:
                backoff = _FIRST_BACKOFF_S
            await asyncio.sleep(backoff * random.uniform(0.7, 1.0))
            backoff = min(2 * backoff, _LAST_BACKOFF_S)

    async def _join(self, address: str) -> None:
        channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        writer: asyncio.Task[None] | None = None
        call = channel.stream_stream(JOIN, request_serializer=None, response_deserializer=RouterNotice.FromString)(None)
        link = Link()
        try:
            await call.wait_for_connection()
            self._greet(link)
            self._links[address] = link
            writer = asyncio.create_task(link.write_all(call.write, self._catch_up), name=f"reports {address}")
            while isinstance(notice := await call.read(), RouterNotice):
                self._heed(link, notice)
        finally:
            self._links.pop(address, None)
            if link.router_id:
                log.info("router left", extra={"router_id": link.router_id, "router": address})
            call.cancel()
            if writer is not None:
                writer.cancel()
                # What ended the stream is raised by read; the writer fails with it. A gather, for a stop() in the meantime
                # must not be taken for the writer's own end.
                await asyncio.gather(writer, return_exceptions=True)
            await channel.close(None)

    def _greet(self, link: Link) -> None:
        self._count("hello")
        link.put((WorkerReport(hello=self._state.hello()).SerializeToString(),))
        self._catch_up(link)
        if seen := self.seen.all(self._loop.time()):
            link.put((WorkerReport(seen=SeenRequests(hashes=seen)).SerializeToString(),))
        if self._last_cost:
            link.put((self._last_cost,))
        if self._state.draining is not None:
            link.put((WorkerReport(draining=self._state.draining).SerializeToString(),))

    def _catch_up(self, link: Link) -> None:
        """A snapshot. Pending changes go first, as a delta to those who are not behind."""
        self._flush_kv()
        link.behind = False
        self._count("snapshot")
        link.put(self.feed.snapshot())
        self._put_load(link)

    def _heed(self, link: Link, notice: RouterNotice) -> None:
        match notice.WhichOneof("notice"):
            case "welcome":
                link.router_id = notice.welcome.router_id
                log.info("router joined", extra={"router_id": link.router_id})
            case "resend":
                log.info("router asked for a snapshot", extra={"router_id": link.router_id})
                self._catch_up(link)
            case "role":
                self._assign(Assignment(link.router_id, notice.role.role, notice.role.epoch))

    def _assign(self, word: Assignment) -> None:
        """A changed role is told by another Hello on every stream. A Hello begins the KV sequence, so a snapshot follows it."""
        self._state.role, why = assign(self._state.role, word, [link.router_id for link in self._links.values()])
        if why:
            log.info("role not taken", extra={"role": word.role, "epoch": word.epoch, "router_id": word.router_id, "reason": why})
            return
        log.info("role taken", extra={"role": word.role, "epoch": word.epoch, "router_id": word.router_id})
        self._flush_kv()
        self._send("hello", WorkerReport(hello=self._state.hello()).SerializeToString())
        for link in self._links.values():
            self._catch_up(link)
