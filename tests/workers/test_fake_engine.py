"""What the fake engine promises beyond the contract: a known answer, an honest cache, faults on demand."""

import asyncio
import random
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from engine_contract import ERROR, LEG_END, STOP, Bench, block_hashes, greedy, prompt, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cache.hashes import BlockHasher
from penstock_workers.config import FakeSettings
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.engine.fake_answer import fake_answer, readable_ids
from penstock_workers.engine.fake_cache import Block, BlockCache
from penstock_workers.engine.fake_model import HASH_ROOT
from penstock_workers.engine.fake_transfer import Holder, KvParams, TransferRefused, ask
from penstock_workers.text import Tokens


@asynccontextmanager
async def bench(model_dir: Path, kv_lease_s: float = 30.0, **fields: object) -> AsyncIterator[Bench]:
    fake = FakeSettings.model_validate({"base_s": 0.0, "max_model_len": 4096} | fields)
    engine = FakeEngine(fake, str(model_dir), kv_lease_s=kv_lease_s)
    made = Bench(engine, preemptions=lambda: engine.scheduler.preempted)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


def fake(made: Bench) -> FakeEngine:
    assert isinstance(made.engine, FakeEngine)
    return made.engine


# --- the answer ----------------------------------------------------------------------------------------------------------

CHOICES = array("I", range(50, 400))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.integers(0, 12), st.integers(-5, 5))
def test_an_answer_goes_on_from_any_cut_only_with_the_right_context(ids: list[int], cut: int, seed: int) -> None:
    whole = fake_answer(ids, 12, choices=CHOICES, seed=seed)
    assert whole == fake_answer(ids, 12, choices=CHOICES, seed=seed)
    wrong = [*ids]
    wrong[cut % len(ids)] ^= 1
    assert fake_answer(wrong, 12, choices=CHOICES, seed=seed) != whole
    assert fake_answer([*ids, *whole[:cut]], 12, choices=CHOICES, seed=seed) != [*whole[cut:], *whole[:cut]] or not cut


async def test_the_engine_says_fake_answer(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as made:
        choices = readable_ids(Tokens.load(str(worker_model_dir)))
        for length in (1, 31, 32, 200):
            ids = prompt(length)
            want = fake_answer(ids, 50, choices=choices)
            assert (await made.run(ids, greedy(50))).token_ids == want
            rest = await made.run(ids + want[:7], greedy(50), emitted=7)
            assert rest.token_ids == want[7:]
            wrong = await made.run(ids + want[:7], greedy(50), emitted=6)
            assert wrong.token_ids[:10] != want[7:17], "a wrong count of emitted tokens shows"
            said = await made.run(ids, seeded(50))
            assert said.token_ids == fake_answer(ids, 50, choices=choices, seed=1234)


async def test_answers_are_printable_text(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as made:
        tokens = Tokens.load(str(worker_model_dir))
        said = (await made.run(prompt(9), greedy(200))).token_ids
        assert b"".join(map(tokens.bytes_of, said)).decode().isprintable()
        assert len(set(said)) > 30


async def test_an_answer_may_end_by_itself(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir, eos_probability=0.2) as made:
        ends = [await made.run(prompt(9, i), greedy(200, ignore_eos=False)) for i in range(10)]
        assert {e.finish for e in ends} == {STOP}
        assert {e.token_ids[-1] for e in ends} == {1}
        assert len({len(e.token_ids) for e in ends}) > 3
        late = await made.run(prompt(9, 1), greedy(200, ignore_eos=False, min_tokens=50))
        assert len(late.token_ids) > 50
        assert len((await made.run(prompt(9, 1), greedy(200))).token_ids) == 200


async def test_structured_output_is_refused_by_name(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as made:
        answer = await made.run(prompt(9), greedy(5, regex="a+"))
        assert (answer.finish, answer.fault, answer.fault_field) == (ERROR, "caller", "regex")


async def test_several_tokens_a_step_are_the_same_answer(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as one, bench(worker_model_dir, tokens_per_step=8) as eight:
        for count in (1, 7, 8, 9, 100):
            single, batch = await one.run(prompt(40), greedy(count)), await eight.run(prompt(40), greedy(count))
            assert single.token_ids == batch.token_ids
        assert max(len(o.token_ids) for o in batch.outputs) == 8


# --- cost ----------------------------------------------------------------------------------------------------------------


async def test_a_step_costs_what_its_settings_say(worker_model_dir: Path) -> None:
    costs = {"base_s": 0.002, "prefill_s": 1e-4, "decode_s": 0.001, "context_s": 1e-5, "max_batched_tokens": 64}
    async with bench(worker_model_dir, **costs) as made:
        await made.run(prompt(100), greedy(3))
        steps = [s for s in made.sink.steps if s.duration_s]
        assert [(s.prefill_tokens, s.decodes) for s in steps] == [(64, 0), (36, 0), (0, 1), (0, 1)]
        for s in steps:
            least = 0.002 + 1e-4 * s.prefill_tokens + 0.001 * s.decodes + 1e-5 * s.context_tokens
            assert s.duration_s >= 0.99 * least
        assert [s.waiting_tokens for s in steps] == [36, 0, 0, 0]


# --- the cache -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_the_cache_keeps_its_books_under_any_use(seed: int) -> None:
    """Random sequences come, grow and go: blocks are never lost, ops replay to the content, hashes are the chain's."""
    rng = random.Random(seed)
    hasher = BlockHasher(4, HASH_ROOT, 64)
    cache = BlockCache(12, 4, hasher)
    replayed: set[int] = set()
    alive: list[tuple[array[int], list[Block]]] = []
    for _ in range(40):
        if alive and rng.random() < 0.4:
            cache.free(alive.pop(rng.randrange(len(alive)))[1])
        else:
            ids = array("I", [rng.randrange(3) for _ in range(rng.randint(4, 30))])
            found = cache.match(ids.tobytes(), "", (len(ids) - 1) // 4)
            keys = [int.from_bytes(h[-8:], "big") for h in hasher.extend(None, ids)]
            assert [b.key for b in found] == keys[: len(found)]
            cache.take(found)
            new = cache.allocate(-(-len(ids) // 4) - len(found))
            if new is None:
                cache.free(found)
            else:
                blocks = found + new
                cache.complete(blocks, ids, len(found), len(ids) // 4, "")
                alive.append((ids, blocks))
        for op in cache.drain_ops():
            if op.kind == "stored":
                assert not replayed & set(op.hashes)
                replayed.update(op.hashes)
            else:
                assert replayed >= set(op.hashes)
                replayed.difference_update(op.hashes)
        assert replayed == cache.cached_keys()
        assert cache.used == len({id(b) for _, blocks in alive for b in blocks})
        assert 0 <= cache.available <= 12
    for _, blocks in alive:
        cache.free(blocks)
    assert (cache.used, cache.available) == (0, 12)


async def test_a_cleared_cache_says_so_and_finds_nothing(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as made:
        await made.run(prompt(100), greedy(2))
        fake(made).cache.clear()
        again = await made.run(prompt(100), greedy(2))
        assert again.context is not None and again.context.cached == 0
        assert [op.kind for op in made.sink.kv] == ["stored", "cleared", "stored"]
        assert fake(made).cache.cached_keys() == set(block_hashes(made.info, prompt(100)))


async def test_without_events_the_cache_still_works(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir, kv_events=False) as made:
        first, second = [await made.run(prompt(100), greedy(40)) for _ in range(2)]
        assert first.token_ids == second.token_ids
        assert second.context is not None and second.context.cached == 96
        assert made.sink.kv == []


async def test_eviction_takes_the_end_of_what_was_used_longest_ago(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir, kv_blocks=8) as made:
        old, new = prompt(128, 1), prompt(96, 2)
        await made.run(old, greedy(1))
        await made.run(new, greedy(1))
        kept = fake(made).cache.cached_keys()
        assert set(block_hashes(made.info, new)) <= kept
        await made.run(prompt(90, 3), greedy(1))
        kept = fake(made).cache.cached_keys()
        chain = block_hashes(made.info, old)
        held = [h in kept for h in chain]
        assert held == sorted(held, reverse=True), "a prefix stays whole"
        assert not all(held)


# --- transfer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [False, True])
async def test_kv_moves_between_engines_of_one_or_of_two_processes(
    worker_model_dir: Path, far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if far:
        monkeypatch.setattr(Holder, "_of_process", {})
    async with bench(worker_model_dir) as p, bench(worker_model_dir) as d:
        if far:
            Holder._of_process.clear()
        whole = await p.run(prompt(100), greedy(20), cache_salt="other")
        one = await p.prefill(prompt(100), greedy(20))
        assert one.kv is not None
        two = await d.run(prompt(100) + one.token_ids, greedy(20), emitted=1, kv_params=one.kv.params)
        assert one.token_ids + two.token_ids == whole.token_ids
        await p.idle()
        assert fake(d).counters.transferred_tokens == 100
        again = await d.run(prompt(100) + one.token_ids, greedy(20), emitted=1, kv_params=one.kv.params)
        assert (again.finish, again.fault) == (ERROR, "transfer"), "KV is given once"


async def test_kv_is_not_given_past_its_lease(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir, kv_lease_s=0.02) as p, bench(worker_model_dir) as d:
        one = await p.prefill(prompt(100), greedy(20))
        assert one.kv is not None
        await p.sink.until(lambda: fake(p).counters.expired)
        await p.idle()
        late = await d.run(prompt(100) + one.token_ids, greedy(20), emitted=1, kv_params=one.kv.params)
        assert (late.finish, late.fault) == (ERROR, "transfer")
        assert d.sink.transfers[-1].failed
        await d.idle()


async def test_a_pull_from_a_dead_holder_fails(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as p, bench(worker_model_dir) as d:
        one = await p.prefill(prompt(100), greedy(20))
        assert one.kv is not None
        fake(p).inject_death()
        gone = await d.run(prompt(100) + one.token_ids, greedy(20), emitted=1, kv_params=one.kv.params)
        assert (gone.finish, gone.fault) == (ERROR, "transfer")


async def test_a_wrong_number_of_tokens_is_refused(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as p:
        one = await p.prefill(prompt(100), greedy(20))
        assert one.kv is not None
        params = KvParams.decode(one.kv.params)
        wrong = KvParams(params.engine, params.request, 99, params.blocks, params.digest, params.port)
        with pytest.raises(TransferRefused, match="100 tokens, 99"):
            await ask(wrong, "pull")
        await ask(params, "pull")
        with pytest.raises(TransferRefused, match="somebody else"):
            await ask(params, "pull")
        await ask(params, "done")


async def test_a_pull_takes_its_time(worker_model_dir: Path) -> None:
    costs = {"transfer_base_s": 0.01, "transfer_token_s": 1e-4}
    async with bench(worker_model_dir) as p, bench(worker_model_dir, **costs) as d:
        one = await p.prefill(prompt(100), greedy(20))
        assert one.kv is not None
        await d.run(prompt(100) + one.token_ids, greedy(20), emitted=1, kv_params=one.kv.params)
        assert d.sink.transfers[-1].duration_s >= 0.02


# --- faults on demand -----------------------------------------------------------------------------------------------------


async def test_a_dead_engine_says_nothing_more(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir, base_s=0.001) as made:
        key = made.start(prompt(9), greedy(3000))
        await made.tokens(key, 3)
        fake(made).inject_death("a test")
        assert made.sink.dead == "a test"
        seen = len(made.sink.outputs[key])
        made.start(prompt(9), greedy(3))
        await asyncio.sleep(0.01)
        assert len(made.sink.outputs[key]) == seen
        with pytest.raises(RuntimeError, match="a test"):
            await made.engine.check()


async def test_an_engine_that_hangs_does_not_answer_until_it_goes_on_or_is_killed(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir, base_s=0.001) as made, bench(worker_model_dir, base_s=0.001) as killed:
        for one in (made, killed):
            fake(one).inject_hang()
        asked = [asyncio.create_task(one.engine.check()) for one in (made, killed)]
        key = made.start(prompt(9), greedy(90))
        assert await asyncio.wait(asked, timeout=0.03) == (set(), set(asked))
        assert key not in made.sink.outputs
        fake(made).resume()
        killed.engine.kill("a test")
        await asked[0]
        with pytest.raises(RuntimeError, match="a test"):
            await asked[1]
        assert (await made.answer(key)).token_ids == (await made.run(prompt(9), greedy(90))).token_ids


async def test_a_hand_off_while_waiting_ends_at_the_first_token(worker_model_dir: Path) -> None:
    async with bench(worker_model_dir) as made:
        key = made.start(prompt(40), greedy(20))
        made.engine.hand_off(key)
        answer = await made.answer(key)
        assert (answer.finish, len(answer.token_ids)) == (LEG_END, 1)


@pytest.mark.slow
async def test_everything_at_once_in_little_memory_ends_and_is_exact(worker_model_dir: Path) -> None:
    """Preemption, aborts, pulls and hand-offs against a cache that holds two sequences."""
    rng = random.Random(11)
    choices = readable_ids(Tokens.load(str(worker_model_dir)))
    async with (
        bench(worker_model_dir, kv_blocks=12, block_size=16, max_running=6) as small,
        bench(worker_model_dir, block_size=16) as p,
    ):
        for _ in range(8):
            jobs: dict[int, tuple[list[int], list[int]]] = {}
            for i in range(8):
                ids = prompt(rng.randint(1, 120), rng.randrange(10**6))
                want = fake_answer(ids, 40, choices=choices)
                kv, emitted = None, 0
                if rng.random() < 0.4:
                    emitted = rng.randint(1, 9)
                    one = await p.run(ids, greedy(40), max_leg_tokens=emitted)
                    assert one.kv is not None
                    kv = one.kv.params
                key = small.start(ids + want[:emitted], greedy(40), emitted=emitted, kv_params=kv, priority=i % 3)
                jobs[key] = (ids, want[emitted:])
                if rng.random() < 0.3:
                    await asyncio.sleep(0)
                    small.engine.abort(key)
                    del jobs[key]
            for key, (_, want) in jobs.items():
                assert (await small.answer(key)).token_ids == want
        await small.idle()
        await p.idle()
        assert small.preemptions() > 0
