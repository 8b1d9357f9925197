"""The gRPC client: calls on one connection, for the router's links to its workers.

Promise: `connect` either returns a connection on which the server's settings have arrived or raises OSError; each
call's listener hears `done` exactly once, whatever happens to the call or to its connection.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote

import grpc

from . import frames as f
from . import hpack
from .connection import Connection
from .stream import Stream

STATUS = {code.value[0]: code for code in grpc.StatusCode}


class Listener(Protocol):
    def message(self, data: bytes) -> None: ...
    def done(self, code: grpc.StatusCode, message: str) -> None: ...


class ClientCall:
    """One call: request messages by `send`, everything else to its listener."""

    __slots__ = ("_done", "_status", "listener", "stream")

    def __init__(self, stream: Stream, listener: Listener) -> None:
        self.stream = stream
        self.listener = listener
        self._done = False
        self._status: tuple[grpc.StatusCode, str] | None = None

    def send(self, message: bytes) -> None:
        self.stream.send(message)

    def half_close(self) -> None:
        self.stream.half_close()

    def cancel(self) -> None:
        """The server hears of it at once; the listener hears nothing more."""
        self._done = True
        self.stream.reset(f.CANCEL)

    def on_headers(self, headers: tuple[hpack.Header, ...]) -> None:
        fields = dict(headers)
        status = fields.get(b"grpc-status")
        if status is not None:
            code = STATUS.get(int(status) if status.isdigit() and len(status) < 4 else 2, grpc.StatusCode.UNKNOWN)
            self._status = (code, unquote(fields.get(b"grpc-message", b"").decode("ascii", "replace")))
        elif fields.get(b":status", b"200") != b"200":
            self._status = (grpc.StatusCode.UNAVAILABLE, f"HTTP status {fields[b':status'].decode('ascii', 'replace')}")

    def message(self, data: bytes) -> None:
        if not self._done:
            self.listener.message(data)

    def half_closed(self) -> None:
        self._finish(*(self._status or (grpc.StatusCode.UNKNOWN, "the stream ended without a status")))
        if not self.stream.local_ended:
            self.stream.reset(f.NO_ERROR)

    def lost(self, reason: str) -> None:
        self._finish(*(self._status or (grpc.StatusCode.UNAVAILABLE, reason)))

    def writable(self) -> None:
        pass

    def _finish(self, code: grpc.StatusCode, message: str) -> None:
        if not self._done:
            self._done = True
            self.listener.done(code, message)


class ClientConnection(Connection):
    """A connection to one server."""

    def __init__(self, authority: str, limits: f.Limits) -> None:
        super().__init__(limits)
        self.authority = authority.encode()
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self._next_id = 1
        self.write(f.PREFACE)

    def call(self, path: str, listener: Listener) -> ClientCall:
        stream = Stream(self, self._next_id)
        self._next_id += 2
        call = ClientCall(stream, listener)
        stream.owner = call
        if self.dead:
            self.loop.call_soon(call.lost, "connection lost")
            return call
        self.streams[stream.id] = stream
        block = hpack.encode(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", self.authority),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
                (b"user-agent", b"penstock-router"),
            ]
        )
        self.write(f.frame(f.HEADERS, f.END_HEADERS, stream.id, block))
        return call

    def knew(self, stream_id: int) -> bool:
        return stream_id < self._next_id

    def open_stream(self, stream_id: int, headers: tuple[hpack.Header, ...]) -> Stream | None:
        self.fail(f.PROTOCOL_ERROR, "a server opens no streams")
        return None

    def on_headers(self, stream: Stream, headers: tuple[hpack.Header, ...]) -> None:
        if isinstance(stream.owner, ClientCall):
            stream.owner.on_headers(headers)

    def on_settings(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def on_goaway(self, last_stream: int) -> None:
        for stream in [s for s in self.streams.values() if s.id > last_stream]:
            self.close_stream(stream)
            if stream.owner is not None:
                stream.owner.lost("the server goes away")

    def on_gone(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError(reason))
            self.ready.exception()  # retrieved: nobody may be waiting any more


async def connect(address: str, timeout_s: float = 5.0, limits: f.Limits | None = None) -> ClientConnection:
    """Raises OSError (TimeoutError is one)."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    bounds = limits or f.Limits(stream_window=8 << 20, connection_window=32 << 20, max_resets=1 << 30, max_noise=1 << 30)
    made: list[ClientConnection] = []

    def protocol() -> ClientConnection:
        made.append(ClientConnection(address, bounds))
        return made[-1]

    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(protocol, host.strip("[]"), int(port))
            await connection.ready
    except BaseException:
        # uvloop closes the transport of a cancelled connect without a word to its protocol, which would go on writing.
        for unheard in made:
            unheard.drop("connect failed")
        raise
    return connection


class Collect:
    """Listener that gathers a whole answer; `result` is what awaits it."""

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.message = on_message
        self.result: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()

    def done(self, code: grpc.StatusCode, message: str) -> None:
        if not self.result.done():
            self.result.set_result((code, message))
