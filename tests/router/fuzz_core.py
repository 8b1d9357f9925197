"""What the fuzzers share: seeded mutation of bytes and of protobuf messages, the log as an oracle, a router without sockets.

`python tests/router/fuzz_{wire,proto,http}.py --cases N --seed S` runs one of them and prints its figures as JSON.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from fleet_fake import BLOCK, CharText
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from penstock_proto.v1 import fleet_pb2, worker_pb2
from penstock_router.config import RouterConfig
from penstock_router.feed.attach import Attachment
from penstock_router.feed.fleet import Fleet, Member
from penstock_router.feed.models import key_of
from penstock_router.main import Router

INTS = (0, 1, 2, 3, 7, 8, 9, 20, 21, 127, 128, 255, 256, 999, 1000, 1001, 65_535, 69_999, 70_000, 2**31 - 1, 2**31, 2**32 - 1)
LONGS = (2**53, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 2.1, 1e-9, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "a",
    "once upon a time",
    "\x00",
    "\ufffd",
    "é",
    "🦀" * 3,
    "x" * 600,
    "{",
    '{"type":"object"}',
    "[a-z]+",
    "(",
    "\r\n\r\n",
)


@dataclass(slots=True)
class Findings:
    """What a run found, and what it did."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    rss_mib: list[int] = field(default_factory=list)  # at a fifth of the cases, and at the end

    def weigh(self, pid: int | str = "self") -> None:
        self.rss_mib.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 >> 20)

    def fault(self, text: str) -> None:
        if len(self.faults) < 50:
            self.faults.append(text)

    def told(self, seconds: float) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "seconds": round(seconds, 1),
            "faults": self.faults,
            "rss_mib": self.rss_mib,
            "outcomes": dict(self.outcomes.most_common(30)),
        }


class LogTrap(logging.Handler):
    """Every record that carries a traceback, or that asyncio writes as an error, is a fault."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.ERROR)
        self.findings = findings
        self.case = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.name == "asyncio" or "Traceback" in record.getMessage() or ".py" in record.getMessage():
            error = record.exc_info[1] if record.exc_info else None
            place = ""
            trace = error.__traceback__ if error is not None else None
            while trace is not None:
                place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
            self.findings.fault(f"traceback: {record.getMessage()[:200]} {error!r:.200} at {place}; case {self.case}")

    def __enter__(self) -> "LogTrap":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger().removeHandler(self)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, doublings, insertions: one to four of them."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 2:
                del out[at:]
            case 3:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                end = min(len(out), at + rng.randrange(1, 64))
                out[at:at] = out[at:end] * rng.choice((1, 1, 3))
            case 5:
                del out[at : at + rng.randrange(1, 16)]
            case _:
                out[at:at] = b"\xff" * rng.randrange(1, 12)
    return bytes(out)


def value_of(field_: FieldDescriptor, rng: random.Random, depth: int) -> Any:
    kind = field_.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return None
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(TEXTS)
        if field_.type != FieldDescriptor.TYPE_BYTES:
            return text
        return rng.choice(
            (b"", b"\0" * 8, b"\1\0\0\0", rng.randbytes(rng.randrange(40)), rng.randbytes(8 * rng.randrange(6)), b"\0" * 32)
        )
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice((*FLOATS, rng.random()))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 3, 4, 5, 6, 99))
    wide = kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    value = rng.choice((*INTS, *LONGS)) if wide else rng.choice(INTS)
    if kind == FieldDescriptor.CPPTYPE_INT64:
        return max(-(2**63), min(2**63 - 1, rng.choice((value, -value))))
    return min(value, 2**31 - 1) if kind == FieldDescriptor.CPPTYPE_INT32 else value


def scramble(message: Message, rng: random.Random, density: float, depth: int = 0) -> Message:
    """Sets, changes and clears fields of a message, and of what it contains."""
    descriptor: Descriptor = message.DESCRIPTOR
    for each in descriptor.fields:
        if rng.random() > density:
            continue
        repeated = each.is_repeated
        if rng.random() < 0.2:
            message.ClearField(each.name)
            continue
        if each.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if depth < 4:
                target = getattr(message, each.name)
                inner = target.add() if repeated else target
                if not repeated:
                    inner.SetInParent()
                scramble(inner, rng, density, depth + 1)
        elif repeated:
            target = getattr(message, each.name)
            target.extend(value_of(each, rng, depth) for _ in range(rng.choice((0, 1, 2, 17, 130))))
        else:
            setattr(message, each.name, value_of(each, rng, depth))
    return message


class StubCall:
    """A server's Call without a connection."""

    def __init__(self) -> None:
        self.path = b"/fuzz"
        self.metadata: tuple[tuple[bytes, bytes], ...] = ()
        self.deadline: float | None = None
        self.stalled = False
        self.sent = 0
        self.code: grpc.StatusCode | None = None
        self.message = ""
        self.stream = self
        self.connection = self
        self.loop = asyncio.get_running_loop()

    @property
    def over(self) -> bool:
        return self.code is not None

    def send(self, message: bytes) -> None:
        self.sent += 1

    def send_initial_metadata(self, metadata: Any = ()) -> None:
        pass

    def finish(self, code: grpc.StatusCode = grpc.StatusCode.OK, message: str = "", trailing_metadata: Any = ()) -> None:
        if self.code is None:
            self.code, self.message = code, message

    def reset(self, code: int = 0) -> None:
        self.finish(grpc.StatusCode.CANCELLED)

    lost = reset


Behave = Callable[["VirtualLink", worker_pb2.StartLeg], None]


class VirtualLink(Attachment):
    """An Attachment whose worker is a function: no socket, no task."""

    def __init__(self, member: Member, fleet: Fleet, behave: Behave, on_broken: Callable[[Member, str], None]) -> None:
        async def nothing(member: Member, connection: Any) -> None: ...

        super().__init__(member, fleet, "router-0", nothing, on_broken)
        self.behave = behave
        self.attach()

    def attach(self) -> None:
        self._call = self  # type: ignore[assignment]
        self._fleet.attached(self.member, True)

    def send(self, data: bytes) -> None:
        command = worker_pb2.WorkerCommand.FromString(data)
        if command.WhichOneof("command") == "start":
            self.behave(self, command.start)

    def cancel(self) -> None:
        pass

    async def _keep(self) -> None:
        pass


def hello(worker_id: str = "w", incarnation: int = 1) -> fleet_pb2.Hello:
    return fleet_pb2.Hello(
        worker_id=worker_id, address="127.0.0.1:9", model="tiny", model_digest="d1", shape="cpu", pool="workers", role="both",
        incarnation=incarnation, kv_compat="k",
        capacity=fleet_pb2.Capacity(
            max_running=64, max_batched_tokens=2048, kv_blocks=1000, block_size=BLOCK, max_model_len=1000, vocab_size=70_000
        ),
        hash=fleet_pb2.HashSettings(algorithm="sha256_cbor", root=b"\0" * 32),
    )  # fmt: skip


class VirtualRouter:
    """A whole router, its listeners and sockets left out; workers join by `join`."""

    def __init__(self, behave: Behave, **config: Any) -> None:
        self.behave = behave
        self.folder = tempfile.TemporaryDirectory()
        settings: dict[str, Any] = {"cache_dir": Path(self.folder.name), "hold_s": 0.0, **config}
        self.router = Router(RouterConfig(**settings), load_text=lambda files, member: CharText())
        self.core = self.router.dispatcher
        self.router.join.on_joined = self._joined

    def _joined(self, member: Member) -> None:
        if member.slot in self.core.links:
            return
        self.core.links[member.slot] = VirtualLink(member, self.router.fleet, self.behave, self.core.link_broken)
        texts = self.router.models._texts
        if key_of(member) not in texts:
            texts[key_of(member)] = asyncio.get_running_loop().create_future()
            texts[key_of(member)].set_result(CharText())
        self.router.fleet.text_loaded(member)

    def join(self, message: fleet_pb2.Hello) -> Any:
        stream = self.router.join.join(StubCall())  # type: ignore[arg-type]
        stream.message(fleet_pb2.WorkerReport(hello=message).SerializeToString())
        return stream

    def leaks(self) -> str:
        """What is still held once everything has ended; empty: nothing."""
        core = self.core
        held = {
            "bookings": core.fleet.ledger.open_bookings(), "answers": len(core.open_answers), "waiting": len(core.held),
            "legs": sum(len(link.legs) for link in core.links.values()), "budget": core.budget.active,
            "calls": self.router.grpc.open_calls + self.router.reports.open_calls,
            "octets": self.router.grpc.room.held + self.router.reports.room.held,
        }  # fmt: skip
        return ", ".join(f"{name} {value}" for name, value in held.items() if value)

    async def close(self) -> None:
        for answer in list(self.core.open_answers):
            answer.cancel()
        for member in list(self.router.fleet.members.values()):
            self.router.fleet.forget(member)
        for link in list(self.core.links.values()):
            link.close("closed")
        await asyncio.sleep(0)
        self.folder.cleanup()


def command_line(run: Callable[[int, int], Coroutine[Any, Any, Findings]]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    findings = asyncio.run(run(args.cases, args.seed))
    print(json.dumps({"seed": args.seed, **findings.told(time.monotonic() - began)}, indent=1))
    return 1 if findings.faults else 0


def quiet() -> None:
    """Expected warnings are not for a terminal; the trap sees errors all the same."""
    logging.getLogger().addHandler(logging.NullHandler())
    logging.lastResort = None
    if not sys.warnoptions:
        logging.captureWarnings(True)
