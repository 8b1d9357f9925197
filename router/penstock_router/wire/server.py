"""The gRPC server: methods by path, calls with deadlines, graceful end.

Promise: a call's handler hears of the end of its call exactly once, through `cancelled`, unless it ended the call
itself; whatever a handler raises becomes INTERNAL for that call, and nothing else is disturbed.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Final, Protocol
from urllib.parse import quote

import grpc

from . import frames as f
from . import hpack
from .connection import Connection, Refusal
from .outgoing import Room, flushed
from .stream import Stream
from .unary import Unary

Metadata = Iterable[tuple[str, str | bytes]]
log = logging.getLogger("penstock.wire")

RESPONSE: Final = hpack.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS_OK: Final = hpack.encode([(b"grpc-status", b"0")])
FLUSH_S: Final = 0.5  # what a stopping server gives a client to take its last words
MAX_MESSAGE: Final = 1024  # octets of a status message
MAX_TRAILERS: Final = 7 * 1024  # octets of a trailers block: clients of grpc's core take 8 KiB
STATUS: Final = {code.value[0]: code for code in grpc.StatusCode}
UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Receiver(Protocol):
    """What a method does with what its client sends."""

    def message(self, data: bytes) -> None: ...
    def half_closed(self) -> None: ...
    def cancelled(self, reason: str) -> None:
        """The call is over, not by us: cancelled by the client, expired, or its connection is gone."""

    def writable(self) -> None:
        """The client takes messages again."""


Method = Callable[["Call"], Receiver]


def encode_metadata(metadata: Metadata) -> list[hpack.Header]:
    """Keys that end in -bin carry base64, as gRPC has it."""
    out: list[hpack.Header] = []
    for key, value in metadata:
        if key.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            out.append((key.encode(), b64encode(raw).rstrip(b"=")))
        else:
            out.append((key.encode(), value if isinstance(value, bytes) else value.encode()))
    return out


def told(message: str) -> bytes:
    """A status message as the wire has it: percent-encoded, and short enough for every client."""
    text = message.encode("utf-8", "replace")
    if len(text) > MAX_MESSAGE:
        text = text[:MAX_MESSAGE].decode("utf-8", "ignore").encode() + b"..."
    return quote(text, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~").encode()


def parse_timeout(value: bytes) -> float | None:
    """grpc-timeout in seconds; None where it is malformed."""
    unit = UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


class Call:
    """One call on the server. Owner of its stream."""

    __slots__ = ("_expiry", "_headers_sent", "_over", "deadline", "metadata", "path", "receiver", "stream")

    def __init__(self, stream: Stream, path: bytes, metadata: tuple[hpack.Header, ...]) -> None:
        self.stream = stream
        self.path = path
        self.metadata = metadata
        self.deadline: float | None = None  # in the loop's time
        self.receiver: Receiver | None = None
        self._headers_sent = self._over = False
        self._expiry: asyncio.TimerHandle | None = None

    def start(self, method: Method, timeout_s: float | None) -> None:
        if timeout_s is not None:
            loop = self.stream.connection.loop
            self.deadline = loop.time() + timeout_s
            # The handler says DEADLINE_EXCEEDED itself where it can; this is for those that do not look.
            self._expiry = loop.call_at(self.deadline + 0.05, self._expire)
        self.receiver = method(self)

    @property
    def over(self) -> bool:
        return self._over

    @property
    def stalled(self) -> bool:
        """The client does not take what was sent: hold further output."""
        return self.stream.held is not None

    def send(self, message: bytes) -> None:
        if not self._headers_sent:
            self._headers()
        self.stream.send(message)

    def send_initial_metadata(self, metadata: Metadata = ()) -> None:
        if not self._headers_sent:
            self._headers(hpack.encode(encode_metadata(metadata)))

    def _headers(self, more: bytes = b"") -> None:
        self._headers_sent = True
        if not self._over:
            self.stream.connection.write(f.frame(f.HEADERS, f.END_HEADERS, self.stream.id, RESPONSE + more))

    def finish(self, code: grpc.StatusCode = grpc.StatusCode.OK, message: str = "", trailing_metadata: Metadata = ()) -> None:
        """The call's status; nothing can be sent afterwards."""
        if self._over:
            return
        if code is grpc.StatusCode.OK and not message and not trailing_metadata:
            trailers = TRAILERS_OK
        else:
            # grpc-message is percent-encoded; header blocks of one frame are all we write.
            fields = [(b"grpc-status", str(code.value[0]).encode())]
            if message:
                fields.append((b"grpc-message", told(message)))
            trailers = hpack.encode([*fields, *encode_metadata(trailing_metadata)])
            if len(trailers) > MAX_TRAILERS:
                trailers = hpack.encode(fields)  # details are advice; a status that cannot be sent is none
        self._end()
        stream = self.stream
        stream.end_with(trailers if self._headers_sent else RESPONSE + trailers)
        if not stream.remote_ended and stream.held is None:
            stream.reset(f.NO_ERROR)

    def _end(self) -> None:
        """Lets go of everything that refers back: calls come by the thousand and must not wait for the collector."""
        self._over = True
        self.receiver = None
        self.stream.owner = None
        if self._expiry is not None:
            self._expiry.cancel()

    def _expire(self) -> None:
        receiver = self.receiver
        self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
        if receiver is not None:
            receiver.cancelled("deadline")

    # Owner of the stream.

    def message(self, data: bytes) -> None:
        if not self._over and self.receiver is not None:
            self._guard(self.receiver.message, data)

    def half_closed(self) -> None:
        if not self._over and self.receiver is not None:
            self._guard(self.receiver.half_closed)

    def writable(self) -> None:
        if not self._over and self.receiver is not None:
            self._guard(self.receiver.writable)

    def lost(self, reason: str) -> None:
        if self._over:
            return
        receiver = self.receiver
        self._end()
        if receiver is not None:
            self._guard(receiver.cancelled, reason)

    def _guard(self, function: Callable[..., None], *args: object) -> None:
        try:
            function(*args)
        except Exception:
            log.exception("handler failed", extra={"fields": {"path": self.path.decode("ascii", "replace")}})
            receiver = self.receiver
            self.finish(grpc.StatusCode.INTERNAL, "internal error")
            if receiver is not None:
                receiver.cancelled("internal error")


class ServerConnection(Connection):
    """A client's connection."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server.limits, server.room)
        self._preface = f.PREFACE
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self.server.connections) >= self.limits.max_connections:
            self.fail(f.ENHANCE_YOUR_CALM, "too many connections")
            return
        self.server.connections.add(self)
        if self.server.draining:
            self.go_away()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server.connections.discard(self)

    def go_away(self) -> None:
        """Streams that are open go on; new ones are refused."""
        if not self.goaway_sent and not self.dead:
            self.goaway_sent = True
            self.write(f.frame(f.GOAWAY, 0, 0, f.U32.pack(self.last_peer_stream) + f.U32.pack(f.NO_ERROR)))

    def open_stream(self, stream_id: int, headers: tuple[hpack.Header, ...]) -> Stream | None:
        if not stream_id & 1:
            self.fail(f.PROTOCOL_ERROR, "a client's stream has an odd number")
            return None
        self.last_peer_stream = stream_id
        if self.goaway_sent or len(self.streams) >= self.limits.max_streams:
            self.write(f.frame(f.RST_STREAM, 0, stream_id, f.U32.pack(f.REFUSED_STREAM)))
            self.count_reset()
            return None
        stream = Stream(self, stream_id)
        path = timeout = content = None
        for name, value in headers:
            if name == b":path":
                path = value
            elif name == b"grpc-timeout":
                timeout = value
            elif name == b"content-type":
                content = value
        if path is None or content is None or not content.startswith(b"application/grpc"):
            block = hpack.encode([(b":status", b"415")])
            self.write(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, stream_id, block))
            self.count_reset()
            return None
        self.streams[stream_id] = stream
        call = Call(stream, path, headers)
        stream.owner = call
        method = self.server.methods.get(path)
        if method is None:
            call.finish(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {path[:128].decode('ascii', 'replace')}")
            self.count_reset()
            return None
        seconds = None if timeout is None else parse_timeout(timeout)
        if timeout is not None and seconds is None:
            call.finish(grpc.StatusCode.INVALID_ARGUMENT, "grpc-timeout: malformed")
            self.count_reset()
            return None
        try:
            call.start(method, seconds)
        except Exception:
            log.exception("method failed", extra={"fields": {"path": path.decode("ascii", "replace")}})
            call.finish(grpc.StatusCode.INTERNAL, "internal error")
        return stream

    def sent_end(self, stream: Stream) -> None:
        """A call that is answered needs nothing more from its client."""
        if not stream.remote_ended:
            stream.reset(f.NO_ERROR)

    def on_tick(self) -> None:
        """Ends streams that have waited for their client for too long: for its request, or for it to take an answer's end."""
        late = self.loop.time() - self.limits.patience_s
        for stream in [s for s in self.streams.values() if s.moved_at < late]:
            call = stream.owner
            if call is None:
                stream.reset(f.CANCEL)
            elif isinstance(call, Call) and isinstance(call.receiver, Unary) and call.receiver.waits:
                message = f"request: it did not arrive within {self.limits.patience_s:g} s"
                call.finish(grpc.StatusCode.DEADLINE_EXCEEDED, message)

    def refuse(self, stream: Stream, why: Refusal) -> None:
        call = stream.owner
        if not isinstance(call, Call):
            return
        receiver = call.receiver
        call.finish(STATUS[why.grpc_code], why.message)
        if receiver is not None:
            receiver.cancelled("refused message")


class Server:
    """Listens, and serves `methods`."""

    def __init__(self, limits: f.Limits | None = None) -> None:
        self.limits = limits or f.Limits()
        self.methods: dict[bytes, Method] = {}
        self.connections: set[ServerConnection] = set()
        self.room = Room(self.limits.max_partial)
        self.draining = False
        self._server: asyncio.Server | None = None

    def add(self, service: str, methods: dict[str, Method]) -> None:
        for name, method in methods.items():
            self.methods[f"/{service}/{name}".encode()] = method

    async def listen(self, address: str) -> int:
        """Returns the port; port 0 takes a free one."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ServerConnection(self), host.strip("[]") or None, int(port), backlog=1024)
        name = self._server.sockets[0].getsockname()
        return int(name[1])

    def drain(self) -> None:
        """GOAWAY on every connection; the listener stays until `stop`."""
        self.draining = True
        for connection in list(self.connections):
            connection.go_away()

    @property
    def open_calls(self) -> int:
        return sum(len(connection.streams) for connection in self.connections)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Ends calls still open with UNAVAILABLE after the grace."""
        self.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_s
        while self.open_calls and loop.time() < end:  # noqa: ASYNC110 - calls end one by one, or time does
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            for stream in list(connection.streams.values()):
                call = stream.owner
                if isinstance(call, Call):
                    receiver = call.receiver
                    call.finish(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
                    if receiver is not None:
                        receiver.cancelled("shutting down")
            await flushed(connection, FLUSH_S)
            connection.close("shutting down")
            connection.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
