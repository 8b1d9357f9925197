"""An engine that hangs is found and treated as dead; one that is slow for a reason, or whose watcher slept, is not."""

from dataclasses import replace
from pathlib import Path

import pytest
from attach_client import ERROR, LENGTH, attached, eventually, fake_worker, greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cost.model import StepCost
from penstock_proto.v1.worker_pb2 import LegError
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.pool.hang import InFlight, Limits, Measured, Watch, answered, arrived, counted, limit_s, look, stepped
from penstock_workers.pool.worker import Worker

COST = StepCost(base_s=0.002, prefill_s=1e-3, decode_s=1e-4, context_s=1e-7)
KNOWN = Measured(COST, 1000)
IDLE = InFlight()
LIMITS = Limits(floor_s=2.0, unmeasured_s=60.0)
EVERY_S = 0.1
_gaps = st.lists(st.floats(0.0, 1000.0), max_size=60)


def silence(watch: Watch, seconds: float, work: InFlight = IDLE, known: Measured = KNOWN) -> tuple[Watch, float | None]:
    """Looks in time at an engine that says nothing; when it was held for dead, in seconds of silence."""
    now = 0.0
    for turn in range(round(seconds / EVERY_S) + 1):
        now = turn * EVERY_S
        watch, decision = look(watch, now, EVERY_S, work, known, LIMITS)
        if decision == "hung":
            return watch, now
    return watch, None


def test_an_engine_that_says_nothing_is_dead_soon_after_its_limit() -> None:
    _, at = silence(Watch(), 10)
    assert at is not None
    assert LIMITS.floor_s < at <= LIMITS.floor_s + 3 * EVERY_S


@settings(deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 256), st.integers(0, 200_000))
def test_no_engine_is_dead_before_ten_times_its_step_s_prediction(prefill: int, decodes: int, context: int) -> None:
    work = InFlight(prefill, decodes, context)
    watch = stepped(Watch(), prefill)
    limit = limit_s(watch, work, KNOWN, LIMITS)
    assert limit >= LIMITS.floor_s
    assert limit >= 10 * COST.step_s(prefill, decodes, context) - 1e-9
    assert silence(watch, min(limit, 30.0) - EVERY_S, work)[1] is None


@settings(deadline=None)
@given(st.lists(st.floats(0.0, LIMITS.floor_s - 0.2), max_size=30))
def test_an_engine_that_steps_within_its_limit_lives(pauses: list[float]) -> None:
    watch, now = Watch(), 0.0
    for pause in pauses:
        end = now + pause
        while now < end:
            watch, decision = look(watch, now, EVERY_S, InFlight(decodes=1), KNOWN, LIMITS)
            assert decision != "hung"
            now += EVERY_S
        watch = stepped(watch, 0)


@settings(deadline=None)
@given(_gaps)
def test_time_in_which_the_watcher_slept_does_not_count(gaps: list[float]) -> None:
    """However long the pauses, each counts as at most two looks."""
    watch, now = Watch(), 0.0
    for turn, gap in enumerate(gaps):
        now += gap
        watch, decision = look(watch, now, EVERY_S, InFlight(), KNOWN, LIMITS)
        assert watch.silent_s <= 2 * EVERY_S * turn + 1e-9
        assert decision != "hung" or 2 * EVERY_S * turn > LIMITS.floor_s


@settings(deadline=None)
@given(st.lists(st.sampled_from(["look", "late", "step", "answer"]), max_size=80))
def test_nothing_is_dead_that_was_not_asked_and_one_question_is_out_at_a_time(events: list[str]) -> None:
    watch, now, out = Watch(), 0.0, False
    for event in events:
        if event == "step":
            watch = stepped(watch, 5)
        elif event == "answer" and out:
            watch, out = answered(watch), False
        else:
            now += EVERY_S if event == "look" else 0.9
            watch, decision = look(watch, now, 0.9, InFlight(), KNOWN, LIMITS)
            assert not (decision == "ask" and out)
            assert decision != "hung" or out
            out = out or decision == "ask"


def test_a_step_whose_like_was_never_measured_has_the_time_of_a_first_one() -> None:
    fresh, known = Watch(), Measured(COST, 3)
    assert limit_s(fresh, InFlight(decodes=1), known, LIMITS) == 60.0
    warm = stepped(Watch(), 100)
    assert limit_s(warm, InFlight(prefill_tokens=1600), KNOWN, LIMITS) == pytest.approx(10 * COST.step_s(1600, 0, 0))
    assert limit_s(warm, InFlight(prefill_tokens=1601), KNOWN, LIMITS) == 60.0
    assert silence(warm, 30, InFlight(prefill_tokens=1601))[1] is None


def test_what_came_after_a_step_began_does_not_lengthen_it() -> None:
    busy = InFlight(decodes=8, most_tokens=512)
    watch = stepped(Watch(), 100)
    before = limit_s(watch, busy, KNOWN, LIMITS)
    watch, _ = look(replace(watch, silent_s=1.0), 0.0, EVERY_S, busy, KNOWN, LIMITS)
    assert watch.asked
    watch = arrived(watch, 100_000)
    assert limit_s(watch, busy, KNOWN, LIMITS) == before
    assert limit_s(answered(watch), busy, KNOWN, LIMITS) == limit_s(arrived(stepped(Watch(), 100), 512), busy, KNOWN, LIMITS)
    assert limit_s(counted(answered(watch)), busy, KNOWN, LIMITS) == before


def engine(worker: Worker) -> FakeEngine:
    assert isinstance(worker.engine, FakeEngine)
    return worker.engine


@pytest.mark.parametrize("busy", [True, False])
async def test_a_worker_whose_engine_hangs_ends_its_legs_and_asks_for_its_end(worker_model_dir: Path, busy: bool) -> None:
    async with (
        fake_worker(worker_model_dir, hang_floor_s=0.1, first_step_s=0.1) as worker,
        attached(worker.address) as router,
    ):
        assert (await router.run(list(range(20, 60)), greedy(30))).finish == LENGTH
        if busy:
            leg = await router.start(list(range(20, 60)), greedy(3000))
            await router.until(lambda: router.legs[leg].token_ids)
        engine(worker).inject_hang()
        reason = await worker.died
        assert "hangs" in reason
        with pytest.raises(RuntimeError, match="hangs"):
            await worker.check()
        if busy:
            ended = await router.answer(leg)
            assert ended.error is not None
            assert (ended.finish, ended.error.fault) == (ERROR, LegError.GONE)
        late = await router.run([20] * 9, greedy(2))
        assert late.error is not None
        assert late.error.fault == LegError.REFUSED


async def test_a_slow_step_and_an_idle_engine_are_no_hang(worker_model_dir: Path) -> None:
    slow = {"base_s": 1e-3, "prefill_s": 1e-3}
    async with (
        fake_worker(worker_model_dir, hang_floor_s=0.08, first_step_s=5, fake=slow) as worker,
        attached(worker.address) as router,
    ):
        for _ in range(3):
            assert (await router.run(list(range(20, 320)), greedy(12), cache_salt="")).finish == LENGTH
        await eventually(lambda: worker._watch._state.largest_prefill >= 280)
        assert not worker.died.done()
