"""Methods of one request message, run as coroutines.

Promise: the coroutine is cancelled when its call ends otherwise than by it; whatever it raises becomes INTERNAL for its call.
"""

import asyncio
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from .server import Call

log = logging.getLogger("penstock.wire")
Handler = Callable[["Call", bytes], Coroutine[Any, Any, None]]


class Unary:
    """A method of one request message, run as a coroutine that the call's end cancels.

    Up to its first wait it runs outside a task: before that it must not ask for the current one.
    """

    __slots__ = ("__weakref__", "_function", "call", "task", "waits")

    def __init__(self, call: "Call", function: Handler | None = None) -> None:
        self.call = call
        self.task: asyncio.Task[None] | None = None
        self.waits = True  # for the request message
        self._function = function

    async def handle(self, call: "Call", data: bytes) -> None:
        """What the call does; for subclasses."""
        assert self._function is not None
        await self._function(call, data)

    def message(self, data: bytes) -> None:
        if not self.waits:
            self.call.finish(grpc.StatusCode.INVALID_ARGUMENT, "request: more than one message")
            self.cancelled("more than one message")
            return
        self.waits = False
        # The first step runs here and now: most calls never wait for anything, and a task costs as much as a short call.
        # Nothing is kept for a client that never says that this was all.
        coroutine = self._run(data)
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        self.task = self.call.stream.connection.loop.create_task(_go_on(coroutine, awaited))

    def half_closed(self) -> None:
        if self.waits:
            self.call.finish(grpc.StatusCode.INVALID_ARGUMENT, "request: no message")

    def writable(self) -> None:
        pass

    def cancelled(self, reason: str) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _run(self, data: bytes) -> None:
        call = self.call
        try:
            await self.handle(call, data)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("handler failed", extra={"fields": {"path": call.path.decode("ascii", "replace")}})
            call.finish(grpc.StatusCode.INTERNAL, "internal error")


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that has run up to its first wait."""
    while True:
        try:
            value = yield awaited
        except BaseException as error:  # noqa: BLE001 - handed to the coroutine, a cancellation included
            failure: BaseException | None = error
        else:
            failure = None
        try:
            awaited = coroutine.send(value) if failure is None else coroutine.throw(failure)
        except StopIteration:
            return


def unary(function: Handler) -> Callable[["Call"], Unary]:
    return lambda call: Unary(call, function)
