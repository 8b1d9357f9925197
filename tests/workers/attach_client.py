"""A router's side of Attach for tests: starts legs, puts their outputs together; and a worker over a fake engine."""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from penstock_proto.v1 import worker_pb2_grpc
from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.worker_pb2 import (
    AbortLeg,
    AttachHello,
    ContextSource,
    HandOffLeg,
    KvSource,
    LegError,
    LegOutput,
    RejectKv,
    StartLeg,
    StepOutputs,
    WorkerCommand,
)
from penstock_workers.config import WorkerConfig
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.pool.worker import Worker

WAIT_S = 20.0


@dataclass
class LegAnswer:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    chars_sent: int = 0
    finish: int = 0
    stop_reason: str = ""
    kv: KvSource | None = None
    context: ContextSource | None = None
    error: LegError | None = None
    messages: list[LegOutput] = field(default_factory=list)

    def add(self, output: LegOutput) -> None:
        self.messages.append(output)
        self.token_ids += array("I", output.token_ids)
        self.text += output.text
        self.chars_sent = output.chars_sent
        self.finish = output.finish_reason
        self.stop_reason = output.stop_reason
        self.kv = output.kv if output.HasField("kv") else None
        self.context = output.context if output.HasField("context") else self.context
        self.error = output.error if output.HasField("error") else None


class AttachClient:
    """One Attach stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.legs: dict[int, LegAnswer] = {}
        self.steps: list[StepOutputs] = []
        self._changed = asyncio.Condition()
        self._next = 0

    async def send(self, **command: Any) -> None:
        await self.call.write(WorkerCommand(**command))

    async def start(self, token_ids: Sequence[int], sampling: Sampling, **fields: Any) -> int:
        self._next += 1
        leg_id = fields.pop("leg_id", self._next)
        self.legs[leg_id] = LegAnswer()
        ids = array("I", token_ids).tobytes()
        await self.send(start=StartLeg(leg_id=leg_id, request_id=f"r{leg_id}", token_ids=ids, sampling=sampling, **fields))
        return int(leg_id)

    async def abort(self, leg_id: int) -> None:
        await self.send(abort=AbortLeg(leg_id=leg_id))

    async def hand_off(self, leg_id: int) -> None:
        await self.send(hand_off=HandOffLeg(leg_id=leg_id))

    async def reject(self, kv: KvSource) -> None:
        await self.send(reject_kv=RejectKv(kv=kv))

    async def read_all(self) -> None:
        while isinstance(step := await self.call.read(), StepOutputs):
            async with self._changed:
                self.steps.append(step)
                for output in step.legs:
                    self.legs[output.leg_id].add(output)
                self._changed.notify_all()

    async def until(self, ready: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(ready)

    async def answer(self, leg_id: int) -> LegAnswer:
        leg = self.legs[leg_id]
        await self.until(lambda: leg.finish)
        return leg

    async def run(self, token_ids: Sequence[int], sampling: Sampling, **fields: Any) -> LegAnswer:
        return await self.answer(await self.start(token_ids, sampling, **fields))


@contextlib.asynccontextmanager
async def attached(address: str, router_id: str = "router-0") -> AsyncIterator[AttachClient]:
    async with grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Attach()
        client = AttachClient(call)
        reader = asyncio.create_task(client.read_all())
        try:
            await client.send(hello=AttachHello(router_id=router_id))
            yield client
        finally:
            call.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def eventually(ready: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not ready():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def fake_worker(model_dir: Path, worker_id: str = "w0", **config: Any) -> AsyncIterator[Worker]:
    settings = {"base_s": 1e-3, "max_model_len": 4096, **config.pop("fake", {})}
    made = WorkerConfig.model_validate(
        {"worker_id": worker_id, "engine": "fake", "fake": settings, "metrics_port": None, "drain_timeout_s": 5, **config}
    )
    engine = FakeEngine(made.fake, str(model_dir), model=made.model, kv_lease_s=made.kv_lease_s, name=worker_id)
    worker = Worker(made, engine)
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop()


def greedy(max_tokens: int, **fields: Any) -> Sampling:
    return Sampling(**{"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True} | fields)


STOP, LENGTH, ERROR, LEG_END = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LEG_END
