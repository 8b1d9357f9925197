"""Reports from one worker to one router, message by message, with a hand on them.

Promise: without a fault every message passes once, in order and unchanged, but that Hello names the link's address as the
worker's. It can hold both directions back (a black hole, or stale reports), say messages twice, and lose KV changes.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import grpc

from penstock_proto.v1.fleet_pb2 import WorkerReport
from penstock_router.wire.client import ClientCall, ClientConnection, connect
from penstock_router.wire.frames import Limits
from penstock_router.wire.server import Call, Server

JOIN = "/penstock.v1.Fleet/Join"
# The first octet of a report that carries only this field.
HELLO, SNAPSHOT, DELTA = (
    bytes([WorkerReport.DESCRIPTOR.fields_by_name[n].number << 3 | 2]) for n in ("hello", "snapshot", "delta")
)


class _Gate:
    """Runs actions in order, or keeps them while it is shut."""

    def __init__(self) -> None:
        self.shut = False
        self._kept: list[Callable[[], None]] = []

    def do(self, action: Callable[[], None]) -> None:
        if self.shut or self._kept:
            self._kept.append(action)
        else:
            action()

    def open(self) -> None:
        self.shut = False
        kept, self._kept = self._kept, []
        for action in kept:
            action()


class _Up:
    """Hears the router."""

    def __init__(self, stream: "_Stream") -> None:
        self._stream = stream

    def message(self, data: bytes) -> None:
        self._stream.relay.gate.do(partial(self._stream.down.send, data))

    def done(self, code: grpc.StatusCode, message: str) -> None:
        self._stream.relay.gate.do(partial(self._stream.end, code, message))


class _Stream:
    """One Join: the worker's call, and ours to the router."""

    def __init__(self, relay: "Relay", call: Call) -> None:
        self.relay = relay
        self.down = call
        self.ended = False
        self._up: ClientCall | None = None
        self._connection: ClientConnection | None = None
        self._early: list[bytes] = []
        relay.streams.add(self)
        self._dial = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await connect(self.relay.target, 2.0)
        except OSError as error:
            self.relay.gate.do(partial(self.end, grpc.StatusCode.UNAVAILABLE, str(error) or "timeout"))
            return
        if self.ended:
            connection.close("ended")
            return
        self._connection = connection
        self._up = connection.call(JOIN, _Up(self))
        early, self._early = self._early, []
        for data in early:
            self._up.send(data)

    # The worker's side.

    def message(self, data: bytes) -> None:
        self.relay.gate.do(partial(self._forward, data))

    def half_closed(self) -> None:
        self.relay.gate.do(partial(self.end, grpc.StatusCode.OK, ""))

    def cancelled(self, reason: str) -> None:
        self.relay.gate.do(partial(self.end, grpc.StatusCode.CANCELLED, reason))

    def writable(self) -> None:
        pass

    def _forward(self, data: bytes) -> None:
        relay, kind = self.relay, data[:1]
        if kind == HELLO:
            report = WorkerReport.FromString(data)
            report.hello.address = relay.link_address
            data = report.SerializeToString()
        if relay.loses_kv and kind == DELTA:
            relay.lost += 1
            return
        self._send(data)
        if relay.says_twice and kind != HELLO:
            relay.repeated += 1
            self._send(data)

    def _send(self, data: bytes) -> None:
        if self._up is None:
            self._early.append(data)
        else:
            self._up.send(data)

    def end(self, code: grpc.StatusCode, message: str) -> None:
        if self.ended:
            return
        self.ended = True
        self.relay.streams.discard(self)
        if self._up is not None:
            self._up.cancel()
        if self._connection is not None:
            self._connection.close("ended")
        self.down.finish(code, message)


class Relay:
    """Where one worker finds one router's Fleet service."""

    def __init__(self, target: str, link_address: str) -> None:
        self.target = target
        self.link_address = link_address
        self.gate = _Gate()
        self.says_twice = False
        self.loses_kv = False
        self.lost = self.repeated = 0
        self.address = ""
        self.streams: set[_Stream] = set()
        self._server = Server(Limits(max_resets=1 << 30))
        self._server.methods[JOIN.encode()] = partial(_Stream, self)

    async def open(self) -> None:
        self.address = f"127.0.0.1:{await self._server.listen('127.0.0.1:0')}"

    async def close(self) -> None:
        self.gate.open()
        self.cut()
        await self._server.stop()

    def cut(self) -> None:
        for stream in list(self.streams):
            stream.end(grpc.StatusCode.UNAVAILABLE, "cut by chaos")
