"""One HTTP/2 connection, either side: frames in, frames out, flow control, keepalive.

Promise: no callback into a stream's owner happens before the frame that caused it is fully applied, no call of an owner
is made after its stream has closed, and everything written during one turn of the loop leaves in one write.
"""

import asyncio
from typing import Final, cast

from . import frames as f
from .hpack import Decoder, Header, HpackError
from .stream import Stream

CLOSE_S: Final = 1.0


class ProtocolError(Exception):
    """The peer broke HTTP/2: the connection ends with this code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Connection(asyncio.Protocol):
    """Frames of one socket. Subclasses say what a new stream means."""

    def __init__(self, limits: f.Limits) -> None:
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        self.out: list[bytes] = []
        self.queued = 0  # octets in `out`
        self.flushing = self.paused = self.dead = False
        self.window = self.peer_initial_window = f.DEFAULT_WINDOW
        self.last_peer_stream = 0
        self.goaway_sent = False
        self._decoder = Decoder()
        self._rest = b""
        self._preface = b""  # what is still expected of it
        self._unacked = 0
        self._block: tuple[int, int, list[bytes]] | None = None  # stream, flags, fragments: an unfinished header block
        self._resets = 0
        self._heard = False
        self._keepalive: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()

    # Subclasses.

    def open_stream(self, stream_id: int, headers: tuple[Header, ...]) -> Stream | None:
        raise NotImplementedError

    def on_headers(self, stream: Stream, headers: tuple[Header, ...]) -> None:
        """Headers of a stream that is open already: a response's, or trailers."""

    def on_goaway(self, last_stream: int) -> None:
        pass

    def on_gone(self, reason: str) -> None:
        pass

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
        if self.out and not self.dead and self.transport is not None:
            out, self.out = self.out, []
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def pump(self) -> None:
        """Sends what windows have room for, then tells the owners whose output is out."""
        if self.paused or self.window <= 0:
            return
        for stream in list(self.blocked.values()):
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

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _gone(self, reason: str) -> None:
        if self.dead:
            return
        self.dead = True
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
            stream.closed = True
            if stream.owner is not None:
                stream.owner.lost(reason)
        self.on_gone(reason)

    def _ping(self) -> None:
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

    # Frames in.

    def data_received(self, data: bytes) -> None:
        if self.dead:
            return
        self._heard = True
        try:
            self._frames(self._rest + data if self._rest else data)
        except ProtocolError as error:
            self.fail(error.code, str(error))
        except HpackError as error:
            self.fail(f.COMPRESSION_ERROR, str(error))

    def _frames(self, data: bytes) -> None:
        position, end = 0, len(data)
        if self._preface:
            expected = self._preface[:end]
            if data[: len(expected)] != expected:
                raise ProtocolError(f.PROTOCOL_ERROR, "no HTTP/2 preface")
            self._preface = self._preface[len(expected) :]
            position = len(expected)
        unpack = f.HEAD.unpack_from
        while end - position >= 9:
            head, flags, stream_id = unpack(data, position)
            length = head >> 8
            if length > f.FRAME:
                raise ProtocolError(f.FRAME_SIZE_ERROR, "frame larger than advertised")
            stop = position + 9 + length
            if stop > end:
                break
            kind = head & 0xFF
            stream_id &= f.MAX_WINDOW
            if self._block is not None and kind != f.CONTINUATION:
                raise ProtocolError(f.PROTOCOL_ERROR, "header block interrupted")
            if kind == f.DATA:
                self._on_data(stream_id, flags, data[position + 9 : stop])
            else:
                self._on_control(kind, stream_id, flags, data[position + 9 : stop])
            if self.dead:
                return
            position = stop
        self._rest = data[position:]

    def _on_control(self, kind: int, stream_id: int, flags: int, payload: bytes) -> None:
        if kind == f.HEADERS:
            self._on_headers_frame(stream_id, flags, payload)
        elif kind == f.CONTINUATION:
            self._on_continuation(stream_id, flags, payload)
        elif kind == f.WINDOW_UPDATE:
            self._on_window(stream_id, payload)
        elif kind == f.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == f.PING:
            if len(payload) != 8:
                raise ProtocolError(f.FRAME_SIZE_ERROR, "ping of another size than 8")
            if not flags & f.ACK:
                self._answer(f.frame(f.PING, f.ACK, 0, payload))
        elif kind == f.RST_STREAM:
            self._on_reset(stream_id)
        elif kind == f.GOAWAY:
            self.on_goaway(f.U32.unpack_from(payload)[0] & f.MAX_WINDOW if len(payload) >= 8 else 0)
        elif kind == f.PUSH_PROMISE:
            raise ProtocolError(f.PROTOCOL_ERROR, "push promise")

    def _answer(self, data: bytes) -> None:
        if self.transport is not None and self.transport.get_write_buffer_size() > self.limits.max_control:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "answers are not read")
        self.write(data)

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._unacked += size
        if self._unacked > self.limits.connection_window >> 1:
            self.write(f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(self._unacked)))
            self._unacked = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or not self.knew(stream_id):
                raise ProtocolError(f.PROTOCOL_ERROR, "data for an idle stream")
            return
        if stream.remote_ended:
            raise ProtocolError(f.PROTOCOL_ERROR, "data after the end of a stream")
        stream.unacked += size
        if flags & f.PADDED:
            if not payload or payload[0] >= size:
                raise ProtocolError(f.PROTOCOL_ERROR, "padding larger than its frame")
            payload = payload[1 : size - payload[0]]
        if flags & f.END_STREAM:
            stream.remote_ended = True
        elif stream.unacked > self.limits.stream_window >> 1:
            self.write(f.frame(f.WINDOW_UPDATE, 0, stream_id, f.U32.pack(stream.unacked)))
            stream.unacked = 0
        if payload:
            self._messages(stream, payload)
        if stream.remote_ended and not stream.closed:
            self._remote_end(stream)

    def _messages(self, stream: Stream, payload: bytes) -> None:
        """Cuts gRPC messages out of a stream's octets."""
        data: bytes | bytearray = payload
        if stream.partial:
            stream.partial += payload
            # The common case of a large message is that it is not complete yet: do not look at it twice.
            data = stream.partial
        position, end = 0, len(data)
        while end - position >= 5:
            compressed, length = f.PREFIX.unpack_from(data, position)
            if length > self.limits.max_message or compressed:
                self.refuse(stream, oversized=not compressed)
                return
            stop = position + 5 + length
            if stop > end:
                break
            if stream.owner is not None:
                stream.owner.message(bytes(data[position + 5 : stop]))
            if stream.closed:
                return
            position = stop
        if stream.partial:
            del stream.partial[:position]
        elif position < end:
            stream.partial = bytearray(data[position:])

    def refuse(self, stream: Stream, oversized: bool) -> None:
        """A message that is too large or compressed."""
        stream.reset(f.CANCEL)
        if stream.owner is not None:
            stream.owner.lost("message larger than the limit" if oversized else "compressed message")

    def _remote_end(self, stream: Stream) -> None:
        if stream.owner is not None:
            stream.owner.half_closed()
        self.ended(stream)

    def knew(self, stream_id: int) -> bool:
        """Whether this stream was once open."""
        return stream_id <= self.last_peer_stream

    def _on_headers_frame(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & f.PADDED:
            if not payload or payload[0] >= len(payload):
                raise ProtocolError(f.PROTOCOL_ERROR, "padding larger than its frame")
            payload = payload[1 : len(payload) - payload[0]]
        if flags & f.PRIORITISED:
            payload = payload[5:]
        if flags & f.END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block = (stream_id, flags, [payload])

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ProtocolError(f.PROTOCOL_ERROR, "continuation of nothing")
        _, first_flags, fragments = self._block
        fragments.append(payload)
        if sum(map(len, fragments)) > self.limits.max_header_block or len(fragments) > 64:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "header block too large")
        if flags & f.END_HEADERS:
            self._block = None
            self._on_block(stream_id, first_flags, b"".join(fragments))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        if len(block) > self.limits.max_header_block:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "header block too large")
        headers = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0:
                raise ProtocolError(f.PROTOCOL_ERROR, "headers without a stream")
            if self.knew(stream_id):
                return  # reset by us while this was under way
            stream = self.open_stream(stream_id, headers)
            if stream is None:
                return
        else:
            if stream.remote_ended:
                raise ProtocolError(f.PROTOCOL_ERROR, "headers after the end of a stream")
            self.on_headers(stream, headers)
        if flags & f.END_STREAM and not stream.closed:
            stream.remote_ended = True
            self._remote_end(stream)

    def _on_window(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(f.FRAME_SIZE_ERROR, "window update of another size than 4")
        step = f.U32.unpack(payload)[0] & f.MAX_WINDOW
        if stream_id == 0:
            self.window += step
            if not step or self.window > f.MAX_WINDOW:
                raise ProtocolError(f.FLOW_CONTROL_ERROR, "connection window out of range")
            if self.blocked:
                self.pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        stream.window += step
        if not step or stream.window > f.MAX_WINDOW:
            stream.reset(f.FLOW_CONTROL_ERROR)
            if stream.owner is not None:
                stream.owner.lost("stream window out of range")
        elif stream.held is not None:
            self.pump()

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & f.ACK:
            return
        if len(payload) % 6:
            raise ProtocolError(f.FRAME_SIZE_ERROR, "settings of a broken size")
        for key, value in f.SETTING.iter_unpack(payload):
            if key == f.INITIAL_WINDOW_SIZE:
                if value > f.MAX_WINDOW:
                    raise ProtocolError(f.FLOW_CONTROL_ERROR, "initial window out of range")
                step = value - self.peer_initial_window
                self.peer_initial_window = value
                for stream in self.streams.values():
                    stream.window += step
        self._answer(f.frame(f.SETTINGS, f.ACK, 0))
        if self.blocked:
            self.pump()

    def _on_reset(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or not self.knew(stream_id):
                raise ProtocolError(f.PROTOCOL_ERROR, "reset of an idle stream")
            return
        self._resets += 1
        if self._resets > self.limits.max_resets:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "too many streams reset")
        self.close_stream(stream)
        if stream.owner is not None:
            stream.owner.lost("reset by the peer")

    # Ends.

    def ended(self, stream: Stream) -> None:
        """Closes a stream that both sides have ended."""
        if stream.local_ended and stream.remote_ended and stream.held is None:
            self._resets = max(0, self._resets - 2)
            self.close_stream(stream)

    def close_stream(self, stream: Stream) -> None:
        stream.closed = True
        stream.held = None
        self.blocked.pop(stream.id, None)
        self.streams.pop(stream.id, None)


async def flushed(connection: Connection, patience_s: float) -> None:
    """Returns when the socket has taken everything, the connection is gone or patience is at its end."""
    end = connection.loop.time() + patience_s
    while not connection.dead and connection.transport is not None and connection.loop.time() < end:
        connection.flush()
        if not connection.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.005)
