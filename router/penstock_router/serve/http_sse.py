"""An answer as server-sent events.

Promise: nothing is sent before the first tokens, so a fault until then has its own HTTP status; afterwards a
fault is one error event and the connection closes. One transport write carries everything available.
"""

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


async def stream_answer(
    request: web.Request,
    answer: Answer,
    wire: Wire,
    headers: Mapping[str, str],
    fault_of: Callable[[Exception], Fault],
) -> web.StreamResponse:
    """Returns once the answer, or the client, has ended; leaving the answer's context then cancels what is left."""
    deltas = await answer.next()
    response = web.StreamResponse(headers={**SSE_HEADERS, **headers})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # the client left: nobody is there to be told
        try:
            while deltas:
                if data := wire.chunks(deltas):
                    await response.write(data)
                deltas = await answer.next()
            await response.write(wire.closing())
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - with the status sent, an event is the only way to tell
            response.force_close()
            await response.write(error_event(fault_of(error)))
        await response.write_eof()
    return response
