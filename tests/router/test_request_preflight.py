"""Requests of very many small parts are refused before they are built."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proto.v1.common_pb2 import Choices, Message, Sampling
from penstock_proto.v1.inference_pb2 import Chat, GenerateRequest, TokenIds
from penstock_router import preflight
from penstock_router.faults import CallerFault
from penstock_router.preflight import crowded
from penstock_router.request import Malformed, deserialize
from penstock_router.serve.http_body import chat_order, completion_order, decode

MANY = 200_000
CROWDED = {
    "messages": GenerateRequest(chat=Chat(messages=[Message()] * MANY)),
    "sampling": GenerateRequest(sampling=Sampling(stop=[""] * MANY)),
    "choice": GenerateRequest(sampling=Sampling(choice=Choices(values=[""] * MANY))),
}


@pytest.mark.parametrize("field", CROWDED)
def test_a_field_of_very_many_entries_is_named(field: str) -> None:
    data = CROWDED[field].SerializeToString()
    assert crowded(data) == field
    assert deserialize(data) == Malformed(field, "has more than 10000 entries")


def test_the_same_field_again_and_again_counts_too() -> None:
    assert crowded(GenerateRequest(chat=Chat(tools="x")).SerializeToString() * MANY) == "request"


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt="x" * 5_000_000, sampling=Sampling(stop=["a"], choice=Choices(values=["b"]))),
        GenerateRequest(token_ids=TokenIds(ids=range(300_000))),
        GenerateRequest(chat=Chat(messages=[Message(role="user", content="x" * 1000)] * 4_096)),
    ],
    ids=["prompt", "token_ids", "chat"],
)
def test_a_large_request_of_few_parts_is_parsed(request_: GenerateRequest) -> None:
    assert deserialize(request_.SerializeToString()) == request_


@given(st.binary(max_size=400))
def test_any_octets_are_walked_to_an_end(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preflight, "SMALL", 0)
        assert crowded(data) in ("", "request", "messages", "sampling", "choice")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": [1] * ((1 << 22) + 1)}, "prompt"),
        ({"prompt": [1] * 1_000_000 + [-1]}, "prompt[1000000]"),
        ({"prompt": [1] * 1_000_000 + [2**32]}, "prompt[1000000]"),
        ({"prompt": [1] * 1_000_000 + [True]}, "prompt[1000000]"),
        ({"prompt": "x", "stop": ["a"] * 1_000_000}, "stop"),
        ({"messages": [{}] * 1_000_000}, "messages"),
        ({"messages": [{"role": "user", "content": [{}] * 1_000_000}]}, "messages[0].content"),
    ],
    ids=range(7),
)
def test_long_arrays_are_refused_by_name_without_a_look_at_each(body: dict[str, object], field: str) -> None:
    raw = decode(json.dumps(body).encode())
    began = time.thread_time()
    with pytest.raises(CallerFault) as caught:
        (completion_order if "prompt" in body else chat_order)(raw)
    assert caught.value.field == field
    assert time.thread_time() - began < 1.0  # 4,000,000 ids looked at one by one took 2.5 s


def test_token_ids_come_through_as_they_are() -> None:
    order = completion_order(decode(json.dumps({"prompt": [0, 5, 2**32 - 1]}).encode()))
    assert list(order.messages[0].token_ids.ids) == [0, 5, 2**32 - 1]
