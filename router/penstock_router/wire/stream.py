"""One HTTP/2 stream: what it may still send, what is held back, who hears of it.

Promise: `send` and `end_with` never block and never call an owner; what no window has room for is held in order.
"""

from collections import deque
from typing import TYPE_CHECKING, Protocol

from . import frames as f

if TYPE_CHECKING:
    from .outgoing import Outgoing


class Owner(Protocol):
    """What a stream tells its user. Calls are synchronous, never nested in a write."""

    def message(self, data: bytes) -> None: ...
    def half_closed(self) -> None:
        """The peer sends nothing more."""

    def lost(self, reason: str) -> None:
        """Reset by the peer, or the connection is gone. Nothing follows."""

    def writable(self) -> None:
        """What was held for want of window has been sent."""


class Stream:
    """One stream. `send` never blocks; `held` says that the peer does not take what is sent."""

    __slots__ = (
        "closed", "connection", "held", "id", "kept", "local_ended", "moved_at", "owner", "partial", "remote_ended", "unacked",
        "window",
    )  # fmt: skip

    def __init__(self, connection: "Outgoing", stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.window = connection.peer_initial_window
        self.owner: Owner | None = None
        self.partial = bytearray()
        self.kept = 0  # octets of it that are booked
        self.moved_at = connection.loop.time()  # when it opened, later when some of what is held was last taken
        self.unacked = 0  # octets received and not yet given back as window
        self.held: deque[tuple[memoryview, bool]] | None = None  # (octets, whether they are a header block)
        self.local_ended = self.remote_ended = self.closed = False

    def send(self, message: bytes) -> None:
        """One gRPC message."""
        if self.closed or self.local_ended:
            return
        connection = self.connection
        size = len(message) + 5
        if self.held is None and size <= f.FRAME and size <= self.window and size <= connection.window and not connection.paused:
            self.window -= size
            connection.window -= size
            connection.write(f.MESSAGE.pack(size << 8, 0, self.id, 0, size - 5) + message)
            return
        if self.held is None:
            self.held = deque()
        self.held.append((memoryview(f.PREFIX.pack(0, size - 5) + message), False))
        connection.blocked[self.id] = self
        self.drain()

    def end_with(self, block: bytes) -> None:
        """Trailers (an encoded header block); nothing can be sent afterwards."""
        if self.closed or self.local_ended:
            return
        self.local_ended = True
        if self.held is not None:
            self.held.append((memoryview(block), True))
            return
        self._write_end(block)

    def half_close(self) -> None:
        """No more messages from us (the client's side)."""
        self.end_with(b"")

    def _write_end(self, block: bytes) -> None:
        if block:
            self.connection.write(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, self.id, block))
        else:
            self.connection.write(f.frame(f.DATA, f.END_STREAM, self.id))
        self.connection.ended(self)
        if not self.closed:
            self.connection.sent_end(self)

    def reset(self, code: int = f.CANCEL) -> None:
        """Ends the stream at once, both ways; its owner hears nothing more."""
        if self.closed:
            return
        self.connection.write(f.frame(f.RST_STREAM, 0, self.id, f.U32.pack(code)))
        self.connection.close_stream(self)

    def drain(self) -> None:
        """Sends what the windows allow of what is held."""
        held, connection = self.held, self.connection
        if held and self.window > 0 and connection.window > 0 and not connection.paused:
            self.moved_at = connection.loop.time()
        while held:
            data, is_block = held[0]
            if is_block:  # always the last
                self.held = None
                connection.blocked.pop(self.id, None)
                self._write_end(bytes(data))
                return
            room = min(self.window, connection.window, f.FRAME, len(data))
            if room <= 0 or connection.paused:
                return
            self.window -= room
            connection.window -= room
            connection.write(f.frame(f.DATA, 0, self.id, bytes(data[:room])))
            if room == len(data):
                held.popleft()
            else:
                held[0] = (data[room:], False)
        self.held = None
        connection.blocked.pop(self.id, None)
