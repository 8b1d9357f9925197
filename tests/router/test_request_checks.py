"""Every bad request is refused by its field's name, and what passes can run."""

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proto.v1.common_pb2 import Choices, Message, Sampling
from penstock_proto.v1.inference_pb2 import Chat, GenerateRequest, Program, TokenIds
from penstock_router.faults import CallerFault, Fault, UnknownModel
from penstock_router.request import (
    Limits,
    Malformed,
    accept,
    check_against_model,
    deserialize,
    parse,
    sampling_of_choice,
)
from penstock_router.structured import schema_problem

LIMITS = Limits(
    models=frozenset({"tiny"}),
    service_classes=frozenset({"interactive", "batch"}),
    default_service_class="interactive",
    max_prompt_chars=1_000,
)
USER = Message(role="user", content="hi")


@dataclass(frozen=True, slots=True)
class Facts:
    max_model_len: int = 100
    vocab_size: int = 50
    generation_defaults: dict[str, float] = field(default_factory=dict)


def asking(**sampling: object) -> GenerateRequest:
    return GenerateRequest(prompt="hi", sampling=Sampling(**sampling))  # type: ignore[arg-type]


def deep(levels: int) -> str:
    return '{"anyOf":[' * levels + "true" + "]}" * levels


@pytest.mark.parametrize(
    ("message", "at"),
    [
        (Malformed(), "request"),
        (GenerateRequest(), "prompt"),
        (GenerateRequest(prompt=""), "prompt"),
        (GenerateRequest(prompt="x" * 1_001), "prompt"),
        (GenerateRequest(token_ids=TokenIds()), "token_ids"),
        (GenerateRequest(chat=Chat()), "messages"),
        (GenerateRequest(chat=Chat(messages=[USER, Message(role="robot")])), "messages[1].role"),
        (GenerateRequest(chat=Chat(messages=[Message(content="x")])), "messages[0].role"),
        (GenerateRequest(chat=Chat(messages=[USER] * 5_000)), "messages"),
        (GenerateRequest(chat=Chat(messages=[Message(role="user", content="x" * 600)] * 2)), "messages"),
        (GenerateRequest(chat=Chat(messages=[USER], tools="[]")), "tools"),
        (GenerateRequest(chat=Chat(messages=[USER], tool_choice="auto")), "tool_choice"),
        (GenerateRequest(prompt="hi", request_id="x" * 129), "request_id"),
        (GenerateRequest(prompt="hi", request_id="a\nb"), "request_id"),
        (GenerateRequest(prompt="hi", request_id="é"), "request_id"),
        (GenerateRequest(prompt="hi", service_class="gold"), "service_class"),
        (GenerateRequest(prompt="hi", program=Program()), "program.id"),
        (GenerateRequest(prompt="hi", program=Program(id="a", tool="x" * 200)), "program.tool"),
        (asking(max_tokens=0), "max_tokens"),
        (asking(max_tokens=3, min_tokens=4), "min_tokens"),
        (asking(temperature=-0.1), "temperature"),
        (asking(temperature=2.1), "temperature"),
        (asking(temperature=float("nan")), "temperature"),
        (asking(temperature=float("inf")), "temperature"),
        (asking(temperature=float("-inf")), "temperature"),
        (asking(top_p=0.0), "top_p"),
        (asking(top_p=1.1), "top_p"),
        (asking(top_p=float("nan")), "top_p"),
        (asking(min_p=-0.1), "min_p"),
        (asking(min_p=1.1), "min_p"),
        (asking(presence_penalty=2.1), "presence_penalty"),
        (asking(frequency_penalty=-2.1), "frequency_penalty"),
        (asking(repetition_penalty=0.0), "repetition_penalty"),
        (asking(repetition_penalty=float("inf")), "repetition_penalty"),
        (asking(repetition_penalty=1e-320), "repetition_penalty"),
        (asking(n=9), "n"),
        (asking(logprobs=21), "logprobs"),
        (asking(stop=["a", ""]), "stop[1]"),
        (asking(stop=["a"] * 17), "stop"),
        (asking(stop=["a" * 1_025]), "stop[0]"),
        (asking(stop_token_ids=range(129)), "stop_token_ids"),
        (asking(json_schema=""), "json_schema"),
        (asking(json_schema="{"), "json_schema"),
        (asking(json_schema="[]"), "json_schema"),
        (asking(json_schema="true"), "json_schema"),
        (asking(json_schema="NaN"), "json_schema"),
        (asking(json_schema='{"maximum": Infinity}'), "json_schema"),
        (asking(json_schema='{"maximum": ' + "9" * 5_000 + "}"), "json_schema"),
        (asking(json_schema='{"type": "strnig"}'), "json_schema"),
        (asking(json_schema='{"required": "a"}'), "json_schema"),
        (asking(json_schema='{"$schema": []}'), "json_schema"),
        (asking(json_schema='{"properties": {"a": {"minLength": -1}}}'), "json_schema"),
        (asking(json_schema=deep(33)), "json_schema"),
        (asking(json_schema=deep(5_000)), "json_schema"),
        (asking(json_schema=json.dumps({"description": "x" * 70_000})), "json_schema"),
        (asking(regex=""), "regex"),
        (asking(regex="("), "regex"),
        (asking(regex="a{2,1}"), "regex"),
        (asking(regex="(" * 5_000), "regex"),
        (asking(regex="a{99999999999999999999}"), "regex"),
        (asking(regex="a" * 9_000), "regex"),
        (asking(choice=Choices()), "choice"),
        (asking(choice=Choices(values=["a", ""])), "choice"),
        (asking(choice=Choices(values=["a"] * 2_000)), "choice"),
        (asking(choice=Choices(values=["a" * 70_000])), "choice"),
        (asking(grammar=" "), "grammar"),
        (asking(grammar="x" * 70_000), "grammar"),
    ],
)
def test_a_bad_request_is_refused_by_its_fields_name(message: GenerateRequest | Malformed, at: str) -> None:
    with pytest.raises(CallerFault) as caught:
        parse(message, LIMITS)
    assert caught.value.field == at
    assert str(caught.value).startswith(f"{at}: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.0, "top_p": 1.0, "top_k": 2**32 - 1, "min_p": 1.0},
        {"temperature": 2.0, "presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 1.1},
        {"n": 8, "logprobs": 20, "seed": -(2**63), "stop": ["\n"], "stop_token_ids": [0]},
        {"max_tokens": 4, "min_tokens": 4, "ignore_eos": True},
        {"json_schema": '{"type": "object", "properties": {"é": {"$ref": "#/$defs/x"}}, "$defs": {"x": {}}}'},
        {"json_schema": '{"pattern": "\\\\p{L}+", "$schema": "http://json-schema.org/draft-07/schema#"}'},
        {"json_schema": '{"$schema": "http://example.com/unknown"}'},
        {"regex": r"\p{L}+"},
        {"regex": "[[a]"},
        {"choice": Choices(values=["yes", "no"])},
        {"grammar": 'root ::= "a"'},
        {"json_object": True},
    ],
)
def test_a_good_request_passes_unchanged(sampling: dict[str, object]) -> None:
    message = asking(**sampling)
    assert parse(message, LIMITS).sampling == message.sampling


def test_what_is_left_out_gets_its_default() -> None:
    request = parse(GenerateRequest(prompt="hi"), LIMITS)
    assert (request.model, request.n, request.service_class, request.explain) == ("tiny", 1, "interactive", False)
    assert len(request.request_id) == 32
    assert request.program is None
    assert request.add_special_tokens


def test_a_chat_is_messages_without_special_tokens_of_a_completion() -> None:
    request = parse(GenerateRequest(chat=Chat(messages=[USER])), LIMITS)
    assert request.messages == ({"role": "user", "content": "hi"},)
    assert not request.add_special_tokens
    assert request.input_field == "messages"


def test_a_model_is_known_or_the_only_one() -> None:
    with pytest.raises(UnknownModel, match="gpt"):
        parse(GenerateRequest(prompt="hi", model="gpt"), LIMITS)
    two = replace(LIMITS, models=frozenset({"a", "b"}))
    with pytest.raises(CallerFault, match="model: must be one of: a, b"):
        parse(GenerateRequest(prompt="hi"), two)
    none_yet = replace(LIMITS, models=frozenset())
    assert parse(GenerateRequest(prompt="hi", model="gpt"), none_yet).model == "gpt"


async def test_a_large_schema_is_checked_off_the_loop_with_the_same_verdict() -> None:
    properties = {f"k{i}": {"type": "string"} for i in range(50)}
    good = asking(json_schema=json.dumps({"properties": properties}))
    assert (await accept(good, LIMITS)).sampling == good.sampling
    with pytest.raises(CallerFault, match="json_schema"):
        await accept(asking(json_schema=json.dumps({"properties": properties, "type": 5})), LIMITS)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    message = deserialize(data)
    try:
        parse(message, LIMITS)
    except Fault as fault:
        assert fault.field


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "$ref", "$id", "$schema", "properties", "items", "enum", "anyOf", "pattern", "$dynamicRef"]
                )
                | st.text(max_size=3),
                inner,
                max_size=3,
            )
        ),
        max_leaves=10,
    )
)
def test_any_json_is_a_schema_or_says_why_not(value: object) -> None:
    assert len(schema_problem(json.dumps(value))) < 400


@pytest.mark.parametrize(
    ("message", "prompt_len", "at", "words"),
    [
        (GenerateRequest(prompt="x"), 100, "prompt", "100 tokens"),
        (GenerateRequest(chat=Chat(messages=[USER])), 101, "messages", "101 tokens"),
        (GenerateRequest(token_ids=TokenIds(ids=[1] * 100)), 100, "token_ids", "100 tokens"),
        (GenerateRequest(token_ids=TokenIds(ids=[1, 50])), 2, "token_ids[1]", "50"),
        (GenerateRequest(token_ids=TokenIds(ids=[2**32 - 1])), 1, "token_ids[0]", "50"),
        (GenerateRequest(prompt="x"), 0, "prompt", "empty"),
        (asking(stop_token_ids=[49, 50]), 1, "stop_token_ids[1]", "50"),
        (asking(max_tokens=91), 10, "max_tokens", "at most 90, not 91"),
        (asking(min_tokens=91), 10, "min_tokens", "at most max_tokens, 90"),
    ],
)
def test_what_the_model_cannot_take_is_told_with_figures(message: GenerateRequest, prompt_len: int, at: str, words: str) -> None:
    with pytest.raises(CallerFault) as caught:
        check_against_model(parse(message, LIMITS), prompt_len, Facts())
    assert caught.value.field == at
    assert words in str(caught.value)


def test_sampling_is_resolved_from_the_client_then_the_model_then_vllm() -> None:
    facts = Facts(generation_defaults={"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 40})
    request = parse(asking(temperature=0.1, n=3, seed=5), LIMITS)
    resolved = check_against_model(request, 10, facts)
    assert (resolved.temperature, resolved.top_p, resolved.top_k) == (0.1, 0.9, 20)
    assert (resolved.min_p, resolved.repetition_penalty, resolved.presence_penalty) == (0.0, 1.0, 0.0)
    assert (resolved.max_tokens, resolved.n, resolved.seed) == (40, 1, 5)
    assert request.sampling.n == 3


@pytest.mark.parametrize(
    ("default", "model", "prompt_len", "expected"),
    [(None, {}, 10, 90), (16, {}, 10, 16), (16, {}, 95, 5), (16, {"max_tokens": 40}, 10, 16), (None, {"max_tokens": 40}, 10, 40)],
)
def test_an_answer_without_max_tokens_ends_by_default_or_with_the_context(
    default: int | None, model: dict[str, float], prompt_len: int, expected: int
) -> None:
    request = parse(GenerateRequest(prompt="x"), LIMITS, default)
    assert check_against_model(request, prompt_len, Facts(generation_defaults=model)).max_tokens == expected


def test_vllms_words_for_nothing_are_nothing() -> None:
    resolved = check_against_model(parse(asking(seed=-1, json_object=False), LIMITS), 1, Facts())
    assert not resolved.HasField("seed")
    assert resolved.WhichOneof("structured") is None


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 7))
def test_choices_of_one_seed_have_seeds_of_their_own(seed: int, index: int) -> None:
    first = Sampling(seed=seed)
    assert sampling_of_choice(first, 0).seed == seed
    other = sampling_of_choice(first, index)
    assert other.seed != seed
    assert first.seed == seed
    assert not sampling_of_choice(Sampling(), index).HasField("seed")
