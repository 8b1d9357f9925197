"""A deterministic engine for load and fault tests: vLLM's scheduling and cache, no model.

Promise: it keeps the engine contract; its answers are `fake_answer`'s; a step costs what its settings say, and one callback
of the loop whatever the number of sequences.
"""

import asyncio
import logging
import secrets
from dataclasses import dataclass
from itertools import count
from time import perf_counter

from penstock_policy.cache.hashes import BlockHasher
from penstock_proto.v1.common_pb2 import FinishReason
from penstock_workers.config import FakeSettings
from penstock_workers.engine.fake_answer import plain_ids, readable_ids
from penstock_workers.engine.fake_cache import Block, BlockCache
from penstock_workers.engine.fake_model import HASH_ROOT, engine_info, eos_id
from penstock_workers.engine.fake_schedule import FakeScheduler, Work
from penstock_workers.engine.fake_sequence import FakeSequence, Fault, Voice, check_leg
from penstock_workers.engine.fake_transfer import Holder, KvParams, TransferRefused, ask, covered
from penstock_workers.engine.protocol import (
    ContextSource,
    EngineLeg,
    EngineOutput,
    EngineSink,
    HeldKv,
    StepStats,
    TransferStats,
)
from penstock_workers.engine.protocol import (
    Fault as FaultKind,
)
from penstock_workers.text import Tokens

log = logging.getLogger(__name__)


class FakeEngineError(RuntimeError):
    """The fake is dead or hangs, because a test said so."""


@dataclass(slots=True)
class FakeCounters:
    """What the engine did since it was opened."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    faults: int = 0
    transfers: int = 0
    transferred_tokens: int = 0
    failed_transfers: int = 0
    expired: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class _Figures:
    """What a step in flight is made of."""

    began: float
    prefill_tokens: int
    decodes: int
    context_tokens: int


_NO_WORK = _Figures(0.0, 0, 0, 0)


class FakeEngine:
    """See `FakeSettings` for what can be set. `counters`, `cache` and `scheduler` are there for tests to read."""

    def __init__(
        self, settings: FakeSettings, model_dir: str, *, model: str = "tiny", kv_lease_s: float = 30.0, name: str = "fake"
    ) -> None:
        self.settings = settings
        tokens = Tokens.load(model_dir)
        vocab = tokens.tokenizer.get_vocab_size()
        self.info = engine_info(settings, model_dir, model, vocab, kv_lease_s)
        hasher = BlockHasher(settings.block_size, HASH_ROOT, vocab) if settings.kv_events else None
        self.cache = BlockCache(settings.kv_blocks, settings.block_size, hasher)
        self.scheduler = FakeScheduler(settings, self.cache, self.info.max_model_len)
        choices = readable_ids(tokens) if settings.readable else plain_ids(tokens)
        self.voice = Voice(choices, eos_id(model_dir), settings.eos_probability, self.info.max_model_len)
        self.counters = FakeCounters()
        self.engine_id = f"{name}-{secrets.token_hex(6)}"
        self._sequences: dict[int, FakeSequence] = {}
        self._pulls: dict[int, asyncio.Task[None]] = {}
        self._late_calls: set[asyncio.Task[None]] = set()
        self._orders = count()
        self._timer: asyncio.Handle | None = None
        self._holder: Holder | None = None
        self._dead = ""
        self._hung = False
        self._turns = asyncio.Event()  # of a hung engine: it goes on, or is dead

    async def open(self, sink: EngineSink) -> None:
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._holder = Holder(self.engine_id, self._freed, self._note_expired)

    def start(self, leg: EngineLeg) -> None:
        if self._dead:
            return
        try:
            ids = check_leg(leg, self.info.vocab_size, self.info.max_model_len)
        except Fault as fault:
            self._fail(leg.key, "caller", fault.field, str(fault))
            return
        sequence = FakeSequence(leg, ids, self.voice, next(self._orders))
        self._sequences[leg.key] = sequence
        self.scheduler.add(sequence)
        self.counters.started += 1
        self._kick()

    def _fail(self, key: int, fault: FaultKind, field: str, message: str) -> None:
        self.counters.faults += 1
        output = EngineOutput(key, [], finish=FinishReason.ERROR, fault=fault, fault_field=field, fault_message=message)
        self._loop.call_soon(self._sink.on_outputs, [output])

    def abort(self, key: int) -> None:
        sequence = self._sequences.get(key)
        if sequence is not None:
            self.counters.aborted += 1
            self._drop(sequence)
            if sequence.kv_params is not None:
                self._give_up(sequence.kv_params)
            self._say_idle()

    def hand_off(self, key: int) -> None:
        if key in self._sequences:
            self._sequences[key].hand_off = True

    def release_kv(self, params: bytes) -> None:
        try:
            request = KvParams.decode(params).request
        except TransferRefused:
            return
        if self._holder is not None:
            self._holder.release(request)

    async def check(self) -> None:
        while self._hung and not self._dead:
            await self._turns.wait()
        if self._dead:
            raise FakeEngineError(self._dead)

    def kill(self, reason: str) -> None:
        self._stop(reason)

    async def close(self) -> None:
        self._stop("closed")

    # --- chaos ------------------------------------------------------------------------------------------------------

    def inject_death(self, reason: str = "killed by a test") -> None:
        self._stop(reason)
        if hasattr(self, "_sink"):  # one that dies before its start has nobody to tell
            self._sink.on_dead(reason)

    def inject_hang(self) -> None:
        """Steps stop; the engine says nothing more. `resume` ends it."""
        self._hung = True
        self._turns.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        self._hung = False
        self._turns.set()
        if self.scheduler.has_work:
            self._kick()

    def _stop(self, reason: str) -> None:
        self._dead = self._dead or reason
        self._turns.set()
        for task in (*self._pulls.values(), *self._late_calls):
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sequences.clear()
        self.scheduler.clear()
        if self._holder is not None:
            self._holder.close()

    # --- the step ---------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        if self._timer is None and not self._hung and not self._dead:
            self._timer = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._timer = None
        work, pulls = self.scheduler.schedule()
        for sequence in pulls:
            self._pulls[sequence.key] = self._loop.create_task(self._pull(sequence))
        if not work:
            self._report_kv()
            self._say_idle()
            if self.scheduler.freed:
                self._kick()
            return
        decoding = [s for s, n in work if s.context_given and n == 1]
        figures = _Figures(
            perf_counter(),
            sum(n for _, n in work) - len(decoding),
            len(decoding),
            sum(len(s.ids) for s in decoding),
        )
        real = self._cost_s(figures) * self.settings.time_scale
        if real:
            self._timer = self._loop.call_later(real, self._end, work, figures)
        else:
            self._timer = self._loop.call_soon(self._end, work, figures)

    def _cost_s(self, step: _Figures) -> float:
        cost = self.settings
        return (
            cost.base_s
            + cost.prefill_s * step.prefill_tokens
            + cost.decode_s * step.decodes
            + cost.context_s * step.context_tokens
        )

    def _end(self, work: Work, figures: _Figures) -> None:
        self._timer = None
        outputs: list[EngineOutput] = []
        for sequence, tokens in work:
            if sequence.gone:
                continue
            sequence.computed += tokens
            output = None
            if not sequence.pending:
                output = self._speak(sequence)
                outputs.append(output)
            self.scheduler.keep(sequence)
            if output is not None and output.finish:
                self._finish(sequence, output)
        self.counters.steps += 1
        self._report_kv()
        if outputs:
            self._sink.on_outputs(outputs)
        self._say(figures)
        if self.scheduler.has_work:
            self._kick()

    def _speak(self, sequence: FakeSequence) -> EngineOutput:
        output = EngineOutput(sequence.key, [])
        if not sequence.context_given:
            sequence.context_given = True
            known = sequence.cached + sequence.transferred
            output.context = ContextSource(sequence.cached, sequence.transferred, sequence.start_length - known)
        sequence.advance(output, self.settings.tokens_per_step)
        sequence.computed = len(sequence.ids) - 1
        return output

    def _finish(self, sequence: FakeSequence, output: EngineOutput) -> None:
        self.counters.finished += 1
        if output.finish == FinishReason.LEG_END:
            assert self._holder is not None
            lease = self.info.kv_lease_s
            covering = -(-sequence.computed // self.settings.block_size)
            held, sequence.blocks = sequence.blocks[:covering], sequence.blocks[covering:]
            data = sequence.ids[: sequence.computed].tobytes()
            params = self._holder.hold(f"{sequence.key}", held, data, lease)
            output.kv = HeldKv(params, sequence.computed, lease)
        self._drop(sequence)

    def _drop(self, sequence: FakeSequence) -> None:
        del self._sequences[sequence.key]
        pull = self._pulls.pop(sequence.key, None)
        if pull is not None:
            pull.cancel()
        self.scheduler.drop(sequence)

    # --- transfer ---------------------------------------------------------------------------------------------------

    async def _pull(self, sequence: FakeSequence) -> None:
        began = perf_counter()
        tokens = 0
        try:
            params = KvParams.decode(sequence.kv_params or b"")
            covered(params, sequence.ids.tobytes(), self.settings.block_size)
            tokens = max(0, params.num_tokens - sequence.computed)
            await self._fetch(params, tokens)
        except TransferRefused as refusal:
            del self._pulls[sequence.key]
            self.counters.failed_transfers += 1
            self._sink.on_transfer(TransferStats(tokens, perf_counter() - began, failed=True))
            self._drop(sequence)
            self._fail(sequence.key, "transfer", "", str(refusal))
            self._say_idle()
            return
        del self._pulls[sequence.key]
        sequence.kv_params = None
        sequence.transferred = tokens
        sequence.computed += tokens
        self.scheduler.keep(sequence)
        self.counters.transfers += 1
        self.counters.transferred_tokens += tokens
        self._sink.on_transfer(TransferStats(tokens, max(perf_counter() - began, 1e-9)))
        self.scheduler.add(sequence)
        self._kick()

    async def _fetch(self, params: KvParams, tokens: int) -> None:
        cost = self.settings
        await ask(params, "pull")
        await asyncio.sleep((cost.transfer_base_s + cost.transfer_token_s * tokens) * cost.time_scale)
        await ask(params, "done")

    def _give_up(self, kv_params: bytes) -> None:
        """KV that an aborted leg would have pulled is freed at its holder now, not when its lease ends."""
        call = self._loop.create_task(_release(kv_params))
        self._late_calls.add(call)
        call.add_done_callback(self._late_calls.discard)

    def _freed(self, blocks: list[Block]) -> None:
        self.cache.free(blocks)
        self._say_idle()
        if self.scheduler.has_waiting:
            self._kick()

    def _note_expired(self) -> None:
        self.counters.expired += 1

    # --- reports ----------------------------------------------------------------------------------------------------

    def _report_kv(self) -> None:
        ops = self.cache.drain_ops()
        if ops:
            self._sink.on_kv(ops)

    def _say_idle(self) -> None:
        """What is held changed without a step."""
        if self._timer is None and not self._dead:
            self._say(_NO_WORK)

    def _say(self, step: _Figures) -> None:
        running = len(self.scheduler.running)
        waiting = len(self._sequences) - running
        tokens = 0
        if waiting or step.prefill_tokens:
            unfinished = (s for s in self._sequences.values() if s.pending > 1 or not s.context_given)
            tokens = sum(1 if s.kv_params is not None else s.pending for s in unfinished)
        duration = max(perf_counter() - step.began, 1e-9) if step.began else 0.0
        held = len(self._holder) if self._holder is not None else 0
        self._sink.on_step(
            StepStats(
                duration, step.prefill_tokens, step.decodes, step.context_tokens, running, waiting, tokens, self.cache.usage, held
            )
        )  # fmt: skip


async def _release(kv_params: bytes) -> None:
    try:
        await ask(KvParams.decode(kv_params), "release")
    except TransferRefused as refusal:
        log.debug("the KV of an aborted leg was not released: %s", refusal)
