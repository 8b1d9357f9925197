"""aiohttp's server, with our words for what never becomes a request.

Promise: octets that are no HTTP are answered in OpenAI's error shape with an x-request-id, and neither the answer nor the
log quotes them; a client that takes nothing is cut off by the kernel after `stall_s`, whatever it was being sent.
"""

import asyncio
import logging
import socket
from typing import Any, Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong

from ..request import new_request_id

protocol_log = logging.getLogger("penstock.router.http.protocol")
BACKLOG: Final = 1024
LINE: Final = 8190  # octets of a request line, or of a header
HEADERS: Final = 128


class NoQuotes(logging.Filter):
    """aiohttp's messages on malformed HTTP quote what came in, which may be a prompt; the error's type stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0]:
            record.msg, record.args = f"{record.getMessage()}: {record.exc_info[0].__name__}", None
            record.exc_info = None
        return True


protocol_log.addFilter(NoQuotes())


def error_body(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


async def expected(request: web.Request) -> web.StreamResponse | None:
    """The Expect header; None: go on."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        return web.json_response(error_body("expect: only 100-continue is understood", "expectation_failed"), status=417)
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # so that an error after it is still an answer
    return None


class Handler(web.RequestHandler):
    """One connection."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs, and raises where an answer is under way
        if isinstance(exc, LineTooLong):
            told = error_body(f"the request line or a header has more than {LINE} bytes", "header_too_large")
        elif status < 500:
            told = error_body("the request is not valid HTTP/1.1", "invalid_http")
        else:
            told = error_body("internal error", "internal_error")
            told["error"]["type"] = "server_error"
        headers = {"x-request-id": new_request_id(), "Server": "penstock"}
        response = web.json_response(told, status=status, headers=headers)
        response.force_close()
        return response


class Server(web.Server):
    """Makes a Handler for each connection."""

    def __call__(self) -> Handler:
        return Handler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,
        )


async def listen(app: web.Application, host: str, port: int, stall_s: float = 60.0) -> tuple[web.AppRunner, int]:
    """Starts serving; returns the runner, to be cleaned up, and the port. A client's leaving cancels its handler."""
    runner = Runner(
        app, handler_cancellation=True, access_log=None, logger=protocol_log, shutdown_timeout=0.5,
        max_line_size=LINE, max_field_size=LINE, max_headers=HEADERS,
    )  # fmt: skip
    await runner.setup()
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, address = (await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM))[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What is accepted inherits it. It covers a peer that acknowledges and takes nothing: its window stays shut.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        await runner.cleanup()
        raise
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner, int(listener.getsockname()[1])
