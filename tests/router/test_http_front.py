"""The HTTP front on the wire: errors in OpenAI's shape, leaving clients, framing of events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import Delta, Script, ScriptedDispatcher, Step, answering

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_router.config import RequestLimits, RouterConfig
from penstock_router.faults import Broken, Expired
from penstock_router.metrics import RouterMetrics
from penstock_router.request import Request
from penstock_router.serve.http_front import make_app
from penstock_router.serve.http_server import listen

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
MAX_BODY = 64 * 1024
CONFIG = RouterConfig(model="tiny", limits=RequestLimits(max_body_bytes=MAX_BODY), stall_s=0.5)


class Service:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.dispatcher = ScriptedDispatcher(answering("once upon a time"))
        self.metrics = RouterMetrics()
        self.url = ""
        self.port = 0

    def says(self, script: Script) -> None:
        self.dispatcher.script = script

    async def post(
        self, path: str, body: object = None, **options: object
    ) -> tuple[int, dict[str, object], aiohttp.ClientResponse]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data, **options) as response:  # type: ignore[arg-type]
            return response.status, json.loads(await response.read()), response


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with aiohttp.ClientSession() as session:
        service = Service(session)
        app = make_app(service.dispatcher, service.metrics, CONFIG)
        runner, service.port = await listen(app, "127.0.0.1", 0)
        service.url = f"http://127.0.0.1:{service.port}"
        try:
            yield service
        finally:
            await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_json", "line 1, column 1"),
        (b'{"model": "tiny",\n "messages": [}', "invalid_json", "line 2, column 15"),
        (b"[]", "invalid_json", "must be a JSON object"),
        (b'{"model": "\xff"}', "invalid_json", "byte 11"),
        (b'{"a":' * 20_00 + b"1" + b"}" * 20_00, "invalid_json", "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", "too long"),
    ],
)
async def test_a_body_that_is_no_json_object_is_told_where(service: Service, body: bytes, code: str, words: str) -> None:
    status, told, _ = await service.post("/v1/chat/completions", body)
    assert status == 400
    error = told["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert words in error["message"]
    assert service.dispatcher.refusals == [code]


@pytest.mark.parametrize(
    ("path", "field", "value", "param"),
    [
        ("chat", "messages", [], "messages"),
        ("chat", "messages", None, "messages"),
        ("chat", "messages", "hi", "messages"),
        ("chat", "messages", [1], "messages[0]"),
        ("chat", "messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
        ("chat", "messages", [{"content": "x"}], "messages[0].role"),
        ("chat", "messages", [{"role": "user"}], "messages[0].content"),
        ("chat", "messages", [{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ("chat", "messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ("chat", "messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
        ("chat", "max_tokens", 0, "max_tokens"),
        ("chat", "max_tokens", -1, "max_tokens"),
        ("chat", "max_completion_tokens", -1, "max_completion_tokens"),
        ("chat", "max_tokens", 2**40, "max_tokens"),
        ("chat", "max_tokens", 255, "max_tokens"),
        ("chat", "max_tokens", 1.5, "max_tokens"),
        ("chat", "max_tokens", True, "max_tokens"),
        ("chat", "min_tokens", -1, "min_tokens"),
        ("chat", "temperature", -0.1, "temperature"),
        ("chat", "temperature", 2.1, "temperature"),
        ("chat", "temperature", float("nan"), "temperature"),
        ("chat", "temperature", float("inf"), "temperature"),
        ("chat", "temperature", 10**400, "temperature"),
        ("chat", "temperature", "hot", "temperature"),
        ("chat", "top_p", 0, "top_p"),
        ("chat", "n", 0, "n"),
        ("chat", "n", 9, "n"),
        ("chat", "seed", 2**63, "seed"),
        ("chat", "stop", [""], "stop[0]"),
        ("chat", "stop", [1], "stop[0]"),
        ("chat", "stop_token_ids", [1000], "stop_token_ids[0]"),
        ("chat", "logprobs", 3, "logprobs"),
        ("chat", "top_logprobs", 3, "top_logprobs"),
        ("chat", "stream_options", {"include_usage": True}, "stream_options"),
        ("chat", "response_format", {"type": "xml"}, "response_format.type"),
        ("chat", "response_format", {"type": "json_schema"}, "response_format.json_schema"),
        (
            "chat",
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strnig"}}},
            "response_format.json_schema.schema",
        ),
        ("chat", "guided_json", "{", "guided_json"),
        ("chat", "guided_regex", "(", "guided_regex"),
        ("chat", "guided_choice", [], "guided_choice"),
        ("chat", "structured_outputs", {"grammar": ""}, "structured_outputs.grammar"),
        ("chat", "structured_outputs", {"structural_tag": "x"}, "structured_outputs.structural_tag"),
        ("chat", "tools", [{"type": "function"}], "tools"),
        ("chat", "tool_choice", "auto", "tool_choice"),
        ("chat", "logit_bias", {"5": 1}, "logit_bias"),
        ("chat", "reasoning_effort", "high", "reasoning_effort"),
        ("chat", "chat_template", "{{ 1 }}", "chat_template"),
        ("chat", "made_up", 1, "made_up"),
        ("chat", "request_id", "a b", "request_id"),
        ("completion", "prompt", "", "prompt"),
        ("completion", "prompt", None, "prompt"),
        ("completion", "prompt", [], "prompt"),
        ("completion", "prompt", ["a", ""], "prompt[1]"),
        ("completion", "prompt", ["a", [1]], "prompt[1]"),
        ("completion", "prompt", [[1], [1, 1000]], "prompt[1][1]"),
        ("completion", "prompt", [1, 1000], "prompt[1]"),
        ("completion", "prompt", [1, -1], "prompt[1]"),
        ("completion", "prompt", [True], "prompt[0]"),
        ("completion", "prompt", {"a": 1}, "prompt"),
        ("completion", "prompt", ["a"] * 33, "prompt"),
        ("completion", "echo", True, "echo"),
        ("completion", "suffix", "x", "suffix"),
        ("completion", "best_of", 2, "best_of"),
        ("completion", "logprobs", 21, "logprobs"),
    ],
)
async def test_a_bad_field_is_named_as_the_caller_wrote_it(
    service: Service, path: str, field: str, value: object, param: str
) -> None:
    body = {**CHAT} if path == "chat" else {"model": "tiny", "prompt": "hi"}
    status, told, response = await service.post(
        f"/v1/{'chat/completions' if path == 'chat' else 'completions'}", {**body, field: value}
    )
    error = told["error"]
    assert isinstance(error, dict)
    assert (status, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    assert error["code"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True, "service_tier": "auto"},
        {"tools": None, "tools_choice": None, "logit_bias": {}, "best_of": 1, "echo": False, "temperature": None},
        {"structured_outputs": {"json_object": False}, "response_format": {"type": "text"}, "modalities": ["text"]},
        {"stop": [], "stop_token_ids": [], "top_k": -1, "n": None, "logprobs": False, "top_logprobs": 0},
    ],
)
async def test_what_changes_nothing_is_accepted(service: Service, extra: dict[str, object]) -> None:
    status, _, _ = await service.post("/v1/chat/completions", {**CHAT, **extra})
    assert status == 200


async def test_a_message_of_text_parts_is_joined_by_newlines(service: Service) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None}
    await service.post("/v1/chat/completions", {**CHAT, "messages": [{"role": "developer", "content": parts}, said]})
    asked = service.dispatcher.requests[-1].messages
    assert asked == ({"role": "system", "content": "a\nb"}, {"role": "assistant", "content": ""})


async def test_two_structured_outputs_cannot_be_combined(service: Service) -> None:
    both = {"guided_regex": "a", "guided_choice": ["a"]}
    status, told, _ = await service.post("/v1/chat/completions", {**CHAT, **both})
    assert status == 400
    assert "guided_regex" in str(told)


async def test_a_bad_header_is_named(service: Service) -> None:
    for header, value in (
        ("x-request-id", "a b"),
        ("x-penstock-service-class", "gold"),
        ("x-penstock-program", "x" * 129),
        ("x-penstock-explain", "perhaps"),
    ):
        status, told, response = await service.post("/v1/chat/completions", CHAT, headers={header: value})
        error = told["error"]
        assert isinstance(error, dict)
        assert (status, error["param"]) == (400, header)
        assert response.headers["x-request-id"]


async def test_paths_methods_and_sizes_are_refused_in_the_same_shape(service: Service) -> None:
    status, told, _ = await service.post("/v1/embeddings", {})
    assert (status, "no such path" in str(told)) == (404, True)
    async with service.session.get(f"{service.url}/v1/chat/completions") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"
    status, told, _ = await service.post("/v1/chat/completions", b" " * (MAX_BODY + 1))
    assert (status, str(MAX_BODY) in str(told)) == (413, True)


async def test_health_readiness_and_metrics_answer(service: Service) -> None:
    service.metrics.generated.value += 1
    async with service.session.get(f"{service.url}/healthz") as response:
        assert response.status == 200
    async with service.session.get(f"{service.url}/readyz") as response:
        assert response.status == 200
    service.dispatcher.is_ready = False
    async with service.session.get(f"{service.url}/readyz") as response:
        assert response.status == 503
    async with service.session.get(f"{service.url}/metrics") as response:
        assert "penstock_router_generated_tokens_total 1.0" in await response.text()
        assert response.headers["Content-Type"].startswith("text/plain")


async def test_a_defect_of_ours_is_500_and_tells_nobody_what_it_was(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.says(lambda request: [ValueError("the secret prompt")])
    with caplog.at_level(logging.ERROR):
        status, told, response = await service.post("/v1/chat/completions", CHAT)
    assert status == 500
    assert response.headers["x-request-id"] in str(told)
    assert "secret" not in str(told) + caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize(("fault", "status"), [(Broken("w0 died"), 502), (Expired(), 504)])
async def test_a_fault_of_a_whole_answer_has_its_status(service: Service, fault: Exception, status: int) -> None:
    service.says(lambda request: [[Delta(text="once")], fault])
    assert (await service.post("/v1/chat/completions", CHAT))[0] == status


async def test_a_broken_stream_ends_with_one_error_event_and_no_done(service: Service) -> None:
    service.says(lambda request: [[Delta(text="once")], ValueError("the secret prompt")])
    async with service.session.post(f"{service.url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        text = await response.text()
    events = text.strip().split("\n\n")
    assert events[-1].startswith("event: error\ndata: ")
    assert json.loads(events[-1].split("data: ")[1])["error"]["code"] == "internal_error"
    assert "[DONE]" not in text
    assert "secret" not in text


async def test_deltas_available_together_are_one_write_and_held_back_text_is_none(service: Service) -> None:
    first = [Delta(text=""), Delta(text="a"), Delta(text="b")]
    service.says(lambda request: [[Delta()], first, [Delta(finish_reason=FinishReason.LENGTH)]])
    async with service.session.post(f"{service.url}/v1/completions", json={"prompt": "x", "stream": True}) as response:
        chunks = [chunk async for chunk, _ in response.content.iter_chunks()]
    assert [chunk.count(b"data: ") for chunk in chunks[:-1]] == [2, 1]


async def test_a_client_that_leaves_a_stream_cancels_its_answer(service: Service) -> None:
    never = asyncio.Event()
    service.says(lambda request: [[Delta(text="once")], never, [Delta(text="more")]])
    async with service.session.post(f"{service.url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        await response.content.readany()
        response.close()
    async with asyncio.timeout(5):
        await service.dispatcher.left.wait()
    assert service.dispatcher.cancelled == [service.dispatcher.requests[0].request_id]


@pytest.mark.parametrize("extra", [{}, {"stream": True}, {"n": 2}])
async def test_a_client_that_leaves_before_the_first_token_cancels_its_answer(service: Service, extra: dict[str, object]) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    def script(request: Request) -> list[Step]:
        begun.set()
        return [never, [Delta(text="more")]]

    service.says(script)
    asking = asyncio.ensure_future(service.post("/v1/chat/completions", {**CHAT, **extra}))
    await begun.wait()
    asking.cancel()
    async with asyncio.timeout(5):
        await service.dispatcher.left.wait()
    assert service.dispatcher.cancelled == [service.dispatcher.requests[0].request_id]


async def test_a_client_that_leaves_several_prompts_cancels_them_all(service: Service) -> None:
    never = asyncio.Event()
    service.says(lambda request: [[Delta(text="once")], never, [Delta(text="more")]])
    body = {"prompt": ["a", "b", "c"], "stream": True}
    async with service.session.post(f"{service.url}/v1/completions", json=body) as response:
        await response.content.readany()
        response.close()
    async with asyncio.timeout(5):
        while len(service.dispatcher.cancelled) < 3:
            await service.dispatcher.left.wait()
            service.dispatcher.left.clear()


async def test_one_prompt_that_fails_ends_the_others(service: Service) -> None:
    never = asyncio.Event()

    def script(request: Request) -> list[Step]:
        return [Broken("w0 died"), []] if request.prompt == "b" else [[Delta(text="a")], never, []]

    service.says(script)
    status, _, _ = await service.post("/v1/completions", {"prompt": ["a", "b"]})
    assert status == 502
    assert len(service.dispatcher.cancelled) == 2


def events_of(raw: bytes) -> list[dict[str, object] | str]:
    """Parses as the WHATWG says: lines end by CR, LF or CRLF, an event by an empty line."""
    events: list[dict[str, object] | str] = []
    for block in raw.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        if data:
            events.append(data[0] if data[0] == "[DONE]" else json.loads("\n".join(data)))
    return events


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.text(st.characters(codec="utf-8") | st.sampled_from('\r\n\0\u2028\u2029\x85"\\'), max_size=12)
        | st.sampled_from(["\n\ndata: [DONE]\n\n", "\r\revent: error\r", "data: {}\n\n", "é", "漢字", "🙂"]),
        max_size=6,
    )
)
async def test_no_text_can_break_an_events_frame(service: Service, pieces: list[str]) -> None:
    end = Delta(text="|", finish_reason=FinishReason.STOP)
    service.says(lambda request: [*[[Delta(text=piece)] for piece in pieces], [end]])
    async with service.session.post(f"{service.url}/v1/completions", json={"prompt": "x", "stream": True}) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    texts = [event["choices"][0]["text"] for event in events[:-1]]  # type: ignore[index]
    assert "".join(texts) == "".join(pieces) + "|"


FIELDS = st.sampled_from(
    [
        "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "seed",
        "stop", "stop_token_ids", "logprobs", "top_logprobs", "stream", "stream_options", "response_format", "tools",
        "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "logit_bias", "user",
        "min_tokens", "request_id", "best_of", "echo",
    ]
)  # fmt: skip
KEYS = FIELDS | st.sampled_from(["role", "content", "type", "text", "schema", "json_schema", "json", "regex"]) | st.text()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, 2**64])
    | st.floats()
    | st.text()
    | st.sampled_from(["tiny", "user", "text", "json_schema", "{}", '{"type": 5}', "\ud800", "(", "$id"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    base=st.sampled_from([{}, CHAT, {"prompt": "hi"}]),
    body=st.dictionaries(FIELDS, VALUES, max_size=2) | VALUES,
)
async def test_no_body_makes_a_server_error(service: Service, path: str, base: dict[str, object], body: object) -> None:
    sent = {**base, **body} if isinstance(body, dict) else body
    async with service.session.post(service.url + path, data=json.dumps(sent).encode()) as response:
        told = await response.text()
    assert response.status in (200, 400, 404)
    assert "Traceback" not in told
    if response.status != 200:
        assert json.loads(told)["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\nsecret",
        b"secret\r\n\r\n",
    ],
)
async def test_malformed_http_is_400_and_not_quoted_in_the_log(
    service: Service, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    with caplog.at_level(logging.DEBUG):
        writer.write(sent)
        status = await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert b" 400 " in status
    assert "secret" not in caplog.text
    assert (await service.post("/v1/chat/completions", CHAT))[0] == 200


def raw_post(body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data


async def test_the_connection_closes_after_an_error_event(service: Service) -> None:
    service.says(lambda request: [[Delta(text="once")], Broken("w0 died")])
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(raw_post({"prompt": "x", "stream": True}))
    async with asyncio.timeout(5):
        told = await reader.read()
    assert b"event: error" in told
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_client_that_stops_reading_is_cut_off_in_time_and_its_answer_cancelled(service: Service, leaves: bool) -> None:
    taken = 0

    def endless(request: Request) -> list[Step]:
        return [[Delta(text="x" * 65_536)] for _ in range(1_000)]

    service.says(endless)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1_024)
    writer.write(raw_post({"prompt": "x", "stream": True}))
    while not service.dispatcher.answers or len(service.dispatcher.answers[0].steps) != taken:
        taken = len(service.dispatcher.answers[0].steps) if service.dispatcher.answers else 0
        await asyncio.sleep(0.01)
    assert taken > 500  # the rest waits until the client reads
    if leaves:
        writer.transport.abort()
    async with asyncio.timeout(5):
        await service.dispatcher.left.wait()
    assert service.dispatcher.cancelled
    writer.transport.abort()
