"""The gRPC server against grpcio's own clients, and against peers that break the rules."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fleet_fake import until

from penstock_router.wire import frames as f
from penstock_router.wire import hpack
from penstock_router.wire.server import Call, Server
from penstock_router.wire.unary import unary

LIMITS = f.Limits(max_message=300_000, max_streams=8, max_resets=50, write_high_water=1 << 16, max_control=1 << 16)


class Echo:
    """Bidirectional: says back what it hears."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.ended: list[str] = []
        ECHOES.append(self)

    def message(self, data: bytes) -> None:
        if data == b"boom":
            raise RuntimeError("a defect")
        self.call.send(data)

    def half_closed(self) -> None:
        self.call.finish()

    def cancelled(self, reason: str) -> None:
        self.ended.append(reason)

    def writable(self) -> None:
        pass


class Flood(Echo):
    """Answers one message with as many as it says, holding back while the client does not read."""

    left = 0

    def message(self, data: bytes) -> None:
        self.left = int(data)

    def half_closed(self) -> None:
        self.writable()

    def writable(self) -> None:
        while self.left and not self.call.stalled:
            self.left -= 1
            self.call.send(b"x" * 10_000)
        if not self.left:
            self.call.finish()


ECHOES: list[Echo] = []


async def shout(call: Call, data: bytes) -> None:
    if data == b"wait":
        await asyncio.sleep(30)
    if data == b"boom":
        raise RuntimeError("a defect")
    if data == b"fault":
        call.finish(grpc.StatusCode.NOT_FOUND, "größe: 100 %\n", (("x-bin", b"\x00\xff"), ("plain", "text")))
        return
    await asyncio.sleep(0)
    call.send(data.upper())
    call.finish()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    ECHOES.clear()
    made = Server(LIMITS)
    made.add("t.T", {"Shout": unary(shout), "Echo": Echo, "Flood": Flood})
    made.port = await made.listen("127.0.0.1:0")  # type: ignore[attr-defined]
    yield made
    await made.stop()


def channel(server: Any, **options: Any) -> Any:
    given = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{k}", v) for k, v in options.items())]
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=given)


async def test_a_unary_call_is_answered(server: Server) -> None:
    async with channel(server) as c:
        assert await c.unary_unary("/t.T/Shout")(b"hello") == b"HELLO"
        many = await asyncio.gather(*(c.unary_unary("/t.T/Shout")(b"n%d" % i) for i in range(8)))
    assert many == [b"N%d" % i for i in range(8)]


async def test_a_status_its_message_and_metadata_arrive(server: Server) -> None:
    async with channel(server) as c:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.unary_unary("/t.T/Shout")(b"fault")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "größe: 100 %\n")
    assert dict(caught.value.trailing_metadata()) == {"x-bin": b"\x00\xff", "plain": "text"}  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 100_000, 299_999])
async def test_messages_of_any_size_go_both_ways(server: Server, size: int) -> None:
    async with channel(server) as c:
        call = c.stream_stream("/t.T/Echo")()
        for _ in range(3):
            await call.write(b"m" * size)
            assert await call.read() == b"m" * size
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_reader_that_stops_holds_the_writer_back(server: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 12)
    message = f.PREFIX.pack(0, 4) + b"4000"
    flood = hpack.encode([(b":path", b"/t.T/Flood"), (b"content-type", b"application/grpc")])
    writer.write(START + headers(1, flood) + f.frame(f.DATA, f.END_STREAM, 1, message))
    await until(lambda: bool(ECHOES) and ECHOES[0].call.stalled)
    assert ECHOES[0].left == 4000 - 7  # type: ignore[attr-defined]  # six whole messages and a part fit into 65,535
    grant = f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(1 << 30)) + f.frame(f.WINDOW_UPDATE, 0, 1, f.U32.pack(1 << 30))
    writer.write(grant)
    await asyncio.sleep(0.1)
    assert ECHOES[0].left > 0  # type: ignore[attr-defined]  # now it is the socket that is full
    size, tail = 0, b""
    async with asyncio.timeout(5):
        while not tail.endswith(b"grpc-status\x010"):
            data = await reader.read(1 << 20)
            size, tail = size + len(data), tail[-64:] + data
    assert size > 40_000_000
    await gone(writer)


async def test_a_client_that_leaves_is_noticed(server: Server) -> None:
    async with channel(server) as c:
        call = c.stream_stream("/t.T/Echo")()
        await call.write(b"hi")
        await call.read()
        call.cancel()
        await until(lambda: ECHOES[0].ended == ["reset by the peer"])
        other = c.stream_stream("/t.T/Echo")()
        await other.write(b"hi")
        await other.read()
    await until(lambda: len(ECHOES[1].ended) == 1)
    assert server.open_calls == 0


async def test_the_deadline_is_the_servers_too(server: Server) -> None:
    async with channel(server) as c:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.unary_unary("/t.T/Shout")(b"wait", timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: server.open_calls == 0)


@pytest.mark.parametrize("method", ["Shout", "Echo"])
async def test_a_defect_is_internal_and_says_nothing(server: Server, method: str) -> None:
    async with channel(server) as c:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.stream_unary(f"/t.T/{method}")(iter([b"boom"]))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert await c.unary_unary("/t.T/Shout")(b"on") == b"ON"


async def test_unknown_methods_are_unimplemented(server: Server) -> None:
    async with channel(server) as c:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.unary_unary("/t.T/None")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_too_large_a_message_is_refused(server: Server) -> None:
    async with channel(server) as c:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.unary_unary("/t.T/Shout")(b"m" * 300_001)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await c.unary_unary("/t.T/Shout")(b"on") == b"ON"


async def test_compressed_messages_are_refused_by_name(server: Server) -> None:
    async with channel(server) as c:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.unary_unary("/t.T/Shout")(b"m" * 5000, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_beyond_the_limit_wait_or_are_refused(server: Server) -> None:
    async with channel(server) as c:
        waiting = [asyncio.ensure_future(c.unary_unary("/t.T/Shout")(b"wait", timeout=0.3).code()) for _ in range(8)]
        await until(lambda: server.open_calls == 8)
        extra = asyncio.ensure_future(c.unary_unary("/t.T/Shout")(b"on"))
        await asyncio.gather(*waiting)
        assert await extra == b"ON"


async def test_stopping_ends_what_is_open_and_refuses_what_is_new(server: Server) -> None:
    async with channel(server) as c:
        call = c.stream_stream("/t.T/Echo")()
        await call.write(b"hi")
        await call.read()
        await server.stop(0.05)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert ECHOES[0].ended == ["shutting down"]
    assert server.connections == set()


async def test_a_blocking_client_is_served(server: Any) -> None:
    def ask() -> list[bytes]:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as c:
            return list(c.stream_stream("/t.T/Echo")(iter([b"a", b"b"])))

    assert await asyncio.to_thread(ask) == [b"a", b"b"]


# Peers that break the rules.

START = f.PREFACE + f.settings({})
HEADERS = hpack.encode(
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.T/Echo"), (b"content-type", b"application/grpc")]
)


def headers(stream: int, block: bytes = HEADERS, flags: int = f.END_HEADERS) -> bytes:
    return f.frame(f.HEADERS, flags, stream, block)


async def gone(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def talk(server: Any, data: bytes, *, wait_s: float = 2.0) -> bytes:
    """Everything the server says until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        async with asyncio.timeout(wait_s):
            return await reader.read()
    finally:
        await gone(writer)


def goaway_code(answer: bytes) -> int:
    position, code = 0, -1
    while position < len(answer):
        head, _, _ = f.HEAD.unpack_from(answer, position)
        if head & 0xFF == f.GOAWAY:
            code = f.U32.unpack_from(answer, position + 13)[0]
        position += 9 + (head >> 8)
    return code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", f.PROTOCOL_ERROR),
        (START + f.HEAD.pack((1 << 24) - 256, 0, 1) + b"x", f.FRAME_SIZE_ERROR),
        (START + headers(2), f.PROTOCOL_ERROR),
        (START + headers(0), f.PROTOCOL_ERROR),
        (START + headers(1, b"\xff\xff\xff\xff\xff\xff"), f.COMPRESSION_ERROR),
        (START + f.frame(f.DATA, 0, 1, b"x"), f.PROTOCOL_ERROR),
        (START + headers(1, flags=0) + f.frame(f.PING, 0, 0, b"x" * 8), f.PROTOCOL_ERROR),
        (START + f.frame(f.CONTINUATION, 0, 1, b"x"), f.PROTOCOL_ERROR),
        (START + headers(1, flags=0) + f.frame(f.CONTINUATION, 0, 1, b"x" * 9000) * 2, f.ENHANCE_YOUR_CALM),
        (START + headers(1, b"", flags=0) + f.frame(f.CONTINUATION, 0, 1) * 100, f.ENHANCE_YOUR_CALM),
        (START + headers(1) + f.frame(f.DATA, f.END_STREAM, 1) + f.frame(f.RST_STREAM, 0, 3, b"\0" * 4), f.PROTOCOL_ERROR),
        (START + f.frame(f.PING, 0, 0, b"short"), f.FRAME_SIZE_ERROR),
        (START + f.frame(f.SETTINGS, 0, 0, b"odd"), f.FRAME_SIZE_ERROR),
        (START + f.settings({f.INITIAL_WINDOW_SIZE: 2**31}), f.FLOW_CONTROL_ERROR),
        (START + f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(0)), f.FLOW_CONTROL_ERROR),
        (START + f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(2**31 - 1)) * 2, f.FLOW_CONTROL_ERROR),
        (START + f.frame(f.PUSH_PROMISE, 0, 1, b"x" * 8), f.PROTOCOL_ERROR),
        (START + headers(1) + f.frame(f.DATA, f.PADDED, 1, b"\x09xx"), f.PROTOCOL_ERROR),
        (
            START + b"".join(headers(i) + f.frame(f.RST_STREAM, 0, i, f.U32.pack(f.CANCEL)) for i in range(1, 121, 2)),
            f.ENHANCE_YOUR_CALM,
        ),
    ],
)
async def test_a_peer_that_breaks_the_rules_is_told_and_closed(server: Server, data: bytes, code: int) -> None:
    assert goaway_code(await talk(server, data)) == code
    assert server.open_calls == 0
    assert all(len(echo.ended) <= 1 for echo in ECHOES)


async def test_frames_cut_anywhere_are_put_together(server: Any) -> None:
    message = f.PREFIX.pack(0, 5) + b"hello"
    data = START + headers(1, flags=0)[:9] + HEADERS  # headers, then the rest in a continuation
    data = START + headers(1, HEADERS[:7], flags=0) + f.frame(f.CONTINUATION, f.END_HEADERS, 1, HEADERS[7:])
    data += f.frame(f.DATA, f.PADDED, 1, b"\x03" + message[:4] + b"\0\0\0") + f.frame(f.DATA, f.END_STREAM, 1, message[4:])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for octet in data:
        writer.write(bytes((octet,)))
        await writer.drain()
    async with asyncio.timeout(2):
        answer = await reader.readuntil(b"hello")
    assert b"application/grpc" in answer
    await gone(writer)


async def test_pings_nobody_reads_the_answers_of_close_the_connection(server: Any) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", server.port))
    await loop.sock_sendall(sock, START)
    with pytest.raises((ConnectionError, BrokenPipeError)):
        async with asyncio.timeout(5):
            for _ in range(2000):
                await loop.sock_sendall(sock, f.frame(f.PING, 0, 0, b"p" * 8) * 500)
    sock.close()
    await until(lambda: server.connections == set())


async def test_silence_after_a_ping_is_death() -> None:
    made = Server(f.Limits(keepalive_s=0.05, keepalive_timeout_s=0.05))
    port = await made.listen("127.0.0.1:0")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(START)
    async with asyncio.timeout(2):
        answer = await reader.read()
    assert b"penstock" in answer
    await gone(writer)
    await until(lambda: made.connections == set())
    await made.stop()
