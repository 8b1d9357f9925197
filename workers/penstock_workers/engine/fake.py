"""A deterministic engine for load and fault tests: vLLM's scheduling and cache, no model.

Promise: it keeps the engine contract; its answers are `fake_answer`'s; a step costs what its settings say, and one callback
of the loop whatever the number of sequences.
"""

import asyncio
import hashlib
import heapq
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter

from penstock_policy.cache.hashes import BlockHasher
from penstock_proto.v1.common_pb2 import FinishReason
from penstock_workers.config import FakeSettings
from penstock_workers.engine.fake_answer import plain_ids, readable_ids
from penstock_workers.engine.fake_cache import Block, BlockCache
from penstock_workers.engine.fake_sequence import FakeSequence, Fault, Voice, check_leg
from penstock_workers.engine.fake_transfer import Holder, KvParams, TransferRefused, ask, covered
from penstock_workers.engine.protocol import (
    ContextSource,
    EngineInfo,
    EngineLeg,
    EngineOutput,
    EngineSink,
    HeldKv,
    StepStats,
    TransferStats,
)
from penstock_workers.text import Tokens

log = logging.getLogger(__name__)

# SHA-256 of the canonical CBOR of vLLM's default seed, as PYTHONHASHSEED unset gives it.
HASH_ROOT = hashlib.sha256(b"\x6evllm-none-hash").digest()
CAPABILITIES = ("resume", "hand_off", "kv_transfer", "logprobs")
_MODEL_FILES = ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja")
_engines = count(1)


class FakeEngineError(RuntimeError):
    """The fake is dead or hangs, because a test said so."""


@dataclass(slots=True)
class FakeCounters:
    """What the engine did since it was opened."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    faults: int = 0
    preempted: int = 0
    transfers: int = 0
    transferred_tokens: int = 0
    failed_transfers: int = 0
    expired: int = 0
    steps: int = 0


class FakeEngine:
    """See `FakeSettings` for what can be set. `counters` and `cache` are there for tests to read."""

    def __init__(
        self, settings: FakeSettings, model_dir: str, *, model: str = "tiny", kv_lease_s: float = 30.0, name: str = "fake"
    ) -> None:
        self.settings = settings
        tokens = Tokens.load(model_dir)
        vocab = tokens.tokenizer.get_vocab_size()
        self.info = _info(settings, model_dir, model, vocab, kv_lease_s)
        hasher = BlockHasher(settings.block_size, HASH_ROOT, vocab) if settings.kv_events else None
        self.cache = BlockCache(settings.kv_blocks, settings.block_size, hasher)
        choices = readable_ids(tokens) if settings.readable else plain_ids(tokens)
        self.voice = Voice(choices, _eos_id(model_dir), settings.eos_probability, self.info.max_model_len)
        self.counters = FakeCounters()
        self.engine_id = f"{name}-{next(_engines)}-{hashlib.sha256(str(perf_counter()).encode()).hexdigest()[:8]}"
        self._sequences: dict[int, FakeSequence] = {}
        self._waiting: list[tuple[tuple[int, int], FakeSequence]] = []  # heap
        self._running: list[FakeSequence] = []
        self._pulls: dict[int, asyncio.Task[None]] = {}
        self._orders = count()
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # when the step in flight should end
        self._dead = ""
        self._hung = False
        self._again = False  # KV was freed in a step without work

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
        heapq.heappush(self._waiting, (sequence.order, sequence))
        self.counters.started += 1
        self._kick()

    def _fail(self, key: int, fault: str, field: str, message: str) -> None:
        self.counters.faults += 1
        output = EngineOutput(key, [], finish=FinishReason.ERROR, fault_field=field, fault_message=message)
        output.fault = fault  # type: ignore[assignment]
        self._loop.call_soon(self._sink.on_outputs, [output])

    def abort(self, key: int) -> None:
        sequence = self._sequences.get(key)
        if sequence is not None:
            self.counters.aborted += 1
            self._drop(sequence)
            self._say_idle()

    def hand_off(self, key: int) -> None:
        if key in self._sequences:
            self._sequences[key].hand_off = True

    def release_kv(self, params: bytes) -> None:
        try:
            request = KvParams.decode(params).request
        except TransferRefused:
            return
        self._holder.release(request)

    async def check(self) -> None:
        if self._dead:
            raise FakeEngineError(self._dead)
        if self._timer is None and not self._hung:
            return
        late = self._loop.time() - self._due
        if self._sequences and late > self.settings.hang_after_s:
            raise FakeEngineError(f"the step in flight is {late:.1f} s late")

    async def close(self) -> None:
        self._stop()
        self._holder.close()

    # --- chaos ------------------------------------------------------------------------------------------------------

    def inject_death(self, reason: str = "killed by a test") -> None:
        self._stop()
        self._dead = reason
        self._holder.close()
        self._sink.on_dead(reason)

    def inject_hang(self) -> None:
        """Steps stop; the engine says nothing more. `resume` ends it."""
        self._hung = True
        self._due = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        self._hung = False
        self._kick()

    def _stop(self) -> None:
        self._dead = self._dead or "closed"
        for task in self._pulls.values():
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sequences.clear()
        self._running.clear()
        self._waiting.clear()

    # --- the step ---------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        if self._timer is None and not self._hung and not self._dead:
            self._due = self._loop.time()
            self._timer = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._again = False
        work = self._schedule()
        if not work:
            self._report_kv()
            self._say_idle()
            if self._again:
                self._kick()
            return
        prefill = sum(n for s, n in work if n > 1 or not s.context_given)
        decoding = [s for s, n in work if s.context_given and n == 1]
        context = sum(len(s.ids) for s in decoding)
        cost = self.settings
        seconds = (
            cost.base_s + cost.prefill_s * prefill + cost.decode_s * len(decoding) + cost.context_s * context
        )
        began = perf_counter()
        real = seconds * cost.time_scale
        self._due = self._loop.time() + real
        figures = (began, prefill, len(decoding), context)
        self._timer = self._loop.call_later(real, self._end, work, figures) if real else self._loop.call_soon(self._end, work, figures)

    def _schedule(self) -> list[tuple[FakeSequence, int]]:
        """Running sequences first, then waiting ones, while tokens and blocks last."""
        budget = self.settings.max_batched_tokens
        work: list[tuple[FakeSequence, int]] = []
        preempted = False
        for sequence in sorted(self._running, key=lambda s: s.order):
            if sequence.gone or sequence.preempted or not budget:
                continue
            tokens = min(sequence.pending, budget)
            while not self._grow(sequence, tokens):
                victim = max((s for s in self._running), key=lambda s: s.order)
                self._preempt(victim)
                preempted = True
                work = [(s, n) for s, n in work if s is not victim]
                if victim is sequence:
                    break
            else:
                budget -= tokens
                work.append((sequence, tokens))
        if not preempted:
            self._admit(work, budget)
        return work

    def _admit(self, work: list[tuple[FakeSequence, int]], budget: int) -> None:
        while self._waiting and budget and len(self._running) + len(self._pulls) < self.settings.max_running:
            sequence = self._waiting[0][1]
            if sequence.gone:
                heapq.heappop(self._waiting)
                continue
            if not sequence.blocks and not self._find_prefix(sequence):
                break
            pull = sequence.kv_params is not None
            tokens = sequence.pending if pull else min(sequence.pending, budget)
            if not self._grow(sequence, tokens):
                if not self._running and not self._pulls:
                    self._forget(s for _, s in self._waiting)
                break
            heapq.heappop(self._waiting)
            if pull:
                self._pulls[sequence.key] = self._loop.create_task(self._pull(sequence))
                continue
            sequence.preempted = False
            self._running.append(sequence)
            budget -= tokens
            work.append((sequence, tokens))

    def _find_prefix(self, sequence: FakeSequence) -> bool:
        """Takes the cached prefix, but for the last token, which must be computed."""
        size = self.settings.block_size
        found = self.cache.match(sequence.ids.tobytes(), sequence.salt, (len(sequence.ids) - 1) // size)
        new = -(-len(sequence.ids) // size) - len(found)
        if new > self.cache.available - sum(not b.refs for b in found):
            return False
        self.cache.take(found)
        sequence.blocks = found
        sequence.complete = len(found)
        sequence.computed = len(found) * size
        if not sequence.context_given:
            sequence.cached = sequence.computed
        return True

    def _grow(self, sequence: FakeSequence, tokens: int) -> bool:
        extra = self.settings.tokens_per_step - 1 if tokens == sequence.pending else 0
        length = min(sequence.computed + tokens + extra, self.info.max_model_len)
        need = -(-length // self.settings.block_size) - len(sequence.blocks)
        if need <= 0:
            return True
        new = self.cache.allocate(need)
        if new is None:
            return False
        sequence.blocks += new
        return True

    def _preempt(self, sequence: FakeSequence) -> None:
        self.counters.preempted += 1
        self._running.remove(sequence)
        self._forget((sequence,))
        sequence.preempted = True
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def _forget(self, sequences: Iterable[FakeSequence]) -> None:
        """Frees the KV of sequences that do not run: they compute it again."""
        for sequence in sequences:
            self.cache.free(sequence.blocks)
            sequence.blocks, sequence.complete, sequence.computed = [], 0, 0
        self._again = True

    def _end(self, work: list[tuple[FakeSequence, int]], figures: tuple[float, int, int, int]) -> None:
        self._timer = None
        began, prefill, decodes, context = figures
        outputs: list[EngineOutput] = []
        for sequence, tokens in work:
            if sequence.gone:
                continue
            sequence.computed += tokens
            if not sequence.pending:
                outputs.append(self._speak(sequence))
            self._keep(sequence)
            if outputs and outputs[-1].key == sequence.key and outputs[-1].finish:
                self._finish(sequence, outputs[-1])
        self.counters.steps += 1
        self._report_kv()
        if outputs:
            self._sink.on_outputs(outputs)
        self._say(max(perf_counter() - began, 1e-9), prefill, decodes, context)
        if self._running or self._waiting:
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

    def _keep(self, sequence: FakeSequence) -> None:
        """Puts blocks that became complete into the cache."""
        complete = sequence.computed // self.settings.block_size
        if complete > sequence.complete:
            self.cache.complete(sequence.blocks, sequence.ids, sequence.complete, complete, sequence.salt)
            sequence.complete = complete

    def _finish(self, sequence: FakeSequence, output: EngineOutput) -> None:
        self.counters.finished += 1
        if output.finish == FinishReason.LEG_END:
            lease = self.info.kv_lease_s
            covering = -(-sequence.computed // self.settings.block_size)
            held, sequence.blocks = sequence.blocks[:covering], sequence.blocks[covering:]
            data = sequence.ids[: sequence.computed].tobytes()
            params = self._holder.hold(f"{sequence.key}", held, data, lease)
            output.kv = HeldKv(params, sequence.computed, lease)
        self._drop(sequence)

    def _drop(self, sequence: FakeSequence) -> None:
        sequence.gone = True
        del self._sequences[sequence.key]
        if sequence in self._running:
            self._running.remove(sequence)
        pull = self._pulls.pop(sequence.key, None)
        if pull is not None and pull is not asyncio.current_task():
            pull.cancel()
        self.cache.free(sequence.blocks)
        sequence.blocks = []

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
            self._pulls.pop(sequence.key, None)
            self.counters.failed_transfers += 1
            self._sink.on_transfer(TransferStats(tokens, perf_counter() - began, failed=True))
            self._drop(sequence)
            self._fail(sequence.key, "transfer", "", str(refusal))
            self._say_idle()
            return
        self._pulls.pop(sequence.key, None)
        sequence.kv_params = None
        sequence.transferred = tokens
        sequence.computed += tokens
        self._keep(sequence)
        self.counters.transfers += 1
        self.counters.transferred_tokens += tokens
        self._sink.on_transfer(TransferStats(tokens, max(perf_counter() - began, 1e-9)))
        heapq.heappush(self._waiting, (sequence.order, sequence))
        self._kick()

    async def _fetch(self, params: KvParams, tokens: int) -> None:
        await ask(params, "pull")
        cost = self.settings
        try:
            await asyncio.sleep((cost.transfer_base_s + cost.transfer_token_s * tokens) * cost.time_scale)
        except asyncio.CancelledError:
            # An aborted pull frees the holder at once; the answer does not matter any more.
            self._loop.create_task(_done_quietly(params))
            raise
        await ask(params, "done")

    def _freed(self, blocks: list[Block]) -> None:
        self.cache.free(blocks)
        self._say_idle()
        if self._waiting:
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
            self._say(0.0, 0, 0, 0)

    def _say(self, duration_s: float, prefill: int, decodes: int, context: int) -> None:
        waiting = len(self._sequences) - len(self._running)
        if waiting or prefill:
            tokens = sum(
                1 if s.kv_params is not None else s.pending
                for s in self._sequences.values()
                if s.pending > 1 or not s.context_given
            )
        else:
            tokens = 0
        self._sink.on_step(
            StepStats(duration_s, prefill, decodes, context, len(self._running), waiting, tokens, self.cache.usage)
        )


async def _done_quietly(params: KvParams) -> None:
    try:
        await ask(params, "done")
    except TransferRefused as refusal:
        log.debug("an aborted pull was not noted by its holder: %s", refusal)


def _eos_id(model_dir: str) -> int | None:
    for name in ("generation_config.json", "config.json"):
        path = Path(model_dir) / name
        eos = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if eos is not None:
            return int(eos[0] if isinstance(eos, list) else eos)
    return None


def _info(settings: FakeSettings, model_dir: str, model: str, vocab: int, kv_lease_s: float) -> EngineInfo:
    digest = hashlib.sha256(b"fake")
    for name in _MODEL_FILES:
        path = Path(model_dir) / name
        if path.exists():
            digest.update(name.encode() + path.read_bytes())
    model_digest = digest.hexdigest()
    compat = hashlib.sha256(f"{model_digest} fake {settings.block_size}".encode()).hexdigest()
    return EngineInfo(
        model=model,
        model_dir=model_dir,
        model_digest=model_digest,
        kv_compat=compat,
        shape=f"fake:{settings.base_s}:{settings.prefill_s}:{settings.decode_s}:{settings.context_s}",
        block_size=settings.block_size,
        kv_blocks=settings.kv_blocks,
        max_model_len=min(settings.max_model_len, settings.kv_blocks * settings.block_size),
        vocab_size=vocab,
        max_running=settings.max_running,
        max_batched_tokens=settings.max_batched_tokens,
        hash_root=HASH_ROOT,
        kv_lease_s=kv_lease_s,
        capabilities=CAPABILITIES,
    )
