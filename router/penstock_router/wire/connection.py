"""The incoming half of an HTTP/2 connection, either side: frames to streams, flow control, and the bounds on a peer.

Promise: no callback into a stream's owner happens before the frame that caused it is fully applied, no call of an owner
is made after its stream has closed; whatever octets come, the connection goes on or ends with a GOAWAY, and no frame
costs more than its own length and, of the kinds that a peer may send without end, `max_noise` a second are taken.
"""

from dataclasses import dataclass
from typing import Final

from . import frames as f
from .hpack import Decoder, Header, HpackError
from .outgoing import Outgoing, Room
from .stream import Stream


class ProtocolError(Exception):
    """The peer broke HTTP/2: the connection ends with this code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message is not taken."""

    grpc_code: int
    message: str


COMPRESSED: Final = Refusal(12, "compressed messages are not accepted; send identity")
CROWDED: Final = Refusal(8, "too many octets of incomplete messages are held; try again later")


def unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(f.PROTOCOL_ERROR, "padding larger than its frame")
    return payload[1 : len(payload) - payload[0]]


class Connection(Outgoing):
    """Frames of one socket. Subclasses say what a new stream means."""

    def __init__(self, limits: f.Limits, room: Room | None = None) -> None:
        super().__init__(limits, room)
        self.goaway_sent = False
        self._decoder = Decoder()
        self._rest = b""
        self._preface = b""  # what is still expected of it
        self._unacked = 0
        self._block: tuple[int, int, list[bytes]] | None = None  # stream, flags, fragments: an unfinished header block
        self._resets, self._reset_at = 0.0, 0.0
        self._noise, self._noise_since = 0, 0.0
        self._wider: dict[int, Stream] = {}  # streams whose window grew while they held output
        self._all_wider = False

    # Subclasses.

    def open_stream(self, stream_id: int, headers: tuple[Header, ...]) -> Stream | None:
        raise NotImplementedError

    def on_headers(self, stream: Stream, headers: tuple[Header, ...]) -> None:
        """Headers of a stream that is open already: a response's, or trailers."""

    def on_goaway(self, last_stream: int) -> None:
        pass

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
            if self.unread:
                self._check_unread()
            position = stop
        self._rest = data[position:]
        if self._all_wider or self._wider:
            self._widened()

    def _widened(self) -> None:
        """Once for all the window updates of one read: each alone would look at every stream that waits."""
        streams, self._wider = self._wider, {}
        if self._all_wider:
            self._all_wider = False
            self.pump()
            return
        for stream in streams.values():
            if not stream.closed and not self.dead:
                self.pump_one(stream)

    def _check_unread(self) -> None:
        self.unread = False
        limits, transport = self.limits, self.transport
        if transport is not None and transport.get_write_buffer_size() > 2 * limits.write_high_water + limits.max_control:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "answers are not read")

    def _noisy(self, weight: int = 1) -> None:
        """Counts what costs a peer nothing to send and moves nothing."""
        now = self.loop.time()
        if now - self._noise_since > 1.0:
            self._noise, self._noise_since = 0, now
        self._noise += weight
        if self._noise > self.limits.max_noise:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _on_control(self, kind: int, stream_id: int, flags: int, payload: bytes) -> None:
        if kind == f.HEADERS:
            self._on_headers_frame(stream_id, flags, payload)
        elif kind == f.CONTINUATION:
            self._on_continuation(stream_id, flags, payload)
        elif kind == f.WINDOW_UPDATE:
            self._on_window(stream_id, payload)
        elif kind == f.SETTINGS:
            self._on_settings(stream_id, flags, payload)
        elif kind == f.PING:
            self._on_ping(stream_id, flags, payload)
        elif kind == f.RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == f.GOAWAY:
            self._on_goaway(stream_id, payload)
        elif kind == f.PUSH_PROMISE:
            raise ProtocolError(f.PROTOCOL_ERROR, "push promise")
        else:
            self._noisy()  # priorities, and kinds that are not ours to know

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._noisy()
        if len(payload) != 8:
            raise ProtocolError(f.FRAME_SIZE_ERROR, "ping of another size than 8")
        if stream_id:
            raise ProtocolError(f.PROTOCOL_ERROR, "ping on a stream")
        if not flags & f.ACK:
            self.write(f.frame(f.PING, f.ACK, 0, payload))

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        self._noisy()
        if stream_id:
            raise ProtocolError(f.PROTOCOL_ERROR, "goaway on a stream")
        if len(payload) < 8:
            raise ProtocolError(f.FRAME_SIZE_ERROR, "goaway shorter than 8")
        self.on_goaway(f.U32.unpack_from(payload)[0] & f.MAX_WINDOW)

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
        if stream.unacked > self.limits.stream_window:
            raise ProtocolError(f.FLOW_CONTROL_ERROR, "more data than the stream's window")
        if size < 5 and not flags & f.END_STREAM:
            self._noisy()
        if flags & f.PADDED:
            payload = unpadded(payload)
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
                self.refuse(stream, self._oversized(length) if length > self.limits.max_message else COMPRESSED)
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
        if (stream.partial or stream.kept) and not self.keep(stream, len(stream.partial)):
            self.refuse(stream, CROWDED)

    def _oversized(self, length: int) -> Refusal:
        return Refusal(8, f"request: the message has {length} octets; at most {self.limits.max_message} are accepted")

    def refuse(self, stream: Stream, why: Refusal) -> None:
        """A message that is too large or compressed."""
        owner = stream.owner
        stream.reset(f.CANCEL)
        if owner is not None:
            owner.lost(why.message)

    def _remote_end(self, stream: Stream) -> None:
        if stream.owner is not None:
            stream.owner.half_closed()
        self.ended(stream)

    def knew(self, stream_id: int) -> bool:
        """Whether this stream was once open."""
        return stream_id <= self.last_peer_stream

    def _on_headers_frame(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & f.PADDED:
            payload = unpadded(payload)
        if flags & f.PRIORITISED:
            if len(payload) < 5:
                raise ProtocolError(f.FRAME_SIZE_ERROR, "headers shorter than their priority")
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
                self._noisy()
                return  # reset by us while this was under way
            stream = self.open_stream(stream_id, headers)
            if stream is None:
                return
        else:
            if stream.remote_ended:
                raise ProtocolError(f.PROTOCOL_ERROR, "headers after the end of a stream")
            self._noisy()
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
            self._all_wider = True
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self.knew(stream_id):
                raise ProtocolError(f.PROTOCOL_ERROR, "window update of an idle stream")
            return
        stream.window += step
        if not step or stream.window > f.MAX_WINDOW:
            owner = stream.owner
            stream.reset(f.FLOW_CONTROL_ERROR)
            if owner is not None:
                owner.lost("stream window out of range")
        elif stream.held is not None:
            self._wider[stream_id] = stream

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._noisy(1 + len(self.streams) // 16)
        if stream_id:
            raise ProtocolError(f.PROTOCOL_ERROR, "settings on a stream")
        if flags & f.ACK:
            if payload:
                raise ProtocolError(f.FRAME_SIZE_ERROR, "settings acknowledged with a payload")
            return
        if len(payload) % 6:
            raise ProtocolError(f.FRAME_SIZE_ERROR, "settings of a broken size")
        initial = self.peer_initial_window
        for key, value in f.SETTING.iter_unpack(payload):
            if key == f.INITIAL_WINDOW_SIZE:
                if value > f.MAX_WINDOW:
                    raise ProtocolError(f.FLOW_CONTROL_ERROR, "initial window out of range")
                initial = value
        step, self.peer_initial_window = initial - self.peer_initial_window, initial
        if step:
            for stream in self.streams.values():
                stream.window += step
                if stream.window > f.MAX_WINDOW:
                    raise ProtocolError(f.FLOW_CONTROL_ERROR, "stream window out of range")
            self._all_wider = True
        self.write(f.frame(f.SETTINGS, f.ACK, 0))
        self.on_settings()

    def on_settings(self) -> None:
        """The peer's settings have come."""

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(f.FRAME_SIZE_ERROR, "reset of another size than 4")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or not self.knew(stream_id):
                raise ProtocolError(f.PROTOCOL_ERROR, "reset of an idle stream")
            return
        owner = stream.owner
        self.close_stream(stream)
        if owner is not None:
            owner.lost("reset by the peer")
        self.count_reset()

    def count_reset(self) -> None:
        """Streams that came to nothing, by the peer's doing. A rate of them is an attack; a gateway's users leave all day."""
        now = self.loop.time()
        self._resets = max(0.0, self._resets - (now - self._reset_at) * self.limits.resets_per_s) + 1
        self._reset_at = now
        if self._resets > self.limits.max_resets:
            raise ProtocolError(f.ENHANCE_YOUR_CALM, "too many streams reset")

    def on_ended(self) -> None:
        self._resets = max(0.0, self._resets - 2)
