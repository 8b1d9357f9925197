"""Contract tests of hand-off in numbers and at bad moments: many at once, twice, at the leg's own end, before an abort."""

import asyncio
import random

from engine_bench import LEG_END, LENGTH, Answer, Bench, greedy, held_nothing, prompt, salt, seeded

from penstock_proto.v1.common_pb2 import Sampling

MANY = 16
SCHEMA = (
    '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"array","items":{"type":"boolean"},"minItems":20,'
    '"maxItems":30}},"required":["a","b"],"additionalProperties":false}'
)


def kinds(first: Bench) -> list[Sampling]:
    plain = [greedy(120), seeded(120), greedy(120, presence_penalty=0.8, frequency_penalty=0.3), greedy(120, min_tokens=100)]
    if "structured_output" not in first.info.capabilities:
        return plain
    schema = Sampling(max_tokens=120, temperature=1.0, seed=5, top_p=1.0, repetition_penalty=1.0, json_schema=SCHEMA)
    return [*plain[:3], schema]


async def go_on(bench: Bench, ids: list[int], params: Sampling, one: Answer) -> Answer:
    """The next leg, by pull; what it computes is at most a block and a token."""
    assert one.kv is not None
    emitted = one.token_ids
    two = await bench.run(ids + emitted, params, emitted=len(emitted), kv_params=one.kv.params, cache_salt=salt())
    assert two.context is not None
    assert two.context.computed <= 1
    return two


class HandedOff:
    """Part of `engine_contract.EngineContract`."""

    async def test_many_legs_handed_off_at_once_go_on_exactly_elsewhere(self, first: Bench, second: Bench) -> None:
        options = kinds(first)
        cases = [(prompt(20 + 5 * i, seed=i), options[i % len(options)]) for i in range(MANY)]
        wholes = [await first.run(ids, params, cache_salt=salt()) for ids, params in cases]
        await first.idle()
        keys = [first.start(ids, params, cache_salt=salt()) for ids, params in cases]
        for key in keys:
            await first.tokens(key, 3)
        for key in keys:
            first.engine.hand_off(key)
        ones = [await first.answer(key) for key in keys]
        assert sum(one.finish == LEG_END for one in ones) >= MANY - 2
        twos = await asyncio.gather(
            *(go_on(second, ids, params, one) for (ids, params), one in zip(cases, ones, strict=True) if one.kv)
        )
        rest = iter(twos)
        for one, whole in zip(ones, wholes, strict=True):
            two = next(rest) if one.kv else None
            assert one.token_ids + (two.token_ids if two else []) == whole.token_ids
            assert (two or one).finish == whole.finish
        async with asyncio.timeout(1.0):
            await first.idle()
        assert first.sink.steps[-1].held == 0
        await second.idle()

    async def test_kv_of_handed_off_legs_is_counted_and_free_when_released(self, first: Bench) -> None:
        async with held_nothing(first):
            keys = [first.start(prompt(40 + i), seeded(300), cache_salt=salt()) for i in range(MANY)]
            for key in keys:
                await first.tokens(key, 2)
                first.engine.hand_off(key)
            ones = [await first.answer(key) for key in keys]
            await first.sink.until(lambda: first.sink.steps[-1].held == MANY)
            for one in ones:
                assert one.kv is not None
                first.engine.release_kv(one.kv.params)
            async with asyncio.timeout(1.0):
                await first.sink.until(lambda: first.sink.steps[-1].held == 0)
                await first.idle()

    async def test_a_hand_off_that_meets_the_leg_s_end_loses_nothing_and_holds_nothing_twice(
        self, first: Bench, second: Bench
    ) -> None:
        rng = random.Random(7)
        moved = 0
        ids = prompt(33)
        for length in range(2, 14):
            whole = await first.run(ids, seeded(length), cache_salt=salt())
            key = first.start(ids, seeded(length), cache_salt=salt())
            await first.tokens(key, rng.randint(1, length))
            first.engine.hand_off(key)
            one = await first.answer(key)
            if one.finish == LENGTH:
                assert (one.token_ids, one.kv) == (whole.token_ids, None)
                continue
            moved += 1
            two = await go_on(second, ids, seeded(length), one)
            assert one.token_ids + two.token_ids == whole.token_ids
        print(f"{moved} of 12 moved, the others ended first")
        await first.idle()
        await second.idle()

    async def test_a_second_hand_off_changes_nothing(self, first: Bench, second: Bench) -> None:
        ids = prompt(50)
        whole = await first.run(ids, seeded(200), cache_salt=salt())
        key = first.start(ids, seeded(200), cache_salt=salt())
        await first.tokens(key, 3)
        first.engine.hand_off(key)
        first.engine.hand_off(key)
        one = await first.answer(key)
        assert one.finish == LEG_END
        first.engine.hand_off(key)
        two = await go_on(second, ids, seeded(200), one)
        assert one.token_ids + two.token_ids == whole.token_ids
        await first.idle()

    async def test_a_leg_handed_off_before_its_first_token_ends_with_it(self, first: Bench, second: Bench) -> None:
        """Or with a later one, where an engine in another process was quicker than the word."""
        ids = prompt(200)
        whole = await first.run(ids, seeded(200), cache_salt=salt())
        key = first.start(ids, seeded(200), cache_salt=salt())
        first.engine.hand_off(key)
        one = await first.answer(key)
        assert one.finish == LEG_END
        two = await go_on(second, ids, seeded(200), one)
        assert one.token_ids + two.token_ids == whole.token_ids
        await first.idle()

    async def test_an_abort_right_after_a_hand_off_leaves_nothing(self, first: Bench) -> None:
        rng = random.Random(3)
        async with held_nothing(first):
            for _ in range(6):
                key = first.start(prompt(60), seeded(300), cache_salt=salt())
                await first.tokens(key, 2)
                first.engine.hand_off(key)
                await asyncio.sleep(rng.random() * 0.01)
                first.engine.abort(key)
                seen = first.sink.outputs[key]
                if seen[-1].kv is not None:  # it had ended: what it holds is its owner's to release
                    first.engine.release_kv(seen[-1].kv.params)
                count = len(seen)
                async with asyncio.timeout(1.0):
                    await first.idle()
                    await first.sink.until(lambda: first.sink.steps[-1].held == 0)
                assert len(first.sink.outputs[key]) == count
