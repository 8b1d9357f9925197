"""An open engine with a sink that keeps everything it says, and the few things a contract test does with them."""

import asyncio
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import cbor2

from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_workers.engine.protocol import (
    ContextSource,
    Engine,
    EngineInfo,
    EngineLeg,
    EngineOutput,
    HeldKv,
    KvOp,
    StepStats,
    TransferStats,
)

WAIT_S = 60.0
STOP, LENGTH, ERROR, LEG_END = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LEG_END
_salts = itertools.count(1)


class RecordingSink:
    """Keeps everything an engine says; `changed` wakes those who wait."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[EngineOutput]] = {}
        self.batches: list[int] = []
        self.kv: list[KvOp] = []
        self.steps: list[StepStats] = []
        self.transfers: list[TransferStats] = []
        self.dead: str | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def on_outputs(self, outputs: list[EngineOutput]) -> None:
        self.batches.append(len(outputs))
        for output in outputs:
            self.outputs.setdefault(output.key, []).append(output)
        self._wake()

    def on_kv(self, ops: list[KvOp]) -> None:
        self.kv.extend(ops)
        self._wake()

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)
        self._wake()

    def on_transfer(self, stats: TransferStats) -> None:
        self.transfers.append(stats)
        self._wake()

    def on_dead(self, reason: str) -> None:
        self.dead = reason
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    async def until(self, ready: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        async with asyncio.timeout(timeout_s):
            while not ready():
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.add(waiter)
                await waiter

    def finished(self, key: int) -> bool:
        outputs = self.outputs.get(key)
        return bool(outputs) and outputs[-1].finish != FinishReason.FINISH_REASON_UNSPECIFIED


@dataclass(slots=True)
class Answer:
    """All outputs of one leg, put together."""

    token_ids: list[int]
    finish: int
    stop_reason: str
    context: ContextSource | None
    kv: HeldKv | None
    fault: str | None
    fault_field: str
    fault_message: str
    logprobs: list[Any]
    outputs: list[EngineOutput]


@dataclass
class Bench:
    """An engine, its sink, and the few things a test does with them."""

    engine: Engine
    preemptions: Callable[[], int] = lambda: 0
    sink: RecordingSink = field(default_factory=RecordingSink)
    _keys: Any = field(default_factory=lambda: itertools.count(1))

    async def open(self) -> None:
        await self.engine.open(self.sink)

    async def close(self) -> None:
        await self.engine.close()

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def start(self, token_ids: Sequence[int], sampling: Sampling, **leg: Any) -> int:
        key = next(self._keys)
        leg.setdefault("emitted", 0)
        self.engine.start(EngineLeg(key=key, token_ids=token_ids, sampling=sampling, request_id=f"r{key}", **leg))
        return key

    async def answer(self, key: int) -> Answer:
        await self.sink.until(lambda: self.sink.finished(key) or self.sink.dead)
        assert self.sink.dead is None, self.sink.dead
        outs = self.sink.outputs[key]
        assert all(o.finish == FinishReason.FINISH_REASON_UNSPECIFIED for o in outs[:-1])
        assert all(o.context is None for o in outs[1:]), "context comes once"
        last = outs[-1]
        return Answer(
            [t for o in outs for t in o.token_ids], last.finish, last.stop_reason, outs[0].context, last.kv, last.fault,
            last.fault_field, last.fault_message, [p for o in outs for p in o.logprobs], outs,
        )  # fmt: skip

    async def run(self, token_ids: Sequence[int], sampling: Sampling, **leg: Any) -> Answer:
        return await self.answer(self.start(token_ids, sampling, **leg))

    async def tokens(self, key: int, count: int) -> list[int]:
        """The leg's tokens once at least `count` have come, or it has ended."""

        def ids() -> list[int]:
            return [t for o in self.sink.outputs.get(key, []) for t in o.token_ids]

        await self.sink.until(lambda: len(ids()) >= count or self.sink.finished(key))
        return ids()

    async def prefill(self, token_ids: Sequence[int], sampling: Sampling, **leg: Any) -> Answer:
        """The one-token leg of a disaggregated placement."""
        answer = await self.run(token_ids, sampling, max_leg_tokens=1, **leg)
        assert answer.finish == LEG_END, answer
        return answer

    def kv_usage(self) -> float:
        return self.sink.steps[-1].kv_usage if self.sink.steps else 0.0

    async def idle(self) -> None:
        """Until nothing runs, waits or is held."""
        await self.sink.until(lambda: not self.sink.steps or (self.sink.steps[-1].running, self.kv_usage()) == (0, 0.0))


def salt() -> str:
    return f"salt-{next(_salts)}"


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{length}-{seed}").choices(range(10, 300), k=length)


def greedy(max_tokens: int, **fields: Any) -> Sampling:
    return Sampling(
        **{"max_tokens": max_tokens, "temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "ignore_eos": True} | fields
    )


def seeded(max_tokens: int, **fields: Any) -> Sampling:
    penalties = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.1}
    return greedy(max_tokens, **{"temperature": 1.0, "top_p": 0.95, "top_k": 40, "seed": 1234} | penalties | fields)


def block_hashes(info: EngineInfo, token_ids: Sequence[int], cache_salt: str = "") -> list[int]:
    """vLLM's sha256_cbor block hashes, the slow and obvious way; low 64 bits."""
    parent, hashes = info.hash_root, []
    for start in range(0, len(token_ids) - info.block_size + 1, info.block_size):
        extra = (("cache_salt", cache_salt),) if cache_salt and start == 0 else None
        block = (parent, tuple(token_ids[start : start + info.block_size]), extra)
        parent = hashlib.sha256(cbor2.dumps(block, canonical=True)).digest()
        hashes.append(int.from_bytes(parent[-8:], "big"))
    return hashes


def adds_up(context: ContextSource | None, length: int) -> bool:
    return context is not None and context.cached + context.transferred + context.computed == length


@asynccontextmanager
async def held_nothing(bench: Bench) -> AsyncIterator[None]:
    """The engine's KV is free before and after."""
    await bench.idle()
    yield
    await bench.idle()
