"""Typed errors of the SDK: one class per kind of fault, with what a program needs to act on it.

Promise: every failure of a call surfaces as a `PenstockError`, never as a bare `grpc.RpcError`, and
whether the answer had begun decides between `Unavailable` (safe to send again) and `Broken` (it is not).
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

Metadata = Iterable[tuple[str, str | bytes]]


class PenstockError(Exception):
    """Base of all SDK errors. `reason` is the service's machine-readable word, "" where it gave none."""

    code = "UNKNOWN"

    def __init__(self, message: str, *, reason: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.request_id = request_id


class InvalidArgument(PenstockError, ValueError):
    """The caller's fault. `field` names what is wrong, "" where the service named none."""

    code = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str = "", reason: str = "", request_id: str = "") -> None:
        super().__init__(message, reason=reason, request_id=request_id)
        self.field = field


class NotFound(PenstockError):
    """No such model or adapter."""

    code = "NOT_FOUND"


class AlreadyExists(PenstockError):
    """A request of this id is open, or its answer began: its stream cannot be joined. A new id generates again."""

    code = "ALREADY_EXISTS"


class Unauthenticated(PenstockError):
    """No API key, or one the service does not know."""

    code = "UNAUTHENTICATED"


class PermissionDenied(PenstockError):
    """The API key may not do this."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(PenstockError):
    """Shed by the service. `retry_after_s` is its advice, None where it gave none."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: float | None = None, reason: str = "", request_id: str = "") -> None:
        super().__init__(message, reason=reason, request_id=request_id)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(PenstockError, TimeoutError):
    """`timeout_s` passed before the answer ended."""

    code = "DEADLINE_EXCEEDED"


class Unavailable(PenstockError):
    """Nothing of the answer was received and the retries are spent: safe to send again later."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float | None = None, reason: str = "", request_id: str = "") -> None:
        super().__init__(message, reason=reason, request_id=request_id)
        self.retry_after_s = retry_after_s


class Broken(PenstockError):
    """The answer began and cannot continue; what was received stands. Never retried by the SDK."""

    code = "ABORTED"


Aborted = Broken


class Cancelled(PenstockError):
    """The call was cancelled: the stream was closed, or the service ended it."""

    code = "CANCELLED"


class Unimplemented(PenstockError):
    """The service, or this SDK, does not have this yet."""

    code = "UNIMPLEMENTED"


class Internal(PenstockError):
    """The service's fault."""

    code = "INTERNAL"


_PLAIN: dict[grpc.StatusCode, type[PenstockError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.ABORTED: Broken,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}


@dataclass(frozen=True, slots=True)
class Details:
    """What the trailing metadata of a failed call says."""

    field: str = ""
    retry_after_s: float | None = None
    # The service said "do not retry" (a negative grpc-retry-pushback-ms).
    never_retry: bool = False
    reason: str = ""


def read_details(metadata: Metadata) -> Details:
    """`google.rpc` error details and the retry pushback of gRPC A6, where present."""
    field, retry_after_s, never_retry, reason = "", None, False, ""
    for key, value in metadata:
        if key == "grpc-retry-pushback-ms":
            pushback = _pushback_s(value)
            never_retry = pushback is None
            retry_after_s = pushback if pushback is not None else retry_after_s
        elif key == "grpc-status-details-bin" and isinstance(value, bytes):
            # The details are advice: a status whose details cannot be read stands without them.
            with suppress(DecodeError):
                bad, wait_s, word = _unpack(status_pb2.Status.FromString(value))
                field, reason = bad or field, word or reason
                retry_after_s = wait_s if wait_s is not None else retry_after_s
    return Details(field, retry_after_s, never_retry, reason)


def _unpack(status: status_pb2.Status) -> tuple[str, float | None, str]:
    """Field, seconds to wait and reason."""
    field, retry_after_s, reason = "", None, ""
    for packed in status.details:
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = error_details_pb2.BadRequest.FromString(packed.value).field_violations
            field = violations[0].field if violations else ""
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
        elif packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = error_details_pb2.ErrorInfo.FromString(packed.value).reason
    return field, retry_after_s, reason


def _pushback_s(value: str | bytes) -> float | None:
    """Seconds, or None for "never": A6 reads every value that is no number of ms >= 0 as "never"."""
    try:
        pushback_ms = int(value)
    except ValueError:
        return None
    return pushback_ms / 1000 if pushback_ms >= 0 else None


def from_status(code: grpc.StatusCode, message: str, details: Details, *, begun: bool, request_id: str = "") -> PenstockError:
    """The error for a call that ended with `code`; `begun` says that a token was received before."""
    reason = details.reason
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgument(message, field=details.field, reason=reason, request_id=request_id)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(message, retry_after_s=details.retry_after_s, reason=reason, request_id=request_id)
    if code is grpc.StatusCode.UNAVAILABLE:
        if begun:
            return Broken(f"the stream broke after its first token: {message}", reason=reason, request_id=request_id)
        return Unavailable(message, retry_after_s=details.retry_after_s, reason=reason, request_id=request_id)
    kind = _PLAIN.get(code, PenstockError)
    error = kind(message, reason=reason, request_id=request_id)
    if kind is PenstockError:
        error.code = code.name
    return error
