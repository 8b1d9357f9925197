"""What workers report, through real streams: who is there, what they hold, when they are believed."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fleet_fake import BLOCK, FakeWorker, Service, answering, keys_of, service, silent, until

from penstock_proto.v1 import fleet_pb2, fleet_pb2_grpc
from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.request import Limits, parse

STORED, REMOVED, CLEARED = fleet_pb2.KvOp.STORED, fleet_pb2.KvOp.REMOVED, fleet_pb2.KvOp.CLEARED


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, stale_after_s=0.3, forget_after_s=0.6, panic_threshold=0.0, hold_s=0.5) as made:
        yield made


def blocks(running: Service, worker: str) -> int:
    fleet = running.router.fleet
    return next((fleet.index.held(m.slot) for m in fleet.members.values() if m.hello.worker_id == worker), -1)


async def test_a_joined_worker_is_ready_once_its_model_is_loaded(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    assert running.metric("penstock_router_workers", pool="workers", role="both", state="ready") == 1
    assert worker.notices[0].welcome.router_id == running.config.router_id
    assert worker.streams[0].router_id == running.config.router_id
    assert running.router.dispatcher.ready()
    assert [card.name for card in running.router.dispatcher.models()] == ["tiny"]


async def test_snapshot_then_deltas_make_the_view(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering()), ready=False)
    worker.snapshot([1, 2, 3], next_seq=7, chunk=0, last=False)
    worker.delta(7, STORED, [9])  # made while the snapshot was under way
    worker.snapshot([4], next_seq=7, chunk=1, last=True)
    worker.delta(8, REMOVED, [1, 2])
    await until(lambda: blocks(running, "w") == 3)
    worker.delta(9, CLEARED)
    worker.delta(10, STORED, [5])
    await until(lambda: blocks(running, "w") == 1)
    assert worker.notices[1:] == []


async def test_a_gap_is_answered_with_resend_and_believed_again_after_a_snapshot(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    worker.delta(1, STORED, [1])
    await until(lambda: blocks(running, "w") == 1)
    worker.delta(3, STORED, [2])
    worker.delta(4, STORED, [3])
    await until(lambda: len(worker.notices) == 2)
    assert worker.notices[1].HasField("resend")
    assert blocks(running, "w") == 1
    worker.snapshot([1, 2, 3, 4], next_seq=6)
    worker.delta(5, STORED, [99])  # older than the snapshot
    worker.delta(6, STORED, [5])
    await until(lambda: blocks(running, "w") == 5)
    assert running.metric("penstock_router_kv_gaps_total") == 1


async def test_missing_snapshot_chunks_are_asked_for_again(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    worker.snapshot([1], chunk=0, last=False)
    worker.snapshot([2], chunk=2, last=True)
    await until(lambda: any(n.HasField("resend") for n in worker.notices))


async def test_cached_blocks_draw_requests(running: Service) -> None:
    cold = await running.add(FakeWorker("cold", answering()))
    warm = await running.add(FakeWorker("warm", answering()))
    prompt = "a long enough prompt " * 20
    warm.delta(1, STORED, keys_of(array("I", map(ord, prompt))))
    await until(lambda: blocks(running, "warm") == len(prompt) // BLOCK)
    request = parse(GenerateRequest(prompt=prompt, sampling=Sampling(max_tokens=2)), Limits(models=frozenset()))
    for _ in range(3):
        async with running.router.dispatcher.answer(request, None) as answer:
            while await answer.next():
                pass
    assert (len(warm.legs), len(cold.legs)) == (3, 0)


async def test_a_silent_worker_gets_no_new_work(running: Service) -> None:
    quiet = await running.add(FakeWorker("a", answering()))
    other = await running.add(FakeWorker("b", answering()))
    quiet.silent = True
    await until(lambda: running.state("a") == "stale")
    await asyncio.sleep(0.15)  # candidates are at most 0.1 s old
    request = parse(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=1)), Limits(models=frozenset()))
    for _ in range(4):
        async with running.router.dispatcher.answer(request, None) as answer:
            await answer.next()
    assert (len(quiet.legs), len(other.legs)) == (0, 4)
    quiet.silent = False
    await until(lambda: running.state("a") == "ready")


async def test_a_draining_worker_gets_no_new_work(running: Service) -> None:
    leaving = await running.add(FakeWorker("a", answering()))
    other = await running.add(FakeWorker("b", answering()))
    leaving.reports.put_nowait(fleet_pb2.WorkerReport(draining=fleet_pb2.Draining(reason="scale down")))
    await until(lambda: running.state("a") == "draining")
    request = parse(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=1)), Limits(models=frozenset()))
    for _ in range(4):
        async with running.router.dispatcher.answer(request, None) as answer:
            await answer.next()
    assert (len(leaving.legs), len(other.legs)) == (0, 4)


async def test_a_new_incarnation_replaces_the_old_one_and_ends_its_legs(running: Service) -> None:
    worker = await running.add(FakeWorker("w", silent))
    worker.delta(1, STORED, [1, 2])
    await until(lambda: blocks(running, "w") == 2)
    request = parse(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=1)), Limits(models=frozenset()))
    async with running.router.dispatcher.answer(request, None) as answer:
        await until(lambda: len(worker.legs) == 1)
        worker.hello["incarnation"] = 2
        worker.behave = answering()
        await worker.leave()
        worker.join(running.reports)
        worker.snapshot([7])
        (delta,) = await answer.next()
        assert delta.finish_reason
    await until(lambda: blocks(running, "w") == 1)
    assert len(running.router.fleet.members) == 1
    assert len(worker.legs) == 2
    assert running.at_rest()


async def test_a_worker_that_redials_keeps_its_legs(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering(pause_s=0.02)))
    request = parse(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=40)), Limits(models=frozenset()))
    async with running.router.dispatcher.answer(request, None) as answer:
        tokens = len((await answer.next())[0].token_ids)
        await worker.leave()
        await until(lambda: not next(iter(running.router.fleet.members.values())).joined)
        worker.join(running.reports)
        worker.snapshot([1])
        while deltas := await answer.next():
            tokens += sum(len(d.token_ids) for d in deltas)
    assert tokens == 40 and len(worker.streams) == 1 and len(worker.legs) == 1


async def test_a_lost_worker_is_forgotten(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    await worker.die()
    await until(lambda: running.state("w") == "absent")
    assert running.metric("penstock_router_index_blocks") == 0
    assert running.router.dispatcher.links == {}


async def test_a_restarted_router_has_its_view_when_workers_redial(tmp_path: Path) -> None:
    async with service(tmp_path) as first:
        worker = await first.add(FakeWorker("w", answering()))
        worker.delta(1, STORED, [1, 2, 3])
        await until(lambda: blocks(first, "w") == 3)
        await worker.leave()
        async with service(tmp_path) as second:
            worker.join(second.reports)
            worker.snapshot([1, 2, 3], next_seq=2)
            await until(lambda: second.state("w") == "ready" and blocks(second, "w") == 3)
            assert worker.model_calls == 1  # the second found the files on disk
            await worker.leave()


async def test_a_broken_attach_is_dialled_again(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    worker.streams[0].out.put_nowait(None)
    await until(lambda: len(worker.streams) == 2 and running.state("w") == "ready")


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("hello must come first", fleet_pb2.WorkerReport(load=fleet_pb2.LoadReport())),
        ("hello.worker_id", fleet_pb2.WorkerReport(hello=fleet_pb2.Hello(address="h:1"))),
        ("hello.address", fleet_pb2.WorkerReport(hello=fleet_pb2.Hello(worker_id="w", address="nowhere"))),
        ("hello.capacity", fleet_pb2.WorkerReport(hello=fleet_pb2.Hello(worker_id="w", address="h:1"))),
    ],
)
async def test_a_stream_that_breaks_the_protocol_is_refused(running: Service, fault: str, report: fleet_pb2.WorkerReport) -> None:
    async with grpc.aio.insecure_channel(running.reports) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Join()
        await call.write(report)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
            await call.read()
        call.cancel()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fault in (caught.value.details() or "")
    assert running.router.fleet.members == {}


async def test_a_worker_of_another_model_is_refused_where_one_is_configured(tmp_path: Path) -> None:
    async with service(tmp_path, model="served") as running:
        worker = await running.add(FakeWorker("w", answering()), ready=False)
        await asyncio.sleep(0.1)
        assert running.state("w") == "absent" and worker.notices == []
