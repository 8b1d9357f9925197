"""The contract that every `Engine` keeps; one suite for vLLM and for the fake.

How to use it: a test module makes three module-scoped async fixtures that give a `Bench` (below) over an OPEN
engine, and subclasses the suite:

    pytestmark = pytest.mark.asyncio(loop_scope="module")

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def first():                       # plain engine
        bench = Bench(MyEngine(...)); await bench.open(); yield bench; await bench.close()
    ... second():                            # same model, same kv_compat: legs move between first and second
    ... tight():                             # same model and kv_compat, at most 768 tokens of KV cache: it must preempt
    class TestMyEngine(EngineContract): ...

Every engine: vocabulary over 300, max_model_len at least 512 and at least 12 blocks. What an engine lacks in
`info.capabilities` (structured_output, logprobs) is skipped. `Bench.preemptions` counts preemptions for `tight`.
No test depends on another; each uses its own cache salt, so that what is cached is its own.
"""

import asyncio
import hashlib
import itertools
import random
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import cbor2
import pytest

from penstock_proto.v1.common_pb2 import Choices, FinishReason, Sampling
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


class EngineContract:
    """Subclass in a module with fixtures `first`, `second` and `tight`."""

    # --- one engine -------------------------------------------------------------------------------------------

    async def test_a_leg_ends_at_max_tokens_and_its_context_adds_up(self, first: Bench) -> None:
        answer = await first.run(prompt(70), greedy(9), cache_salt=salt())
        assert (len(answer.token_ids), answer.finish, answer.kv) == (9, LENGTH, None)
        assert answer.context == ContextSource(0, 0, 70)

    async def test_equal_legs_give_equal_tokens_and_the_second_finds_its_blocks_cached(self, first: Bench) -> None:
        size, mine = first.info.block_size, salt()
        ids = prompt(3 * size + 5)
        one = await first.run(ids, greedy(12), cache_salt=mine)
        two = await first.run(ids, greedy(12), cache_salt=mine)
        other = await first.run(ids, greedy(12), cache_salt=salt())
        assert one.token_ids == two.token_ids == other.token_ids
        assert two.context == ContextSource(3 * size, 0, 5)
        assert other.context == ContextSource(0, 0, len(ids))

    async def test_a_seed_repeats_and_another_seed_differs(self, first: Bench) -> None:
        one, two, three = [
            await first.run(prompt(40), seeded(20, seed=seed), cache_salt=salt()) for seed in (7, 7, 8)
        ]  # fmt: skip
        assert one.token_ids == two.token_ids != three.token_ids

    async def test_a_stop_token_ends_the_leg_and_is_named(self, first: Bench) -> None:
        whole = (await first.run(prompt(33), greedy(24))).token_ids
        at = next(i for i, t in enumerate(whole) if i >= 4 and t not in whole[:i])
        answer = await first.run(prompt(33), greedy(24, stop_token_ids=[whole[at]]))
        assert answer.token_ids == whole[: at + 1]
        assert (answer.finish, answer.stop_reason) == (STOP, str(whole[at]))

    async def test_min_tokens_holds_a_stop_token_back(self, first: Bench) -> None:
        whole = (await first.run(prompt(33), greedy(24))).token_ids
        answer = await first.run(prompt(33), greedy(24, stop_token_ids=[whole[2]], min_tokens=10))
        assert len(answer.token_ids) >= 10
        assert whole[2] not in answer.token_ids[:9]

    async def test_the_context_s_end_is_length(self, first: Bench) -> None:
        limit = first.info.max_model_len
        answer = await first.run(prompt(limit - 3), greedy(100))
        assert (len(answer.token_ids), answer.finish) == (3, LENGTH)

    async def test_many_legs_run_at_once_and_a_step_comes_in_one_batch(self, first: Bench) -> None:
        alone = [(await first.run(prompt(30 + i, i), greedy(16), cache_salt=salt())).token_ids for i in range(6)]
        first.sink.batches.clear()
        keys = [first.start(prompt(30 + i, i), greedy(16), cache_salt=salt()) for i in range(6)]
        assert [(await first.answer(key)).token_ids for key in keys] == alone
        assert max(first.sink.batches) >= 3

    async def test_steps_are_reported_with_their_work(self, first: Bench) -> None:
        await first.idle()
        seen = len(first.sink.steps)
        await first.run(prompt(90), greedy(10), cache_salt=salt())
        await first.idle()
        steps = first.sink.steps[seen:]
        assert sum(s.prefill_tokens for s in steps) == 90
        assert sum(s.decodes for s in steps) == 9
        assert all(s.context_tokens >= 90 for s in steps if s.decodes)
        assert all(0 < s.duration_s < WAIT_S for s in steps if s.decodes or s.prefill_tokens)

    async def test_logprobs_come_with_their_tokens(self, first: Bench) -> None:
        if "logprobs" not in first.info.capabilities:
            pytest.skip("no logprobs")
        answer = await first.run(prompt(20), greedy(5, logprobs=3))
        assert [p.token_id for p in answer.logprobs] == answer.token_ids
        for p in answer.logprobs:
            assert p.logprob <= 0 and len(p.top) == 3
            assert p.top[0] == (p.token_id, p.logprob), "greedy takes the best"
            assert [q for _, q in p.top] == sorted((q for _, q in p.top), reverse=True)

    async def test_structured_output_is_kept(self, first: Bench) -> None:
        if "structured_output" not in first.info.capabilities:
            pytest.skip("no structured output")
        one, two = [
            await first.run(prompt(20, i), Sampling(max_tokens=40, temperature=0.0, top_p=1.0, choice=Choices(values=["yes", "no"])))
            for i in range(2)
        ]  # fmt: skip
        assert one.finish == two.finish == STOP

    # --- the prefix cache ---------------------------------------------------------------------------------------

    async def test_kv_ops_carry_vllm_s_hashes(self, first: Bench) -> None:
        size, mine = first.info.block_size, salt()
        ids = prompt(2 * size + 3)
        seen = len(first.sink.kv)
        answer = await first.run(ids, greedy(size + 2), cache_salt=mine)
        context = ids + answer.token_ids[:-1]  # the last token's KV is not computed
        want = block_hashes(first.info, context, mine)

        def stored() -> list[int]:
            return [h for op in first.sink.kv[seen:] if op.kind == "stored" for h in op.hashes]

        await first.sink.until(lambda: len(stored()) >= len(want))
        assert stored() == want
        assert all(isinstance(op.hashes, array) and op.hashes.typecode == "Q" for op in first.sink.kv)

    # --- prefill here, decode there -------------------------------------------------------------------------------

    async def test_a_leg_of_one_token_ends_with_its_kv_held(self, first: Bench) -> None:
        async with held_nothing(first):
            ids = prompt(50)
            answer = await first.prefill(ids, greedy(10), cache_salt=salt())
            assert answer.kv is not None
            assert (len(answer.token_ids), answer.kv.num_tokens) == (1, 50)
            assert 0 < answer.kv.lease_s <= first.info.kv_lease_s
            first.engine.release_kv(answer.kv.params)

    @pytest.mark.parametrize("away", [-2, -1, 0, 1, 2])
    async def test_a_pulled_leg_goes_on_exactly_around_block_multiples(self, first: Bench, second: Bench, away: int) -> None:
        size = first.info.block_size
        for blocks, params in ((1, greedy(8)), (2, seeded(8)), (5, greedy(size + 3, frequency_penalty=0.5))):
            ids = prompt(blocks * size + away, away)
            whole = await second.run(ids, params, cache_salt=salt())
            mine = salt()
            p = await first.prefill(ids, params, cache_salt=mine)
            assert p.kv is not None
            d = await second.run(ids + p.token_ids, params, emitted=1, kv_params=p.kv.params, cache_salt=mine)
            assert p.token_ids + d.token_ids == whole.token_ids
            assert (d.finish, d.kv) == (LENGTH, None)
            assert d.context == ContextSource(0, len(ids), 1)
        await first.idle()

    async def test_a_pull_beside_local_blocks_moves_the_rest_only(self, first: Bench, second: Bench) -> None:
        size = first.info.block_size
        for length in (4 * size - 1, 4 * size, 4 * size + 1, 2 * size):
            mine, ids = salt(), prompt(length)
            whole = await first.run(ids, seeded(10), cache_salt=salt())
            await second.run(ids[: 2 * size + 1], greedy(2), cache_salt=mine)
            p = await first.prefill(ids, seeded(10), cache_salt=mine)
            assert p.kv is not None
            d = await second.run(ids + p.token_ids, seeded(10), emitted=1, kv_params=p.kv.params, cache_salt=mine)
            assert p.token_ids + d.token_ids == whole.token_ids
            assert d.context is not None and adds_up(d.context, length + 1)
            assert d.context.cached == 2 * size
            again = await second.run(ids, seeded(10), cache_salt=mine)
            assert again.token_ids == whole.token_ids, "what a pull leaves in the cache is right"
        await first.idle()

    async def test_a_pull_is_reported(self, first: Bench, second: Bench) -> None:
        seen = len(second.sink.transfers)
        ids, mine = prompt(77), salt()
        p = await first.prefill(ids, greedy(4), cache_salt=mine)
        assert p.kv is not None
        await second.run(ids + p.token_ids, greedy(4), emitted=1, kv_params=p.kv.params, cache_salt=mine)
        await second.sink.until(lambda: len(second.sink.transfers) > seen)
        done = second.sink.transfers[-1]
        assert (done.tokens, done.failed) == (77, False)
        assert done.duration_s > 0

    async def test_a_p_leg_that_is_the_whole_answer_holds_nothing(self, first: Bench) -> None:
        async with held_nothing(first):
            answer = await first.run(prompt(40), greedy(1), max_leg_tokens=1, cache_salt=salt())
            assert (answer.finish, answer.kv) == (LENGTH, None)

    async def test_a_p_leg_that_meets_a_stop_token_holds_nothing(self, first: Bench) -> None:
        async with held_nothing(first):
            token = (await first.run(prompt(40), greedy(1), cache_salt=salt())).token_ids[0]
            answer = await first.run(prompt(40), greedy(9, stop_token_ids=[token]), max_leg_tokens=1, cache_salt=salt())
            assert (answer.finish, answer.kv, answer.token_ids) == (STOP, None, [token])

    async def test_a_bounded_leg_with_more_min_tokens_than_its_bound_runs(self, first: Bench) -> None:
        answer = await first.prefill(prompt(40), greedy(30, min_tokens=20), cache_salt=salt())
        assert answer.kv is not None
        first.engine.release_kv(answer.kv.params)
        await first.idle()

    async def test_a_pulled_leg_may_be_bounded_and_pulled_again(self, first: Bench, second: Bench) -> None:
        size, mine = first.info.block_size, salt()
        ids = prompt(2 * size - 1)
        params = seeded(20)
        whole = (await first.run(ids, params, cache_salt=salt())).token_ids
        emitted: list[int] = []
        kv: bytes | None = None
        for turn, bench in enumerate((first, second, first, second)):
            bound = 0 if turn == 3 else 1 + 3 * turn
            leg = await bench.run(
                ids + emitted, params, emitted=len(emitted), kv_params=kv, max_leg_tokens=bound, cache_salt=f"{mine}{turn}"
            )
            assert adds_up(leg.context, len(ids) + len(emitted))
            emitted += leg.token_ids
            assert (leg.finish == LEG_END) == (turn < 3)
            kv = leg.kv.params if leg.kv else None
        assert emitted == whole
        await first.idle()
        await second.idle()

    # --- going on without KV, and hand-off ------------------------------------------------------------------------

    @pytest.mark.parametrize("count", [1, 2, 13])
    @pytest.mark.parametrize("params", [greedy(24), seeded(24), greedy(24, min_tokens=20, presence_penalty=1.0)])
    async def test_a_leg_resumed_without_kv_goes_on_exactly(
        self, first: Bench, second: Bench, params: Sampling, count: int
    ) -> None:
        ids = prompt(first.info.block_size + 3)
        whole = (await first.run(ids, params, cache_salt=salt())).token_ids
        rest = await second.run(ids + whole[:count], params, emitted=count, cache_salt=salt())
        assert whole[:count] + rest.token_ids == whole
        assert rest.finish == LENGTH
        assert rest.context == ContextSource(0, 0, len(ids) + count)

    @pytest.mark.parametrize("pull", [True, False])
    async def test_a_grammar_goes_on_from_the_emitted_tokens(self, first: Bench, second: Bench, pull: bool) -> None:
        if "structured_output" not in first.info.capabilities:
            pytest.skip("no structured output")
        schema = '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"array","items":{"type":"boolean"},\
"minItems":2,"maxItems":3}},"required":["a","b"],"additionalProperties":false}'
        params = Sampling(max_tokens=60, temperature=1.0, seed=5, top_p=1.0, repetition_penalty=1.0, json_schema=schema)
        ids = prompt(45)
        whole = await first.run(ids, params, cache_salt=salt())
        for count in (1, 4):
            mine, kv = salt(), None
            if pull:
                p = await first.run(ids, params, max_leg_tokens=count, cache_salt=mine)
                assert p.kv is not None
                assert p.token_ids == whole.token_ids[:count]
                kv = p.kv.params
            emitted = whole.token_ids[:count]
            rest = await second.run(ids + emitted, params, emitted=count, kv_params=kv, cache_salt=mine)
            assert emitted + rest.token_ids == whole.token_ids
            assert rest.finish == whole.finish

    @pytest.mark.parametrize("params", [greedy(90), seeded(90)])
    async def test_a_running_leg_is_handed_off_exactly(self, first: Bench, second: Bench, params: Sampling) -> None:
        size, mine = first.info.block_size, salt()
        for length in (size - 3, 2 * size):
            ids = prompt(length)
            whole = (await first.run(ids, params, cache_salt=salt())).token_ids
            key = first.start(ids, params, cache_salt=mine)
            await first.tokens(key, 3)
            first.engine.hand_off(key)
            one = await first.answer(key)
            assert one.finish == LEG_END and one.kv is not None
            emitted = one.token_ids
            assert 3 <= len(emitted) < 90
            assert one.kv.num_tokens == length + len(emitted) - 1
            two = await second.run(ids + emitted, params, emitted=len(emitted), kv_params=one.kv.params, cache_salt=salt())
            assert emitted + two.token_ids == whole
            assert two.context == ContextSource(0, one.kv.num_tokens, 1)
        await first.idle()

    async def test_a_leg_that_ends_before_its_hand_off_ends_as_it_would(self, first: Bench) -> None:
        async with held_nothing(first):
            key = first.start(prompt(20), greedy(1), cache_salt=salt())
            first.engine.hand_off(key)
            assert (await first.answer(key)).finish == LENGTH
            first.engine.hand_off(key)
            first.engine.hand_off(10**9)

    # --- ending early ---------------------------------------------------------------------------------------------

    async def test_an_aborted_leg_is_silent_and_leaves_nothing(self, first: Bench) -> None:
        async with held_nothing(first):
            key = first.start(prompt(40), greedy(400), cache_salt=salt())
            await first.tokens(key, 2)
            first.engine.abort(key)
            count = len(first.sink.outputs[key])
            first.engine.abort(key)
            first.engine.abort(10**9)
            early = first.start(prompt(40), greedy(400), cache_salt=salt())
            first.engine.abort(early)
            await first.run(prompt(5), greedy(5))
            assert len(first.sink.outputs[key]) == count
            assert early not in first.sink.outputs

    async def test_released_kv_is_free_at_once(self, first: Bench) -> None:
        await first.idle()
        answers = [await first.prefill(prompt(100, i), greedy(9), cache_salt=salt()) for i in range(3)]
        await first.sink.until(lambda: first.kv_usage() > 0)
        at = time.monotonic()
        for answer in answers:
            assert answer.kv is not None
            first.engine.release_kv(answer.kv.params)
            first.engine.release_kv(answer.kv.params)
        first.engine.release_kv(b"{}")
        first.engine.release_kv(b"nonsense")
        async with asyncio.timeout(0.5):
            await first.idle()
        print(f"released in {time.monotonic() - at:.3f} s")
        assert (await first.run(prompt(9), greedy(3))).finish == LENGTH

    async def test_kv_that_was_pulled_may_be_released_again(self, first: Bench, second: Bench) -> None:
        p = await first.prefill(prompt(64), greedy(5), cache_salt=salt())
        assert p.kv is not None
        await second.run(prompt(64) + p.token_ids, greedy(5), emitted=1, kv_params=p.kv.params, cache_salt=salt())
        await first.idle()
        first.engine.release_kv(p.kv.params)
        assert (await first.run(prompt(9), greedy(3))).finish == LENGTH

    async def test_a_pulling_leg_that_is_aborted_frees_the_holder(self, first: Bench, second: Bench) -> None:
        await first.idle()
        for _ in range(4):
            p = await first.prefill(prompt(200), greedy(5), cache_salt=salt())
            assert p.kv is not None
            key = second.start(prompt(200) + p.token_ids, greedy(5), emitted=1, kv_params=p.kv.params, cache_salt=salt())
            await asyncio.sleep(random.random() * 0.01)
            second.engine.abort(key)
            async with asyncio.timeout(0.5):
                await first.idle()
        await second.idle()

    # --- what cannot run --------------------------------------------------------------------------------------------

    async def test_kv_of_other_tokens_is_a_transfer_fault(self, first: Bench, second: Bench) -> None:
        size = first.info.block_size
        p = await first.prefill(prompt(2 * size), greedy(5), cache_salt=salt())
        assert p.kv is not None
        other = prompt(2 * size, seed=9) + p.token_ids
        for ids, params in (
            (prompt(2 * size)[: size + 1], p.kv.params),  # fewer tokens than the KV covers
            (other, p.kv.params),  # other tokens
            (other, b"nonsense"),
            (other, b'{"remote_num_tokens": 3}'),
        ):
            answer = await second.run(ids, greedy(5), emitted=1, kv_params=params, cache_salt=salt())
            assert (answer.finish, answer.fault, answer.token_ids) == (ERROR, "transfer", [])
        first.engine.release_kv(p.kv.params)
        await first.idle()
        assert (await second.run(prompt(9), greedy(3))).finish == LENGTH

    async def test_what_the_caller_got_wrong_is_the_caller_s_fault(self, first: Bench) -> None:
        async with held_nothing(first):
            vocab, limit = first.info.vocab_size, first.info.max_model_len
            for ids, params, named in (
                ([5, vocab, 7], greedy(5), "token_ids"),
                (prompt(limit), greedy(5), "token_ids"),
                (prompt(limit + 50), greedy(5), "token_ids"),
                ([], greedy(5), "token_ids"),
            ):
                answer = await first.run(ids, params)
                assert (answer.finish, answer.fault, answer.fault_field) == (ERROR, "caller", named)
                assert answer.fault_message and not answer.token_ids
            assert (await first.run(prompt(9), greedy(3))).finish == LENGTH

    async def test_a_bad_schema_is_the_caller_s_fault(self, first: Bench) -> None:
        if "structured_output" not in first.info.capabilities:
            pytest.skip("no structured output")
        async with held_nothing(first):
            for fields, named in (
                ({"json_schema": "{not json"}, "json_schema"),
                ({"json_schema": '{"type": "nothing"}'}, "json_schema"),
                ({"regex": "(unclosed"}, "regex"),
                ({"grammar": "root ::= "}, "grammar"),
            ):
                answer = await first.run(prompt(9), greedy(5, **fields))
                assert (answer.finish, answer.fault, answer.fault_field) == (ERROR, "caller", named), answer.fault_message
            assert (await first.run(prompt(9), greedy(3))).finish == LENGTH

    # --- preemption -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("pull", [False, True])
    async def test_preemption_after_a_resume_or_a_pull_is_exact(self, first: Bench, tight: Bench, pull: bool) -> None:
        """Three legs that fit one by one and not together; each has emitted tokens behind it."""
        params = [greedy(150), seeded(150), seeded(150, seed=99, presence_penalty=1.2)]
        prompts = [prompt(150 + i, seed=50 + i) for i in range(3)]
        wholes = [(await first.run(i, p, cache_salt=salt())).token_ids for i, p in zip(prompts, params, strict=True)]
        before, keys = tight.preemptions(), []
        for ids, sampling, whole in zip(prompts, params, wholes, strict=True):
            mine, kv, emitted = salt(), None, whole[:7]
            if pull:
                p = await first.run(ids, sampling, max_leg_tokens=7, cache_salt=mine)
                assert p.kv is not None and p.token_ids == emitted
                kv = p.kv.params
            keys.append(tight.start(ids + emitted, sampling, emitted=7, kv_params=kv, cache_salt=mine))
        answers = [await tight.answer(key) for key in keys]
        assert [whole[:7] + a.token_ids for whole, a in zip(wholes, answers, strict=True)] == wholes
        assert all(a.finish == LENGTH for a in answers)
        assert tight.preemptions() > before, "the test must preempt"
        await tight.idle()
        await first.idle()

    async def test_a_leg_preempted_before_its_hand_off_hands_off_exactly(self, first: Bench, tight: Bench) -> None:
        prompts = [prompt(150 + i, seed=70 + i) for i in range(3)]
        wholes = [(await first.run(ids, seeded(150), cache_salt=salt())).token_ids for ids in prompts]
        keys = [tight.start(ids, seeded(150), cache_salt=salt()) for ids in prompts]
        before = tight.preemptions()
        await tight.sink.until(lambda: tight.preemptions() > before)
        for key in keys:
            tight.engine.hand_off(key)
        for ids, key, whole in zip(prompts, keys, wholes, strict=True):
            one = await tight.answer(key)
            if one.finish == LENGTH:
                assert one.token_ids == whole
                continue
            assert one.finish == LEG_END and one.kv is not None
            emitted = one.token_ids
            two = await first.run(ids + emitted, seeded(150), emitted=len(emitted), kv_params=one.kv.params, cache_salt=salt())
            assert emitted + two.token_ids == whole
        await tight.idle()

    async def test_a_lower_priority_number_goes_first(self, tight: Bench) -> None:
        """Twice as many legs as may run at once; the last one started, of the best priority, is not the last to end."""
        count = 2 * tight.info.max_running
        legs = [tight.start(prompt(20, i), greedy(20), priority=10, cache_salt=salt()) for i in range(count)]
        await tight.tokens(legs[0], 1)
        best = tight.start(prompt(20, 999), greedy(4), priority=0, cache_salt=salt())
        await tight.answer(best)
        assert any(not tight.sink.finished(key) for key in legs)
        for key in legs:
            await tight.answer(key)

    # --- health -----------------------------------------------------------------------------------------------------

    async def test_a_serving_engine_passes_its_check(self, first: Bench) -> None:
        await first.engine.check()
        assert first.sink.dead is None

    async def test_facts_are_whole(self, first: Bench, second: Bench) -> None:
        info = first.info
        assert len(info.hash_root) == 32
        assert info.kv_blocks >= 12 and info.block_size > 0 and info.vocab_size > 300
        assert {"resume", "hand_off", "kv_transfer"} <= set(info.capabilities)
        assert (info.kv_compat, info.model_digest) == (second.info.kv_compat, second.info.model_digest)
        assert replace(info) == info
