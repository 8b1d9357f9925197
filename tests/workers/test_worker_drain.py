"""A worker that drains: no new leg, running ones end or move with their KV, and then it is over, not before."""

import asyncio
from pathlib import Path

import grpc
import pytest
from attach_client import ERROR, LEG_END, LENGTH, attached, eventually, fake_worker, greedy

from penstock_proto.v1 import worker_pb2_grpc
from penstock_proto.v1.worker_pb2 import DrainRequest, LegError
from penstock_workers.drain import main
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.engine.fake_answer import fake_answer
from penstock_workers.pool.worker import Worker

PROMPT = list(range(20, 100))


def engine(worker: Worker) -> FakeEngine:
    assert isinstance(worker.engine, FakeEngine)
    return worker.engine


def expected(worker: Worker, count: int) -> list[int]:
    return fake_answer(PROMPT, count, choices=engine(worker).voice.choices)


async def test_a_draining_worker_refuses_new_legs_and_lets_running_ones_end(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.start(PROMPT, greedy(100))
        await router.until(lambda: router.legs[leg].token_ids)
        drain = asyncio.create_task(worker.drain("test"))
        await eventually(lambda: worker.state.draining is not None)
        late = await router.run(PROMPT, greedy(5))
        assert late.error is not None
        assert late.error.fault == LegError.REFUSED
        assert not drain.done()
        assert (await router.answer(leg)).token_ids == expected(worker, 100)
        drained = await drain
        assert (drained.legs, drained.cut) == (1, 0)


async def test_a_drain_waits_until_what_its_legs_left_is_pulled_or_rejected(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir, "a") as a,
        fake_worker(worker_model_dir, "b") as b,
        attached(a.address) as to_a,
        attached(b.address) as to_b,
    ):
        legs = [await to_a.start(PROMPT, greedy(3000)) for _ in range(2)]
        await to_a.until(lambda: all(to_a.legs[leg].token_ids for leg in legs))
        drain = asyncio.create_task(a.drain("test"))
        for leg in legs:
            await to_a.hand_off(leg)
        one, other = [await to_a.answer(leg) for leg in legs]
        assert one.finish == other.finish == LEG_END
        await eventually(lambda: a.state.stats.held == 2)
        assert one.kv is not None and other.kv is not None
        count = len(one.token_ids)
        rest = await to_b.run(
            PROMPT + one.token_ids, greedy(count + 9), emitted=count, chars_sent=one.chars_sent, kv=one.kv
        )  # fmt: skip
        assert one.token_ids + rest.token_ids == expected(a, count + 9)
        await eventually(lambda: a.state.stats.held == 1)
        assert not drain.done(), "one leg's KV is still wanted"
        await to_a.reject(other.kv)
        assert (await drain).cut == 0
        assert engine(a).cache.used == 0


async def test_kv_that_nobody_takes_ends_a_drain_with_its_lease(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir, kv_lease_s=0.2) as worker, attached(worker.address) as router:
        await router.run(PROMPT, greedy(20), max_leg_tokens=1)
        assert worker.state.stats.held == 1
        await worker.drain("test")
        assert (worker.state.stats.held, engine(worker).counters.expired) == (0, 1)


async def test_kv_of_a_router_that_is_gone_does_not_hold_a_drain_for_its_lease(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir, kv_lease_s=60, drain_timeout_s=50) as worker:
        async with attached(worker.address) as router:
            await router.run(PROMPT, greedy(20), max_leg_tokens=1)
        async with asyncio.timeout(10):
            drained = await worker.drain("test")
        assert (worker.state.stats.held, drained.cut) == (1, 0)


async def test_a_drain_s_time_limit_sends_what_still_runs_elsewhere(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir, "a", drain_timeout_s=0.2, fake={"base_s": 0.01}) as a,
        fake_worker(worker_model_dir, "b") as b,
        attached(a.address) as to_a,
        attached(b.address) as to_b,
    ):
        leg = await to_a.start(PROMPT, greedy(3000))
        await to_a.until(lambda: to_a.legs[leg].token_ids)
        drained = await a.drain("test")
        assert (drained.legs, drained.cut) == (1, 1)
        cut = await to_a.answer(leg)
        assert cut.error is not None
        assert (cut.finish, cut.error.fault) == (ERROR, LegError.REFUSED)
        count = len(cut.token_ids)
        assert 0 < count < 3000
        rest = await to_b.run(PROMPT + cut.token_ids, greedy(count + 9), emitted=count, chars_sent=cut.chars_sent)
        assert cut.token_ids + rest.token_ids == expected(a, count + 9)
        assert (len(a.table), engine(a).cache.used) == (0, 0)


async def test_a_call_drains_and_may_ask_the_process_to_end(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir) as worker,
        attached(worker.address) as router,
        grpc.aio.insecure_channel(worker.address) as channel,
    ):
        leg = await router.start(PROMPT, greedy(60))
        await router.until(lambda: router.legs[leg].token_ids)
        stub = worker_pb2_grpc.WorkerStub(channel)
        first, second = await asyncio.gather(
            stub.Drain(DrainRequest(reason="a hook")), stub.Drain(DrainRequest(reason="a person", leave=True))
        )
        assert (first.legs, first.cut) == (second.legs, second.cut) == (1, 0)
        assert (await router.answer(leg)).finish == LENGTH
        assert worker.state.draining is not None
        assert worker.state.draining.reason in {"a hook", "a person"}
        assert worker.left.done()


async def test_the_command_drains_and_says_what_it_cannot_reach(
    worker_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fake_worker(worker_model_dir) as worker:
        assert await asyncio.to_thread(main, ["--address", worker.address, "--reason", "preStop"]) == 0
        assert "0 legs, 0 cut" in capsys.readouterr().out
        assert worker.state.draining is not None
        assert (worker.state.draining.reason, worker.left.done()) == ("preStop", False)
        address = worker.address
    assert await asyncio.to_thread(main, ["--address", address, "--timeout", "5"]) == 1
    assert address in capsys.readouterr().err


async def test_a_drain_ends_when_the_engine_dies(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.start(PROMPT, greedy(3000))
        await router.until(lambda: router.legs[leg].token_ids)
        drain = asyncio.create_task(worker.drain("test"))
        await eventually(lambda: worker.state.draining is not None)
        engine(worker).inject_death("test")
        await drain
        ended = await router.answer(leg)
        assert ended.error is not None
        assert ended.error.fault == LegError.GONE
