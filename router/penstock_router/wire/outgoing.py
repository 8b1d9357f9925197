"""The outgoing half of an HTTP/2 connection: what is written, when the peer is given up, how it all ends.

Promise: everything written during one turn of the loop leaves in one write; a peer that sends without reading makes this
process hold at most `max_control` octets beyond what flow control lets through; a peer that is silent is noticed.
"""

import asyncio
from typing import Final, cast

from . import frames as f
from .stream import Stream

CLOSE_S: Final = 1.0


class Room:
    """Octets of incomplete messages, which flow control has already given back, over all connections that share it."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class Outgoing(asyncio.Protocol):
    """One socket. Subclasses read its frames."""

    def __init__(self, limits: f.Limits, room: Room | None = None) -> None:
        self.limits = limits
        self.room = room or Room(limits.max_partial)
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        self.out: list[bytes] = []
        self.queued = 0  # octets in `out`
        self.flushing = self.paused = self.dead = self.unread = False
        self.window = self.peer_initial_window = f.DEFAULT_WINDOW
        self.last_peer_stream = 0
        self._heard = False
        self._keepalive: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()

    # Subclasses.

    def on_gone(self, reason: str) -> None:
        pass

    def on_tick(self) -> None:
        """Every keepalive_s or so."""

    def sent_end(self, stream: Stream) -> None:
        """The last octet of our side of a stream is written."""

    # The socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self.transport.set_write_buffer_limits(high=self.limits.write_high_water)
        limits = self.limits
        self.write(
            f.settings(
                {
                    f.MAX_CONCURRENT_STREAMS: limits.max_streams,
                    f.INITIAL_WINDOW_SIZE: limits.stream_window,
                    f.MAX_HEADER_LIST_SIZE: limits.max_header_block,
                }
            )
            + f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(limits.connection_window - f.DEFAULT_WINDOW))
        )
        self._keepalive = self.loop.call_later(limits.keepalive_s, self._ping)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone("connection lost")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pump()

    def write(self, data: bytes) -> None:
        self.out.append(data)
        self.queued += len(data)
        if not self.flushing:
            self.flushing = True
            self.loop.call_soon(self.flush)
        elif self.queued > self.limits.write_high_water:
            self.flush()  # now, so that the transport can say that it has enough

    def flush(self) -> None:
        self.flushing = False
        self.queued = 0
        # Between a peer's reset and connection_lost uvloop's transport raises where asyncio's is silent.
        if self.out and not self.dead and self.transport is not None and not self.transport.is_closing():
            out, self.out = self.out, []
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
            if self.paused and self.transport.get_write_buffer_size() > self.limits.max_control:
                self.unread = True  # streams hold their output long before this: it is answers to what the peer sends

    def pump(self) -> None:
        """Sends what windows have room for, then tells the owners whose output is out."""
        for stream in list(self.blocked.values()):
            if self.paused or self.window <= 0:
                return
            self.pump_one(stream)

    def pump_one(self, stream: Stream) -> None:
        stream.drain()
        if stream.held is None and not stream.closed and not stream.local_ended and stream.owner is not None:
            stream.owner.writable()

    def fail(self, code: int, reason: str) -> None:
        """GOAWAY and close: the peer broke the protocol or asks for too much."""
        if self.dead:
            return
        self.write(f.frame(f.GOAWAY, 0, 0, f.U32.pack(self.last_peer_stream) + f.U32.pack(code) + reason.encode()))
        self.flush()
        self._gone(reason)

    def close(self, reason: str = "closed") -> None:
        if not self.dead:
            self.flush()
        self._gone(reason)

    def drop(self, reason: str) -> None:
        """Close without a last write: the transport may be gone already."""
        self._gone(reason)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _gone(self, reason: str) -> None:
        if self.dead:
            return
        self.dead = True
        self.out.clear()
        if self._keepalive is not None:
            self._keepalive.cancel()
        if self.transport is not None:
            self.transport.close()
            if self.transport.get_write_buffer_size():
                # A peer that does not read would keep a closed transport and its buffer.
                self.loop.call_later(CLOSE_S, self.abort)
        streams = list(self.streams.values())
        self.streams.clear()
        self.blocked.clear()
        for stream in streams:
            self.forget(stream)
            if stream.owner is not None:
                stream.owner.lost(reason)
        self.on_gone(reason)

    def _ping(self) -> None:
        self.on_tick()
        if self.dead:
            return
        if self._heard:
            self._heard = False
            self._keepalive = self.loop.call_later(self.limits.keepalive_s, self._ping)
            return
        self.write(f.frame(f.PING, 0, 0, b"penstock"))
        self._keepalive = self.loop.call_later(self.limits.keepalive_timeout_s, self._expect_life)

    def _expect_life(self) -> None:
        if self._heard:
            self._ping()
        else:
            self._gone("keepalive timeout")

    # Ends of streams.

    def ended(self, stream: Stream) -> None:
        """Closes a stream that both sides have ended."""
        if stream.local_ended and stream.remote_ended and stream.held is None:
            self.on_ended()
            self.close_stream(stream)

    def on_ended(self) -> None:
        """A stream has ended as both sides wished."""

    def close_stream(self, stream: Stream) -> None:
        self.forget(stream)
        self.blocked.pop(stream.id, None)
        self.streams.pop(stream.id, None)

    def forget(self, stream: Stream) -> None:
        """Lets go of what a stream holds."""
        stream.closed = True
        stream.held = None
        self.keep(stream, 0)
        stream.partial = bytearray()

    def keep(self, stream: Stream, size: int) -> bool:
        """Books `size` octets for the stream's incomplete message; False: more than there is room for."""
        room = self.room
        room.held += size - stream.kept
        stream.kept = size
        return room.held <= room.limit


async def flushed(connection: Outgoing, patience_s: float) -> None:
    """Returns when the socket has taken everything, the connection is gone or patience is at its end."""
    end = connection.loop.time() + patience_s
    while not connection.dead and connection.transport is not None and connection.loop.time() < end:
        connection.flush()
        if not connection.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.005)
