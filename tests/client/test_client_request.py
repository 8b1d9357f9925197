"""Keywords to a GenerateRequest."""

import json

import pytest

from penstock_client import InvalidArgument
from penstock_client.request import build


def test_a_prompt_and_sampling_keywords_land_in_their_fields() -> None:
    request = build("hi", {"max_tokens": 4, "temperature": 0.5, "stop": "x", "seed": 7, "n": 2, "logprobs": 0})
    sampling = request.sampling
    assert request.prompt == "hi" and (sampling.max_tokens, sampling.temperature) == (4, 0.5)
    assert list(sampling.stop) == ["x"] and (sampling.seed, sampling.n) == (7, 2)
    assert sampling.HasField("logprobs") and not sampling.HasField("top_p")


def test_messages_become_a_chat() -> None:
    request = build(None, {"messages": [{"role": "user", "content": "hi"}]})
    assert request.WhichOneof("input") == "chat" and request.chat.messages[0].content == "hi"


@pytest.mark.parametrize(("key", "value"), [("token_ids", []), ("messages", [])])
def test_an_empty_input_is_sent_so_that_the_service_refuses_it(key: str, value: list[int]) -> None:
    request = build(None, {key: value})  # type: ignore[misc]
    assert request.WhichOneof("input") == {"token_ids": "token_ids", "messages": "chat"}[key]


def test_a_schema_given_as_a_mapping_is_sent_as_json() -> None:
    assert json.loads(build("p", {"json_schema": {"type": "object"}}).sampling.json_schema) == {"type": "object"}


def test_a_program_may_be_its_id_or_a_mapping() -> None:
    assert build("p", {"program": "a"}).program.id == "a"
    assert build("p", {"program": {"id": "a", "last_step": True}}).program.last_step


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        (None, {}, "prompt"),
        ("p", {"token_ids": [1]}, "prompt"),
        ("p", {"max_tokens": -1}, "max_tokens"),
        ("p", {"max_tokens": "four"}, "max_tokens"),
        ("p", {"temperature": "hot"}, "temperature"),
        (None, {"token_ids": [-1]}, "token_ids"),
        (None, {"token_ids": "12"}, "token_ids"),
        (None, {"token_ids": [2**32]}, "token_ids"),
        (None, {"messages": "hi"}, "messages"),
        (None, {"messages": ["hi"]}, "messages[0]"),
        (None, {"messages": [{"role": "user", "text": "hi"}]}, "messages[0].text"),
        (None, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("p", {"regex": "a", "grammar": "b"}, "grammar"),
        ("p", {"json_schema": {"a": object()}}, "json_schema"),
        ("p", {"stop_token_ids": [None]}, "stop_token_ids"),
        ("p", {"program": {"name": "x"}}, "program.name"),
        (b"p", {"seed": 1}, ""),
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_name_of_its_keyword(prompt, options, field) -> None:  # type: ignore[no-untyped-def]
    if not field:  # bytes that are UTF-8 are text to protobuf
        assert build(prompt, options).prompt == "p"
        return
    with pytest.raises(InvalidArgument) as caught:
        build(prompt, options)
    assert caught.value.field == field and field in str(caught.value)


def test_an_unknown_keyword_is_a_type_error_that_lists_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"'max_token'.*max_tokens"):
        build("p", {"max_token": 3})  # type: ignore[typeddict-unknown-key]


def test_a_fault_of_type_does_not_quote_the_prompt() -> None:
    with pytest.raises(InvalidArgument) as caught:
        build(None, {"messages": [{"role": "user", "content": ["secret words"]}]})  # type: ignore[dict-item]
    assert "secret" not in str(caught.value)
