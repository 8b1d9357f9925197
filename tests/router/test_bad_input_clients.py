"""Clients that misbehave rather than what they say: half closed, idle by the thousand, reading nothing, and requests whose
checks take long. The bound and the abort are asserted from the worker's side."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from fleet_fake import FakeStream, FakeWorker, Service, answering, output, service, silent, until

from penstock_proto.v1 import inference_pb2_grpc, worker_pb2
from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router import structured
from penstock_router.wire import frames as f
from penstock_router.wire import hpack

pytestmark = pytest.mark.slow
HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/penstock.v1.Inference/Generate"),
    (b"content-type", b"application/grpc"),
]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, stall_s=0.5, hold_s=2.0) as made:
        yield made


def call_octets(request: GenerateRequest, ends: bool = True) -> bytes:
    body = request.SerializeToString()
    opening = f.PREFACE + f.settings({}) + f.frame(f.HEADERS, f.END_HEADERS, 1, hpack.encode(HEAD))
    return opening + f.frame(f.DATA, f.END_STREAM if ends else 0, 1, f.PREFIX.pack(0, len(body)) + body)


def http_octets(body: dict[str, Any], more: str = "") -> bytes:
    data = json.dumps(body).encode()
    return f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{more}content-length: {len(data)}\r\n\r\n".encode() + data


async def ask(running: Service) -> int:
    """A whole request through each front."""
    async with grpc.aio.insecure_channel(running.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        request = GenerateRequest(prompt="next", sampling=Sampling(max_tokens=2))
        count = len([t async for m in stub.Generate(request) for t in m.token_ids])
    url = f"http://127.0.0.1:{running.router.ports['http']}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json={"prompt": "next", "max_tokens": 2}) as answer:
        assert answer.status == 200
    return count


async def gone(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_call_is_answered_though_its_client_never_ends_its_side(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    reader, writer = await asyncio.open_connection("127.0.0.1", running.router.ports["grpc"])
    writer.write(call_octets(GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=3)), ends=False))
    async with asyncio.timeout(5):
        await reader.readuntil(b"grpc-status\x010")
    await until(lambda: running.router.grpc.open_calls == 0)
    await gone(writer)
    assert running.at_rest()


@pytest.mark.parametrize("front", ["grpc", "http"])
async def test_a_client_whose_sending_side_is_shut_is_taken_as_gone(running: Service, front: str) -> None:
    worker = await running.add(FakeWorker("w", silent))
    _, writer = await asyncio.open_connection("127.0.0.1", running.router.ports[front])
    asked = GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=3))
    writer.write(call_octets(asked) if front == "grpc" else http_octets({"prompt": "abc"}))
    await until(lambda: len(worker.legs) == 1)
    writer.write_eof()
    await until(lambda: len(worker.aborted) == 1)
    await until(running.at_rest)
    await gone(writer)


def flooding(worker: FakeWorker, stream: FakeStream, leg: worker_pb2.StartLeg) -> Any:
    """Says as much as it can until it is told to stop."""

    async def run() -> None:
        made = 0
        while leg.leg_id not in worker.aborted and made < 100_000:
            made += 1
            said = output(leg, [97])
            said.text = "x" * 4096
            said.chars_sent = made * 4096
            stream.say(said)
            await asyncio.sleep(0)

    return run()


def unsent(running: Service, front: str) -> int:
    """Octets that wait in the router for clients of a front to take them."""
    made: Any = running.router.grpc if front == "grpc" else running.router._http.server  # type: ignore[union-attr]
    return sum(each.transport.get_write_buffer_size() for each in made.connections if each.transport is not None)


@pytest.mark.parametrize("front", ["grpc", "http"])
async def test_a_client_that_never_reads_is_bounded_and_then_its_leg_is_aborted(running: Service, front: str) -> None:
    worker = await running.add(FakeWorker("w", flooding))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", running.router.ports[front]))
    asked = GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=900))
    wide = f.settings({f.INITIAL_WINDOW_SIZE: 2**31 - 1}) + f.frame(f.WINDOW_UPDATE, 0, 0, f.U32.pack(2**30))
    await loop.sock_sendall(
        sock, call_octets(asked) + wide if front == "grpc" else http_octets({"prompt": "abc", "stream": True, "max_tokens": 900})
    )
    await until(lambda: len(worker.legs) == 1)
    most = 0
    async with asyncio.timeout(20):
        while not worker.aborted:
            most = max(most, unsent(running, front))
            await asyncio.sleep(0.01)
    assert 0 < most <= 3 * f.Limits().write_high_water
    sock.close()
    await until(running.at_rest)
    worker.behave = answering()
    assert await ask(running) == 2


async def test_a_thousand_idle_connections_cost_nobody_anything(running: Service) -> None:
    await running.add(FakeWorker("w", answering()))
    ports = running.router.ports
    pairs = []
    for number in range(1000):
        port = ports["grpc"] if number % 2 else ports["http"]
        pairs.append(await asyncio.open_connection("127.0.0.1", port))
        if number % 4 == 1:
            pairs[-1][1].write(f.PREFACE + f.settings({}))
        elif number % 4 == 2:
            pairs[-1][1].write(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\n")
    assert await ask(running) == 2
    assert len(running.router.grpc.connections) >= 500
    for _, writer in pairs:
        writer.close()
    await until(lambda: not running.router.grpc.connections)
    assert running.at_rest()


async def test_a_schema_that_takes_long_to_check_holds_up_nobody_and_ends_with_the_deadline(
    running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself is a stand-in that sleeps: what is asked is where it runs and who waits for it."""
    await running.add(FakeWorker("w", answering()))
    checks = []

    def slowly(text: str) -> str:
        checks.append(text)
        time.sleep(1.0)
        return ""

    monkeypatch.setattr(structured, "schema_problem", slowly)
    schema = json.dumps({"type": "object", "description": "x" * 2000})
    async with grpc.aio.insecure_channel(running.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        slow = GenerateRequest(prompt="abc", sampling=Sampling(max_tokens=2, json_schema=schema))
        calls = [stub.Generate(slow, timeout=0.6) for _ in range(12)]
        await until(lambda: len(checks) >= 2)
        long_prompt = "x" * 900  # tokenized in a thread as well, and not behind those checks
        answered = stub.Generate(GenerateRequest(prompt=long_prompt, sampling=Sampling(max_tokens=2)))
        assert [t async for m in answered for t in m.token_ids]
        assert not any(call.done() for call in calls)
        assert {await call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await until(running.at_rest)


async def test_a_schema_has_a_time_limit_of_its_own(running: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await running.add(FakeWorker("w", answering()))
    monkeypatch.setattr(structured, "schema_problem", lambda text: time.sleep(0.5) or "")
    monkeypatch.setattr(structured, "CHECK_S", 0.1)
    url = f"http://127.0.0.1:{running.router.ports['http']}/v1/completions"
    body = {"prompt": "abc", "guided_json": {"description": "x" * 2000}}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert error["param"] == "guided_json" and "takes more than 0.1 s to check" in error["message"]


async def test_a_deadline_ends_an_http_answer_before_and_after_its_first_token(running: Service) -> None:
    worker = await running.add(FakeWorker("w", silent))
    url = f"http://127.0.0.1:{running.router.ports['http']}/v1/completions"
    headers = {"x-request-timeout-ms": "300"}
    async with aiohttp.ClientSession() as session:
        async with session.post(url, json={"prompt": "abc"}, headers=headers) as answer:
            assert answer.status == 504
            assert (await answer.json())["error"]["code"] == "deadline_exceeded"
        worker.behave = answering(pause_s=0.02)
        body = {"prompt": ["abc", "abd"], "stream": True, "max_tokens": 500}
        async with session.post(url, json=body, headers=headers) as answer:
            assert answer.status == 200
            events = await answer.read()
    assert json.loads(events.rpartition(b"event: error\ndata: ")[2])["error"]["code"] == "deadline_exceeded"
    await until(lambda: len(worker.aborted) == 3)
    await until(running.at_rest)


async def test_a_body_that_does_not_arrive_is_given_up(running: Service) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.router.ports["http"])
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 200\r\ncontent-length: 500\r\n\r\n{")
    async with asyncio.timeout(5):
        assert (await reader.readline()).split()[1] == b"504"
    await gone(writer)


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"v" * 9000 + b"\r\n\r\n", "header_too_large"),
        (b"POST /" + b"p" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", "header_too_large"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", "invalid_http"),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "invalid_http"),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: magic\r\n\r\n", "expectation_failed"),
    ],
)
async def test_octets_that_are_no_http_are_answered_in_openai_s_shape(
    running: Service, octets: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.router.ports["http"])
    writer.write(octets)
    writer.write(b"")
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        error = json.loads(await reader.readexactly(size))["error"]
    assert error["code"] == code and error["message"] and error["type"] == "invalid_request_error"
    assert b"x-request-id" in head.lower() and b"aiohttp" not in head.lower()
    assert not any(record.exc_info for record in caplog.records)
    await gone(writer)


async def test_an_unexpected_exception_releases_its_request_at_once_and_says_its_id(
    running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await running.add(FakeWorker("w", answering()))
    core = running.router.dispatcher

    def broken(*args: Any) -> None:
        raise RuntimeError("a defect")

    async with grpc.aio.insecure_channel(running.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        for place in ("match", "start"):
            with monkeypatch.context() as patched:
                if place == "match":
                    patched.setattr("penstock_router.dispatch.place", broken)
                else:
                    patched.setattr(type(core.links[next(iter(core.links))]), "start", broken)
                call = stub.Generate(GenerateRequest(prompt="abc", request_id=f"mine-{place}", sampling=Sampling(max_tokens=2)))
                assert await call.code() is grpc.StatusCode.INTERNAL
                assert f"mine-{place}" in (await call.details() or "") and "defect" not in (await call.details() or "")
            await until(running.at_rest)
            assert core.ids.open_names == 0
    assert not worker.legs
    assert await ask(running) == 2
