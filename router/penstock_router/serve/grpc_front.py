"""penstock.v1.Inference over gRPC, with health and reflection.

Promise: every call ends with a status of `faults`; a client that leaves cancels its answer in the same turn of the loop;
a client that takes nothing makes this process hold no more than its answer, and is cancelled after `stall_s`.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from penstock_proto.v1.inference_pb2 import ListModelsResponse

from ..answer import Answer
from ..dispatch import Dispatcher
from ..faults import Fault, Internal, to_grpc
from ..log import event
from ..request import Limits, accept, deserialize
from ..wire.server import Call, Method, Server
from ..wire.unary import Unary, unary
from .grpc_bytes import request_id_field

log = logging.getLogger("penstock.grpc")
INFERENCE: Final = "penstock.v1.Inference"
HEALTH: Final = "grpc.health.v1.Health"
DEADLINE_SLACK_S: Final = 0.02
PREVIOUS_ATTEMPTS: Final = (b"x-penstock-previous-attempts", b"grpc-previous-rpc-attempts")  # our SDK's, and gRPC's own
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Generate(Unary):
    """One Generate call: opened in a task, then driven by its answer's deliveries and by nothing else."""

    __slots__ = ("answer", "front", "named", "stall")

    def __init__(self, front: "InferenceFront", call: Call) -> None:
        super().__init__(call)
        self.front = front
        self.answer: Answer | None = None
        self.named = False  # the request's id has been sent
        self.stall: asyncio.TimerHandle | None = None

    async def handle(self, call: Call, data: bytes) -> None:
        front = self.front
        request = None
        try:
            try:
                left_s = None if call.deadline is None else call.deadline - front.dispatcher.now()
                request = await accept(deserialize(data), front.limits, left_s=left_s)
                if request.identity and is_retry(call):
                    request = replace(request, retry=True)
            except Fault as fault:
                front.dispatcher.refused(fault)
                raise
            answer = await front.dispatcher.open(request, call.deadline)
        except Fault as fault:
            finish(call, fault)
            return
        except asyncio.CancelledError:
            raise
        except Exception:
            request_id = request.request_id if request is not None else ""
            log.exception("request failed", extra={"fields": {"request_id": request_id}})
            finish(call, Internal(request_id))
            return
        if call.over:  # ended while this task was about to resume
            answer.cancel()
            return
        self.answer = answer
        answer.listen(self.pump)

    def pump(self) -> None:
        """Sends what there is, unless the client does not take what it was sent."""
        answer, call = self.answer, self.call
        if answer is None:
            return
        if call.stalled:
            self._watch()
            return
        for choice in answer.choices:
            if choice.dirty:
                message = choice.take_bytes()
                if not self.named:
                    self.named = True
                    message += request_id_field(answer.request_id)
                call.send(message)
        if answer.over:
            if self.stall is not None:
                self.stall.cancel()
            if answer.fault is not None:
                finish(call, answer.fault)
            else:
                call.finish()
            self.answer = None
            answer.release()

    def _watch(self) -> None:
        if self.stall is None:
            loop = self.call.stream.connection.loop
            self.stall = loop.call_later(self.front.stall_s, self._give_up)

    def _give_up(self) -> None:
        event(log, "client takes nothing", logging.WARNING, request_id=self.answer.request_id if self.answer else "")
        self.call.stream.reset()
        self.call.lost("stalled")

    def writable(self) -> None:
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None
        self.pump()

    def cancelled(self, reason: str) -> None:
        if self.stall is not None:
            self.stall.cancel()
        super().cancelled(reason)
        if self.answer is not None:
            # A client's own timer is often a moment ahead of ours, and says "cancelled".
            deadline = self.call.deadline
            late = deadline is not None and self.front.dispatcher.now() >= deadline - DEADLINE_SLACK_S
            self.answer.cancel("deadline_exceeded" if late else "cancelled")
            self.answer.release()
            self.answer = None


def is_retry(call: Call) -> bool:
    """gRPC A6: the client sends it again because it got nothing of the attempts before, which it has given up."""
    return any(name in PREVIOUS_ATTEMPTS and value.isdigit() and value.strip(b"0") for name, value in call.metadata)


def finish(call: Call, fault: Fault) -> None:
    code, message, trailing = to_grpc(fault)
    call.finish(code, message, trailing)


class InferenceFront:
    """The services of the client port."""

    def __init__(self, dispatcher: Dispatcher, limits: Limits, stall_s: float = 60.0) -> None:
        self.dispatcher = dispatcher
        self.limits = limits
        self.stall_s = stall_s

    def register(self, server: Server) -> None:
        server.add(
            INFERENCE,
            {
                "Generate": lambda call: Generate(self, call),
                "Route": unary(self._route),
                "ListModels": unary(self._list_models),
                "Status": unary(self._status),
            },
        )
        register_health(server, self.dispatcher.ready)
        register_reflection(server, (INFERENCE, HEALTH))

    async def _route(self, call: Call, data: bytes) -> None:
        call.finish(grpc.StatusCode.UNIMPLEMENTED, "Route: look-aside is not built yet; use Generate")

    async def _list_models(self, call: Call, data: bytes) -> None:
        call.send(ListModelsResponse(models=self.dispatcher.models()).SerializeToString())
        call.finish()

    async def _status(self, call: Call, data: bytes) -> None:
        call.send(self.dispatcher.status().SerializeToString())
        call.finish()


class HealthWatch:
    """Health.Watch: says when the answer changes."""

    EVERY_S: Final = 0.5

    def __init__(self, call: Call, known: "HealthOf") -> None:
        self.call = call
        self.known = known
        self.service: str | None = None
        self.said: int | None = None
        self.timer: asyncio.TimerHandle | None = None

    def message(self, data: bytes) -> None:
        try:
            self.service = health_pb2.HealthCheckRequest.FromString(data).service
        except DecodeError:
            malformed(self.call, "HealthCheckRequest")

    def half_closed(self) -> None:
        self._look()

    def writable(self) -> None:
        pass

    def cancelled(self, reason: str) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _look(self) -> None:
        status = self.known(self.service or "")
        status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN if status is None else status
        if status != self.said:
            self.said = status
            self.call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())
        self.timer = self.call.stream.connection.loop.call_later(self.EVERY_S, self._look)


def malformed(call: Call, kind: str) -> None:
    call.finish(grpc.StatusCode.INVALID_ARGUMENT, f"request: not a {kind} message")


class HealthOf:
    """A service's health; None where it is unknown."""

    def __init__(self, server: Server, ready: Callable[[], bool]) -> None:
        self._server, self._ready = server, ready

    def __call__(self, service: str) -> "health_pb2.HealthCheckResponse.ServingStatus | None":
        prefix = f"/{service}/".encode()
        if service and not any(path.startswith(prefix) for path in self._server.methods):
            return None
        return SERVING if self._ready() else NOT_SERVING


def register_health(server: Server, ready: Callable[[], bool]) -> None:
    known = HealthOf(server, ready)

    async def check(call: Call, data: bytes) -> None:
        try:
            status = known(health_pb2.HealthCheckRequest.FromString(data).service)
        except DecodeError:
            malformed(call, "HealthCheckRequest")
            return
        if status is None:
            call.finish(grpc.StatusCode.NOT_FOUND, "unknown service")
            return
        call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())
        call.finish()

    server.add(HEALTH, {"Check": unary(check), "Watch": lambda call: HealthWatch(call, known)})


class Reflect:
    """Server reflection: each question answered as it comes, by grpc's own servicer."""

    def __init__(self, call: Call, servicer: reflection.ReflectionServicer) -> None:
        self.call = call
        self.servicer = servicer

    def message(self, data: bytes) -> None:
        if self.call.stalled:
            self.call.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, "the answers are not read")
            return
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(data)
        except DecodeError:
            malformed(self.call, "ServerReflectionRequest")
            return
        answers: Any = self.servicer.ServerReflectionInfo  # a generator, whatever its stub says
        for response in answers(iter((request,)), None):
            self.call.send(response.SerializeToString())

    def half_closed(self) -> None:
        self.call.finish()

    def writable(self) -> None:
        pass

    def cancelled(self, reason: str) -> None:
        pass


def register_reflection(server: Server, services: tuple[str, ...]) -> None:
    servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME))
    method: Method = lambda call: Reflect(call, servicer)  # noqa: E731
    server.add(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})
