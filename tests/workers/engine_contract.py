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
import random
import time
from array import array
from dataclasses import replace

import pytest
from engine_bench import (
    ERROR,
    LEG_END,
    LENGTH,
    STOP,
    WAIT_S,
    Bench,
    RecordingSink,
    block_hashes,
    greedy,
    held_nothing,
    prompt,
    salt,
    seeded,
)
from engine_handoff import HandedOff
from engine_moves import MovingLegs

from penstock_proto.v1.common_pb2 import Choices, Sampling
from penstock_workers.engine.protocol import (
    ContextSource,
)

__all__ = ["ERROR", "LEG_END", "LENGTH", "STOP", "Bench", "EngineContract", "RecordingSink", "block_hashes", "greedy",
           "prompt", "salt", "seeded"]  # fmt: skip


class EngineContract(HandedOff, MovingLegs):
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
            await first.run(prompt(20, i), Sampling(max_tokens=40, temperature=0.0, choice=Choices(values=["yes", "no"])))
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
