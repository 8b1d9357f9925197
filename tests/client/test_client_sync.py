"""The blocking client against a scripted service."""

import asyncio
import gc
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from inference_fake import Fault, details_bin, last, retry_info, token

import penstock_client as sdk
from penstock_client import Client


async def two_tokens(request, context, attempt):  # type: ignore[no-untyped-def]
    yield token("a", 1, request_id="r-1")
    yield last("b", 2)


async def endless(request, context, attempt):  # type: ignore[no-untyped-def]
    for number in range(10_000):
        yield token("x", number)
        await asyncio.sleep(0.01)


def raising(*faults: Fault, before: int = 0):  # type: ignore[no-untyped-def]
    async def script(request, context, attempt):  # type: ignore[no-untyped-def]
        for number in range(before):
            yield token("a", number)
        if attempt <= len(faults):
            yield faults[attempt - 1]
        yield last("b", 2)

    return script


UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE)


def test_generate_returns_the_whole_answer(threaded) -> None:  # type: ignore[no-untyped-def]
    address, fake = threaded(two_tokens)
    with Client(address, api_key="k-1") as client:
        answer = client.generate("p", max_tokens=2, service_class="interactive", request_id="r-1", explain=True)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("ab", (1, 2), "stop")
    assert answer.request_id == "r-1" and len(answer.choices) == 1 and answer.placement is None
    usage = answer.usage
    assert usage.prompt_tokens == usage.cached_tokens + usage.transferred_tokens + usage.computed_tokens == 5
    assert fake.metadata[0]["authorization"] == "Bearer k-1"
    assert fake.requests[0].service_class == "interactive" and fake.requests[0].explain


def test_a_stream_yields_deltas_and_marks_the_last_one(threaded) -> None:  # type: ignore[no-untyped-def]
    address, _ = threaded(two_tokens)
    with Client(address) as client:
        deltas = list(client.stream("p"))
    assert [delta.text for delta in deltas] == ["a", "b"]
    assert [delta.finish_reason for delta in deltas] == [None, "stop"]
    assert deltas[0].usage is None and deltas[1].usage is not None


def test_n_choices_are_told_apart(threaded) -> None:  # type: ignore[no-untyped-def]
    async def script(request, context, attempt):  # type: ignore[no-untyped-def]
        yield token("a", 1, index=1)
        yield token("c", 3, index=0)
        yield last("b", 2, index=1)
        yield last("d", 4, index=0)

    address, _ = threaded(script)
    with Client(address) as client:
        answer = client.generate("p", n=2)
    assert [choice.text for choice in answer.choices] == ["cd", "ab"] and answer.text == "cd"


@pytest.mark.parametrize("leave", ["break", "close", "with", "collect", "error"])
def test_a_stream_left_early_is_cancelled_at_the_service(threaded, leave) -> None:  # type: ignore[no-untyped-def]
    address, fake = threaded(endless)
    with Client(address) as client:
        if leave == "break":
            for _ in client.stream("p"):
                break
        elif leave == "close":
            stream = client.stream("p")
            next(stream)
            stream.close()
            assert list(stream) == []
        elif leave == "with":
            with client.stream("p") as stream:
                next(stream)
        elif leave == "collect":
            stream = client.stream("p")
            next(stream)
            del stream
            gc.collect()
        else:
            with pytest.raises(ZeroDivisionError), client.stream("p") as stream:
                next(stream)
                _ = 1 / 0
        assert fake.cancel_seen.wait(5) and fake.cancelled == 1


def test_closing_from_another_thread_ends_a_blocked_read(threaded) -> None:  # type: ignore[no-untyped-def]
    async def silent(request, context, attempt):  # type: ignore[no-untyped-def]
        yield token("x", 1)
        await asyncio.sleep(60)

    address, fake = threaded(silent)
    with Client(address) as client:
        stream = client.stream("p")
        next(stream)
        timer = threading.Timer(0.05, stream.close)
        timer.start()
        with pytest.raises(sdk.Cancelled):
            next(stream)
        timer.join()
    assert fake.cancel_seen.wait(5)


def test_unavailable_before_the_first_token_is_sent_again(threaded) -> None:  # type: ignore[no-untyped-def]
    soon = Fault(grpc.StatusCode.UNAVAILABLE, "x", (details_bin(grpc.StatusCode.UNAVAILABLE, "x", retry_info(0.001)),))
    address, fake = threaded(raising(soon, soon))
    with Client(address) as client:
        assert client.generate("p", request_id="mine").text == "b"
    assert len(fake.requests) == 3
    # An id means one answer: the router is told that these are the same request, sent again by who got nothing of it.
    assert [sent.get("x-penstock-previous-attempts") for sent in fake.metadata] == [None, "1", "2"]
    assert {request.request_id for request in fake.requests} == {"mine"}


def test_an_id_that_is_taken_is_said_by_name_and_not_sent_again(threaded) -> None:  # type: ignore[no-untyped-def]
    taken = Fault(grpc.StatusCode.ALREADY_EXISTS, "request_id: is open at this router")
    address, fake = threaded(raising(taken, taken))
    with Client(address) as client, pytest.raises(sdk.AlreadyExists, match="request_id"):
        client.generate("p", request_id="mine")
    assert len(fake.requests) == 1


def test_three_attempts_are_the_most(threaded) -> None:  # type: ignore[no-untyped-def]
    soon = Fault(grpc.StatusCode.UNAVAILABLE, "no worker", (("grpc-retry-pushback-ms", "1"),))
    address, fake = threaded(raising(soon, soon, soon, soon))
    with Client(address) as client, pytest.raises(sdk.Unavailable, match="no worker"):
        client.generate("p")
    assert len(fake.requests) == 3


def test_a_negative_pushback_means_never(threaded) -> None:  # type: ignore[no-untyped-def]
    address, fake = threaded(raising(Fault(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-retry-pushback-ms", "-1"),))))
    with Client(address) as client, pytest.raises(sdk.Unavailable):
        client.generate("p")
    assert len(fake.requests) == 1


def test_unavailable_after_a_token_is_a_broken_stream_and_not_sent_again(threaded) -> None:  # type: ignore[no-untyped-def]
    address, fake = threaded(raising(UNAVAILABLE, before=1))
    with Client(address) as client:
        stream = client.stream("p")
        assert next(stream).text == "a"
        with pytest.raises(sdk.Broken):
            next(stream)
    assert len(fake.requests) == 1 and issubclass(sdk.Broken, sdk.Aborted)


def test_a_message_that_only_names_the_request_does_not_commit_it(threaded) -> None:  # type: ignore[no-untyped-def]
    async def script(request, context, attempt):  # type: ignore[no-untyped-def]
        yield token("", 0).__class__(request_id="r-9")
        if attempt == 1:
            yield Fault(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-retry-pushback-ms", "0"),))
        yield last("b", 2)

    address, fake = threaded(script)
    with Client(address) as client, client.stream("p") as stream:
        assert [delta.text for delta in stream] == ["b"] and stream.request_id == "r-9"
    assert len(fake.requests) == 2


def _detailed(code: grpc.StatusCode, *details: object) -> Fault:
    return Fault(code, "m", (details_bin(code, "m", *details),))


def test_errors_are_typed_and_carry_what_a_program_needs(threaded) -> None:  # type: ignore[no-untyped-def]
    violation = error_details_pb2.BadRequest.FieldViolation(field="sampling.temperature", description="d")
    code = grpc.StatusCode
    cases: list[tuple[Fault, type[sdk.PenstockError], str, object]] = [
        (_detailed(code.INVALID_ARGUMENT, error_details_pb2.BadRequest(field_violations=[violation])),
         sdk.InvalidArgument, "field", "sampling.temperature"),
        (_detailed(code.RESOURCE_EXHAUSTED, retry_info(1.5), error_details_pb2.ErrorInfo(reason="queue_full")),
         sdk.ResourceExhausted, "retry_after_s", 1.5),
        (_detailed(code.RESOURCE_EXHAUSTED, error_details_pb2.ErrorInfo(reason="queue_full")),
         sdk.ResourceExhausted, "reason", "queue_full"),
        (Fault(code.NOT_FOUND), sdk.NotFound, "code", "NOT_FOUND"),
        (Fault(code.UNAUTHENTICATED), sdk.Unauthenticated, "code", "UNAUTHENTICATED"),
        (Fault(code.PERMISSION_DENIED), sdk.PermissionDenied, "code", "PERMISSION_DENIED"),
        (Fault(code.ABORTED), sdk.Broken, "code", "ABORTED"),
        (Fault(code.UNIMPLEMENTED), sdk.Unimplemented, "code", "UNIMPLEMENTED"),
        (Fault(code.INTERNAL), sdk.Internal, "code", "INTERNAL"),
        (Fault(code.OUT_OF_RANGE), sdk.PenstockError, "code", "OUT_OF_RANGE"),
        (Fault(code.INVALID_ARGUMENT, "m", (("grpc-status-details-bin", b"\xff\xff"),)),
         sdk.InvalidArgument, "field", ""),
    ]  # fmt: skip
    queue = iter(cases)

    async def script(request, context, attempt):  # type: ignore[no-untyped-def]
        yield cases[attempt - 1][0]

    address, _ = threaded(script)
    with Client(address) as client:
        for _, kind, attribute, value in queue:
            with pytest.raises(kind) as caught:
                client.generate("p")
            assert getattr(caught.value, attribute) == value and type(caught.value) is kind


def test_a_deadline_covers_all_attempts(threaded) -> None:  # type: ignore[no-untyped-def]
    address, fake = threaded(endless)
    with Client(address, timeout_s=60) as client:
        with pytest.raises(sdk.DeadlineExceeded):
            client.generate("p", timeout_s=0.1)
        assert fake.cancel_seen.wait(5)
    slow = Fault(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-retry-pushback-ms", "60000"),))
    address, fake = threaded(raising(slow))
    with Client(address) as client, pytest.raises(sdk.Unavailable):
        client.generate("p", timeout_s=0.5)
    assert len(fake.requests) == 1


@pytest.mark.slow
def test_nobody_listening_is_unavailable() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(sdk.Unavailable):
        client.generate("p", timeout_s=5)


def test_models_and_status_are_plain_values(threaded) -> None:  # type: ignore[no-untyped-def]
    address, _ = threaded(two_tokens)
    with Client(address) as client:
        assert client.models() == (sdk.Model("tiny", 4096, 7),)
        status = client.status()
    assert status.workers[0].worker_id == "w0" and status.workers[0].running == 2
    assert status.slo == (sdk.SloStatus("interactive", "ttft", 4, 3),)


def test_lookaside_is_refused_by_name() -> None:
    with pytest.raises(sdk.Unimplemented, match="lookaside"):
        Client("127.0.0.1:9000", mode="lookaside")


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"address": "localhost"}, "address"),
        ({"address": "http://localhost:80"}, "address"),
        ({"mode": "direct"}, "mode"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"api_key": "a\nb"}, "api_key"),
    ],
)
def test_a_client_refuses_settings_by_name(keywords, field) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(sdk.InvalidArgument) as caught:
        Client(**keywords)
    assert caught.value.field == field


def test_address_and_key_come_from_the_environment(threaded, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    address, fake = threaded(two_tokens)
    monkeypatch.setenv("PENSTOCK_ADDRESS", address)
    monkeypatch.setenv("PENSTOCK_API_KEY", "from-env")
    with Client() as client:
        assert client.address == address and client.generate("p").text == "ab"
    assert fake.metadata[0]["authorization"] == "Bearer from-env"
