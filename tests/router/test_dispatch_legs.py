"""How an answer's legs run, through a whole router, over real gRPC, on workers that do what the test says."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fleet_fake import (
    FakeStream,
    FakeWorker,
    Service,
    answering,
    context_of,
    expected_ids,
    ids_of,
    kv_of,
    next_token,
    output,
    service,
    silent,
    until,
)

from penstock_proto.v1 import worker_pb2
from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.answer import Answer, Delta
from penstock_router.faults import Broken, CallerFault, Expired, Unavailable
from penstock_router.request import Limits, Request, parse

PROMPT = "hello world"
LIMITS = Limits(models=frozenset())


def ask(max_tokens: int = 5, prompt: str = PROMPT, **fields: Any) -> Request:
    sampling = Sampling(max_tokens=max_tokens, **fields.pop("sampling", {}))
    return parse(GenerateRequest(prompt=prompt, sampling=sampling, **fields), LIMITS)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, hold_s=1.0) as made:
        yield made


async def pair(running: Service, prefill: Any = None, decode: Any = None) -> tuple[FakeWorker, FakeWorker]:
    p = await running.add(FakeWorker("p", prefill or answering(), pool="prefill", role="prefill"))
    d = await running.add(FakeWorker("d", decode or answering(), pool="decode", role="decode"))
    return p, d


async def whole(answer: Answer) -> dict[int, list[Delta]]:
    out: dict[int, list[Delta]] = {}
    while deltas := await answer.next():
        for delta in deltas:
            out.setdefault(delta.index, []).append(delta)
    return out


def ids(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def disaggregated(folder: Path) -> Any:
    return service(folder, topology_mode="disaggregated", hold_s=1.0)


async def test_one_worker_answers_whole(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    async with running.router.dispatcher.answer(ask(explain=True), None) as answer:
        deltas = (await whole(answer))[0]
    assert ids(deltas) == expected_ids(len(PROMPT), 5)
    assert "".join(d.text for d in deltas) == "".join(map(chr, ids(deltas)))
    last = deltas[-1]
    assert last.finish_reason == FinishReason.LENGTH and all(not d.finish_reason for d in deltas[:-1])
    assert last.usage is not None and last.usage.completion_tokens == 5
    assert last.placement is not None and [leg.kind for leg in last.placement.legs] == ["whole"]
    assert running.at_rest()


async def test_a_pair_answers_in_two_legs_and_its_usage_adds_up(tmp_path: Path) -> None:
    async with disaggregated(tmp_path) as running:
        p, d = await pair(running)
        async with running.router.dispatcher.answer(ask(explain=True), None) as answer:
            deltas = (await whole(answer))[0]
        assert ids(deltas) == expected_ids(len(PROMPT), 5)
        assert [leg.max_leg_tokens for leg in p.legs] == [1]
        (decode,) = d.legs
        assert ids_of(decode.token_ids) == [*map(ord, PROMPT), next_token(len(PROMPT))]
        assert (decode.emitted, decode.chars_sent, decode.kv.num_tokens) == (1, 1, len(PROMPT))
        assert 0 < decode.kv.lease_ms <= 30_000
        usage, placement = deltas[-1].usage, deltas[-1].placement
        assert usage is not None and usage.transferred_tokens > 0
        assert usage.prompt_tokens == usage.cached_tokens + usage.transferred_tokens + usage.computed_tokens == len(PROMPT)
        assert placement is not None
        assert [(leg.kind, leg.worker, leg.generated_tokens) for leg in placement.legs] == [
            ("prefill", "p", 1),
            ("decode", "d", 4),
        ]
        assert p.rejected == []
        assert running.at_rest()


async def test_the_prefills_token_goes_out_before_the_decode_says_anything(tmp_path: Path) -> None:
    async with disaggregated(tmp_path) as running:
        await pair(running, decode=silent)
        async with running.router.dispatcher.answer(ask(), None) as answer:
            (first,) = await answer.next()
        assert first.token_ids == [next_token(len(PROMPT))] and not first.finish_reason


async def test_an_answer_of_one_token_needs_no_decode_worker(tmp_path: Path) -> None:
    async with disaggregated(tmp_path) as running:
        _, _ = await pair(running)
        async with running.router.dispatcher.answer(ask(1), None) as answer:
            deltas = (await whole(answer))[0]
        assert deltas[-1].finish_reason == FinishReason.LENGTH
        assert sum(len(w.legs) for w in running.workers) == 1
        assert running.at_rest()


async def test_two_choices_run_apart_and_end_apart(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    async with running.router.dispatcher.answer(ask(4, sampling={"n": 2, "seed": 7}), None) as answer:
        by_choice = await whole(answer)
    assert sorted(by_choice) == [0, 1]
    assert [ids(by_choice[i]) for i in (0, 1)] == [expected_ids(len(PROMPT), 4)] * 2
    assert [by_choice[i][-1].finish_reason for i in (0, 1)] == [FinishReason.LENGTH] * 2
    assert [leg.sampling.seed for leg in running.workers[0].legs] == [7, 8]
    assert running.at_rest()


async def test_a_backlog_leaves_as_one_delta(running: Service) -> None:
    def burst(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        for i in range(40):
            end = {"finish_reason": FinishReason.LENGTH} if i == 39 else {}
            stream.say(output(leg, [next_token(i)], **end))

    await running.add(FakeWorker("w", burst))
    async with running.router.dispatcher.answer(ask(40), None) as answer:
        await until(lambda: answer.over)
        deltas = (await whole(answer))[0]
    assert len(deltas) == 1 and len(deltas[0].token_ids) == 40


async def test_a_failure_before_the_first_token_moves_elsewhere(running: Service) -> None:
    def failing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        error = worker_pb2.LegError(fault=worker_pb2.LegError.WORKER, message="out of luck")
        stream.say(output(leg, finish_reason=FinishReason.ERROR, error=error))

    a, b = [await running.add(FakeWorker(name, failing)) for name in ("a", "b")]
    good = await running.add(FakeWorker("good", answering()))
    async with running.router.dispatcher.answer(ask(), None) as answer:
        assert ids((await whole(answer))[0]) == expected_ids(len(PROMPT), 5)
    assert len(good.legs) == 1
    assert len(a.legs) + len(b.legs) > 0
    assert running.metric("penstock_router_failovers_total", reason="worker_failed") == len(a.legs) + len(b.legs)
    assert running.at_rest()


async def test_a_worker_that_dies_before_the_first_token_is_replaced(running: Service) -> None:
    dead = await running.add(FakeWorker("dead", silent))
    async with running.router.dispatcher.answer(ask(), None) as answer:
        await until(lambda: len(dead.legs) == 1)
        await running.add(FakeWorker("good", answering()))
        await dead.die()
        assert ids((await whole(answer))[0]) == expected_ids(len(PROMPT), 5)
    assert running.at_rest()


async def test_a_failure_after_the_first_token_breaks_the_answer_after_what_was_made(running: Service) -> None:
    def dying(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        stream.say(output(leg, [97, 98]))
        stream.out.put_nowait(None)

    await running.add(FakeWorker("w", dying))
    async with running.router.dispatcher.answer(ask(), None) as answer:
        (delta,) = await answer.next()
        assert delta.token_ids == [97, 98]
        with pytest.raises(Broken):
            await answer.next()
    assert running.at_rest()


async def test_what_a_worker_says_is_the_callers_fault_names_the_field(running: Service) -> None:
    def refusing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        error = worker_pb2.LegError(fault=worker_pb2.LegError.CALLER, field="json_schema", message="no such type")
        stream.say(output(leg, finish_reason=FinishReason.ERROR, error=error))

    worker = await running.add(FakeWorker("w", refusing))
    with pytest.raises(CallerFault) as caught:
        async with running.router.dispatcher.answer(ask(), None) as answer:
            await answer.next()
    assert caught.value.field == "json_schema" and len(worker.legs) == 1
    assert running.at_rest()


async def test_retries_end(running: Service) -> None:
    def failing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        stream.say(output(leg, finish_reason=FinishReason.ERROR, error=worker_pb2.LegError(fault=worker_pb2.LegError.WORKER)))

    workers = [await running.add(FakeWorker(f"w{i}", failing)) for i in range(5)]
    requests = 8
    for _ in range(requests):
        with pytest.raises(Unavailable):
            async with running.router.dispatcher.answer(ask(), None) as answer:
                await answer.next()
    assert sum(len(w.legs) for w in workers) <= 1.2 * requests + 3
    assert running.at_rest()


async def test_leaving_aborts_at_the_worker_at_once(running: Service) -> None:
    worker = await running.add(FakeWorker("w", answering(pause_s=0.01)))
    async with running.router.dispatcher.answer(ask(900), None) as answer:
        await answer.next()
        leg_id = worker.legs[0].leg_id
    assert running.at_rest()  # in the same turn of the loop
    await until(lambda: worker.aborted == [leg_id], 0.1)
    assert running.metric("penstock_router_requests_total", model="tiny", service_class="default", outcome="cancelled") == 1


async def test_leaving_between_prefill_and_decode_gives_the_kv_back(tmp_path: Path) -> None:
    async with disaggregated(tmp_path) as running:
        p, d = await pair(running, decode=silent)
        async with running.router.dispatcher.answer(ask(), None) as answer:
            await answer.next()
            await until(lambda: len(d.legs) == 1)
        assert running.at_rest()
        await until(lambda: len(p.rejected) == 1 and d.aborted == [d.legs[0].leg_id], 0.5)
        assert p.rejected[0].num_tokens == len(PROMPT)


async def test_kv_near_its_leases_end_is_given_back_and_computed_again(tmp_path: Path) -> None:
    async with disaggregated(tmp_path) as running:
        p, d = await pair(running, prefill=answering(lease_ms=500))
        async with running.router.dispatcher.answer(ask(), None) as answer:
            deltas = (await whole(answer))[0]
        assert ids(deltas) == expected_ids(len(PROMPT), 5)
        assert not d.legs[0].HasField("kv") and d.legs[0].emitted == 1
        await until(lambda: len(p.rejected) == 1)
        assert deltas[-1].usage is not None and deltas[-1].usage.transferred_tokens == 0
        assert running.metric("penstock_router_kv_expired_total") == 1


async def test_a_pull_that_fails_is_computed_on_the_same_worker(tmp_path: Path) -> None:
    engine = answering()

    def pulling(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> Any:
        if leg.HasField("kv"):
            error = worker_pb2.LegError(fault=worker_pb2.LegError.TRANSFER, message="peer gone")
            stream.say(output(leg, finish_reason=FinishReason.ERROR, error=error))
            return None
        return engine(worker, stream, leg)

    async with disaggregated(tmp_path) as running:
        _, d = await pair(running, decode=pulling)
        async with running.router.dispatcher.answer(ask(), None) as answer:
            assert ids((await whole(answer))[0]) == expected_ids(len(PROMPT), 5)
        assert [leg.HasField("kv") for leg in d.legs] == [True, False]
        assert running.at_rest()


async def test_a_decode_worker_that_dies_while_the_prefill_runs_is_done_without(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def waiting(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        if leg.max_leg_tokens:
            await gate.wait()
            end = {"finish_reason": FinishReason.LEG_END, "kv": kv_of(worker, leg), "context": context_of(leg)}
            stream.say(output(leg, [next_token(len(PROMPT))], **end))
        else:
            await answering()(worker, stream, leg)

    async with disaggregated(tmp_path) as running:
        p, d = await pair(running, prefill=waiting)
        async with running.router.dispatcher.answer(ask(), None) as answer:
            await until(lambda: len(p.legs) == 1)
            await d.die()
            gate.set()
            assert ids((await whole(answer))[0]) == expected_ids(len(PROMPT), 5)
        assert running.at_rest()


async def test_the_deadline_ends_an_answer_and_its_leg(running: Service) -> None:
    worker = await running.add(FakeWorker("w", silent))
    deadline = asyncio.get_running_loop().time() + 0.1
    async with running.router.dispatcher.answer(ask(), deadline) as answer:
        with pytest.raises(Expired):
            await answer.next()
    await until(lambda: len(worker.aborted) == 1)
    assert running.at_rest()


async def test_a_stopping_router_takes_no_new_request(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    running.router.dispatcher.draining = True
    assert not running.router.dispatcher.ready()
    with pytest.raises(Unavailable):
        await running.router.dispatcher.open(ask(), None)
