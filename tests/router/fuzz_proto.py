"""Protobuf bytes against the parsers and the state behind them, in process, on a fleet without sockets.

Four targets: GenerateRequest at the front, WorkerReport at Fleet.Join, StepOutputs at an Attachment, WorkerCommand at a
worker's leg table. Messages are scrambled field by field, then sometimes byte by byte. A request must end with a status
that fits whose fault it was; nothing may raise; when all have ended nothing may be held.
"""

import asyncio
import random
import sys
from typing import Any

import grpc
from fuzz_core import Findings, LogTrap, StubCall, VirtualLink, VirtualRouter, command_line, hello, mutated, quiet, scramble
from google.protobuf.message import DecodeError, EncodeError, Message
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from penstock_proto.v1.common_pb2 import Choices, FinishReason, Sampling
from penstock_proto.v1.common_pb2 import Message as ChatMessage
from penstock_proto.v1.fleet_pb2 import CostReport, Draining, KvDelta, KvOp, KvSnapshot, LoadReport, SeenRequests, WorkerReport
from penstock_proto.v1.inference_pb2 import Chat, GenerateRequest, Program, TokenIds
from penstock_proto.v1.worker_pb2 import (
    AbortLeg,
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
from penstock_router.request import limits_of
from penstock_router.serve.grpc_front import Generate, InferenceFront
from penstock_workers.engine.protocol import EngineOutput
from penstock_workers.pool.legs import Identity, LegTable
from penstock_workers.text import Tokens

CALLERS_FAULT = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS}
WORKERS_FAULT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}
SAMPLING = Sampling(max_tokens=6, temperature=0.7, seed=3, stop=["zz"], stop_token_ids=[5], n=2)
REQUESTS = (
    GenerateRequest(model="tiny", prompt="once upon a time", sampling=Sampling(max_tokens=3)),
    GenerateRequest(model="tiny", prompt="once", sampling=SAMPLING, explain=True, program=Program(id="p", tool="t")),
    GenerateRequest(model="tiny", prompt="once", sampling=Sampling(max_tokens=2), request_id="mine"),
    GenerateRequest(model="tiny", chat=Chat(messages=[ChatMessage(role="user", content="hi")])),
    GenerateRequest(model="tiny", token_ids=TokenIds(ids=[1, 2, 69_999]), service_class="default"),
    GenerateRequest(model="tiny", prompt="x", sampling=Sampling(json_schema='{"type": "object"}', logprobs=3)),
    GenerateRequest(model="tiny", prompt="x", sampling=Sampling(choice=Choices(values=["a", "b"]), max_tokens=2)),
)  # fmt: skip
KV = KvSource(worker_id="w", incarnation=1, kv_compat="k", num_tokens=4, lease_ms=30_000, params=b"{}")
OUTPUTS = (
    LegOutput(leg_id=1, token_ids=b"a\0\0\0", text="a", chars_sent=1),
    LegOutput(leg_id=1, token_ids=b"b\0\0\0", text="b", chars_sent=2, finish_reason=FinishReason.LENGTH),
    LegOutput(
        leg_id=1, token_ids=b"c\0\0\0", finish_reason=FinishReason.LEG_END, kv=KV, context=ContextSource(computed_tokens=4)
    ),
    LegOutput(leg_id=1, finish_reason=FinishReason.ERROR, error=LegError(fault=LegError.WORKER, message="sick")),
    LegOutput(leg_id=1, finish_reason=FinishReason.STOP, stop_reason="zz"),
)
REPORTS = (
    WorkerReport(
        load=LoadReport(running=3, waiting=1, prefill_tokens=9, context_tokens=50, kv_usage=0.5, steps=7, last_leg_id=2)
    ),
    WorkerReport(snapshot=KvSnapshot(next_seq=1, chunk=0, last=True, hashes=b"\1" * 16)),
    WorkerReport(delta=KvDelta(seq=1, ops=[KvOp(kind=KvOp.STORED, hashes=b"\2" * 24), KvOp(kind=KvOp.CLEARED)])),
    WorkerReport(cost=CostReport(base_s=1e-3, prefill_s=1e-5, decode_s=1e-4, context_s=1e-8, samples=99)),
    WorkerReport(draining=Draining(reason="scale down", deadline_ms=100)),
    WorkerReport(hello=hello("v")),
    WorkerReport(seen=SeenRequests(hashes=b"\3" * 16)),
)
COMMANDS = (
    WorkerCommand(
        start=StartLeg(leg_id=1, request_id="r", token_ids=b"a\0\0\0" * 4, sampling=Sampling(max_tokens=5, stop=["b"]))
    ),
    WorkerCommand(start=StartLeg(leg_id=2, token_ids=b"a\0\0\0" * 4, emitted=2, chars_sent=2, kv=KV, max_leg_tokens=1)),
    WorkerCommand(abort=AbortLeg(leg_id=1)),
    WorkerCommand(hand_off=HandOffLeg(leg_id=2)),
    WorkerCommand(reject_kv=RejectKv(kv=KV)),
)


def tokens() -> Tokens:
    """Of a tokenizer with one token for each octet."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokens(tokenizer)


class ProtoFuzz:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.findings = Findings()
        self.virtual = VirtualRouter(self.behave, stall_s=5.0)
        self.front = InferenceFront(self.virtual.core, limits_of(self.virtual.router.config))
        self.joined: list[Any] = []
        self.open: list[tuple[Generate, StubCall]] = []
        self.worker = LegTable(Identity("w", 1, "k"), tokens())
        self.attach = self.worker.open("router-0")

    def start(self) -> None:
        self.joined = [self.virtual.join(hello("w")), self.virtual.join(hello("v"))]

    # The fake engine: what a leg gets, if anything, comes at the next turn of the loop.

    def behave(self, link: VirtualLink, leg: StartLeg) -> None:
        fate = self.rng.random()
        if fate < 0.15:
            return  # says nothing: the client leaves, or mutated outputs come
        chars = min(leg.chars_sent + 1, 2**32 - 1)
        out = LegOutput(leg_id=leg.leg_id, token_ids=b"a\0\0\0", text="a", chars_sent=chars, finish_reason=FinishReason.LENGTH)
        if fate < 0.25:
            out = LegOutput(leg_id=leg.leg_id)
            out.CopyFrom(self.rng.choice(OUTPUTS))
            scramble(out, self.rng, 0.2)
            out.leg_id = leg.leg_id
        asyncio.get_running_loop().call_soon(link.message, StepOutputs(legs=[out]).SerializeToString())

    def bytes_of(self, message: Message) -> bytes:
        rng = self.rng
        copy = type(message)()
        copy.CopyFrom(message)
        if rng.random() < 0.8:
            scramble(copy, rng, rng.choice((0.03, 0.1, 0.3)))
        try:
            data = copy.SerializeToString()
        except (EncodeError, ValueError):
            data = message.SerializeToString()
        return mutated(data, rng) if rng.random() < 0.35 else data

    # Targets.

    async def request(self) -> None:
        call = StubCall()
        if self.rng.random() < 0.05:
            call.deadline = call.loop.time() + self.rng.choice((-1.0, 0.0, 0.001, 1e9))
        if self.rng.random() < 0.1:
            call.metadata = ((b"grpc-previous-rpc-attempts", self.rng.choice((b"1", b"0", b"x"))),)
        generate = Generate(self.front, call)  # type: ignore[arg-type]
        generate.message(self.bytes_of(self.rng.choice(REQUESTS)))
        generate.half_closed()
        self.open.append((generate, call))
        if len(self.open) > 20:
            await self.drain(self.rng.randrange(20))

    async def drain(self, left: int = 0) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        while len(self.open) > left:
            generate, call = self.open.pop(0)
            if generate.task is not None and not generate.task.done() and self.rng.random() < 0.7:
                await asyncio.wait({generate.task}, timeout=5)
            if not call.over:
                generate.cancelled("the client left")
            code = call.code.name if call.code is not None else "left"
            self.findings.outcomes[f"request {code}"] += 1
            if code in ("INTERNAL", "UNKNOWN"):
                self.findings.fault(f"case {self.findings.cases}: a request ended with {code}: {call.message}")

    def report(self) -> None:
        rng = self.rng
        stream = rng.choice(self.joined) if rng.random() < 0.5 else self.virtual.router.join.join(StubCall())  # type: ignore[arg-type]
        for _ in range(rng.choice((1, 2, 4))):
            if not stream.call.over:
                stream.message(self.bytes_of(rng.choice(REPORTS)))
        if stream not in self.joined:
            stream.half_closed() if rng.random() < 0.5 else stream.cancelled("gone")
        code = stream.call.code
        self.findings.outcomes[f"report {code.name if code else 'taken'}"] += 1
        if code not in (None, grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED):
            self.findings.fault(f"case {self.findings.cases}: a report ended with {code}: {stream.call.message}")
        if stream in self.joined and stream.call.over:
            stream.cancelled("refused")
            self.joined[self.joined.index(stream)] = self.virtual.join(hello(rng.choice(("w", "v"))))

    def outputs(self) -> None:
        rng = self.rng
        links = [link for link in self.virtual.core.links.values() if isinstance(link, VirtualLink)]
        if not links:
            return
        link = rng.choice(links)
        step = StepOutputs()
        for _ in range(rng.choice((1, 1, 3))):
            out = step.legs.add()
            out.CopyFrom(rng.choice(OUTPUTS))
            scramble(out, rng, rng.choice((0.05, 0.3)))
            if link.legs and rng.random() < 0.8:
                out.leg_id = rng.choice(list(link.legs))
        data = step.SerializeToString()
        link.message(mutated(data, rng) if rng.random() < 0.2 else data)
        if link._call is None and not link.member.gone:
            link.attach()
        self.findings.outcomes["outputs"] += 1

    def command(self) -> None:
        """The worker's side, as its Attach handler has it."""
        rng, table = self.rng, self.worker
        try:
            command = WorkerCommand.FromString(self.bytes_of(rng.choice(COMMANDS)))
        except DecodeError:
            self.findings.outcomes["command undecodable"] += 1
            return
        kind = command.WhichOneof("command")
        if kind == "start":
            started = table.start(self.attach, command.start)
            self.findings.outcomes[f"command {type(started).__name__}"] += 1
            if not isinstance(started, LegOutput):
                ids = [rng.choice((64, 65, 0, 200, 255)) for _ in range(rng.choice((0, 1, 3)))]
                finish = rng.choice((0, 0, FinishReason.LENGTH, FinishReason.STOP, FinishReason.ERROR, FinishReason.ABORT))
                table.translate([EngineOutput(key=started.key, token_ids=ids, finish=finish)])
        elif kind == "abort":
            table.abort(self.attach, command.abort.leg_id)
        elif kind == "hand_off":
            table.hand_off(self.attach, command.hand_off.leg_id)
        if len(table) > 200:
            table.close(self.attach)
            if len(table):
                self.findings.fault(f"case {self.findings.cases}: the leg table holds {len(table)} legs of no stream")
            self.attach = table.open("router-0")

    async def case(self) -> None:
        self.findings.cases += 1
        kind = self.rng.random()
        try:
            if kind < 0.35:
                await self.request()
            elif kind < 0.6:
                self.report()
            elif kind < 0.8:
                self.outputs()
            else:
                self.command()
        except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
            trace, place = error.__traceback__, ""
            while trace is not None:
                place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
            self.findings.fault(f"case {self.findings.cases}: {error!r:.200} at {place}")

    def renew(self) -> None:
        """Two sound workers instead of what mutated reports have made of the fleet."""
        for member in list(self.virtual.router.fleet.members.values()):
            self.virtual.router.fleet.forget(member)
        self.virtual.router.join.streams.clear()
        self.start()

    async def rest(self) -> None:
        """All requests end; a whole one is served by a fleet that has joined anew."""
        await self.drain()
        for _ in range(10):
            await asyncio.sleep(0)
        if leaks := self.virtual.leaks():
            self.findings.fault(f"after case {self.findings.cases}: held {leaks}")
        if len(self.virtual.core.ids) > 50_000 or self.virtual.core.ids.open_names:
            self.findings.fault(f"after case {self.findings.cases}: {self.virtual.core.ids.open_names} names are open")
        self.renew()
        for _ in range(40):  # a leg of this fake engine is sometimes failed or left: one of so many requests is answered
            call = StubCall()
            generate = Generate(self.front, call)  # type: ignore[arg-type]
            generate.message(REQUESTS[0].SerializeToString())
            for _ in range(10):
                await asyncio.sleep(0)
            if not call.over:
                generate.cancelled("left")
            if call.code is grpc.StatusCode.OK:
                return
        self.findings.fault(
            f"after case {self.findings.cases}: no request is served any more, the last got {call.code}: {call.message}"
        )


async def run(cases: int, seed: int) -> Findings:
    quiet()
    fuzz = ProtoFuzz(seed)
    fuzz.start()
    with LogTrap(fuzz.findings) as trap:
        for number in range(cases):
            if number == cases // 5:
                fuzz.findings.weigh()
            trap.case = f"{number} of seed {seed}"
            await fuzz.case()
            if number % 2000 == 1999:
                await fuzz.rest()
            elif number % 100 == 99:
                fuzz.renew()
        await fuzz.rest()
        fuzz.findings.weigh()
        await fuzz.virtual.close()
    return fuzz.findings


if __name__ == "__main__":
    sys.exit(command_line(run))
