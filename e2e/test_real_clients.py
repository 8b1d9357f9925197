"""The unmodified openai client and bad input, against real engines behind a real router."""

import json
import time
import urllib.error
import urllib.request

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from service import Service

from penstock_client import Client, InvalidArgument, NotFound, PenstockError

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.slow]
CHAT = [{"role": "user", "content": "Tell me a story about a mill and a river, please."}]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(service: Service) -> OpenAI:
    return OpenAI(base_url=f"http://{service.http}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_chat_answers_whole_and_streamed_alike(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=24, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=CHAT, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage and chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 0
    extra = whole.usage.prompt_tokens_details.model_extra or {}
    assert whole.usage.prompt_tokens == (
        whole.usage.prompt_tokens_details.cached_tokens + extra["transferred_tokens"] + extra["computed_tokens"]
    )


def test_completions_with_two_choices_stop_and_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=16, n=2, seed=5, temperature=0.9, logprobs=2, stop=["zzz"]
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.logprobs and len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    stopped = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=32, temperature=0, stop=["e"])
    assert stopped.choices[0].finish_reason == "stop" and "e" not in stopped.choices[0].text


def test_chat_logprobs_name_every_token(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert "".join(bytes(t.bytes).decode(errors="replace") for t in content).startswith(answer.choices[0].message.content[:4])
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in content)


def test_a_schema_is_kept(client: OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"], "additionalProperties": False,
    }  # fmt: skip
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=80, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "stop"
    Person.model_validate_json(answer.choices[0].message.content or "")


def test_models_are_listed_and_errors_have_openais_shape(client: OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=CHAT)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=CHAT, temperature=-1)
    assert bad.value.param == "temperature"


BAD_GRPC = {
    "empty prompt": ("prompt", {"prompt": ""}),
    "prompt longer than the context": ("token_ids", {"token_ids": [5] * 9000}),
    "max_tokens 0": ("max_tokens", {"prompt": "x", "max_tokens": 0}),
    "max_tokens beyond the context": ("max_tokens", {"prompt": "x", "max_tokens": 10**6}),
    "temperature negative": ("temperature", {"prompt": "x", "temperature": -0.5}),
    "temperature NaN": ("temperature", {"prompt": "x", "temperature": float("nan")}),
    "invalid json_schema": ("json_schema", {"prompt": "x", "json_schema": '{"type": 5}'}),
    "token ids outside the vocabulary": ("token_ids", {"token_ids": [1, 2, 10**6]}),
}


@pytest.mark.parametrize("case", BAD_GRPC)
def test_bad_grpc_input_names_its_field_and_harms_nothing(service: Service, case: str) -> None:
    field, arguments = BAD_GRPC[case]
    prompt = arguments.get("prompt")
    rest = {k: v for k, v in arguments.items() if k != "prompt"}
    with Client(service.grpc) as client:
        with pytest.raises(InvalidArgument) as caught:
            client.generate(prompt, **rest) if prompt is not None else client.generate(**rest)
        assert field in (caught.value.field or str(caught.value))
        assert "Traceback" not in str(caught.value)
        assert client.generate("next", max_tokens=2, ignore_eos=True).finish_reason == "length"


def test_an_unknown_model_is_not_found(service: Service) -> None:
    with Client(service.grpc) as client, pytest.raises(NotFound):
        client.generate("x", model="other")


def post(service: Service, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"http://{service.http}/v1/completions", data=body, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("prompt", b'{"model": "tiny", "prompt": ""}'),
        ("max_tokens", b'{"model": "tiny", "prompt": "x", "max_tokens": 0}'),
        ("max_tokens", b'{"model": "tiny", "prompt": "x", "max_tokens": -4}'),
        ("temperature", b'{"model": "tiny", "prompt": "x", "temperature": NaN}'),
        (None, b'{"model": "tiny", "prompt": '),
        ("prompt", json.dumps({"model": "tiny", "prompt": [1, 2, 10**7]}).encode()),
        ("prompt", json.dumps({"model": "tiny", "prompt": "word " * 9000}).encode()),
    ],
)
def test_bad_http_input_is_a_400_that_names_its_parameter(service: Service, param: str | None, body: bytes) -> None:
    status, answer = post(service, body)
    error = json.loads(answer)["error"]
    assert status == 400
    assert error["message"] and b"Traceback" not in answer
    if param is not None and b"NaN" not in body:
        assert param in (error["param"] or "")
    assert post(service, b'{"model": "tiny", "prompt": "next", "max_tokens": 2}')[0] == 200


def running(client: Client) -> int:
    return sum(w.running + w.waiting + w.legs for w in client.status().workers)


def test_a_stream_left_early_frees_its_engine(service: Service) -> None:
    with Client(service.grpc) as client:
        for number in range(8):
            with client.stream(f"Left early {number}. " * 20, max_tokens=1500, ignore_eos=True) as stream:
                for _ in range(1 + number % 3):
                    next(stream)
        began = time.monotonic()
        while running(client) and time.monotonic() - began < 10:
            time.sleep(0.02)
        print(f"\nengines idle {time.monotonic() - began:.2f} s after 8 streams were left")
        assert running(client) == 0


def test_a_deadline_ends_a_stream(service: Service) -> None:
    with Client(service.grpc) as client:
        with pytest.raises(PenstockError):
            client.generate("Never ending. " * 10, max_tokens=3000, ignore_eos=True, timeout_s=1.5)
        assert client.generate("next", max_tokens=2, ignore_eos=True).finish_reason == "length"
