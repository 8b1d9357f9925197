"""One Worker.Attach per worker incarnation: commands down, engine steps up.

Promise: every leg started here ends in exactly one of its last output or `lost`; commands given in one turn of the loop
leave in one write; while the worker is a member its stream is kept up, with a back-off that never exceeds a second.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_proto.v1.worker_pb2 import (
    AbortLeg,
    AttachHello,
    HandOffLeg,
    KvSource,
    LegOutput,
    RejectKv,
    StartLeg,
    StepOutputs,
    WorkerCommand,
)

from ..log import event
from ..wire.client import ClientCall, ClientConnection, connect
from .fleet import Fleet, Member

log = logging.getLogger("penstock.feed")
ATTACH = "/penstock.v1.Worker/Attach"
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
FINISHES = frozenset(FinishReason.values())


START_TAG = bytes((WorkerCommand.DESCRIPTOR.fields_by_name["start"].number << 3 | 2,))
SAMPLING_TAG = bytes((StartLeg.DESCRIPTOR.fields_by_name["sampling"].number << 3 | 2,))


def _length(size: int) -> bytes:
    out = bytearray()
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def start_command(leg: StartLeg, sampling: bytes) -> bytes:
    """WorkerCommand(start=leg with this serialized sampling), without copying either through messages."""
    body = leg.SerializeToString()
    size = _length(len(sampling))
    return b"".join((START_TAG, _length(len(body) + 1 + len(size) + len(sampling)), body, SAMPLING_TAG, size, sampling))


class Leg(Protocol):
    """Who hears of one leg."""

    def output(self, output: LegOutput) -> None: ...
    def lost(self, reason: str) -> None:
        """The worker or its stream is gone. Nothing follows."""


class Attachment:
    """The link to one member."""

    def __init__(
        self,
        member: Member,
        fleet: Fleet,
        router_id: str,
        on_connected: Callable[[Member, ClientConnection], Awaitable[None]],
        on_broken: Callable[[Member, str], None] = lambda member, reason: None,
    ) -> None:
        self.member = member
        self.legs: dict[int, Leg] = {}
        self.busy_since = 0.0  # when it last got a leg while it had none
        self._fleet = fleet
        self._router_id = router_id
        self._on_connected = on_connected
        self._on_broken = on_broken
        self._call: ClientCall | None = None
        self._broken: asyncio.Future[str] | None = None
        self._task = asyncio.get_running_loop().create_task(self._keep())

    # Commands.

    def start(self, leg_id: int, command: bytes, leg: Leg) -> None:
        """`command` is `start_command`'s. A leg started on a broken link is lost at the next turn of the loop."""
        if not self.legs:
            self.busy_since = time.monotonic()
        self.legs[leg_id] = leg
        self.member.legs = len(self.legs)
        if self._call is None:
            asyncio.get_running_loop().call_soon(self._lose_one, leg_id)
            return
        self._call.send(command)

    def abort(self, leg_id: int) -> None:
        """The leg's further outputs are dropped here, whenever the worker hears of it."""
        if self.ended(leg_id) is not None and self._call is not None:
            self._call.send(WorkerCommand(abort=AbortLeg(leg_id=leg_id)).SerializeToString())

    def hand_off(self, leg_id: int) -> None:
        if leg_id in self.legs and self._call is not None:
            self._call.send(WorkerCommand(hand_off=HandOffLeg(leg_id=leg_id)).SerializeToString())

    def is_silent(self, now: float, lost_after_s: float) -> bool:
        """The worker has said nothing for so long, while legs wait for it."""
        if not self.legs or self._call is None:
            return False
        return now - max(self.member.heard_at, self.busy_since) > lost_after_s

    def leave(self, reason: str) -> None:
        """Its legs go on elsewhere; the link is made anew."""
        self._break(reason)

    def reject_kv(self, kv: KvSource) -> None:
        if self._call is not None:
            self._call.send(WorkerCommand(reject_kv=RejectKv(kv=kv)).SerializeToString())

    def ended(self, leg_id: int) -> Leg | None:
        leg = self.legs.pop(leg_id, None)
        self.member.legs = len(self.legs)
        return leg

    def _lose_one(self, leg_id: int) -> None:
        leg = self.ended(leg_id)
        if leg is not None:
            leg.lost("worker not attached")

    # Listener of the call.

    def message(self, data: bytes) -> None:
        try:
            outputs = StepOutputs.FromString(data)
        except DecodeError:
            event(log, "worker sent malformed step outputs", logging.ERROR, worker=self.member.name)
            self._break("malformed step outputs")
            return
        legs = self.legs
        for output in outputs.legs:
            leg = legs.get(output.leg_id)
            if leg is None:
                continue  # superseded or cancelled while this was under way
            if len(output.token_ids) & 3 or output.finish_reason not in FINISHES:
                event(log, "worker sent a malformed output", logging.ERROR, worker=self.member.name, leg_id=output.leg_id)
                self.abort(output.leg_id)
                leg.lost("malformed output")
                continue
            if output.finish_reason:
                self.ended(output.leg_id)
            try:
                leg.output(output)
            except Exception:
                log.exception("leg handler failed", extra={"fields": {"leg_id": output.leg_id}})
                self.abort(output.leg_id)
                leg.lost("internal error")

    def done(self, code: grpc.StatusCode, message: str) -> None:
        self._break(f"{code.name}: {message}")

    def _break(self, reason: str) -> None:
        """Before anything else happens every leg hears of it."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._fleet.attached(self.member, False)
        legs, self.legs = self.legs, {}
        self.member.legs = 0
        for leg in legs.values():
            leg.lost(reason)
        if call is not None:
            self._on_broken(self.member, reason)
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(reason)

    # Life.

    async def _keep(self) -> None:
        backoff, loop, member = FIRST_BACKOFF_S, asyncio.get_running_loop(), self.member
        while not member.gone:
            if member.joined or member.legs:
                try:
                    connection = await connect(member.hello.address)
                except (OSError, ValueError) as error:
                    event(log, "worker not reachable", logging.WARNING, worker=member.name, error=str(error) or "timeout")
                else:
                    began = loop.time()
                    try:
                        reason = await self._serve(connection)
                    finally:
                        connection.close("detached")
                    event(log, "worker detached", logging.WARNING, worker=member.name, reason=reason)
                    if loop.time() - began > 2:
                        backoff = FIRST_BACKOFF_S
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    async def _serve(self, connection: ClientConnection) -> str:
        self._broken = asyncio.get_running_loop().create_future()
        self._call = connection.call(ATTACH, self)
        self._call.send(WorkerCommand(hello=AttachHello(router_id=self._router_id)).SerializeToString())
        event(log, "worker attached", worker=self.member.name, address=self.member.hello.address)
        self._fleet.attached(self.member, True)
        prepare = asyncio.ensure_future(self._on_connected(self.member, connection))
        try:
            return await self._broken
        finally:
            prepare.cancel()
            await asyncio.wait((prepare,))  # unlike `await prepare` it lets this link's own cancellation through

    def close(self, reason: str) -> None:
        """The member is gone: its legs are lost now, the link ends."""
        self._break(reason)
        self._task.cancel()

    async def closed(self) -> None:
        await asyncio.wait((self._task,))
