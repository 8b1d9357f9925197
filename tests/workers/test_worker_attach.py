"""Attach over real gRPC: legs of a router run, end, abort and fail as the protocol says."""

import asyncio
from pathlib import Path

import grpc
import pytest
from attach_client import ERROR, LEG_END, LENGTH, STOP, attached, eventually, fake_worker, greedy
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock_proto.v1 import worker_pb2_grpc
from penstock_proto.v1.worker_pb2 import DirectRequest, KvSource, LegError, ModelRequest
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.engine.fake_answer import fake_answer
from penstock_workers.pool.model_files import read_files
from penstock_workers.pool.worker import Worker
from penstock_workers.text import Tokens

PROMPT = list(range(20, 100))


def counters(worker: Worker) -> FakeEngine:
    assert isinstance(worker.engine, FakeEngine)
    return worker.engine


def expected(worker: Worker, prompt: list[int], count: int, **fields: object) -> list[int]:
    return fake_answer(prompt, count, choices=counters(worker).voice.choices, **fields)  # type: ignore[arg-type]


async def test_a_leg_gives_the_answer_s_tokens_and_text(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.run(PROMPT, greedy(12))
        want = expected(worker, PROMPT, 12)
        assert (leg.token_ids, leg.finish) == (want, LENGTH)
        tokens = Tokens.load(str(worker_model_dir))
        assert leg.text == b"".join(map(tokens.bytes_of, want)).decode()
        assert leg.chars_sent == len(leg.text)
        assert leg.context is not None
        assert (leg.context.cached_tokens, leg.context.transferred_tokens, leg.context.computed_tokens) == (0, 0, 80)


async def test_a_step_of_many_legs_is_one_message(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir, fake={"base_s": 0.005}) as worker, attached(worker.address) as router:
        legs = [await router.start([*PROMPT, i], greedy(10)) for i in range(16)]
        for i, leg in enumerate(legs):
            assert (await router.answer(leg)).token_ids == expected(worker, [*PROMPT, i], 10)
        assert max(len(step.legs) for step in router.steps) == 16


async def test_routers_do_not_hear_of_each_other_s_legs(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir) as worker,
        attached(worker.address, "a") as one,
        attached(worker.address, "b") as two,
    ):
        first, second = await one.start(PROMPT, greedy(20)), await two.start(PROMPT[:7], greedy(20))
        assert first == second
        assert (await one.answer(first)).token_ids == expected(worker, PROMPT, 20)
        assert (await two.answer(second)).token_ids == expected(worker, PROMPT[:7], 20)


async def test_an_aborted_leg_ends_in_the_engine_and_is_not_heard_of_again(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.start(PROMPT, greedy(3000))
        await router.until(lambda: router.legs[leg].token_ids)
        await router.abort(leg)
        await eventually(lambda: counters(worker).counters.aborted == 1)
        assert len(worker.table) == 0
        seen = len(router.legs[leg].messages)
        await router.run(PROMPT, greedy(5))
        assert len(router.legs[leg].messages) <= seen + 1, "at most what was on its way"
        assert not router.legs[leg].finish


async def test_a_broken_attach_aborts_its_legs_and_no_others(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address, "stays") as stays:
        other = await stays.start(PROMPT, greedy(400))
        async with attached(worker.address, "goes") as goes:
            legs = [await goes.start([*PROMPT, i], greedy(3000)) for i in range(8)]
            await goes.until(lambda: all(goes.legs[leg].token_ids for leg in legs))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await eventually(lambda: counters(worker).counters.aborted == 8)
        print(f"aborted {loop.time() - began:.3f} s after the stream broke")
        assert (await stays.answer(other)).token_ids == expected(worker, PROMPT, 400)


async def test_a_stop_string_ends_the_leg_in_the_engine_too(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        whole = (await router.run(PROMPT, greedy(60))).text
        stop = whole[30:34]
        leg = await router.run(PROMPT, greedy(3000, stop=[stop, "never said"]))
        assert (leg.finish, leg.stop_reason) == (STOP, stop)
        assert leg.text == whole[: whole.find(stop)]
        await eventually(lambda: counters(worker).counters.aborted == 1)
        assert counters(worker).cache.used == 0


async def test_a_stop_string_beside_a_leg_s_end_frees_the_held_kv(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        first = (await router.run(PROMPT, greedy(1))).text
        leg = await router.run(PROMPT, greedy(50, stop=[first]), max_leg_tokens=1)
        assert (leg.finish, leg.stop_reason, leg.text, leg.kv) == (STOP, first, "", None)
        await eventually(lambda: counters(worker).cache.used == 0)


async def test_logprobs_spell_their_tokens(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.run(PROMPT, greedy(6, logprobs=2))
        tokens = Tokens.load(str(worker_model_dir))
        said = [p for m in leg.messages for p in m.logprobs]
        assert [p.token_id for p in said] == leg.token_ids
        assert all(p.token == tokens.bytes_of(p.token_id) and len(p.top) == 2 and p.logprob <= 0 for p in said)


@pytest.mark.parametrize(
    ("ids", "fields", "named"),
    [
        ([], {}, "token_ids"),
        ([5, 10**6], {}, "token_ids"),
        (list(range(20)) * 300, {}, "token_ids"),
        (PROMPT, {"emitted": 90}, "emitted"),
        (PROMPT, {"adapter": "sql"}, "model"),
        (PROMPT, {"chars_sent": 3}, "chars_sent"),
    ],
)
async def test_a_leg_that_can_never_run_is_the_caller_s_fault(
    worker_model_dir: Path, ids: list[int], fields: dict[str, object], named: str
) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.run(ids, greedy(5), **fields)
        assert leg.error is not None
        assert (leg.finish, leg.error.fault, leg.error.field) == (ERROR, LegError.CALLER, named)
        assert leg.error.message
        assert (await router.run(PROMPT, greedy(2))).finish == LENGTH
        assert len(worker.table) == 0


async def test_kv_of_another_kind_is_a_transfer_fault(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.run(PROMPT, greedy(5), emitted=1, kv=KvSource(kv_compat="other", num_tokens=9))
        assert leg.error is not None
        assert leg.error.fault == LegError.TRANSFER


async def test_an_attach_without_hello_is_refused(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir) as worker,
        grpc.aio.insecure_channel(worker.address) as channel,
    ):
        call = worker_pb2_grpc.WorkerStub(channel).Attach()
        try:
            await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        finally:
            call.cancel()


async def test_a_dead_engine_ends_every_leg_as_gone(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, attached(worker.address) as router:
        leg = await router.start(PROMPT, greedy(3000))
        await router.until(lambda: router.legs[leg].token_ids)
        counters(worker).inject_death("test")
        ended = await router.answer(leg)
        assert ended.error is not None
        assert (ended.finish, ended.error.fault) == (ERROR, LegError.GONE)
        assert worker.died.result() == "test"
        with pytest.raises(RuntimeError, match="test"):
            await worker.check()
        late = await router.run(PROMPT, greedy(5))
        assert late.error is not None
        assert late.error.fault == LegError.REFUSED


async def test_model_files_come_whole(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, grpc.aio.insecure_channel(worker.address) as channel:
        files: dict[str, bytes] = {}
        done: list[str] = []
        async for part in worker_pb2_grpc.WorkerStub(channel).Model(ModelRequest()):
            files[part.name] = files.get(part.name, b"") + part.data
            assert part.model_digest == worker.engine.info.model_digest
            if part.last:
                done.append(part.name)
        assert files == dict(read_files(str(worker_model_dir)))
        assert len(files) == 5
        assert sorted(done) == sorted(files)


async def test_look_aside_is_refused_by_name(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, grpc.aio.insecure_channel(worker.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in worker_pb2_grpc.WorkerStub(channel).Generate(DirectRequest()):
                pass
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "Generate" in (caught.value.details() or "")


async def test_health_and_reflection_answer(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir) as worker, grpc.aio.insecure_channel(worker.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        ask = health_pb2.HealthCheckRequest(service="penstock.v1.Worker")
        assert (await stub.Check(ask)).status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        async for answer in call:
            assert "penstock.v1.Worker" in {s.name for s in answer.list_services_response.service}
        await worker.drain("test")
        assert (await stub.Check(ask)).status == health_pb2.HealthCheckResponse.NOT_SERVING


# --- two workers -----------------------------------------------------------------------------------------------------


async def test_a_decode_leg_pulls_the_prefill_leg_s_kv_and_goes_on(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir, "p") as p,
        fake_worker(worker_model_dir, "d") as d,
        attached(p.address) as to_p,
        attached(d.address) as to_d,
    ):
        for length in (1, 31, 32, 33, 64, 80):
            prompt = PROMPT[:length]
            whole = await to_p.run(prompt, greedy(20), cache_salt=f"whole{length}")
            one = await to_p.run(prompt, greedy(20), max_leg_tokens=1)
            assert (one.finish, len(one.token_ids)) == (LEG_END, 1)
            assert one.kv is not None
            assert (one.kv.worker_id, one.kv.num_tokens, one.kv.incarnation) == ("p", length, p.incarnation)
            two = await to_d.run(
                prompt + one.token_ids, greedy(20), emitted=1, chars_sent=one.chars_sent, kv=one.kv
            )  # fmt: skip
            assert one.token_ids + two.token_ids == whole.token_ids
            assert (one.text + two.text, two.chars_sent) == (whole.text, whole.chars_sent)
            assert two.context is not None
            parts = two.context.cached_tokens + two.context.transferred_tokens + two.context.computed_tokens
            assert parts == length + 1
        assert counters(d).counters.transferred_tokens > 0
        await eventually(lambda: counters(p).cache.used == 0)


async def test_kv_is_freed_when_it_is_rejected_or_its_leg_is_aborted_too_late(worker_model_dir: Path) -> None:
    async with fake_worker(worker_model_dir, "p") as p, attached(p.address) as router:
        leg = await router.run(PROMPT, greedy(20), max_leg_tokens=1)
        assert leg.kv is not None
        assert counters(p).cache.used > 0
        stranger = KvSource()
        stranger.CopyFrom(leg.kv)
        stranger.incarnation += 1
        await router.reject(stranger)
        await router.run(PROMPT[:3], greedy(1))
        assert counters(p).cache.used > 0, "KV of another incarnation is not this one's"
        await router.reject(leg.kv)
        await eventually(lambda: counters(p).cache.used == 0)
        late = await router.start(PROMPT, greedy(20), max_leg_tokens=1)
        await router.answer(late)
        await router.abort(late)
        await eventually(lambda: counters(p).cache.used == 0)


async def test_kv_past_its_lease_is_a_transfer_fault_and_computing_is_exact(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir, "p", kv_lease_s=0.05) as p,
        fake_worker(worker_model_dir, "d") as d,
        attached(p.address) as to_p,
        attached(d.address) as to_d,
    ):
        whole = await to_p.run(PROMPT, greedy(20))
        one = await to_p.run(PROMPT, greedy(20), max_leg_tokens=1)
        assert one.kv is not None
        await eventually(lambda: counters(p).counters.expired == 1)
        late = await to_d.run(PROMPT + one.token_ids, greedy(20), emitted=1, chars_sent=one.chars_sent, kv=one.kv)
        assert late.error is not None
        assert late.error.fault == LegError.TRANSFER
        again = await to_d.run(PROMPT + one.token_ids, greedy(20), emitted=1, chars_sent=one.chars_sent)
        assert one.text + again.text == whole.text


async def test_a_running_leg_is_handed_off_exactly(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir, "a") as a,
        fake_worker(worker_model_dir, "b") as b,
        attached(a.address) as to_a,
        attached(b.address) as to_b,
    ):
        whole = await to_a.run(PROMPT, greedy(200))
        leg = await to_a.start(PROMPT, greedy(200))
        await to_a.until(lambda: len(to_a.legs[leg].token_ids) >= 7)
        await to_a.hand_off(leg)
        one = await to_a.answer(leg)
        assert one.finish == LEG_END
        assert one.kv is not None
        count = len(one.token_ids)
        two = await to_b.run(
            PROMPT + one.token_ids, greedy(200), emitted=count, chars_sent=one.chars_sent, kv=one.kv
        )  # fmt: skip
        assert one.token_ids + two.token_ids == whole.token_ids
        assert one.text + two.text == whole.text
