"""The worker's gRPC server: Attach, Model, health and reflection.

Promise: one task writes each Attach stream, one message per engine step for all legs of that router; when the stream breaks,
its legs are aborted in the engine before anything else is done.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import grpc
from grpc_health.v1 import _async as aio_health
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from penstock_proto.v1 import worker_pb2, worker_pb2_grpc
from penstock_proto.v1.inference_pb2 import GenerateResponse
from penstock_proto.v1.worker_pb2 import (
    DirectRequest,
    DrainRequest,
    DrainResponse,
    LegOutput,
    ModelFile,
    ModelRequest,
    StepOutputs,
    WorkerCommand,
)
from penstock_workers.engine.protocol import Engine, EngineLeg
from penstock_workers.pool.legs import LegTable, Translated
from penstock_workers.pool.model_files import chunks, read_files

log = logging.getLogger(__name__)

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
OPTIONS = (
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)

AttachContext = grpc.aio.ServicerContext[WorkerCommand, StepOutputs]


class Watcher(Protocol):
    """Hears of legs, for metrics and logs."""

    def on_leg_started(self, tokens: int) -> None: ...
    def on_leg_aborted(self) -> None: ...
    def on_legs_lost(self, count: int, router_id: str) -> None: ...
    async def drain(self, reason: str) -> "Drained": ...
    def leave(self) -> None:
        """The process is to end."""


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended."""

    legs: int = 0  # when it began
    cut: int = 0  # of those, unfinished at its time limit
    duration_s: float = 0.0


class Outbox:
    """What one Attach stream has to say; outputs under backlog become one message."""

    __slots__ = ("_pending", "_wake", "_written")

    def __init__(self) -> None:
        self._pending: list[LegOutput] = []
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()

    def put(self, outputs: list[LegOutput]) -> None:
        self._pending += outputs
        self._wake.set()
        self._written.clear()

    async def flushed(self) -> None:
        """When everything put so far has been written."""
        await self._written.wait()

    async def write_all(self, context: AttachContext) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, []
            if pending:
                await context.write(StepOutputs(legs=pending))
            if not self._pending:
                self._written.set()


class WorkerServicer(worker_pb2_grpc.WorkerServicer):  # type: ignore[misc]
    """One worker's legs, over any number of routers."""

    def __init__(self, engine: Engine, table: LegTable, watcher: Watcher) -> None:
        self._engine = engine
        self._table = table
        self._watcher = watcher
        self._outboxes: dict[int, Outbox] = {}

    def deliver(self, translated: Translated) -> None:
        """A step's outputs to their streams, and to the engine what follows from them."""
        for key in translated.aborts:
            self._engine.abort(key)
        for params in translated.releases:
            self._engine.release_kv(params)
        self._put(translated.outputs)

    def _put(self, outputs: dict[int, list[LegOutput]]) -> None:
        for attach, messages in outputs.items():
            self._outboxes[attach].put(messages)

    async def flushed(self, limit_s: float) -> None:
        """When every stream has got what was said to it; a router that does not read is not waited for beyond the limit."""
        waits = [asyncio.ensure_future(outbox.flushed()) for outbox in self._outboxes.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=limit_s)
            for wait in late:
                wait.cancel()

    async def Attach(self, request_iterator: AsyncIterator[WorkerCommand], context: AttachContext) -> None:
        first = await context.read()
        if not isinstance(first, WorkerCommand) or first.WhichOneof("command") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hello: the first command of an Attach must be hello")
        router_id = first.hello.router_id
        attach = self._table.open(router_id)
        outbox = self._outboxes[attach] = Outbox()
        writer = asyncio.create_task(outbox.write_all(context), name=f"attach {router_id}")
        handler = asyncio.current_task()
        writer.add_done_callback(lambda ended: _writer_ended(ended, handler, router_id))
        log.info("router attached", extra={"router_id": router_id})
        try:
            # Headers now: a router learns that it is attached before the first token.
            await context.send_initial_metadata(())
            while isinstance(command := await context.read(), WorkerCommand):
                self._obey(attach, command)
        finally:
            # No await before the aborts: the engine must stop at once.
            keys = self._table.close(attach)
            for key in keys:
                self._engine.abort(key)
            del self._outboxes[attach]
            writer.cancel()
            self._watcher.on_legs_lost(len(keys), router_id)
            log.info("router detached", extra={"router_id": router_id, "aborted_legs": len(keys)})

    def _obey(self, attach: int, command: WorkerCommand) -> None:
        match command.WhichOneof("command"):
            case "start":
                leg = self._table.start(attach, command.start)
                if isinstance(leg, EngineLeg):
                    self._watcher.on_leg_started(len(leg.token_ids))
                    self._engine.start(leg)
                else:
                    log.warning("leg refused", extra={"request_id": command.start.request_id, "reason": leg.error.message})
                    self._outboxes[attach].put([leg])
            case "abort":
                key, params = self._table.abort(attach, command.abort.leg_id)
                if key is not None:
                    self._engine.abort(key)
                    self._watcher.on_leg_aborted()
                if params is not None:
                    self._engine.release_kv(params)
            case "hand_off":
                key = self._table.hand_off(attach, command.hand_off.leg_id)
                if key is not None:
                    self._engine.hand_off(key)
            case "reject_kv":
                kv, own = command.reject_kv.kv, self._table.identity
                if (kv.worker_id, kv.incarnation) == (own.worker_id, own.incarnation):
                    self._engine.release_kv(kv.params)
            case other:
                log.warning("command ignored", extra={"command": other})

    async def Generate(self, request: DirectRequest, context: grpc.aio.ServicerContext[DirectRequest, GenerateResponse]) -> None:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            "Worker.Generate (look-aside by ticket) is not built; use the router's Inference.Generate",
        )

    async def Drain(self, request: DrainRequest, context: grpc.aio.ServicerContext[DrainRequest, DrainResponse]) -> DrainResponse:
        """A caller that goes away does not stop the drain."""
        drained = await self._watcher.drain(request.reason or "asked to")
        if request.leave:
            self._watcher.leave()
        return DrainResponse(legs=drained.legs, cut=drained.cut, duration_s=drained.duration_s)

    async def Model(
        self, request: ModelRequest, context: grpc.aio.ServicerContext[ModelRequest, ModelFile]
    ) -> AsyncIterator[ModelFile]:
        info = self._engine.info
        files = await asyncio.to_thread(read_files, info.model_dir)
        for chunk in chunks(files, info.model_digest):
            yield chunk


def _writer_ended(writer: "asyncio.Task[None]", handler: "asyncio.Task[None] | None", router_id: str) -> None:
    """Without its writer a stream is deaf: it ends, so that its router attaches anew."""
    error = None if writer.cancelled() else writer.exception()
    if error is not None:
        log.warning("writing to a router failed", extra={"router_id": router_id, "error": repr(error)})
        if handler is not None:
            handler.cancel()


class WorkerServer:
    """The grpc.aio server of one worker."""

    def __init__(self, servicer: WorkerServicer, host: str, port: int) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        worker_pb2_grpc.add_WorkerServicer_to_server(servicer, self._server)
        self._health = aio_health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        name = f"[{host}]" if ":" in host else host
        try:
            self.port = self._server.add_insecure_port(f"{name}:{port}")
        except RuntimeError as error:
            raise OSError(f"{name}:{port} cannot be listened on") from error

    async def start(self) -> None:
        await self._server.start()
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def stop_serving(self) -> None:
        """Health says that no new work should come."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def _say(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self) -> None:
        await self._server.stop(None)
