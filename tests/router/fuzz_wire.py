"""HTTP/2 frames against our own transport: the client port, the report port and the client side, in process.

Each case is a connection: valid openings, then random, mutated, truncated and repeated frames, cut anywhere, with a peer
that reads or does not. Afterwards nothing may be held, nothing may have been raised, every octet written must be a frame,
and what is written may not exceed what was sent by more than the stated bounds.
"""

import asyncio
import random
import sys
import time
from typing import Any

import grpc
from fuzz_core import Findings, LogTrap, StubCall, VirtualRouter, command_line, hello, mutated, quiet

from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.fleet_pb2 import LoadReport, WorkerReport
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_proto.v1.worker_pb2 import LegOutput, StartLeg, StepOutputs
from penstock_router.wire import frames as f
from penstock_router.wire import hpack
from penstock_router.wire.client import ClientConnection
from penstock_router.wire.connection import Connection
from penstock_router.wire.server import ServerConnection

PATHS = (
    b"/penstock.v1.Inference/Generate", b"/penstock.v1.Inference/Generate", b"/penstock.v1.Inference/Status",
    b"/penstock.v1.Inference/ListModels", b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"/penstock.v1.Fleet/Join", b"/none", b"",
)  # fmt: skip
ASK = GenerateRequest(model="tiny", prompt="abc", sampling=Sampling(max_tokens=3)).SerializeToString()
REPORTS = (WorkerReport(hello=hello("fuzz")).SerializeToString(), WorkerReport(load=LoadReport(running=1)).SerializeToString())
MAX_UNREAD = 8 << 20  # octets that a connection may have queued for a peer that does not read
MAX_STALL_S = 2.0  # of one read of 64 KiB; generous, for a machine shared by many


class Pipe(asyncio.Transport):
    """A transport that keeps count; a peer that does not read makes its buffer grow."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.protocol: Connection | None = None
        self.written = bytearray()
        self.buffered = self.most = 0
        self.high = 1 << 16
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or self.high

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def write(self, data: Any) -> None:
        if self.closed:
            return
        self.written += data
        if not self.reads:
            self.buffered += len(data)
            self.most = max(self.most, self.buffered)
            if self.buffered > self.high and self.protocol is not None and not self.protocol.paused:
                self.protocol.pause_writing()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.buffered = 0

    abort = close


def frame(rng: random.Random, stream: int) -> bytes:
    """Any frame, mostly of a right size."""
    kind = rng.choice((0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, rng.randrange(256)))
    flags = rng.choice((0, 1, 4, 5, 8, 13, 32, 37, rng.randrange(256)))
    if kind == f.DATA:
        body = rng.choice((ASK, *REPORTS, b"", rng.randbytes(rng.randrange(60))))
        payload = rng.choice(
            (f.PREFIX.pack(0, len(body)) + body, f.PREFIX.pack(rng.randrange(2), rng.choice((0, 5, 2**31, 70_000_000))), body)
        )
    elif kind in (f.HEADERS, f.CONTINUATION):
        payload = rng.choice((block(rng), rng.randbytes(rng.randrange(80)), mutated(block(rng), rng)))
    elif kind == f.SETTINGS:
        payload = b"".join(
            f.SETTING.pack(rng.choice((1, 2, 3, 4, 4, 5, 6, 99)), rng.choice((0, 1, 65_535, 2**31 - 1, 2**31, 2**32 - 1)))
            for _ in range(rng.randrange(4))
        )
        stream = rng.choice((0, 0, 0, stream))
    elif kind == f.WINDOW_UPDATE:
        payload = f.U32.pack(rng.choice((0, 1, 100, 2**16, 2**30, 2**31 - 1, 2**32 - 1)))
        stream = rng.choice((0, stream))
    elif kind in (f.PING, f.GOAWAY):
        payload, stream = rng.randbytes(rng.choice((8, 8, 8, 4, 20))), rng.choice((0, 0, 0, stream))
    else:
        payload = rng.randbytes(rng.choice((4, 4, 5, 0, 9)))
    return f.frame(kind, flags, rng.choice((stream, stream, stream, 0, 2**31 - 1, rng.randrange(40))), payload)


def block(rng: random.Random) -> bytes:
    fields: list[tuple[bytes, bytes]] = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", rng.choice(PATHS)), (b"te", b"trailers"),
        (b"content-type", rng.choice((b"application/grpc", b"application/grpc+proto", b"text/html"))),
    ]  # fmt: skip
    if rng.random() < 0.2:
        fields.append((b"grpc-timeout", rng.choice((b"1S", b"0n", b"99999999H", b"-1S", b"", b"1", b"9" * 40 + b"S", b"10m"))))
    if rng.random() < 0.1:
        fields.append((b"x-" + rng.randbytes(3).hex().encode(), rng.randbytes(rng.choice((1, 100, 5000, 20_000)))))
    if rng.random() < 0.1:
        rng.shuffle(fields)
    return hpack.encode(fields)


def call(rng: random.Random, stream: int) -> bytes:
    """A whole, valid call."""
    path = rng.choice(PATHS)
    body = rng.choice(REPORTS) if path.endswith(b"Join") else ASK if path.endswith(b"Generate") else b""
    if rng.random() < 0.15:
        body = mutated(body, rng)
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"content-type", b"application/grpc")]
    message = f.PREFIX.pack(0, len(body)) + body
    ends = rng.choice((0, f.END_STREAM, f.END_STREAM))
    return f.frame(f.HEADERS, f.END_HEADERS, stream, hpack.encode(fields)) + f.frame(f.DATA, ends, stream, message)


def storm(rng: random.Random, stream: int) -> bytes:
    """The floods that HTTP/2 servers are known to fall to."""
    many = rng.choice((50, 3_000))
    huge = b"\x40\x01a" + hpack.encode_integer(4000, 7, 0) + b"v" * 4000
    match rng.randrange(9):
        case 0:  # rapid reset
            one = hpack.encode([(b":path", PATHS[0]), (b"content-type", b"application/grpc")])
            return b"".join(
                f.frame(f.HEADERS, 4, stream + 2 * i, one) + f.frame(f.RST_STREAM, 0, stream + 2 * i, b"\0\0\0\x08")
                for i in range(many)
            )
        case 1:
            return f.frame(f.HEADERS, 0, stream, b"") + f.frame(f.CONTINUATION, 0, stream, b"") * many
        case 2:
            return f.settings({f.INITIAL_WINDOW_SIZE: 70_000, f.MAX_HEADER_LIST_SIZE: 1}) * many
        case 3:
            return f.frame(f.PING, 0, 0, b"12345678") * many
        case 4:  # a table entry of 4 KB, referred to by one octet each
            return f.frame(f.HEADERS, 4, stream, huge + b"\xbe" * rng.choice((2, 5, 4_000)))
        case 5:
            return f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(2**30)) * 3
        case 6:
            return call(rng, stream) + f.frame(f.DATA, 0, stream, b"") * many
        case 7:  # refused calls, answered at length, by a peer that may not read
            named = b"\x40\x05:path" + hpack.encode_integer(3000, 7, 0) + b"/" + b"p" * 2999
            typed = b"\x40\x0ccontent-type" + b"\x10application/grpc"
            first = f.frame(f.HEADERS, 5, stream, named + typed)
            return first + b"".join(f.frame(f.HEADERS, 5, stream + 2 + 2 * i, b"\xbf\xbe") for i in range(many))
        case _:
            return b"".join(call(rng, stream + 2 * i) for i in range(many // 20))


def case_octets(rng: random.Random, client: bool) -> bytes:
    parts = [] if client else [f.PREFACE if rng.random() < 0.98 else mutated(f.PREFACE, rng)]
    parts.append(f.settings({f.INITIAL_WINDOW_SIZE: rng.choice((0, 1, 65_535, 1 << 20))}))
    stream = 1
    for _ in range(rng.choice((1, 3, 10))):
        kind = rng.random()
        if kind < 0.45:
            parts.append(call(rng, stream))
        elif kind < 0.9:
            parts.append(frame(rng, stream))
        elif kind < 0.94:
            parts.append(storm(rng, stream))
            stream += 6_002
        else:
            parts.append(rng.randbytes(rng.randrange(50)))
        stream += rng.choice((0, 2, 2))
    data = b"".join(parts)
    return mutated(data, rng) if rng.random() < 0.3 else data


def answer_octets(rng: random.Random) -> bytes:
    """What a server might say to our client."""
    head = rng.choice((hpack.encode([(b":status", b"200"), (b"content-type", b"application/grpc")]), block(rng)))
    status = rng.choice((b"0", b"13", b"9" * 5000, b"-1", b"\xb2", b"", b"99"))
    trailers = hpack.encode([(b"grpc-status", status), (b"grpc-message", rng.choice((b"", b"%41%zz", b"\xff")))])
    body = StepOutputs(legs=[LegOutput(leg_id=1, token_ids=b"\1\0\0\0")]).SerializeToString()
    data = f.frame(f.HEADERS, 4, 1, head) + f.frame(f.DATA, 0, 1, f.PREFIX.pack(0, len(body)) + body)
    data += f.frame(f.HEADERS, 5, 1, trailers)
    data = f.settings({f.INITIAL_WINDOW_SIZE: 65_535}) + data + b"".join(frame(rng, rng.choice((1, 3))) for _ in range(3))
    return mutated(data, rng) if rng.random() < 0.6 else data


def whole_frames(written: bytes) -> bool:
    at = len(f.PREFACE) if written.startswith(f.PREFACE) else 0
    while at + 9 <= len(written):
        size = f.HEAD.unpack_from(written, at)[0] >> 8
        if size > f.FRAME:
            return False
        at += 9 + size
    return at == len(written)


class Heard:
    """Listener of one call."""

    def __init__(self) -> None:
        self.ends = 0

    def message(self, data: bytes) -> None:
        pass

    def done(self, code: grpc.StatusCode, message: str) -> None:
        self.ends += 1


def answer(link: Any, leg: StartLeg) -> None:
    link.loop = asyncio.get_running_loop()
    out = LegOutput(
        leg_id=leg.leg_id, token_ids=b"a\0\0\0b\0\0\0c\0\0\0", text="abc", chars_sent=3, finish_reason=FinishReason.LENGTH
    )
    link.loop.call_soon(link.message, StepOutputs(legs=[out]).SerializeToString())


class WireFuzz:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.findings = Findings()
        self.virtual = VirtualRouter(answer, stall_s=0.2)
        self.worker = self.virtual.join(hello())

    async def case(self, number: int) -> None:
        rng, found = self.rng, self.findings
        found.cases += 1
        kind = rng.choice(("client port", "client port", "report port", "our client"))
        pipe = Pipe(reads=rng.random() < 0.7)
        heard = [Heard(), Heard()]
        connection: Connection
        if kind == "our client":
            connection = ClientConnection("fuzz:1", f.Limits())
            data = answer_octets(rng)
        else:
            server = self.virtual.router.grpc if kind == "client port" else self.virtual.router.reports
            connection = ServerConnection(server)
            data = case_octets(rng, False)
        pipe.protocol = connection
        connection.connection_made(pipe)
        if isinstance(connection, ClientConnection):
            for each in heard:
                connection.call("/t/T", each).send(b"x")
        await self.feed(connection, pipe, data, number)
        for _ in range(3):
            await asyncio.sleep(0)
        found.outcomes[f"{kind}: {'closed by us' if pipe.closed else 'open'}"] += 1
        connection.connection_lost(None)
        if not whole_frames(bytes(pipe.written)):
            found.fault(f"case {number}: what was written is no sequence of frames")
        if pipe.most > MAX_UNREAD:
            found.fault(f"case {number}: {pipe.most} octets queued for a peer that does not read")
        if connection.streams or connection.blocked:
            found.fault(f"case {number}: streams outlive their connection")
        if isinstance(connection, ClientConnection) and any(each.ends != 1 for each in heard):
            found.fault(f"case {number}: a call heard of its end {[each.ends for each in heard]} times")

    async def feed(self, connection: Connection, pipe: Pipe, data: bytes, number: int) -> None:
        at = 0
        while at < len(data) and not pipe.closed:
            size = self.rng.choice((1, 9, 500, 65_536, 65_536))
            began = time.thread_time()
            try:
                connection.data_received(data[at : at + size])
            except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
                self.findings.fault(f"case {number}: data_received raised {error!r:.200}")
                return
            if time.thread_time() - began > MAX_STALL_S:
                self.findings.fault(f"case {number}: one read took {time.thread_time() - began:.2f} s of CPU")
            at += size
            if self.rng.random() < 0.2:
                await asyncio.sleep(0)

    async def rest(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        if leaks := self.virtual.leaks():
            self.findings.fault(f"after case {self.findings.cases}: held {leaks}")
        self.worker.message(REPORTS[1])  # or it counts as stale beside those that frames made
        stub = StubCall()
        call_ = self.virtual.router.grpc.methods[PATHS[0]](stub)  # type: ignore[arg-type]
        call_.message(ASK)
        for _ in range(10):
            await asyncio.sleep(0)
        if stub.code is not grpc.StatusCode.OK:
            self.findings.fault(f"after case {self.findings.cases}: the next request got {stub.code}: {stub.message}")


async def run(cases: int, seed: int) -> Findings:
    quiet()
    fuzz = WireFuzz(seed)
    with LogTrap(fuzz.findings) as trap:
        for number in range(cases):
            if number == cases // 5:
                fuzz.findings.weigh()
            trap.case = f"{number} of seed {seed}"
            await fuzz.case(number)
            if number % 500 == 499:
                await fuzz.rest()
        await fuzz.rest()
        fuzz.findings.weigh()
        await fuzz.virtual.close()
    return fuzz.findings


if __name__ == "__main__":
    sys.exit(command_line(run))
