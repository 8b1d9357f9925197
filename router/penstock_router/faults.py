"""The ways an answer can fail, and how each is said in gRPC and in HTTP.

Promise: a fault's type says whose fault it is and whether asking again is safe, and both fronts say the same
thing. Messages name fields and figures, never prompt text. Whatever is not a `Fault` reaches a caller as
`Internal` and nothing else.
"""

import math
from typing import Any, ClassVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "penstock.dev"  # ErrorInfo's
MAX_MESSAGE_CHARS = 600  # a worker's reason may be long; twice in a trailer it must fit what clients accept
DETAILS_KEY = "grpc-status-details-bin"


class Fault(Exception):
    """Why a request ends without its answer."""

    grpc_code: ClassVar[grpc.StatusCode]
    http_status: ClassVar[int]
    http_type: ClassVar[str]

    def __init__(self, message: str, *, code: str, field: str = "", retry_after_s: float | None = None) -> None:
        message = message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."
        super().__init__(message)
        self.message = message
        self.code = code  # what programs match on: OpenAI's `code`; in upper case ErrorInfo's `reason`
        self.field = field  # the request's field at fault, such as `messages[2].role`
        self.retry_after_s = retry_after_s


class CallerFault(Fault):
    """The request can never be answered as it stands."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    http_type = "invalid_request_error"

    def __init__(self, field: str, message: str, *, code: str = "invalid_value") -> None:
        super().__init__(f"{field}: {message}" if field else message, code=code, field=field)
        self.description = message[:MAX_MESSAGE_CHARS]


class UnknownModel(Fault):
    """No such model or adapter is served."""

    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    http_type = "invalid_request_error"

    def __init__(self, model: str) -> None:
        super().__init__(f"model: {model!r} is not served here", code="model_not_found", field="model")
        self.model = model


class AlreadyExists(Fault):
    """The client named its request as another that is open, or whose answer began."""

    grpc_code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    http_type = "invalid_request_error"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", code="request_exists", field=field)


class Shed(Fault):
    """Refused under load, before any work."""

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    http_type = "rate_limit_error"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason, code="rate_limit_exceeded", retry_after_s=retry_after_s)


class Unavailable(Fault):
    """Nobody could begin the answer. No token was sent, so asking again is safe."""

    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    http_type = "server_error"

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, code="unavailable", retry_after_s=retry_after_s)


class Broken(Fault):
    """The answer began and cannot continue."""

    grpc_code = grpc.StatusCode.ABORTED
    http_status = 502
    http_type = "server_error"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, code="answer_broken")


class Expired(Fault):
    """The caller's deadline passed."""

    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    http_type = "server_error"

    def __init__(self, reason: str = "the deadline passed before the answer ended") -> None:
        super().__init__(reason, code="deadline_exceeded")


class Internal(Fault):
    """A defect of ours. The cause is in the log under the request's id, never in the answer."""

    grpc_code = grpc.StatusCode.INTERNAL
    http_status = 500
    http_type = "server_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; the router's log has it under request {request_id!r}", code="internal_error")


def to_grpc(fault: Fault) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Status code, message, and trailing metadata with the google.rpc details."""
    details: list[Message] = [ErrorInfo(reason=fault.code.upper(), domain=DOMAIN)]
    if isinstance(fault, CallerFault | AlreadyExists):
        described = fault.description if isinstance(fault, CallerFault) else fault.message
        violation = BadRequest.FieldViolation(field=fault.field, description=described)
        details.append(BadRequest(field_violations=[violation]))
    if fault.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(math.ceil(fault.retry_after_s * 1000))
        details.append(RetryInfo(retry_delay=delay))
    status = Status(code=fault.grpc_code.value[0], message=fault.message)
    for detail in details:
        status.details.add().Pack(detail)
    return fault.grpc_code, fault.message, ((DETAILS_KEY, status.SerializeToString()),)


def to_http(fault: Fault) -> tuple[int, dict[str, Any]]:
    """HTTP status and a body in OpenAI's error shape."""
    error = {"message": fault.message, "type": fault.http_type, "param": fault.field or None, "code": fault.code}
    return fault.http_status, {"error": error}


def http_headers(fault: Fault) -> dict[str, str]:
    """Retry-After, in whole seconds as HTTP has it and never 0: a client that got one always waits."""
    if isinstance(fault, AlreadyExists):
        return {"x-should-retry": "false"}  # OpenAI's clients send a request that got 409 again, unless told not to
    if fault.retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(fault.retry_after_s)))}
