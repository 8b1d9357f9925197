"""Streams that go on: failover after the first token, hand-off off draining workers, silence, and room found elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fleet_fake import FakeStream, FakeWorker, Service, answering, expected_ids, ids_of, output, service, until

from penstock_proto.v1 import worker_pb2
from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.fleet_pb2 import LoadReport
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.answer import Answer
from penstock_router.faults import Broken, Unavailable
from penstock_router.request import Limits, Request, parse

PROMPT = "hello world"
COUNT = 30
SLOW = answering(pause_s=0.01)


def ask(max_tokens: int = COUNT) -> Request:
    request = GenerateRequest(prompt=PROMPT, explain=True, sampling=Sampling(max_tokens=max_tokens))
    return parse(request, Limits(models=frozenset()))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, hold_s=1.0, topology_mode="colocated") as made:
        yield made


class Stream:
    """A client that reads all of it."""

    def __init__(self, service: Service, request: Request) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.legs: list[Any] = []
        self.finish = 0
        self._service, self._request = service, request
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async with self._service.router.dispatcher.answer(self._request, None) as answer:
            await self._take(answer)

    async def _take(self, answer: Answer) -> None:
        while deltas := await answer.next():
            for delta in deltas:
                self.ids += delta.token_ids
                self.text += delta.text
                self.finish = delta.finish_reason or self.finish
                if delta.placement is not None:
                    self.legs = list(delta.placement.legs)

    def whole(self) -> bool:
        right = expected_ids(len(PROMPT), COUNT)
        return self.ids == right and self.text == "".join(map(chr, right)) and self.finish == FinishReason.LENGTH


async def begun(running: Service, count: int = 1) -> list[Stream]:
    streams = [Stream(running, ask()) for _ in range(count)]
    await until(lambda: all(len(s.ids) >= 3 for s in streams))
    return streams


async def test_a_defect_in_a_sweep_costs_one_sweep(
    running: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moves, swept = running.router.dispatcher.moves, []
    tick = type(moves).tick

    def fails_once(self: object, now: float) -> None:
        swept.append(now)
        if len(swept) == 1:
            raise RuntimeError("a defect")
        tick(moves, now)

    monkeypatch.setattr(type(moves), "tick", fails_once)
    await until(lambda: len(swept) > 1)
    assert [r.message for r in caplog.records if r.exc_info] == ["sweep failed"]


async def test_a_stream_whose_worker_dies_goes_on_elsewhere_with_what_the_client_has(running: Service) -> None:
    first = await running.add(FakeWorker("a", SLOW))
    streams = await begun(running, 4)
    second = await running.add(FakeWorker("b", SLOW))
    await first.die()
    await asyncio.gather(*(s.task for s in streams))
    assert all(s.whole() for s in streams)
    assert [leg.kind for leg in streams[0].legs] == ["whole", "resume"] and len(second.legs) == 4
    for leg in second.legs:
        assert leg.emitted >= 3 and leg.chars_sent == leg.emitted and len(ids_of(leg.token_ids)) == len(PROMPT) + leg.emitted
    assert running.metric("penstock_router_failovers_total", reason="worker_lost") == 4
    assert running.at_rest()


async def test_a_stream_that_nobody_can_go_on_with_ends_broken_with_the_reason(running: Service) -> None:
    first = await running.add(FakeWorker("a", SLOW))
    (stream,) = await begun(running)
    await first.die()
    with pytest.raises(Broken, match="no_worker"):
        await stream.task
    assert stream.ids == expected_ids(len(PROMPT), len(stream.ids))
    assert running.at_rest()


async def test_a_stream_waits_for_a_worker_to_come_back(running: Service) -> None:
    first = await running.add(FakeWorker("a", SLOW))
    (stream,) = await begun(running)
    await first.die()
    await asyncio.sleep(0.2)
    await running.add(FakeWorker("b", SLOW))
    await stream.task
    assert stream.whole()


async def test_an_engine_that_fails_mid_stream_is_left(running: Service) -> None:
    async def failing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        made = expected_ids(len(PROMPT), 5)
        for i, token in enumerate(made):
            stream.say(output(leg, [token], chars_sent=i + 1))
        error = worker_pb2.LegError(fault=worker_pb2.LegError.WORKER, message="out of luck")
        stream.say(output(leg, finish_reason=FinishReason.ERROR, error=error, chars_sent=5))

    await running.add(FakeWorker("a", failing))
    stream = Stream(running, ask())
    await until(lambda: len(stream.ids) == 5)
    await running.add(FakeWorker("b", SLOW))
    await stream.task
    assert stream.whole() and [leg.outcome for leg in stream.legs] == ["error_worker", "length"]


async def test_a_worker_that_falls_silent_is_left_and_what_it_says_later_is_dropped(tmp_path: Path) -> None:
    stopped = asyncio.Event()
    late: list[tuple[FakeStream, worker_pb2.StartLeg]] = []

    async def stalling(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        for i, token in enumerate(expected_ids(len(PROMPT), 4)):
            stream.say(output(leg, [token], chars_sent=i + 1))
        late.append((stream, leg))
        stopped.set()

    async with service(tmp_path, hold_s=2.0, stale_after_s=0.2, lost_after_s=0.5, topology_mode="colocated") as running:
        frozen = await running.add(FakeWorker("a", stalling))
        stream = Stream(running, ask())
        await stopped.wait()
        frozen.silent = True
        await running.add(FakeWorker("b", SLOW))
        await until(lambda: len(stream.ids) > 4)
        for silent_stream, leg in late:
            silent_stream.say(output(leg, [1, 2, 3]))
        await stream.task
        assert stream.whole() and running.at_rest()


async def test_a_draining_worker_hands_its_streams_over_by_their_kv(running: Service) -> None:
    first = await running.add(FakeWorker("a", SLOW))
    streams = await begun(running, 4)
    second = await running.add(FakeWorker("b", SLOW))
    first.drains()
    await asyncio.gather(*(s.task for s in streams))
    assert all(s.whole() for s in streams) and len(first.handing) == 4
    assert [leg.kind for leg in streams[0].legs] == ["whole", "handoff"]
    for leg in second.legs:
        # The last token's KV is not computed yet: everything before it comes by pull.
        assert leg.kv.worker_id == "a" and leg.kv.num_tokens == len(ids_of(leg.token_ids)) - 1
    assert first.rejected == [] and running.metric("penstock_router_handoffs_total", reason="drain", outcome="pulled") == 4
    assert running.state("a") == "draining" and running.at_rest()


async def test_kv_whose_lease_is_nearly_over_is_rejected_and_computed(running: Service) -> None:
    first = await running.add(FakeWorker("a", answering(pause_s=0.01, lease_ms=1000)))
    (stream,) = await begun(running)
    second = await running.add(FakeWorker("b", SLOW))
    first.drains()
    await stream.task
    assert stream.whole() and [leg.kind for leg in stream.legs] == ["whole", "resume"]
    assert not second.legs[0].HasField("kv")
    await until(lambda: len(first.rejected) == 1)


async def test_a_stream_with_nowhere_to_go_ends_where_it_is(running: Service) -> None:
    first = await running.add(FakeWorker("a", SLOW))
    (stream,) = await begun(running)
    first.drains()
    await stream.task
    assert stream.whole() and first.handing == [] and [leg.kind for leg in stream.legs] == ["whole"]


async def test_a_worker_that_dies_while_it_hands_over_loses_nothing(running: Service) -> None:
    async def deaf(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        for i, token in enumerate(expected_ids(len(PROMPT), 4)):
            stream.say(output(leg, [token], chars_sent=i + 1))

    first = await running.add(FakeWorker("a", deaf))
    stream = Stream(running, ask())
    await until(lambda: len(stream.ids) == 4)
    await running.add(FakeWorker("b", SLOW))
    first.drains()
    await until(lambda: len(first.handing) == 1)
    await first.die()
    await stream.task
    assert stream.whole() and [leg.kind for leg in stream.legs] == ["whole", "resume"]
    assert running.metric("penstock_router_handoffs_total", reason="drain", outcome="recomputed") == 0
    assert running.at_rest()


async def test_a_worker_that_fails_again_and_again_is_ejected(running: Service) -> None:
    def failing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        error = worker_pb2.LegError(fault=worker_pb2.LegError.WORKER, message="out of luck")
        stream.say(output(leg, finish_reason=FinishReason.ERROR, error=error))

    bad = await running.add(FakeWorker("a", failing))
    await running.add(FakeWorker("b", answering()))
    answered = 0
    for _ in range(40):
        stream = Stream(running, ask())
        with contextlib.suppress(Unavailable):  # while the retry budget of one request at a time is spent
            await stream.task
            answered += stream.whole()
    assert answered >= 37
    assert running.state("a") == "ejected" and len(bad.legs) == 5


async def test_a_sequence_leaves_a_worker_without_room_for_one_with_room(running: Service) -> None:
    first = await running.add(FakeWorker("a", SLOW))
    first.silent = True
    (stream,) = await begun(running)
    second = await running.add(FakeWorker("b", SLOW))
    (member,) = [m for m in running.router.fleet.members.values() if m.name == "a"]
    full = running.router.fleet
    full.load(member, LoadReport(running=40, waiting=30, context_tokens=20_000, kv_usage=0.99), running.router.dispatcher.now())
    running.router.dispatcher.moves.tick(running.router.dispatcher.now())
    await stream.task
    assert stream.whole() and [leg.kind for leg in stream.legs] == ["whole", "handoff"] and len(second.legs) == 1


async def test_a_pull_that_never_ends_is_computed_on_the_same_worker(tmp_path: Path) -> None:
    """The fake says nothing to a leg with KV, as an engine whose read hangs."""

    async def deaf_to_kv(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        if not leg.HasField("kv"):
            await SLOW(worker, stream, leg)

    async with service(tmp_path, topology_mode="disaggregated", pull_timeout_s=0.3) as running:
        first = await running.add(FakeWorker("p", SLOW, pool="prefill", role="prefill"))
        await running.add(FakeWorker("d", deaf_to_kv, pool="decode", role="decode"))
        stream = Stream(running, ask())
        await stream.task
        assert stream.whole() and [leg.outcome for leg in stream.legs] == ["leg_end", "superseded", "length"]
        assert running.metric("penstock_router_failovers_total", reason="pull_stalled") == 1
        await until(lambda: len(first.rejected) == 1)
        assert running.at_rest() and not running.router.dispatcher.moves.pulls


async def test_when_most_workers_fall_silent_at_once_they_get_as_long_again(tmp_path: Path) -> None:
    quiet = asyncio.Event()

    async def pausing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        for i, token in enumerate(expected_ids(len(PROMPT), 4)):
            stream.say(output(leg, [token], chars_sent=i + 1))
        await quiet.wait()
        rest = expected_ids(len(PROMPT), COUNT)[4:]
        stream.say(output(leg, rest, chars_sent=COUNT, finish_reason=FinishReason.LENGTH))

    async with service(tmp_path, stale_after_s=0.2, lost_after_s=1.0, topology_mode="colocated") as running:
        workers = [await running.add(FakeWorker(name, pausing)) for name in "ab"]
        streams = [Stream(running, ask()) for _ in range(4)]
        await until(lambda: all(len(s.ids) == 4 for s in streams))
        for worker in workers:
            assert worker.legs
            worker.silent = True
        await asyncio.sleep(1.4)
        quiet.set()
        await asyncio.gather(*(s.task for s in streams))
        assert all(s.whole() for s in streams) and running.metric("penstock_router_failovers_total", reason="worker_lost") == 0
