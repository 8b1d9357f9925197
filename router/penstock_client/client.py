"""The blocking client.

Promise: a `Stream` that is left early, by `break`, an exception, `close()` or garbage collection,
cancels its call, so that the service stops computing an answer nobody reads.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from penstock_client import answer as answers
from penstock_client import retry, service
from penstock_client.answer import Answer, Delta
from penstock_client.errors import DeadlineExceeded, PenstockError, from_status, read_details
from penstock_client.link import channel_options, link
from penstock_client.request import Options, build
from penstock_proto.v1 import inference_pb2, inference_pb2_grpc

OpenCall = Callable[[float | None], Any]


class Throttle:
    """The retry bucket of one client, shared by its threads."""

    def __init__(self) -> None:
        self._bucket = retry.Bucket()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        with self._lock:
            self._bucket = self._bucket.succeeded()

    def decide(self, failure: retry.Failure, remaining_s: float | None) -> retry.Retry:
        with self._lock:
            self._bucket, decision = retry.decide(self._bucket, failure, remaining_s, random.random())
        return decision


class Stream(Iterator[Delta]):
    """One answer as it is generated. Also a context manager."""

    def __init__(self, open_call: OpenCall, timeout_s: float | None, throttle: Throttle) -> None:
        self.request_id = ""
        self._open_call = open_call
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._throttle = throttle
        self._attempt = 1
        self._begun = False
        self._closed = False
        self._call: Any = open_call(timeout_s)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while not self._closed:
            try:
                message = next(self._call)
            except grpc.RpcError as failure:
                self._again(failure)
                continue
            except BaseException:  # the end, or Ctrl-C: either way nothing more is read
                self.close()
                raise
            self.request_id = message.request_id or self.request_id
            if not self._begun:
                if not answers.begins(message):
                    continue
                self._begun = True
                self._throttle.succeeded()
            return answers.delta(message)
        raise StopIteration

    def _again(self, failure: Any) -> None:
        """Sends the request again where that is safe, else raises."""
        code, details = failure.code(), read_details(failure.trailing_metadata() or ())
        error = from_status(code, failure.details() or "", details, begun=self._begun, request_id=self.request_id)
        if code is not grpc.StatusCode.UNAVAILABLE or self._closed:
            self.close()
            raise error
        tried = retry.Failure(self._attempt, self._begun, details.retry_after_s, details.never_retry)
        decision = self._throttle.decide(tried, _remaining(self._deadline))
        if decision.wait_s is None:
            self.close()
            raise error
        time.sleep(decision.wait_s)
        remaining_s = _remaining(self._deadline)
        if remaining_s is not None and remaining_s <= 0:
            self.close()
            raise DeadlineExceeded("timeout_s passed before the service was available", request_id=self.request_id)
        self._attempt += 1
        self._call = self._open_call(remaining_s)

    def answer(self) -> Answer:
        """Reads to the end; the answer made of what had not been read before."""
        deltas = list(self)
        return answers.fold(deltas, self.request_id)

    def close(self) -> None:
        """Cancels the call; harmless when it has ended."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None:
            call.cancel()


class Client:
    """Calls one service. Thread-safe; close it, or use it as a context manager.

    `address` defaults to PENSTOCK_ADDRESS, else 127.0.0.1:9000; `api_key` to PENSTOCK_API_KEY;
    `timeout_s` bounds every call that gives none of its own, retries included.
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
        self._throttle = Throttle()
        self._channel = grpc.insecure_channel(self._link.address, options=channel_options(self._link.address))
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    @property
    def address(self) -> str:
        return self._link.address

    def stream(self, prompt: str | None = None, /, *, timeout_s: float | None = None, **options: Unpack[Options]) -> Stream:
        """Starts an answer and yields it as it is generated."""
        request = build(prompt, options)
        generate, metadata = self._stub.Generate, self._link.metadata

        attempts = itertools.count()

        def open_call(remaining_s: float | None) -> Any:
            return generate(request, timeout=remaining_s, metadata=retry.marked(metadata, next(attempts)))

        return Stream(open_call, self._link.timeout(timeout_s), self._throttle)

    def generate(self, prompt: str | None = None, /, *, timeout_s: float | None = None, **options: Unpack[Options]) -> Answer:
        """The whole answer."""
        with self.stream(prompt, timeout_s=timeout_s, **options) as stream:
            return stream.answer()

    def models(self, *, timeout_s: float | None = None) -> tuple[service.Model, ...]:
        reply = self._unary(self._stub.ListModels, inference_pb2.ListModelsRequest(), timeout_s)
        return service.models(reply)

    def status(self, *, timeout_s: float | None = None) -> service.ServiceStatus:
        reply = self._unary(self._stub.Status, inference_pb2.StatusRequest(), timeout_s)
        return service.status(reply)

    def _unary(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return method(request, timeout=self._link.timeout(timeout_s), metadata=self._link.metadata)
        except grpc.RpcError as failure:
            raise _error(failure) from None

    def close(self) -> None:
        """Cancels every open stream and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _error(failure: Any) -> PenstockError:
    details = read_details(failure.trailing_metadata() or ())
    return from_status(failure.code(), failure.details() or "", details, begun=False)
