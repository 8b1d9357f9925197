"""Contract tests of legs that move between engines: pull, resume, hand-off, and preemption after each."""

import pytest
from engine_bench import (
    LEG_END,
    LENGTH,
    STOP,
    Bench,
    adds_up,
    greedy,
    held_nothing,
    prompt,
    salt,
    seeded,
)

from penstock_proto.v1.common_pb2 import Sampling
from penstock_workers.engine.protocol import (
    ContextSource,
)


class MovingLegs:
    """Part of `engine_contract.EngineContract`."""

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

    async def test_a_leg_handed_off_while_it_pulls_hands_off_after_one_token(self, first: Bench, second: Bench) -> None:
        ids, mine = prompt(130), salt()
        whole = (await first.run(ids, seeded(30), cache_salt=salt())).token_ids
        p = await first.prefill(ids, seeded(30), cache_salt=mine)
        assert p.kv is not None
        key = second.start(ids + p.token_ids, seeded(30), emitted=1, kv_params=p.kv.params, cache_salt=mine)
        second.engine.hand_off(key)
        two = await second.answer(key)
        assert two.finish == LEG_END and two.kv is not None
        emitted = p.token_ids + two.token_ids
        assert two.kv.num_tokens == 130 + len(emitted) - 1
        rest = await first.run(ids + emitted, seeded(30), emitted=len(emitted), kv_params=two.kv.params, cache_salt=salt())
        assert emitted + rest.token_ids == whole
        await first.idle()
        await second.idle()

    async def test_a_leg_that_ends_before_its_hand_off_ends_as_it_would(self, first: Bench) -> None:
        async with held_nothing(first):
            key = first.start(prompt(20), greedy(1), cache_salt=salt())
            first.engine.hand_off(key)
            assert (await first.answer(key)).finish == LENGTH
            first.engine.hand_off(key)
            first.engine.hand_off(10**9)

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
