"""Bad input by one table, through gRPC and through HTTP: a typed error that names the field, nothing left behind, and the
next request served."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from fleet_fake import FakeWorker, Service, answering, service, until
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from penstock_proto.v1 import inference_pb2_grpc
from penstock_proto.v1.common_pb2 import Choices, Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest, Program, TokenIds
from penstock_router.config import RequestLimits

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

GENERATE = "/penstock.v1.Inference/Generate"
MIB = 1 << 20
LIMITS = RequestLimits(max_body_bytes=12 * MIB, max_message_bytes=12 * MIB, max_prompt_chars=11 * MIB)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXPIRED, EXHAUSTED = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED


def ask(**fields: Any) -> bytes:
    """A GenerateRequest's octets; fields of Sampling are told apart by name."""
    sampling = {key: fields.pop(key) for key in list(fields) if key in Sampling.DESCRIPTOR.fields_by_name}
    whole = {"prompt": "abc", "sampling": Sampling(**{"max_tokens": 2, **sampling}), **fields}
    if "token_ids" in fields:
        del whole["prompt"]
    return GenerateRequest(**whole).SerializeToString()


def text_field(number: int, octets: bytes) -> bytes:
    """A length-delimited field as protobuf's own serializer would refuse to write it."""
    return bytes((number << 3 | 2, len(octets))) + octets


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of bad input. `grpc` and `http`: what is sent, None where that front has no such input."""

    grpc: Callable[[], bytes] | None
    http: Callable[[], bytes | dict[str, Any]] | None
    code: grpc.StatusCode
    status: int
    field: str
    http_field: str | None = None  # where HTTP calls it otherwise
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float | None = None


def both(field: str, code: grpc.StatusCode = INVALID, status: int = 400, http_field: str | None = None, **fields: Any) -> Row:
    """The same field and value on both fronts."""
    body = {name: value for name, value in fields.items() if name not in ("program",)}
    return Row(lambda: ask(**fields), lambda: {"prompt": "abc", "max_tokens": 2, **body}, code, status, field, http_field)


BIG = "word " * (2 * MIB)
TABLE = {
    "unknown model": both("model", NOT_FOUND, 404, model="gpt-9"),
    "unknown adapter": both("model", NOT_FOUND, 404, model="tiny-lora"),
    "unknown class": Row(
        lambda: ask(service_class="gold"), lambda: {"prompt": "x"}, INVALID, 400, "service_class", "x-penstock-service-class",
        (("x-penstock-service-class", "gold"),),
    ),
    "program without an id": Row(
        lambda: ask(program=Program(tool="t")), lambda: {"prompt": "x"}, INVALID, 400, "program.id", "x-penstock-program",
        (("x-penstock-program", "a b"),),
    ),
    "n above the most": both("n", n=9),
    "n of 2**32 - 1": both("n", n=2**32 - 1),
    "logprobs out of range": both("logprobs", logprobs=21),
    "stop with an empty string": both("stop[1]", stop=["a", ""]),
    "1,000 stops": both("stop", stop=[f"s{i}" for i in range(1000)]),
    "a stop of 2,000 characters": both("stop[0]", stop=["s" * 2000]),
    "1,000 stop tokens": both("stop_token_ids", stop_token_ids=list(range(1000))),
    "stop token outside the vocabulary": both("stop_token_ids[1]", stop_token_ids=[1, 70_000]),
    "max_tokens 0": both("max_tokens", max_tokens=0),
    "max_tokens beyond the context": both("max_tokens", max_tokens=5000),
    "temperature above 2": both("temperature", temperature=2.5),
    "temperature not a number": Row(
        lambda: ask(temperature=float("nan")), lambda: b'{"prompt": "x", "temperature": NaN}', INVALID, 400, "temperature"
    ),
    "top_p 0": both("top_p", top_p=0.0),
    "penalty out of range": both("presence_penalty", presence_penalty=-3.0),
    "min_tokens above max_tokens": both("min_tokens", min_tokens=9),
    "no schema": both("json_schema", http_field="guided_json", json_schema='{"type": 5}'),
    "no regular expression": both("regex", http_field="guided_regex", regex="("),
    "no choice": Row(
        lambda: ask(choice=Choices()), lambda: {"prompt": "x", "guided_choice": []}, INVALID, 400, "choice", "guided_choice"
    ),
    "empty grammar": both("grammar", http_field="guided_grammar", grammar=" "),
    "empty prompt": both("prompt", prompt=""),
    "10 MB prompt": both("prompt", prompt=BIG),
    "a prompt above the limit in characters": both("prompt", prompt="x" * (11 * MIB + 1)),
    "token outside the vocabulary": Row(
        lambda: ask(token_ids=TokenIds(ids=[1, 70_000])), lambda: {"prompt": [1, 70_000]}, INVALID, 400, "token_ids[1]",
        "prompt[1]",
    ),
    "a body above the limit": Row(lambda: b"x" * (12 * MIB + 1), lambda: b"x" * (12 * MIB + 1), EXHAUSTED, 413, "", ""),
    "a header above the limit": Row(None, lambda: {"prompt": "x"}, INVALID, 400, "", "", (("x-long", "v" * 9000),)),
    "invalid UTF-8 in a string": Row(
        lambda: text_field(3, b"\xff\xfe"), lambda: b'{"prompt": "\xff\xfe"}', INVALID, 400, "request", ""
    ),
    "invalid UTF-8 in the model": Row(
        lambda: text_field(1, b"\xff") + ask(), lambda: b'{"prompt": "x", "model": "\xff"}', INVALID, 400, "request", ""
    ),
    "half a surrogate pair": Row(None, lambda: b'{"prompt": "\\ud800"}', INVALID, 400, "", "prompt"),
    "a header beyond ASCII": Row(
        None, lambda: {"prompt": "x"}, INVALID, 400, "", "x-penstock-service-class", (("x-penstock-service-class", "gold\u00e9"),)
    ),
    "no message at all": Row(lambda: b"\xff\xff\xff", lambda: b"\x00", INVALID, 400, "request", ""),
    "a request id with a space": both("request_id", request_id="a b"),
    "an idempotency key with a space": Row(
        None, lambda: {"prompt": "x"}, INVALID, 400, "", "idempotency-key", (("idempotency-key", "a b"),)
    ),
    "a deadline that is past": Row(
        ask, lambda: {"prompt": "x"}, EXPIRED, 504, "", "", (("x-request-timeout-ms", "0"),), timeout_s=0.0
    ),
    "a deadline that is none": Row(
        None, lambda: {"prompt": "x"}, INVALID, 400, "", "x-request-timeout-ms", (("x-request-timeout-ms", "soon"),)
    ),
}  # fmt: skip
RENAMED = {"json_schema": "guided_json", "regex": "guided_regex", "grammar": "guided_grammar"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with service(tmp_path_factory.mktemp("cache"), limits=LIMITS) as made:
        await made.add(FakeWorker("w", answering()))
        yield made


async def by_grpc(running: Service, row: Row) -> tuple[grpc.StatusCode, str, str]:
    """Status, the field that is named, and the message."""
    assert row.grpc is not None
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(running.grpc, options=options) as channel:
        call = channel.unary_stream(GENERATE)(row.grpc(), timeout=row.timeout_s)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    packed = dict(caught.value.trailing_metadata() or ()).get("grpc-status-details-bin")
    violation = BadRequest()
    if isinstance(packed, bytes):
        any(detail.Unpack(violation) for detail in Status.FromString(packed).details)
    field = violation.field_violations[0].field if violation.field_violations else ""
    return caught.value.code(), field, caught.value.details() or ""


async def by_http(running: Service, row: Row) -> tuple[int, dict[str, Any], aiohttp.ClientResponse]:
    assert row.http is not None
    made = row.http()
    if isinstance(made, dict):
        made = {RENAMED.get(name, name): value for name, value in made.items()}
        made = json.dumps(made).encode()
    url = f"http://127.0.0.1:{running.router.ports['http']}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=io.BytesIO(made), headers=dict(row.headers)) as answer:
        return answer.status, json.loads(await answer.read())["error"], answer


async def is_well(running: Service) -> None:
    """Nothing is held, and the next request is served through both fronts."""
    await until(running.at_rest)
    assert running.router.dispatcher.ids.open_names == 0
    async with grpc.aio.insecure_channel(running.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        request = GenerateRequest(prompt="next", sampling=Sampling(max_tokens=2))
        assert [t async for m in stub.Generate(request) for t in m.token_ids]
    url = f"http://127.0.0.1:{running.router.ports['http']}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json={"prompt": "next", "max_tokens": 2}) as answer:
        assert answer.status == 200
    await until(running.at_rest)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.grpc is not None])
async def test_bad_input_by_grpc(running: Service, name: str, caplog: pytest.LogCaptureFixture) -> None:
    row = TABLE[name]
    code, field, message = await by_grpc(running, row)
    assert code is row.code
    if code is INVALID:
        assert field == row.field and message.startswith(field)
    assert row.field.partition("[")[0] in message and "Traceback" not in message
    await is_well(running)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.http is not None])
async def test_bad_input_by_http(running: Service, name: str, caplog: pytest.LogCaptureFixture) -> None:
    row = TABLE[name]
    status, error, answer = await by_http(running, row)
    assert status == row.status and answer.headers["x-request-id"]
    expected = row.field if row.http_field is None else row.http_field
    assert (error["param"] or "") == expected
    assert error["message"].startswith(expected) and error["code"] and error["type"] and "Traceback" not in error["message"]
    await is_well(running)
    assert not any(record.exc_info for record in caplog.records)


async def test_one_id_open_a_hundred_times_is_answered_once_by_grpc(running: Service) -> None:
    worker = running.workers[0]
    worker.behave, before = answering(pause_s=0.01), len(worker.legs)
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        request = GenerateRequest(prompt="abc", request_id="same-by-grpc", sampling=Sampling(max_tokens=30))

        async def one() -> grpc.StatusCode:
            try:
                async for _ in stub.Generate(request):
                    pass
            except grpc.aio.AioRpcError as refused:
                return refused.code()
            return grpc.StatusCode.OK

        codes = await asyncio.gather(*(one() for _ in range(100)))
    assert codes.count(grpc.StatusCode.OK) == 1 and codes.count(grpc.StatusCode.ALREADY_EXISTS) == 99
    assert len(worker.legs) - before == 1
    await is_well(running)


@pytest.mark.parametrize("header", ["idempotency-key", "x-request-id"])
async def test_one_id_open_a_hundred_times_by_http(running: Service, header: str) -> None:
    """An identity is answered once; what a proxy or a mesh puts on many requests is none, and refuses nothing."""
    running.workers[0].behave = answering(pause_s=0.01)
    url = f"http://127.0.0.1:{running.router.ports['http']}/v1/completions"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> tuple[int, str | None, str]:
            async with session.post(url, json={"prompt": "abc", "max_tokens": 20}, headers={header: "same"}) as answer:
                await answer.read()
                return answer.status, answer.headers.get("x-should-retry"), answer.headers["x-request-id"]

        answers = await asyncio.gather(*(one() for _ in range(100)))
    statuses = [status for status, _, _ in answers]
    if header == "idempotency-key":
        assert (statuses.count(200), statuses.count(409)) == (1, 99)
        assert all(retry == "false" for status, retry, _ in answers if status == 409)
    else:
        assert statuses == [200] * 100
        assert {request_id for _, _, request_id in answers} == {"same"}
    await is_well(running)
