"""The OpenAI-compatible HTTP front.

Promise: every answer, error or not, is in OpenAI's shape and carries x-request-id; a client that leaves
cancels its answer at once, streaming or not; no exception's text or traceback reaches a client.
"""

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from penstock_proto.v1.inference_pb2 import GenerateRequest, ModelCard

from ..config import RouterConfig
from ..faults import CallerFault, Fault, Internal, UnknownModel, http_headers, to_http
from ..metrics import RouterMetrics
from ..request import Request, accept, check_request_id, limits_of, new_request_id
from .http_body import Order, chat_order, completion_order, decode
from .http_fan import Fan
from .http_fields import Body
from .http_sources import Answer, Dispatcher
from .http_sse import stream_answer
from .http_styles import CHAT, COMPLETION
from .http_wire import Style, Wire

log = logging.getLogger("penstock.router.http")
protocol_log = logging.getLogger("penstock.router.http.protocol")

REQUEST_ID: Final = web.RequestKey("request_id", str)
CONFIG: Final = web.AppKey("config", RouterConfig)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SWITCH: Final = {"1": True, "true": True, "0": False, "false": False, "": False}


def make_app(dispatcher: Dispatcher, metrics: RouterMetrics, config: RouterConfig) -> web.Application:
    front = Front(dispatcher, metrics, config)
    app = web.Application(middlewares=[openai_shaped], client_max_size=config.limits.max_body_bytes)
    app[CONFIG] = config
    app.on_response_prepare.append(say_who_answers)
    app.add_routes(
        [
            web.post("/v1/chat/completions", front.chat),
            web.post("/v1/completions", front.completions),
            web.get("/v1/models", front.list_models),
            web.get("/v1/models/{name:.+}", front.show_model),
            web.get("/metrics", front.show_metrics),
            web.get("/healthz", front.healthz),
            web.get("/readyz", front.readyz),
        ]
    )
    return app


async def say_who_answers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "penstock"  # not which versions run


class NoQuotes(logging.Filter):
    """aiohttp's messages on malformed HTTP quote what came in, which may be a prompt; the error's type stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0]:
            record.msg, record.args = f"{record.getMessage()}: {record.exc_info[0].__name__}", None
            record.exc_info = None
        return True


protocol_log.addFilter(NoQuotes())


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Starts serving; returns the runner, to be cleaned up, and the port. A client's leaving cancels its handler."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, logger=protocol_log, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, int(runner.addresses[0][1])


@web.middleware
async def openai_shaped(request: web.Request, handler: Handler) -> web.StreamResponse:
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = new_request_id()
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
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
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
        raw = await request.read()
        try:
            order = order_of(decode(raw))
            asked = await self.checked(request, order)
        except Fault as fault:
            self.dispatcher.refused(fault)
            raise
        request[REQUEST_ID] = asked[0].request_id
        async with self.opened(order, asked) as (answer, fault_of):
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

    async def checked(self, request: web.Request, order: Order) -> list[Request]:
        asked = []
        for prompt, message in enumerate(order.messages):
            apply_headers(request, message)
            try:
                asked.append(await accept(message, self.limits, order.default_max_tokens))
            except CallerFault as fault:
                raise order.in_callers_words(fault, prompt) from None
        return asked

    @asynccontextmanager
    async def opened(self, order: Order, asked: list[Request]) -> AsyncIterator[tuple[Answer, Callable[[Exception], Fault]]]:
        """The answer, and what turns an error of it into a fault in the caller's words."""
        fan = Fan(self.dispatcher, asked) if len(asked) > 1 else None
        source: AbstractAsyncContextManager[Answer] = fan or self.dispatcher.answer(asked[0], None)

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
