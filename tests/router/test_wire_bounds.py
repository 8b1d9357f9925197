"""What a peer that keeps to HTTP/2's letter and means harm can make this process hold or do: each known attack, on a bare
connection with a transport that keeps count."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from fuzz_wire import Pipe

from penstock_router.wire import frames as f
from penstock_router.wire import hpack
from penstock_router.wire.client import ClientConnection, connect
from penstock_router.wire.server import Call, Server, ServerConnection
from penstock_router.wire.unary import unary

PATH = b"/t.T/Echo"


class Kept:
    """A method that says nothing and remembers how it ended."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.ended: list[str] = []
        self.heard: list[bytes] = []

    def message(self, data: bytes) -> None:
        self.heard.append(data)

    def half_closed(self) -> None:
        pass

    def cancelled(self, reason: str) -> None:
        self.ended.append(reason)

    def writable(self) -> None:
        pass


class Peer:
    """A server's connection and its end of the wire."""

    def __init__(self, *, reads: bool = True, limits: f.Limits | None = None, server: Server | None = None) -> None:
        self.calls: list[Kept] = []
        self.server = server or Server(limits or f.Limits())
        self.server.add("t.T", {"Echo": self._call, "Unary": unary(_never)})
        self.pipe = Pipe(reads)
        self.connection = ServerConnection(self.server)
        self.pipe.protocol = self.connection
        self.connection.connection_made(self.pipe)
        self.says(f.PREFACE + f.settings({}))

    def _call(self, call: Call) -> Kept:
        self.calls.append(Kept(call))
        return self.calls[-1]

    def says(self, data: bytes) -> None:
        for at in range(0, len(data), 1 << 18):
            if not self.pipe.closed:
                self.connection.data_received(data[at : at + (1 << 18)])

    def opens(self, stream: int, path: bytes = PATH, flags: int = f.END_HEADERS) -> None:
        self.says(f.frame(f.HEADERS, flags, stream, block(path)))

    def goaway(self) -> int:
        """The code it was closed with; -1: it was not."""
        self.connection.flush()
        at, code, written = 0, -1, bytes(self.pipe.written)
        while at + 9 <= len(written):
            head, _, _ = f.HEAD.unpack_from(written, at)
            if head & 0xFF == f.GOAWAY:
                code = f.U32.unpack_from(written, at + 13)[0]
            at += 9 + (head >> 8)
        return code


async def _never(call: Call, data: bytes) -> None:
    await asyncio.Event().wait()


def block(path: bytes = PATH) -> bytes:
    return hpack.encode([(b":method", b"POST"), (b":path", path), (b"content-type", b"application/grpc")])


def message(data: bytes) -> bytes:
    return f.PREFIX.pack(0, len(data)) + data


STREAM_ERRORS = {
    "settings on a stream": (f.frame(f.SETTINGS, 0, 1), f.PROTOCOL_ERROR),
    "settings acknowledged with a payload": (f.frame(f.SETTINGS, f.ACK, 0, b"\0" * 6), f.FRAME_SIZE_ERROR),
    "ping on a stream": (f.frame(f.PING, 0, 1, b"\0" * 8), f.PROTOCOL_ERROR),
    "goaway on a stream": (f.frame(f.GOAWAY, 0, 1, b"\0" * 8), f.PROTOCOL_ERROR),
    "short goaway": (f.frame(f.GOAWAY, 0, 0, b"\0" * 7), f.FRAME_SIZE_ERROR),
    "short reset": (f.frame(f.RST_STREAM, 0, 1, b"\0" * 3), f.FRAME_SIZE_ERROR),
    "headers shorter than their priority": (f.frame(f.HEADERS, f.PRIORITISED | f.END_HEADERS, 1, b"\0" * 4), f.FRAME_SIZE_ERROR),
    "window of an idle stream": (f.frame(f.WINDOW_UPDATE, 0, 9, f.U32.pack(1)), f.PROTOCOL_ERROR),
    "a table entry repeated without end": (
        f.frame(f.HEADERS, f.END_HEADERS, 1, b"\x40\x01a" + hpack.encode_integer(3000, 7, 0) + b"v" * 3000 + b"\xbe" * 6000),
        f.COMPRESSION_ERROR,
    ),
    "pings without end": (f.frame(f.PING, 0, 0, b"\0" * 8) * 10_001, f.ENHANCE_YOUR_CALM),
    "settings without end": (f.settings({f.INITIAL_WINDOW_SIZE: 1}) * 10_001, f.ENHANCE_YOUR_CALM),
    "priorities without end": (f.frame(f.PRIORITY, 0, 1, b"\0" * 5) * 10_001, f.ENHANCE_YOUR_CALM),
    "empty data without end": (
        f.frame(f.HEADERS, f.END_HEADERS, 1, block()) + f.frame(f.DATA, 0, 1) * 10_001, f.ENHANCE_YOUR_CALM,
    ),
    "trailers without end": (f.frame(f.HEADERS, f.END_HEADERS, 1, block()) * 10_003, f.ENHANCE_YOUR_CALM),
    "unknown methods without end": (
        b"".join(f.frame(f.HEADERS, f.END_HEADERS, i, block(b"/none")) for i in range(1, 12_000, 2)), f.ENHANCE_YOUR_CALM,
    ),
    "an initial window that takes a stream's beyond the most": (
        f.frame(f.HEADERS, f.END_HEADERS, 1, block()) + f.frame(f.WINDOW_UPDATE, 0, 1, f.U32.pack(2**31 - 1 - 65_535))
        + f.settings({f.INITIAL_WINDOW_SIZE: 65_536}),
        f.FLOW_CONTROL_ERROR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_such_a_peer_is_told_and_closed(name: str) -> None:
    data, code = STREAM_ERRORS[name]
    peer = Peer()
    peer.says(data)
    assert peer.goaway() == code and peer.pipe.closed
    assert not peer.connection.streams and peer.server.room.held == 0
    assert all(len(call.ended) == 1 for call in peer.calls)


async def test_data_beyond_the_stream_s_window_is_refused() -> None:
    peer = Peer(limits=f.Limits(stream_window=100_000))
    peer.opens(1)
    peer.says(f.frame(f.DATA, 0, 1, b"\0\1\0\0\0" + b"x" * 16_000) * 3)
    assert peer.goaway() == -1
    half = f.frame(f.DATA, 0, 1, b"x" * 16_000)
    peer.connection.streams[1].unacked = 100_000  # as if nothing had been given back
    peer.says(half)
    assert peer.goaway() == f.FLOW_CONTROL_ERROR


async def test_settings_with_thousands_of_open_streams_cost_what_their_octets_cost() -> None:
    """Each entry of a frame once made a walk over every stream."""
    peer = Peer(limits=f.Limits(max_streams=4096))
    for stream in range(1, 8192, 2):
        peer.opens(stream)
    entries = f.SETTING.pack(f.INITIAL_WINDOW_SIZE, 1) + f.SETTING.pack(f.INITIAL_WINDOW_SIZE, 70_000)
    one = f.frame(f.SETTINGS, 0, 0, entries * 1300)
    began = time.thread_time()
    peer.says(one)
    assert time.thread_time() - began < 1.0  # 2,600 walks over 4,096 streams take several
    assert {stream.window for stream in peer.connection.streams.values()} == {70_000}
    peer.says(f.settings({f.INITIAL_WINDOW_SIZE: 1}) * 60)
    assert peer.goaway() == f.ENHANCE_YOUR_CALM


@pytest.mark.slow
async def test_a_peer_that_asks_without_reading_is_closed_before_its_answers_fill_the_memory() -> None:
    """Refusals quote the path: 12 octets in could bring thousands out."""
    peer = Peer(reads=False, limits=f.Limits(max_resets=1 << 30))
    named = b"\x40\x05:path" + hpack.encode_integer(3000, 7, 0) + b"/" + b"p" * 2999 + b"\x40\x0ccontent-type\x10application/grpc"
    peer.says(f.frame(f.HEADERS, 5, 1, named))
    for first in range(3, 60_000, 2_000):
        peer.says(b"".join(f.frame(f.HEADERS, 5, stream, b"\xbf\xbe") for stream in range(first, first + 2_000, 2)))
    assert peer.pipe.closed
    limits = peer.server.limits
    assert peer.pipe.most <= 3 * limits.write_high_water + limits.max_control


async def test_window_updates_look_at_what_waits_once_for_each_read() -> None:
    peer = Peer()
    peer.says(f.settings({f.INITIAL_WINDOW_SIZE: 0}))
    for stream in range(1, 2000, 2):
        peer.opens(stream)
    for call in peer.calls:
        call.call.send(b"held")
    looks = 0
    drain = type(peer.connection.streams[1]).drain

    def counted(stream: Any) -> None:
        nonlocal looks
        looks += 1
        drain(stream)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(peer.connection.streams[1]), "drain", counted)
        peer.says(f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(1)) * 500)
        assert looks <= 1000
        looks = 0
        peer.says(f.frame(f.WINDOW_UPDATE, 0, 1, f.U32.pack(3)) * 500)
        assert looks == 1


async def test_incomplete_messages_share_a_bound_over_connections() -> None:
    limits = f.Limits(max_partial=200_000, max_message=1 << 20)
    server = Server(limits)
    peers = [Peer(server=server) for _ in range(3)]
    part = f.PREFIX.pack(0, 1 << 20)
    for peer in peers[:2]:
        peer.opens(1)
        peer.says(b"".join(f.frame(f.DATA, 0, 1, chunk) for chunk in (part + b"x" * 16_000, *[b"x" * 16_000] * 5)))
    assert 190_000 < server.room.held <= 200_000
    peers[2].opens(1)
    peers[2].says(f.frame(f.DATA, 0, 1, part + b"x" * 16_000))
    await asyncio.sleep(0)
    assert b"grpc-status\x018" in bytes(peers[2].pipe.written)
    assert [call.ended for call in peers[2].calls] == [[], [], ["refused message"]]  # all came to the last one's method
    assert server.room.held <= 200_000
    peers[0].connection.connection_lost(None)
    peers[1].says(f.frame(f.RST_STREAM, 0, 1, b"\0" * 4))
    assert server.room.held == 0


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    server = Server(f.Limits(max_connections=2))
    peers = [Peer(server=server) for _ in range(3)]
    assert [peer.pipe.closed for peer in peers] == [False, False, True]
    assert peers[2].goaway() == f.ENHANCE_YOUR_CALM
    peers[0].connection.connection_lost(None)
    assert not Peer(server=server).pipe.closed


async def test_a_request_that_does_not_arrive_and_an_end_that_is_not_taken_are_given_up() -> None:
    peer = Peer(limits=f.Limits(patience_s=0.0, stream_window=1 << 20))
    peer.says(f.settings({f.INITIAL_WINDOW_SIZE: 0}))
    peer.opens(1, b"/t.T/Unary")
    peer.says(f.frame(f.DATA, 0, 1, b"\0\0\0"))
    peer.opens(3)
    peer.calls[0].call.send(b"an answer without room")
    peer.calls[0].call.finish()
    peer.opens(5)  # a stream of messages may be silent for as long as it likes
    await asyncio.sleep(0.01)
    peer.connection.on_tick()
    assert list(peer.connection.streams) == [5]
    assert peer.server.room.held == 0
    peer.connection.flush()
    assert b"grpc-status\x014" in bytes(peer.pipe.written)


async def test_an_answered_call_needs_nothing_more_of_its_client() -> None:
    """Its last octets wait for a window; the stream once stayed open until the client ended its side as well."""
    peer = Peer()
    peer.says(f.settings({f.INITIAL_WINDOW_SIZE: 4}))
    peer.opens(1)
    peer.calls[0].call.send(b"longer than the window")
    peer.calls[0].call.finish()
    assert list(peer.connection.streams) == [1]
    peer.says(f.frame(f.WINDOW_UPDATE, 0, 1, f.U32.pack(1000)))
    assert not peer.connection.streams


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, "🦀%\n" * 10_000])
async def test_trailers_fit_what_clients_take_however_long_the_message(text: str) -> None:
    peer = Peer()
    peer.opens(1)
    peer.calls[0].call.finish(grpc.StatusCode.ABORTED, text, (("grpc-status-details-bin", b"d" * 20_000),))
    peer.connection.flush()
    written, at, largest = bytes(peer.pipe.written), 0, 0
    while at < len(written):
        size = f.HEAD.unpack_from(written, at)[0] >> 8
        largest, at = max(largest, size), at + 9 + size
    assert largest < 8 * 1024 and b"grpc-status\x0210" in written


def test_huffman_coded_text_decodes_at_a_bounded_cost() -> None:
    data = bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff") * 4
    assert hpack.huffman_decode(data[:12]) == b"www.example.com"
    began = time.thread_time()
    for _ in range(20):
        hpack.huffman_decode(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")[:11] * 1_000 + b"\xff")
    assert time.thread_time() - began < 2.0  # 220 KB; bit by bit it took several times that


@pytest.mark.parametrize("status", [b"9" * 5000, b"\xb2", b"-1", b"", b"99"])
async def test_whatever_status_a_server_says_the_call_ends_once(status: bytes) -> None:
    ends: list[tuple[grpc.StatusCode, str]] = []

    class Heard:
        message: Callable[[bytes], None] = lambda self, data: None

        def done(self, code: grpc.StatusCode, text: str) -> None:
            ends.append((code, text))

    connection = ClientConnection("t:1", f.Limits())
    connection.connection_made(Pipe(True))
    connection.call("/t.T/X", Heard())
    trailers = hpack.encode([(b":status", b"200"), (b"grpc-status", status)])
    connection.data_received(f.settings({}) + f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, trailers))
    assert [code for code, _ in ends] == [grpc.StatusCode.UNKNOWN]
    connection.close()


async def test_a_connect_that_is_cancelled_after_its_socket_opened_writes_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(True)

    async def opened_then_cancelled(factory: Callable[[], ClientConnection], host: str, port: int) -> None:
        factory().connection_made(pipe)
        raise asyncio.CancelledError  # uvloop closes the transport here, and tells no protocol

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", opened_then_cancelled)
    with pytest.raises(asyncio.CancelledError):
        await connect("127.0.0.1:1", limits=f.Limits(keepalive_s=0.01))
    await asyncio.sleep(0.05)
    assert pipe.closed
    assert not pipe.written
