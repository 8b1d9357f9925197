"""A fault says the same in gRPC and in HTTP."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from penstock_router.faults import (
    DETAILS_KEY,
    Broken,
    CallerFault,
    Expired,
    Fault,
    Internal,
    Shed,
    Unavailable,
    UnknownModel,
    http_headers,
    to_grpc,
    to_http,
)


@pytest.mark.parametrize(
    ("fault", "code", "status", "kind", "param", "name"),
    [
        (CallerFault("top_p", "no"), "INVALID_ARGUMENT", 400, "invalid_request_error", "top_p", "invalid_value"),
        (UnknownModel("x"), "NOT_FOUND", 404, "invalid_request_error", "model", "model_not_found"),
        (Shed("full", 0.5), "RESOURCE_EXHAUSTED", 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (Unavailable("no worker"), "UNAVAILABLE", 503, "server_error", None, "unavailable"),
        (Broken("died"), "ABORTED", 502, "server_error", None, "answer_broken"),
        (Expired(), "DEADLINE_EXCEEDED", 504, "server_error", None, "deadline_exceeded"),
        (Internal("r-1"), "INTERNAL", 500, "server_error", None, "internal_error"),
    ],
)
def test_a_fault_has_one_meaning_on_both_fronts(
    fault: Fault, code: str, status: int, kind: str, param: str | None, name: str
) -> None:
    grpc_code, message, trailing = to_grpc(fault)
    assert grpc_code is getattr(grpc.StatusCode, code)
    http_status, body = to_http(fault)
    assert (http_status, body["error"]) == (status, {"message": message, "type": kind, "param": param, "code": name})
    ((key, raw),) = trailing
    assert key == DETAILS_KEY
    assert isinstance(raw, bytes)
    rich = Status.FromString(raw)
    assert (rich.code, rich.message) == (grpc_code.value[0], message)
    info = ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.reason, info.domain) == (name.upper(), "penstock.dev")


def test_a_callers_fault_carries_its_field_for_programs() -> None:
    _, message, ((_, raw),) = to_grpc(CallerFault("messages[2].role", "must be one of: user"))
    assert message == "messages[2].role: must be one of: user"
    violations = BadRequest()
    assert isinstance(raw, bytes)
    assert Status.FromString(raw).details[1].Unpack(violations)
    assert violations.field_violations[0].field == "messages[2].role"
    assert violations.field_violations[0].description == "must be one of: user"


def test_shedding_carries_its_delay_for_programs() -> None:
    fault = Shed("full", 1.25)
    _, _, ((_, raw),) = to_grpc(fault)
    retry = RetryInfo()
    assert isinstance(raw, bytes)
    assert Status.FromString(raw).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1_250
    assert http_headers(fault) == {"Retry-After": "2"}
    assert http_headers(Shed("full", 0.0)) == {"Retry-After": "1"}
    assert http_headers(Unavailable("no worker")) == {}
