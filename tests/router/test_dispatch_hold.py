"""Requests that come before a worker can run them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet_fake import FakeWorker, Service, answering, expected_ids, service, until

from penstock_proto.v1 import fleet_pb2
from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.faults import CallerFault, Expired, Shed, Unavailable, UnknownModel
from penstock_router.request import Limits, Request, parse


def ask(prompt: str = "abc", model: str = "", max_tokens: int = 3) -> Request:
    message = GenerateRequest(prompt=prompt, model=model, sampling=Sampling(max_tokens=max_tokens))
    return parse(message, Limits(models=frozenset()))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, hold_s=0.3, limits={"max_held_requests": 2}) as made:
        yield made


async def ids_of_answer(running: Service, request: Request) -> list[int]:
    out: list[int] = []
    async with running.router.dispatcher.answer(request, None) as answer:
        while deltas := await answer.next():
            for delta in deltas:
                out += delta.token_ids
    return out


async def test_a_request_without_workers_waits_for_one(tmp_path: Path) -> None:
    async with service(tmp_path, hold_s=5.0) as running:
        waiting = asyncio.ensure_future(ids_of_answer(running, ask()))
        await until(lambda: running.metric("penstock_router_queue_requests") == 1)
        await running.add(FakeWorker("w", answering()))
        assert await waiting == expected_ids(3, 3)
        assert running.at_rest()


async def test_nobody_comes_and_it_is_unavailable_after_the_hold(running: Service) -> None:
    with pytest.raises(Unavailable):
        await running.router.dispatcher.open(ask(), None)
    assert running.metric("penstock_router_dropped_total", reason="unavailable") == 1
    assert running.at_rest()


async def test_the_deadline_is_kept_while_waiting(running: Service) -> None:
    with pytest.raises(Expired):
        await running.router.dispatcher.open(ask(), asyncio.get_running_loop().time() + 0.05)


async def test_few_may_wait(running: Service) -> None:
    waiting = [asyncio.ensure_future(running.router.dispatcher.open(ask(), None)) for _ in range(2)]
    await until(lambda: running.metric("penstock_router_queue_requests") == 2)
    with pytest.raises(Shed):
        await running.router.dispatcher.open(ask(), None)
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(end, Unavailable) for end in ends)


async def test_a_request_that_left_while_waiting_is_counted_as_cancelled(running: Service) -> None:
    waiting = asyncio.ensure_future(running.router.dispatcher.open(ask(), None))
    await until(lambda: running.metric("penstock_router_queue_requests") == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert running.metric("penstock_router_requests_total", model="", service_class="default", outcome="cancelled") == 1
    assert running.at_rest()


async def test_a_model_that_nobody_serves_is_unknown(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    with pytest.raises(UnknownModel):
        await running.router.dispatcher.open(ask(model="other"), None)
    assert await ids_of_answer(running, ask(model="tiny")) == expected_ids(3, 3)


async def test_several_models_and_none_named_is_the_callers_fault(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    await running.add(FakeWorker("v", answering(), model="other", digest="d2"))
    with pytest.raises(CallerFault):
        await running.router.dispatcher.open(ask(), None)
    assert await ids_of_answer(running, ask(model="other")) == expected_ids(3, 3)
    assert len(running.workers[1].legs) == 1


async def test_a_known_model_without_a_ready_worker_waits_as_tokens(tmp_path: Path) -> None:
    async with service(tmp_path, hold_s=5.0, forget_after_s=1.0) as running:
        first = await running.add(FakeWorker("w", answering()))
        await first.die()
        waiting = asyncio.ensure_future(ids_of_answer(running, ask()))
        await until(lambda: running.metric("penstock_router_queue_tokens") == 3)
        await running.add(FakeWorker("v", answering()))
        assert await waiting == expected_ids(3, 3)
        assert running.at_rest()


async def test_a_prompt_that_fills_the_context_is_the_callers_fault(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    with pytest.raises(CallerFault) as caught:
        await running.router.dispatcher.open(ask("x" * 1000), None)
    assert caught.value.field == "prompt"
    assert running.at_rest()


async def test_a_rollout_moves_a_name_to_the_new_digest(tmp_path: Path) -> None:
    async with service(tmp_path, hold_s=1.0, forget_after_s=1.0) as running:
        old = await running.add(FakeWorker("old", answering()))
        new = await running.add(FakeWorker("new", answering(), digest="d2"))
        old.reports.put_nowait(fleet_pb2.WorkerReport(draining=fleet_pb2.Draining(reason="rollout")))
        await until(lambda: running.state("old") == "draining")
        assert await ids_of_answer(running, ask()) == expected_ids(3, 3)
        await old.die()
        await until(lambda: running.state("old") == "absent")
        assert await ids_of_answer(running, ask()) == expected_ids(3, 3)
        assert len(new.legs) == 2
