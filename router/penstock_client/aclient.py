"""The asyncio client.

Promise: an `AsyncStream` that is left early, by `break`, an exception, task cancellation, `aclose()`
or garbage collection, cancels its call. grpc.aio itself does not: since 1.83 an abandoned call is
neither collected nor cancelled, and the service would compute to its end.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
import grpc.aio

from penstock_client import answer as answers
from penstock_client import retry, service
from penstock_client.answer import Answer, Delta
from penstock_client.errors import Cancelled, DeadlineExceeded, Metadata, from_status, read_details
from penstock_client.link import channel_options, link
from penstock_client.request import Options, build
from penstock_proto.v1 import inference_pb2, inference_pb2_grpc

OpenCall = Callable[[float | None], Any]


class AsyncThrottle:
    """The retry bucket of one client; its loop is its only user."""

    def __init__(self) -> None:
        self._bucket = retry.Bucket()

    def succeeded(self) -> None:
        self._bucket = self._bucket.succeeded()

    def decide(self, failure: retry.Failure, remaining_s: float | None) -> retry.Retry:
        self._bucket, decision = retry.decide(self._bucket, failure, remaining_s, random.random())
        return decision


class AsyncStream(AsyncIterator[Delta]):
    """One answer as it is generated. Also an async context manager."""

    def __init__(self, open_call: OpenCall, timeout_s: float | None, throttle: AsyncThrottle) -> None:
        self.request_id = ""
        self._open_call = open_call
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._throttle = throttle
        self._attempt = 1
        self._begun = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._call: Any = open_call(timeout_s)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._closed:
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as failure:
                await self._again(failure)
                continue
            except asyncio.CancelledError:
                self.close()
                if _task_is_cancelled():
                    raise
                raise Cancelled("the stream was cancelled", request_id=self.request_id) from None
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                self.close()
                break
            self.request_id = message.request_id or self.request_id
            if not self._begun:
                if not answers.begins(message):
                    continue
                self._begun = True
                self._throttle.succeeded()
            return answers.delta(message)
        raise StopAsyncIteration

    async def _again(self, failure: grpc.aio.AioRpcError) -> None:
        """Sends the request again where that is safe, else raises."""
        details = read_details(_metadata(failure))
        error = from_status(failure.code(), failure.details() or "", details, begun=self._begun, request_id=self.request_id)
        if failure.code() is not grpc.StatusCode.UNAVAILABLE or self._closed:
            self.close()
            raise error
        tried = retry.Failure(self._attempt, self._begun, details.retry_after_s, details.never_retry)
        decision = self._throttle.decide(tried, _remaining(self._deadline))
        if decision.wait_s is None:
            self.close()
            raise error
        await asyncio.sleep(decision.wait_s)
        remaining_s = _remaining(self._deadline)
        if remaining_s is not None and remaining_s <= 0:
            self.close()
            raise DeadlineExceeded("timeout_s passed before the service was available", request_id=self.request_id)
        if not self._closed:
            self._attempt += 1
            self._call = self._open_call(remaining_s)

    async def answer(self) -> Answer:
        """Reads to the end; the answer made of what had not been read before."""
        deltas = [delta async for delta in self]
        return answers.fold(deltas, self.request_id)

    def close(self) -> None:
        """Cancels the call; harmless when it has ended. To be called on the stream's loop."""
        self._closed = True
        self._call.cancel()

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is None or self._closed:
            return
        # Garbage collection may run on any thread, the call belongs to its loop; a closed loop holds no calls.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call.cancel)


class AsyncClient:
    """Calls one service from one event loop. Close it, or use it as an async context manager.

    The arguments are those of `Client`.
    """

    def __init__(
        self,
        address: str | None = None,
        api_key: str | None = None,
        *,
        mode: str = "proxy",
        timeout_s: float | None = None,
    ) -> None:
        self._link = link(address, api_key, mode, timeout_s)
        self._throttle = AsyncThrottle()
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    @property
    def address(self) -> str:
        return self._link.address

    def _service(self) -> Any:
        # The channel binds to the running loop, so it is made by the first call, not by the constructor.
        if self._stub is None:
            self._channel = grpc.aio.insecure_channel(self._link.address, options=channel_options(self._link.address))
            self._stub = inference_pb2_grpc.InferenceStub(self._channel)
        return self._stub

    def stream(self, prompt: str | None = None, /, *, timeout_s: float | None = None, **options: Unpack[Options]) -> AsyncStream:
        """Starts an answer and yields it as it is generated. Needs a running loop."""
        request = build(prompt, options)
        generate, metadata = self._service().Generate, self._link.metadata

        attempts = itertools.count()

        def open_call(remaining_s: float | None) -> Any:
            return generate(request, timeout=remaining_s, metadata=retry.marked(metadata, next(attempts)))

        return AsyncStream(open_call, self._link.timeout(timeout_s), self._throttle)

    async def generate(
        self, prompt: str | None = None, /, *, timeout_s: float | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The whole answer."""
        async with self.stream(prompt, timeout_s=timeout_s, **options) as stream:
            return await stream.answer()

    async def models(self, *, timeout_s: float | None = None) -> tuple[service.Model, ...]:
        reply = await self._unary(self._service().ListModels, inference_pb2.ListModelsRequest(), timeout_s)
        return service.models(reply)

    async def status(self, *, timeout_s: float | None = None) -> service.ServiceStatus:
        reply = await self._unary(self._service().Status, inference_pb2.StatusRequest(), timeout_s)
        return service.status(reply)

    async def _unary(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        call = method(request, timeout=self._link.timeout(timeout_s), metadata=self._link.metadata)
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            details = read_details(_metadata(failure))
            raise from_status(failure.code(), failure.details() or "", details, begun=False) from None
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise Cancelled("the call was cancelled") from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Cancels every open stream and closes the connection."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel, self._stub = None, None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _metadata(failure: grpc.aio.AioRpcError) -> Metadata:
    return cast(Metadata, failure.trailing_metadata() or ())


def _task_is_cancelled() -> bool:
    """Whether this task was cancelled: grpc.aio raises CancelledError for a cancelled call as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
