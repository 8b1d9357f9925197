"""penstock.v1.Inference as clients see it, through grpcio."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fleet_fake import FakeStream, FakeWorker, Service, answering, expected_ids, output, service, silent, until
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock_proto.v1 import inference_pb2 as pb
from penstock_proto.v1 import inference_pb2_grpc, worker_pb2
from penstock_proto.v1.common_pb2 import FinishReason, Sampling

PROMPT = "once upon a time"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, hold_s=0.3, stall_s=0.5) as made:
        yield made


@pytest.fixture
async def stub(running: Service) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(running.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def ask(max_tokens: int = 5, **fields: Any) -> pb.GenerateRequest:
    sampling = Sampling(max_tokens=max_tokens, **fields.pop("sampling", {}))
    return pb.GenerateRequest(**{"prompt": PROMPT, "sampling": sampling, **fields})


async def whole(stub: Any, request: pb.GenerateRequest, **options: Any) -> list[pb.GenerateResponse]:
    call = stub.Generate(request, **options)
    try:
        return [message async for message in call]
    finally:
        call.cancel()


async def fault_of(stub: Any, request: Any, **options: Any) -> tuple[grpc.StatusCode, str, list[Any]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(stub, request, **options)
    packed = dict(caught.value.trailing_metadata()).get("grpc-status-details-bin")  # type: ignore[arg-type]
    details = list(Status.FromString(packed).details) if isinstance(packed, bytes) else []
    return caught.value.code(), caught.value.details() or "", details


async def test_generate_streams_an_answer(running: Service, stub: Any) -> None:
    await running.add(FakeWorker("w", answering(pause_s=0.005)))
    messages = await whole(stub, ask(request_id="mine", explain=True))
    assert [t for m in messages for t in m.token_ids] == expected_ids(len(PROMPT), 5)
    assert len(messages) > 1
    assert [m.request_id for m in messages] == ["mine"] + [""] * (len(messages) - 1)
    assert [m.finish_reason for m in messages[:-1]] == [0] * (len(messages) - 1)
    last = messages[-1]
    assert last.finish_reason == FinishReason.LENGTH
    assert last.usage.prompt_tokens == len(PROMPT) and last.usage.completion_tokens == 5
    assert last.placement.legs[0].worker == "w"
    assert running.at_rest()


async def test_logprobs_and_the_stop_reason_pass_through(running: Service, stub: Any) -> None:
    from penstock_proto.v1.common_pb2 import TokenLogprob

    def stopping(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        logprobs = [TokenLogprob(token_id=97, token=b"a", logprob=-0.5)]
        stream.say(output(leg, [97], finish_reason=FinishReason.STOP, stop_reason="END", logprobs=logprobs))

    await running.add(FakeWorker("w", stopping))
    (message,) = await whole(stub, ask(sampling={"logprobs": 1, "stop": ["END"]}))
    assert (message.finish_reason, message.stop_reason) == (FinishReason.STOP, "END")
    assert message.logprobs[0].logprob == -0.5


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"prompt": "x" * 1000}, "prompt"),
        ({"prompt": None, "token_ids": pb.TokenIds(ids=[70_000])}, "token_ids[0]"),
        ({"service_class": "gold"}, "service_class"),
    ],
)
async def test_bad_input_names_its_field(running: Service, stub: Any, request_fields: dict[str, Any], field: str) -> None:
    await running.add(FakeWorker("w", answering()))
    code, message, details = await fault_of(stub, ask(**{k: v for k, v in request_fields.items() if v is not None}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and field in message
    violation = BadRequest()
    assert any(detail.Unpack(violation) for detail in details)
    assert violation.field_violations[0].field == field
    assert len(await whole(stub, ask())) >= 1
    assert running.at_rest()


async def test_bytes_that_are_no_request_are_the_callers_fault(running: Service) -> None:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in channel.unary_stream("/penstock.v1.Inference/Generate")(b"\xff\xff\xff"):
                pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_worker_is_unavailable_with_a_time_to_come_back(running: Service, stub: Any) -> None:
    code, _, details = await fault_of(stub, ask())
    retry = RetryInfo()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert any(detail.Unpack(retry) for detail in details)


async def test_an_unknown_model_is_not_found(running: Service, stub: Any) -> None:
    await running.add(FakeWorker("w", answering()))
    code, _, _ = await fault_of(stub, ask(model="other"))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_deadline_ends_the_call_and_the_leg(running: Service, stub: Any) -> None:
    worker = await running.add(FakeWorker("w", silent))
    code, _, _ = await fault_of(stub, ask(), timeout=0.15)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: len(worker.aborted) == 1)
    await until(running.at_rest)


async def test_a_client_that_cancels_aborts_its_leg(running: Service, stub: Any) -> None:
    worker = await running.add(FakeWorker("w", answering(pause_s=0.01)))
    call = stub.Generate(ask(800))
    await call.read()
    call.cancel()
    await until(lambda: len(worker.aborted) == 1, 0.5)
    assert running.at_rest()
    assert running.metric("penstock_router_requests_total", model="tiny", service_class="default", outcome="cancelled") == 1


async def test_a_begun_answer_that_cannot_go_on_is_aborted(running: Service, stub: Any) -> None:
    def dying(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        stream.say(output(leg, [97]))
        stream.out.put_nowait(None)

    await running.add(FakeWorker("w", dying))
    call = stub.Generate(ask())
    assert (await call.read()).token_ids == [97]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_a_client_that_never_reads_is_cancelled(running: Service) -> None:
    def gushing(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> None:
        for _ in range(200):
            stream.say(output(leg, [97] * 1000))

    worker = await running.add(FakeWorker("w", gushing))
    from penstock_router.wire import frames as f
    from penstock_router.wire import hpack

    path = [(b":path", b"/penstock.v1.Inference/Generate"), (b"content-type", b"application/grpc")]
    body = ask(900).SerializeToString()
    _, writer = await asyncio.open_connection(*running.grpc.split(":"))
    writer.write(
        f.PREFACE + f.settings({}) + f.frame(f.HEADERS, f.END_HEADERS, 1, hpack.encode(path))
        + f.frame(f.DATA, f.END_STREAM, 1, f.PREFIX.pack(0, len(body)) + body)
    )  # fmt: skip
    await until(lambda: len(worker.aborted) == 1)
    assert running.at_rest()
    writer.close()
    await writer.wait_closed()


async def test_an_ended_answer_is_freed_without_the_collector(running: Service, stub: Any) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    gc.collect()
    gc.disable()
    try:
        refs = []
        for cancel in (False, True):
            worker.behave = silent if cancel else answering(pause_s=0.005)
            call = stub.Generate(ask(20))
            await until(lambda: bool(running.router.dispatcher.open_answers))
            refs += [weakref.ref(answer) for answer in running.router.dispatcher.open_answers]
            if cancel:
                call.cancel()
            else:
                async for _ in call:
                    pass
            await until(running.at_rest)
        assert len(refs) == 2
        await asyncio.sleep(0.02)
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


async def test_status_and_models_tell_what_is_there(running: Service, stub: Any) -> None:
    await running.add(FakeWorker("w", answering()))
    status = await stub.Status(pb.StatusRequest())
    assert [(w.worker_id, w.state, w.pool) for w in status.workers] == [("w", "ready", "workers")]
    assert (await stub.ListModels(pb.ListModelsRequest())).models[0].name == "tiny"


async def test_route_is_refused_by_name(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Route(pb.RouteRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED and "look-aside" in (caught.value.details() or "")


@pytest.mark.parametrize("port", ["grpc", "reports"])
async def test_every_port_answers_health_and_reflection(running: Service, port: str) -> None:
    async with grpc.aio.insecure_channel(getattr(running, port)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING if port == "reports" else health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="none"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == serving
        watch.cancel()
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [s.name for s in (await reflect.read()).list_services_response.service]
        assert ("penstock.v1.Inference" if port == "grpc" else "penstock.v1.Fleet") in names
        await reflect.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=names[0]))
        assert (await reflect.read()).file_descriptor_response.file_descriptor_proto
        reflect.cancel()


async def test_stopping_lets_an_open_answer_end(running: Service, stub: Any) -> None:
    await running.add(FakeWorker("w", answering(pause_s=0.01)))
    call = stub.Generate(ask(30))
    first = await call.read()
    stopping = asyncio.ensure_future(running.router.stop(5))
    tokens = len(first.token_ids)
    while (message := await call.read()) is not grpc.aio.EOF:
        tokens += len(message.token_ids)
    assert tokens == 30
    await stopping


@pytest.mark.slow
def test_the_process_says_where_it_listens_and_ends_on_sigterm(tmp_path: Path) -> None:
    config = {
        "grpc_listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "reports_listen": "127.0.0.1:0",
        "cache_dir": str(tmp_path),
    }
    path = tmp_path / "router.json"
    path.write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock_router.main", "--config", str(path)], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    try:
        listening = json.loads(process.stderr.readline())
        assert listening["event"] == "listening" and listening["grpc"] > 0
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in rest.splitlines()][-1] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"), [("{", "neither JSON"), ('{"grpc_listen": "nowhere"}', "grpc_listen"), ('{"x": 1}', "x:")]
)
def test_a_bad_configuration_is_one_line_and_exit_2(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "router.json"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "penstock_router.main", "--config", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_octets_that_are_no_message_are_the_caller_s_fault_everywhere(
    running: Service, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in channel.stream_stream(path)(iter([b"\xff\xff\xff"])):
                pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not any(record.exc_info for record in caplog.records)
    assert running.router.grpc.open_calls == 0
