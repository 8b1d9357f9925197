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
from .check import changed_fact, hello_fault, report_fault
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
        on_seen: Callable[[bytes], None] = lambda hashes: None,
    ) -> None:
        self.fleet = fleet
        self.clock = clock
        self.model = model
        self.gaps = gaps or Count()
        self.on_joined = on_joined
        self.on_seen = on_seen
        self.welcome = RouterNotice(welcome=Welcome(router_id=router_id)).SerializeToString()
        self.streams: dict[int, JoinStream] = {}  # by slot: the stream that speaks for the member now

    def join(self, call: Call) -> Receiver:
        return JoinStream(self, call)


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
        fault = report_fault(kind, report)
        if fault:
            self._refuse(fault)
            return
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
        elif kind == "seen":
            front.on_seen(report.seen.hashes)
        elif kind == "draining":
            event(log, "worker draining", worker=member.name, reason=report.draining.reason)
            fleet.drain(member, report.draining.reason)

    def _hello(self, hello: Hello) -> None:
        front = self.front
        fault, known = hello_fault(hello, front.model), front.fleet.known(hello)
        if not fault and known is not None:
            fault = changed_fact(known.hello, hello)
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
