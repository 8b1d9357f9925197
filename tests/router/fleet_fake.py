"""Workers that do what a test says, on real gRPC (grpcio's own), and a router in the test's loop to dial them.

A prompt's tokens are its characters' code points; an answer's n-th token of a fake is 97 + (context length + n) % 26.
"""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from penstock_proto.v1 import fleet_pb2, fleet_pb2_grpc, worker_pb2, worker_pb2_grpc
from penstock_proto.v1.common_pb2 import FinishReason
from penstock_router.config import RouterConfig
from penstock_router.main import Router
from penstock_router.text.chunks import Encoded

BLOCK = 4


def ids_of(data: bytes) -> list[int]:
    ids = array("I")
    ids.frombytes(data)
    return ids.tolist()


def bytes_of(ids: Iterable[int]) -> bytes:
    return array("I", ids).tobytes()


def next_token(context: int) -> int:
    return 97 + context % 26


@dataclass(slots=True)
class CharText:
    """One token per character."""

    generation_defaults: dict[str, Any] = field(default_factory=dict)
    cached_bytes: int = 0

    def open_prompt(self, text: str) -> "Chars":
        return Chars(array("I", map(ord, text)))

    def open_chat(self, messages: Sequence[Mapping[str, str]]) -> "Chars":
        return self.open_prompt("".join(m["content"] for m in messages))

    def encode_ids(self, ids: Sequence[int]) -> Encoded:
        return self.finish(Chars(array("I", ids)))

    def finish(self, pending: "Chars") -> Encoded:
        return Encoded(pending.ids.tobytes(), len(pending.ids), keys_of(pending.ids))


class Chars:
    """Prompts of more than 500 characters go through a thread."""

    def __init__(self, ids: "array[int]") -> None:
        self.ids = ids
        self.needs_thread = len(ids) > 500

    def encode(self) -> None:
        pass


def keys_of(ids: "array[int]") -> "array[int]":
    keys, parent = array("Q"), 0
    for at in range(0, len(ids) - BLOCK + 1, BLOCK):
        parent = hash((parent, *ids[at : at + BLOCK])) & (2**64 - 1)
        keys.append(parent)
    return keys


Behave = Callable[["FakeWorker", "FakeStream", worker_pb2.StartLeg], Any]


class FakeStream:
    """One Attach stream at the worker."""

    def __init__(self) -> None:
        self.router_id = ""
        self.out: asyncio.Queue[worker_pb2.StepOutputs | None] = asyncio.Queue()

    def say(self, *outputs: worker_pb2.LegOutput) -> None:
        self.out.put_nowait(worker_pb2.StepOutputs(legs=outputs))


class FakeWorker(worker_pb2_grpc.WorkerServicer):  # type: ignore[misc]
    """Serves Attach and Model, joins routers, and lets a test drive each leg."""

    def __init__(self, worker_id: str, behave: Behave, *, pool: str = "workers", role: str = "both", **hello: Any) -> None:
        self.worker_id = worker_id
        self.behave = behave
        self.hello: dict[str, Any] = {"pool": pool, "role": role, "incarnation": 1, "kv_compat": "k", **hello}
        self.legs: list[worker_pb2.StartLeg] = []
        self.aborted: list[int] = []
        self.rejected: list[worker_pb2.KvSource] = []
        self.handing: list[int] = []  # legs that were told to hand off
        self.streams: list[FakeStream] = []
        self.model_calls = 0
        self.server: grpc.aio.Server | None = None
        self.port = 0
        self.reports: asyncio.Queue[fleet_pb2.WorkerReport] = asyncio.Queue()
        self.notices: list[fleet_pb2.RouterNotice] = []
        self.silent = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._join: asyncio.Task[None] | None = None

    async def start(self, port: int = 0) -> "FakeWorker":
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        return self

    def join(self, reports: str) -> None:
        self._join = asyncio.get_running_loop().create_task(self._report(reports))

    async def leave(self) -> None:
        if self._join is not None:
            self._join.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await self._join
            self._join = None

    async def die(self) -> None:
        """As kill -9 looks from outside: every stream breaks."""
        await self.leave()
        if self.server is not None:
            await self.server.stop(0)
            self.server = None
        for task in self._tasks:
            task.cancel()

    def hello_message(self) -> fleet_pb2.Hello:
        return fleet_pb2.Hello(
            worker_id=self.worker_id,
            address=f"127.0.0.1:{self.port}",
            model=self.hello.get("model", "tiny"),
            model_digest=self.hello.get("digest", "d1"),
            shape="cpu",
            capacity=fleet_pb2.Capacity(
                max_running=64, max_batched_tokens=2048, kv_blocks=1000, block_size=BLOCK, max_model_len=1000, vocab_size=70_000
            ),
            hash=fleet_pb2.HashSettings(algorithm="sha256_cbor", root=b"\0" * 32),
            capabilities=self.hello.get("capabilities", ["resume", "hand_off"]),
            **{k: v for k, v in self.hello.items() if k in ("pool", "role", "incarnation", "kv_compat", "dp_rank")},
        )

    def snapshot(self, keys: Iterable[int] = (), next_seq: int = 1, chunk: int = 0, last: bool = True) -> None:
        data = array("Q", keys).tobytes()
        snapshot = fleet_pb2.KvSnapshot(next_seq=next_seq, chunk=chunk, last=last, hashes=data)
        self.reports.put_nowait(fleet_pb2.WorkerReport(snapshot=snapshot))

    def drains(self, reason: str = "scale-down") -> None:
        self.reports.put_nowait(fleet_pb2.WorkerReport(draining=fleet_pb2.Draining(reason=reason)))

    def delta(self, seq: int, kind: int, keys: Iterable[int] = ()) -> None:
        op = fleet_pb2.KvOp(kind=kind, hashes=array("Q", keys).tobytes())  # type: ignore[arg-type]
        self.reports.put_nowait(fleet_pb2.WorkerReport(delta=fleet_pb2.KvDelta(seq=seq, ops=[op])))

    async def _report(self, reports: str) -> None:
        async with grpc.aio.insecure_channel(reports, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = fleet_pb2_grpc.FleetStub(channel).Join()
            try:
                await call.write(fleet_pb2.WorkerReport(hello=self.hello_message()))
                reader = asyncio.ensure_future(self._read(call))
                self._tasks.add(reader)
                while True:
                    try:
                        async with asyncio.timeout(0.05):
                            report = await self.reports.get()
                    except TimeoutError:
                        if self.silent:
                            continue
                        report = fleet_pb2.WorkerReport(load=fleet_pb2.LoadReport(running=len(self.legs)))
                    await call.write(report)
            finally:
                call.cancel()

    async def _read(self, call: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while (notice := await call.read()) is not grpc.aio.EOF:
                self.notices.append(notice)

    async def Model(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.ModelFile]:
        self.model_calls += 1
        digest = self.hello.get("digest", "d1")
        yield worker_pb2.ModelFile(name="config.json", data=b"{", model_digest=digest)
        yield worker_pb2.ModelFile(name="config.json", data=b"}", last=True, model_digest=digest)

    async def Attach(self, commands: Any, context: Any) -> AsyncIterator[worker_pb2.StepOutputs]:
        stream = FakeStream()
        self.streams.append(stream)
        reader = asyncio.ensure_future(self._commands(stream, commands))
        try:
            while (outputs := await stream.out.get()) is not None:
                yield outputs
        finally:
            reader.cancel()

    async def _commands(self, stream: FakeStream, commands: Any) -> None:
        async for command in commands:
            kind = command.WhichOneof("command")
            if kind == "hello":
                stream.router_id = command.hello.router_id
            elif kind == "start":
                self.legs.append(command.start)
                made = self.behave(self, stream, command.start)
                if asyncio.iscoroutine(made):
                    self._tasks.add(asyncio.ensure_future(made))
            elif kind == "abort":
                self.aborted.append(command.abort.leg_id)
            elif kind == "hand_off":
                self.handing.append(command.hand_off.leg_id)
            elif kind == "reject_kv":
                self.rejected.append(command.reject_kv.kv)


def output(leg: worker_pb2.StartLeg, ids: Iterable[int] = (), **fields: Any) -> worker_pb2.LegOutput:
    ids = list(ids)
    text = "".join(map(chr, ids))
    sent = fields.pop("chars_sent", leg.chars_sent + len(text))
    return worker_pb2.LegOutput(leg_id=leg.leg_id, token_ids=bytes_of(ids), text=text, chars_sent=sent, **fields)


def context_of(leg: worker_pb2.StartLeg) -> worker_pb2.ContextSource:
    length = len(leg.token_ids) // 4
    moved = leg.kv.num_tokens if leg.HasField("kv") else 0
    return worker_pb2.ContextSource(transferred_tokens=moved, computed_tokens=length - moved)


def kv_of(worker: FakeWorker, leg: worker_pb2.StartLeg, lease_ms: int = 30_000, made: int = 1) -> worker_pb2.KvSource:
    return worker_pb2.KvSource(
        worker_id=worker.worker_id, incarnation=worker.hello["incarnation"], kv_compat="k",
        num_tokens=len(leg.token_ids) // 4 + made - 1, lease_ms=lease_ms, params=b"{}",
    )  # fmt: skip


def answering(pause_s: float = 0.0, lease_ms: int = 30_000) -> Behave:
    """An engine: token by token, to max_tokens or to the leg's end."""

    async def run(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        context, made = len(leg.token_ids) // 4, leg.emitted
        chars = leg.chars_sent
        first = True
        for step in range(leg.max_leg_tokens or leg.sampling.max_tokens):
            if leg.leg_id in worker.aborted:
                return
            made += 1
            chars += 1
            fields: dict[str, Any] = {"chars_sent": chars}
            if first:
                fields["context"], first = context_of(leg), False
            if made >= leg.sampling.max_tokens:
                fields["finish_reason"] = FinishReason.LENGTH
            elif leg.leg_id in worker.handing or (leg.max_leg_tokens and step + 1 == leg.max_leg_tokens):
                fields["finish_reason"] = FinishReason.LEG_END
                fields["kv"] = kv_of(worker, leg, lease_ms, made - leg.emitted)
            stream.say(output(leg, [next_token(context + step)], **fields))
            if "finish_reason" in fields:
                return
            await asyncio.sleep(pause_s)

    return run


def expected_ids(prompt_len: int, count: int) -> list[int]:
    return [next_token(prompt_len + i) for i in range(count)]


def silent(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
    """Takes legs and says nothing."""


class Service:
    """A router in this loop and fake workers that joined it."""

    def __init__(self, folder: Path, **config: Any) -> None:
        settings: dict[str, Any] = {
            "grpc_listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "reports_listen": "127.0.0.1:0",
            "cache_dir": folder / "cache", **config,
        }  # fmt: skip
        self.config = RouterConfig(**settings)
        self.router = Router(self.config, load_text=lambda files, member: CharText())
        self.workers: list[FakeWorker] = []

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.router.ports['grpc']}"

    @property
    def reports(self) -> str:
        return f"127.0.0.1:{self.router.ports['reports']}"

    async def add(self, worker: FakeWorker, ready: bool = True) -> FakeWorker:
        self.workers.append(worker)
        await worker.start()
        worker.join(self.reports)
        worker.snapshot()
        if ready:
            await until(lambda: self.state(worker.worker_id) == "ready")
        return worker

    def state(self, worker_id: str) -> str:
        found = [w.state for w in self.router.dispatcher.status().workers if w.worker_id == worker_id]
        return found[0] if found else "absent"

    def metric(self, name: str, **labels: str) -> float:
        found = self.router.metrics.registry().get_sample_value(name, labels)
        return 0.0 if found is None else found

    def at_rest(self) -> bool:
        """Nothing is booked, held or running."""
        core = self.router.dispatcher
        return (
            core.fleet.ledger.open_bookings() == 0
            and not core.open_answers
            and len(core.held) == 0
            and all(not link.legs for link in core.links.values())
            and core.budget.active == 0
        )


@contextlib.asynccontextmanager
async def service(folder: Path, **config: Any) -> AsyncIterator[Service]:
    running = Service(folder, **config)
    await running.router.start()
    try:
        yield running
    finally:
        for worker in running.workers:
            await worker.die()
        await running.router.stop(0)


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.005)
