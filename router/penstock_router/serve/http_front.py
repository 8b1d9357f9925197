"""The OpenAI-compatible HTTP front.

Promise: every answer, error or not, is in OpenAI's shape and carries x-request-id; a client that leaves
cancels its answer at once, streaming or not; no exception's text or traceback reaches a client.

Headers that a request may carry, all of them such as any OpenAI client can add (`extra_headers`):
- `x-request-id`: what logs and the answer call it. Not an identity: proxies set it, and programs send one value with many
  requests, so any number of requests may carry the same.
- `idempotency-key`, or the body's `request_id`: an identity. While such a request is open, and once its answer began, the
  same one is refused with 409; after a failure before the first token it may be sent again.
- `x-request-timeout-ms`: the answer ends with 504, or an error event, so many milliseconds after the headers came.
- `x-penstock-service-class`, `x-penstock-program`, `x-penstock-explain`.
"""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from penstock_proto.v1.inference_pb2 import GenerateRequest, ModelCard

from ..config import RouterConfig
from ..faults import CallerFault, Expired, Fault, Internal, UnknownModel, http_headers, to_http
from ..metrics import RouterMetrics
from ..request import Request, accept, check_request_id, limits_of, new_request_id
from .http_body import Order, chat_order, completion_order, decode
from .http_fan import Fan
from .http_fields import Body
from .http_server import error_body, expected
from .http_sources import Answer, Dispatcher
from .http_sse import stream_answer
from .http_styles import CHAT, COMPLETION
from .http_wire import Style, Wire

log = logging.getLogger("penstock.router.http")

REQUEST_ID: Final = web.RequestKey("request_id", str)
CAME_AT: Final = web.RequestKey("came_at", float)  # in the loop's time
CONFIG: Final = web.AppKey("config", RouterConfig)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TIMEOUT_HEADER: Final = "x-request-timeout-ms"
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000
BODY_S: Final = 120.0  # for a request's body to arrive
SWITCH: Final = {"1": True, "true": True, "0": False, "false": False, "": False}


def make_app(dispatcher: Dispatcher, metrics: RouterMetrics, config: RouterConfig) -> web.Application:
    front = Front(dispatcher, metrics, config)
    app = web.Application(middlewares=[openai_shaped], client_max_size=config.limits.max_body_bytes)
    app[CONFIG] = config
    app.on_response_prepare.append(say_who_answers)
    routes = {
        "/v1/chat/completions": ("POST", front.chat),
        "/v1/completions": ("POST", front.completions),
        "/v1/models": ("GET", front.list_models),
        "/v1/models/{name:.+}": ("GET", front.show_model),
        "/metrics": ("GET", front.show_metrics),
        "/healthz": ("GET", front.healthz),
        "/readyz": ("GET", front.readyz),
    }
    for path, (method, handler) in routes.items():
        route = web.get if method == "GET" else web.post
        app.add_routes([route(path, handler, expect_handler=expected)])
    return app


async def say_who_answers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "penstock"  # not which versions run
    if "x-request-id" not in response.headers:
        response.headers["x-request-id"] = request.get(REQUEST_ID) or new_request_id()


@web.middleware
async def openai_shaped(request: web.Request, handler: Handler) -> web.StreamResponse:
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = new_request_id()
    request[CAME_AT] = asyncio.get_running_loop().time()
    try:
        if given:
            check_request_id("x-request-id", given)
            request[REQUEST_ID] = given
        response = await handler(request)
    except web.HTTPException as error:
        response = routing_error(request, error)
    except web.RequestPayloadError:
        response = fault_response(CallerFault("", "the body could not be read", code="invalid_body"))
    except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the client gets a typed error
        response = fault_response(as_fault(error, request[REQUEST_ID]))
    if not response.prepared:
        response.headers["x-request-id"] = request[REQUEST_ID]
    return response


def as_fault(error: Exception, request_id: str) -> Fault:
    if isinstance(error, Fault):
        return error
    # The message may quote what the client sent, so the log has the type and the place only.
    place = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s\n%s", request_id, type(error).__name__, place)
    return Internal(request_id)


def fault_response(fault: Fault) -> web.Response:
    status, body = to_http(fault)
    return web.json_response(body, status=status, headers=http_headers(fault))


def routing_error(request: web.Request, error: web.HTTPException) -> web.Response:
    message, code = {
        404: (f"no such path: {request.method} {request.path}", "unknown_url"),
        405: (f"{request.path} does not take {request.method}", "method_not_allowed"),
        413: (f"the body has more than {request.app[CONFIG].limits.max_body_bytes} bytes", "request_too_large"),
    }.get(error.status, (error.reason, "invalid_request"))
    body = error_body(message, code)
    kept = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
    return web.json_response(body, status=error.status, headers=kept)


def model_entry(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_s,
        "owned_by": "penstock",
        "max_model_len": card.max_model_len,
    }


class Front:
    """The routes' handlers."""

    def __init__(self, dispatcher: Dispatcher, metrics: RouterMetrics, config: RouterConfig) -> None:
        self.dispatcher = dispatcher
        self.registry = metrics.registry()
        self.limits = limits_of(config)
        self.stall_s = config.stall_s

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self.answer(request, chat_order, CHAT)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self.answer(request, completion_order, COMPLETION)

    async def answer(self, request: web.Request, order_of: Callable[[Body], Order], style: Style) -> web.StreamResponse:
        try:
            deadline = deadline_of(request)
            raw = await body_of(request, BODY_S, deadline)
            order = order_of(decode(raw))
            asked = await self.checked(request, order, deadline)
        except Fault as fault:
            self.dispatcher.refused(fault)
            raise
        request[REQUEST_ID] = asked[0].request_id
        async with self.opened(order, asked, deadline) as (answer, fault_of):
            wire = Wire(
                style,
                request_id=asked[0].request_id,
                model=answer.model,
                created=int(answer.created),
                n=asked[0].n,
                prompts=len(asked),
                include_usage=order.include_usage,
                explain=asked[0].explain,
                logprobs=asked[0].sampling.HasField("logprobs"),
            )
            if order.stream:
                headers = {"x-request-id": asked[0].request_id}
                return await stream_answer(request, answer, wire, headers, fault_of, self.stall_s)
            while deltas := await answer.next():
                wire.absorb(deltas)
        return web.json_response(wire.body())

    async def checked(self, request: web.Request, order: Order, deadline: float | None) -> list[Request]:
        asked = []
        for prompt, message in enumerate(order.messages):
            field, identity = identity_of(request, message)
            apply_headers(request, message)
            left_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
            try:
                checked = await accept(message, self.limits, order.default_max_tokens, left_s)
            except CallerFault as fault:
                raise order.in_callers_words(fault, prompt) from None
            asked.append(replace(checked, identity=identity, identity_field=field))
        return asked

    @asynccontextmanager
    async def opened(
        self, order: Order, asked: list[Request], deadline: float | None
    ) -> AsyncIterator[tuple[Answer, Callable[[Exception], Fault]]]:
        """The answer, and what turns an error of it into a fault in the caller's words."""
        fan = Fan(self.dispatcher, asked, deadline) if len(asked) > 1 else None
        source: AbstractAsyncContextManager[Answer] = fan or self.dispatcher.answer(asked[0], deadline)

        def fault_of(error: Exception) -> Fault:
            fault = as_fault(error, asked[0].request_id)
            return order.in_callers_words(fault, fan.failed if fan else 0) if isinstance(fault, CallerFault) else fault

        try:
            async with source as answer:
                yield answer, fault_of
        except CallerFault as fault:
            raise fault_of(fault) from None

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [model_entry(card) for card in self.dispatcher.models()]})

    async def show_model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for card in self.dispatcher.models():
            if card.name == name:
                return web.json_response(model_entry(card))
        raise UnknownModel(name[:128])

    async def show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        ready = self.dispatcher.ready()
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)


def deadline_of(request: web.Request) -> float | None:
    """In the loop's time."""
    given = header_text(request.headers, TIMEOUT_HEADER)
    if not given:
        return None
    if not given.isdigit() or len(given) > 9 or int(given) > MAX_TIMEOUT_MS:
        raise CallerFault(TIMEOUT_HEADER, f"must be whole milliseconds, 0 to {MAX_TIMEOUT_MS}")
    deadline = request[CAME_AT] + int(given) / 1000
    if deadline <= asyncio.get_running_loop().time():
        raise Expired
    return deadline


async def body_of(request: web.Request, patience_s: float, deadline: float | None) -> bytes:
    """The whole body, for whose arrival a client gets so long."""
    until = request[CAME_AT] + patience_s
    try:
        async with asyncio.timeout_at(until if deadline is None else min(until, deadline)):
            return await request.read()
    except TimeoutError:
        if deadline is not None and deadline <= until:
            raise Expired from None
        raise CallerFault("", f"the body did not arrive within {patience_s:g} s", code="request_timeout") from None


def identity_of(request: web.Request, message: GenerateRequest) -> tuple[str, str]:
    """The client's name for its request, and where it stands; the header wins."""
    key = header_text(request.headers, "idempotency-key")
    if key:
        check_request_id("idempotency-key", key)
        return "idempotency-key", key
    return "request_id", message.request_id


def apply_headers(request: web.Request, message: GenerateRequest) -> None:
    """What has no place in an OpenAI body."""
    headers = request.headers
    if headers.get("x-request-id") or not message.request_id:
        message.request_id = request[REQUEST_ID]
    message.service_class = header_text(headers, "x-penstock-service-class")
    if program := header_text(headers, "x-penstock-program"):
        message.program.id = program
    explain = headers.get("x-penstock-explain", "").strip().lower()
    if explain not in SWITCH:
        raise CallerFault("x-penstock-explain", "must be one of: 1, true, 0, false")
    message.explain = SWITCH[explain]


def header_text(headers: Mapping[str, str], name: str) -> str:
    """aiohttp keeps bytes that are no UTF-8 as lone surrogates, which the protocol's strings cannot hold."""
    value = headers.get(name, "").strip()
    if not value.isascii():
        raise CallerFault(name, "must be ASCII")
    return value
