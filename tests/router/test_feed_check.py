"""What a worker may report: nothing that would raise, or poison predictions, behind it."""

from typing import Any

import grpc
import pytest
from fleet_fake import FakeWorker, answering, service, until
from fuzz_core import VirtualRouter, hello

from penstock_proto.v1.fleet_pb2 import (
    Capacity,
    CostReport,
    Hello,
    KvDelta,
    KvOp,
    KvSnapshot,
    LoadReport,
    SeenRequests,
    WorkerReport,
)
from penstock_proto.v1.worker_pb2 import LegOutput, StepOutputs
from penstock_router.feed.check import changed_fact, hello_fault, report_fault

BAD_REPORTS = {
    "load.kv_usage": WorkerReport(load=LoadReport(kv_usage=float("nan"))),
    "delta.ops.hashes": WorkerReport(delta=KvDelta(seq=1, ops=[KvOp(kind=KvOp.STORED, hashes=b"123")])),
    "snapshot.hashes": WorkerReport(snapshot=KvSnapshot(next_seq=1, last=True, hashes=b"1" * 9)),
    "seen.hashes": WorkerReport(seen=SeenRequests(hashes=b"1")),
    "cost.base_s": WorkerReport(cost=CostReport(base_s=float("inf"))),
    "cost.prefill_s": WorkerReport(cost=CostReport(prefill_s=float("nan"))),
    "cost.transfer_token_s": WorkerReport(cost=CostReport(transfer_token_s=-1.0)),
    "report": WorkerReport(),
}
BAD_HELLOS: dict[str, dict[str, Any]] = {
    "hello.worker_id": {"worker_id": ""},
    "hello.address": {"address": "nowhere:99999"},
    "hello.capacity": {"capacity": Capacity(block_size=16, max_model_len=9)},
    "hello.model": {"model": "ti\x00ny"},
    "hello.shape": {"shape": "s" * 300},
    "hello.model_digest": {"model_digest": ""},
}


@pytest.mark.parametrize("name", BAD_REPORTS)
async def test_a_bad_report_ends_its_stream_by_name_and_its_worker_has_left(name: str) -> None:
    virtual = VirtualRouter(lambda link, leg: None)
    stream = virtual.join(hello())
    stream.message(BAD_REPORTS[name].SerializeToString())
    assert stream.call.code is grpc.StatusCode.INVALID_ARGUMENT and stream.call.message.startswith(name)
    (member,) = virtual.router.fleet.members.values()
    assert not member.joined and not virtual.router.join.streams
    virtual.join(hello())
    assert member.joined
    await virtual.close()


def test_good_reports_pass() -> None:
    for report in (
        WorkerReport(load=LoadReport(kv_usage=1.0)),
        WorkerReport(cost=CostReport(base_s=1e-3, error_p90=float("inf"))),
        WorkerReport(delta=KvDelta(seq=1, ops=[KvOp(kind=KvOp.CLEARED), KvOp(kind=KvOp.STORED, hashes=b"1" * 16)])),
        WorkerReport(seen=SeenRequests(hashes=b"1" * 8)),
    ):
        assert report_fault(report.WhichOneof("report"), report) == ""
    assert hello_fault(hello(), "tiny") == "" == hello_fault(hello(), "")


@pytest.mark.parametrize("name", BAD_HELLOS)
def test_a_bad_hello_is_named(name: str) -> None:
    said = Hello()
    said.CopyFrom(hello())
    for field in BAD_HELLOS[name]:
        said.ClearField(field)  # type: ignore[arg-type]
    said.MergeFrom(Hello(**BAD_HELLOS[name]))
    assert hello_fault(said, "").startswith(name)


async def test_an_incarnation_cannot_become_another_engine() -> None:
    """Its model's text is known by these facts: taking others over would leave it without one."""
    virtual = VirtualRouter(lambda link, leg: None)
    virtual.join(hello())
    other = hello()
    other.model_digest = "d2"
    assert changed_fact(hello(), other) and not changed_fact(hello(), hello())
    refused = virtual.join(other)
    assert refused.call.code is grpc.StatusCode.INVALID_ARGUMENT and "hello.model_digest" in refused.call.message
    other.incarnation = 2
    assert virtual.join(other).call.code is None
    assert [member.hello.model_digest for member in virtual.router.fleet.members.values()] == ["d2"]
    await virtual.close()


@pytest.mark.parametrize("output", [LegOutput(token_ids=b"abc"), LegOutput(finish_reason=99)])  # type: ignore[arg-type]
async def test_a_malformed_output_is_its_worker_s_failure(output: LegOutput, tmp_path: Any) -> None:
    def malformed(worker: FakeWorker, stream: Any, leg: Any) -> None:
        output.leg_id = leg.leg_id
        stream.say(output)

    from penstock_proto.v1.common_pb2 import Sampling
    from penstock_proto.v1.inference_pb2 import GenerateRequest
    from penstock_router.request import Limits, parse

    async with service(tmp_path) as running:
        bad = await running.add(FakeWorker("bad", malformed))
        request = parse(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=2)), Limits(models=frozenset()))
        async with running.router.dispatcher.answer(request, None) as answer:
            await until(lambda: len(bad.legs) == 1)
            await running.add(FakeWorker("good", answering()))
            tokens = 0
            while deltas := await answer.next():
                tokens += sum(len(delta.token_ids) for delta in deltas)
        assert tokens == 2
        await until(running.at_rest)


async def test_no_step_is_believed_to_take_nothing() -> None:
    virtual = VirtualRouter(lambda link, leg: None)
    stream = virtual.join(hello())
    stream.message(WorkerReport(cost=CostReport(samples=99)).SerializeToString())
    (member,) = virtual.router.fleet.members.values()
    assert member.cost is not None and member.cost.step.base_s > 0
    await virtual.close()


async def test_a_step_output_that_is_no_message_breaks_the_link_and_nothing_else() -> None:
    virtual = VirtualRouter(lambda link, leg: None)
    virtual.join(hello())
    (link,) = virtual.core.links.values()
    link.message(b"\xff\xff")
    assert link._call is None
    link.message(StepOutputs().SerializeToString())
    assert not virtual.leaks()
    await virtual.close()
