"""Fleet.Join: what workers tell this router.

Promise: reports of one stream are applied in the order they came, hello first; a gap in the KV sequence is answered with
Resend at once and the worker's blocks are not believed until its snapshot has come; a stream that breaks the protocol
ends with INVALID_ARGUMENT and takes nothing else with it.
"""

import logging
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError

from penstock_proto.v1.fleet_pb2 import Hello, Resend, RouterNotice, Welcome, WorkerReport

from ..log import event
from ..metrics import Count
from ..wire.server import Call, Receiver
from .fleet import Fleet, Member

log = logging.getLogger("penstock.feed")
RESEND = RouterNotice(resend=Resend()).SerializeToString()


class JoinFront:
    """The Fleet service."""

    def __init__(
        self,
        fleet: Fleet,
        router_id: str,
        clock: Callable[[], float],
        *,
        model: str = "",
        gaps: Count | None = None,
        on_joined: Callable[[Member], None] = lambda member: None,
    ) -> None:
        self.fleet = fleet
        self.clock = clock
        self.model = model
        self.gaps = gaps or Count()
        self.on_joined = on_joined
        self.welcome = RouterNotice(welcome=Welcome(router_id=router_id)).SerializeToString()
        self.streams: dict[int, JoinStream] = {}  # by slot: the stream that speaks for the member now

    def join(self, call: Call) -> Receiver:
        return JoinStream(self, call)


def check(hello: Hello, model: str) -> str:
    """What is wrong with a hello; empty: nothing."""
    if not hello.worker_id or len(hello.worker_id) > 256:
        return "hello.worker_id: must have 1 to 256 characters"
    host, _, port = hello.address.rpartition(":")
    if not host or not port.isdigit():
        return f"hello.address: {hello.address!r} is not host:port"
    if not hello.capacity.block_size or not hello.capacity.max_model_len or not hello.capacity.vocab_size:
        return "hello.capacity: block_size, max_model_len and vocab_size must be above 0"
    if hello.hash.algorithm != "sha256_cbor" or len(hello.hash.root) != 32:
        return "hello.hash: must be sha256_cbor with a root of 32 bytes"
    if not hello.model_digest:
        return "hello.model_digest: must not be empty"
    if model and hello.model != model:
        return f"hello.model: this router serves {model!r}, not {hello.model!r}"
    return ""


class JoinStream:
    """One worker's reports."""

    __slots__ = ("call", "front", "member", "resending")

    def __init__(self, front: JoinFront, call: Call) -> None:
        self.front = front
        self.call = call
        self.member: Member | None = None
        self.resending = False

    def message(self, data: bytes) -> None:
        try:
            report = WorkerReport.FromString(data)
        except DecodeError:
            self._refuse("not a WorkerReport message")
            return
        kind = report.WhichOneof("report")
        member = self.member
        if kind == "hello":
            self._hello(report.hello)
            return
        if member is None:
            self._refuse("hello must come first")
            return
        front, fleet = self.front, self.front.fleet
        if member.gone or front.streams.get(member.slot) is not self:
            return  # a newer stream or incarnation speaks for this worker
        member.heard_at = front.clock()
        if kind == "load":
            fleet.load(member, report.load, member.heard_at)
        elif kind == "delta":
            self._sequence(fleet.delta(member, report.delta))
        elif kind == "snapshot":
            self.resending = False
            self._sequence(fleet.snapshot(member, report.snapshot))
        elif kind == "cost":
            fleet.cost(member, report.cost)
        elif kind == "draining":
            event(log, "worker draining", worker=member.name, reason=report.draining.reason)
            fleet.drain(member, report.draining.reason)

    def _hello(self, hello: Hello) -> None:
        front = self.front
        fault = check(hello, front.model)
        if fault:
            self._refuse(fault)
            return
        member, replaced = front.fleet.hello(hello, front.clock())
        self.member = member
        previous = front.streams.get(member.slot)
        front.streams[member.slot] = self
        if previous is not None and previous is not self:
            previous.call.finish(grpc.StatusCode.ABORTED, "this worker has joined anew")
        event(
            log, "worker joined", worker=member.name, pool=hello.pool, role=hello.role, address=hello.address,
            incarnation=hello.incarnation, slot=member.slot, replaces=replaced is not None,
        )  # fmt: skip
        self.call.send(front.welcome)
        front.on_joined(member)

    def _sequence(self, whole: bool) -> None:
        if whole or self.resending:
            return
        self.resending = True
        self.front.gaps.value += 1
        event(log, "gap in a worker's KV sequence", logging.WARNING, worker=self.member.name if self.member else "")
        self.call.send(RESEND)

    def _refuse(self, message: str) -> None:
        event(log, "worker refused", logging.WARNING, reason=message)
        self.call.finish(grpc.StatusCode.INVALID_ARGUMENT, message)
        self._left("refused")

    def half_closed(self) -> None:
        self._left("left")
        self.call.finish()

    def cancelled(self, reason: str) -> None:
        self._left(reason)

    def writable(self) -> None:
        pass

    def _left(self, reason: str) -> None:
        member, front = self.member, self.front
        self.member = None
        if member is None or member.gone or front.streams.get(member.slot) is not self:
            return
        del front.streams[member.slot]
        event(log, "worker left", logging.WARNING, worker=member.name, reason=reason)
        front.fleet.left(member)
