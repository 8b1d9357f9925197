"""The retry budget slows begun streams down; it does not end them."""

import asyncio
from pathlib import Path

from fleet_fake import FakeStream, FakeWorker, answering, expected_ids, next_token, output, service

from penstock_proto.v1 import worker_pb2
from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.request import Limits, parse

REQUESTS = 12  # more than the budget's floor of 3, and what 12 requests pay in


async def fails_once(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
    """Every answer's first leg fails after its first token."""
    if leg.emitted:
        await answering()(worker, stream, leg)
        return
    stream.say(output(leg, [next_token(len(leg.token_ids) // 4)]))
    await asyncio.sleep(0.05)
    error = worker_pb2.LegError(fault=worker_pb2.LegError.WORKER, message="out of luck")
    stream.say(output(leg, finish_reason=FinishReason.ERROR, error=error))


async def test_streams_that_all_wait_for_the_budget_go_on(tmp_path: Path) -> None:
    request = parse(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=4)), Limits(models=frozenset()))
    async with service(tmp_path, hold_s=0.6) as running:
        for name in ("a", "b", "c"):
            await running.add(FakeWorker(name, fails_once))

        async def one() -> list[int]:
            out: list[int] = []
            async with running.router.dispatcher.answer(request, None) as answer:
                while deltas := await answer.next():
                    out += [i for delta in deltas for i in delta.token_ids]
            return out

        answers = await asyncio.gather(*(one() for _ in range(REQUESTS)))
        assert answers == [expected_ids(3, 4)] * REQUESTS
        assert running.metric("penstock_router_failovers_total", reason="worker_failed") == REQUESTS
        assert running.at_rest()
