"""An answer as server-sent events.

Promise: nothing is sent before the first tokens, so a fault until then has its own HTTP status; afterwards a
fault is one error event and the connection closes. One transport write carries everything available. A client
that takes nothing for `stall_s` is cut off.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from ..faults import Fault, to_http
from .http_sources import Answer
from .http_wire import Wire

SSE_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx holds tokens back
}


def error_event(fault: Fault) -> bytes:
    _, body = to_http(fault)
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode("ascii")


class Stall:
    """Aborts a connection whose client takes nothing: one timer for each stream, nothing for each write."""

    def __init__(self, transport: asyncio.WriteTransport | None, stall_s: float) -> None:
        self.transport = transport
        self.stall_s = stall_s
        self.clock = asyncio.get_running_loop().time
        self.writing_since: float | None = None
        self.wait()

    def wait(self) -> None:
        self.timer = asyncio.get_running_loop().call_later(self.stall_s, self.check)

    def check(self) -> None:
        if self.writing_since is not None and self.clock() - self.writing_since >= self.stall_s and self.transport:
            self.transport.abort()
        else:
            self.wait()

    def close(self) -> None:
        self.timer.cancel()


async def stream_answer(
    request: web.Request,
    answer: Answer,
    wire: Wire,
    headers: Mapping[str, str],
    fault_of: Callable[[Exception], Fault],
    stall_s: float,
) -> web.StreamResponse:
    """Returns once the answer, or the client, has ended; leaving the answer's context then cancels what is left."""
    deltas = await answer.next()
    response = web.StreamResponse(headers={**SSE_HEADERS, **headers})
    await response.prepare(request)
    stall = Stall(request.transport, stall_s)
    with contextlib.suppress(ConnectionError), contextlib.closing(stall):  # a client that left is not told
        try:
            while deltas:
                if data := wire.chunks(deltas):
                    stall.writing_since = stall.clock()
                    await response.write(data)
                    stall.writing_since = None
                deltas = await answer.next()
            stall.writing_since = stall.clock()
            await response.write(wire.closing())
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - with the status sent, an event is the only way to tell
            response.force_close()
            await response.write(error_event(fault_of(error)))
        await response.write_eof()
    return response
