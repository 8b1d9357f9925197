"""The unmodified `openai` client against the HTTP front."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from scripted import Script, ScriptedDispatcher, answering

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_router.config import RouterConfig, ServiceClass
from penstock_router.faults import Broken, Shed, Unavailable
from penstock_router.metrics import RouterMetrics
from penstock_router.serve.http_front import make_app
from penstock_router.serve.http_server import listen

CONFIG = RouterConfig(model="tiny", classes=(ServiceClass(name="default"), ServiceClass(name="batch")))
HI: Any = [{"role": "user", "content": "hi there"}]


class Service:
    """A front on a free port, and the client that talks to it."""

    def __init__(self) -> None:
        self.dispatcher = ScriptedDispatcher(answering("once upon a time"))
        self.url = ""
        self.client: AsyncOpenAI

    def says(self, script: Script) -> None:
        self.dispatcher.script = script


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = make_app(service.dispatcher, RouterMetrics(), CONFIG)
    runner, port = await listen(app, "127.0.0.1", 0)
    service.url = f"http://127.0.0.1:{port}"
    # trust_env=False: building a TLS context takes half a second, and no proxy may stand between.
    http = httpx.AsyncClient(trust_env=False, verify=False)
    service.client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, http_client=http)
    try:
        yield service
    finally:
        await service.client.close()
        await runner.cleanup()


async def test_a_chat_is_answered(service: Service) -> None:
    answer = await service.client.chat.completions.create(model="tiny", messages=HI, temperature=0)
    assert answer.choices[0].message.content == "once upon a time"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.created == 1_700_000_000
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (9, 4, 13)
    details = answer.usage.prompt_tokens_details
    assert details is not None
    assert details.model_dump(exclude_none=True) == {
        "cached_tokens": 4,
        "transferred_tokens": 0,
        "computed_tokens": 5,
    }


async def test_a_completion_is_answered_and_ends_after_16_tokens_unless_told(service: Service) -> None:
    answer = await service.client.completions.create(model="tiny", prompt="tell me", max_tokens=2)
    assert answer.choices[0].text == "once upon"
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    await service.client.completions.create(model="tiny", prompt="tell me")
    assert service.dispatcher.requests[-1].default_max_tokens == 16


async def test_a_completion_takes_token_ids(service: Service) -> None:
    await service.client.completions.create(model="tiny", prompt=[1, 2, 3])
    assert list(service.dispatcher.requests[-1].token_ids or ()) == [1, 2, 3]


async def test_a_completion_of_several_prompts_has_every_choice_in_its_place(service: Service) -> None:
    answer = await service.client.completions.create(model="tiny", prompt=["one", "three"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text == "once upon a time" for choice in answer.choices)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 16)


async def test_a_streamed_completion_of_several_prompts_ends_every_choice(service: Service) -> None:
    texts = {0: "", 1: ""}
    ended = set()
    stream = await service.client.completions.create(model="tiny", prompt=["one", "three"], stream=True)
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ended.add(choice.index)
    assert texts == {0: "once upon a time", 1: "once upon a time"}
    assert ended == {0, 1}


async def test_a_chat_streams_with_usage_last(service: Service) -> None:
    stream = await service.client.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "once upon a time"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_completion_streams(service: Service) -> None:
    stream = await service.client.completions.create(model="tiny", prompt="tell me", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "once upon a time"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_clients_own_stream_helper_accumulates_the_answer(service: Service) -> None:
    async with service.client.chat.completions.stream(model="tiny", messages=HI) as stream:
        async for _ in stream:
            pass
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "once upon a time"


async def test_two_choices_come_apart(service: Service) -> None:
    answer = await service.client.chat.completions.create(model="tiny", messages=HI, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    stream = await service.client.chat.completions.create(model="tiny", messages=HI, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "once upon a time", 1: "once upon a time"}


async def test_a_stop_string_ends_the_answer_and_is_told(service: Service) -> None:
    answer = await service.client.chat.completions.create(model="tiny", messages=HI, stop=[" a", "zzz"])
    assert answer.choices[0].message.content == "once upon"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_dump()["stop_reason"] == " a"


async def test_chat_log_probabilities_have_bytes_and_alternatives(service: Service) -> None:
    answer = await service.client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [entry.token for entry in told.content] == ["once", " upon", " a", " time"]
    assert told.content[0].bytes == list(b"once")
    assert told.content[0].logprob == -0.25
    assert [other.logprob for other in told.content[0].top_logprobs] == [-0.25, -9999.0]
    assert told.content[0].top_logprobs[1].bytes == [255]


async def test_streamed_log_probabilities_equal_the_whole_answers(service: Service) -> None:
    whole = await service.client.completions.create(model="tiny", prompt="tell me", logprobs=2)
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.text_offset == [0, 4, 9, 11]
    assert whole.choices[0].logprobs.token_logprobs == [-0.25] * 4
    assert whole.choices[0].logprobs.top_logprobs is not None
    assert whole.choices[0].logprobs.top_logprobs[0] == {"once": -0.25, "\ufffd": -9999.0}
    stream = await service.client.completions.create(model="tiny", prompt="tell me", logprobs=2, stream=True)
    offsets: list[int] = []
    async for chunk in stream:
        if chunk.choices[0].logprobs:
            offsets += chunk.choices[0].logprobs.text_offset or []
    assert offsets == whole.choices[0].logprobs.text_offset


async def test_an_answer_is_parsed_into_a_model(service: Service) -> None:
    class Person(BaseModel):
        name: str
        age: int

    service.says(answering('{"name":"Ada","age":36}'))
    answer = await service.client.chat.completions.parse(model="tiny", messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    asked = service.dispatcher.requests[-1].sampling
    assert json.loads(asked.json_schema)["required"] == ["name", "age"]


async def test_models_are_listed_and_shown(service: Service) -> None:
    listed = [model async for model in service.client.models.list()]
    assert [model.id for model in listed] == ["tiny"]
    assert (await service.client.models.retrieve("tiny")).owned_by == "penstock"
    with pytest.raises(openai.NotFoundError) as caught:
        await service.client.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"


async def test_vllm_extras_reach_the_workers(service: Service) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True}
    await service.client.chat.completions.create(
        model="tiny", messages=HI, extra_body={**extra, "stop_token_ids": [7], "guided_choice": ["a", "b"]}
    )
    asked = service.dispatcher.requests[-1].sampling
    assert (asked.top_k, asked.min_p, asked.repetition_penalty) == (5, 0.1, 1.2)
    assert (asked.min_tokens, asked.ignore_eos, list(asked.stop_token_ids)) == (2, True, [7])
    assert list(asked.choice.values) == ["a", "b"]


async def test_a_bad_request_names_its_field(service: Service) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await service.client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=0)
    assert caught.value.param == "max_completion_tokens"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "invalid_value"
    assert caught.value.response.headers["x-request-id"] == caught.value.request_id


async def test_a_prompt_beyond_the_context_is_told_so_with_figures(service: Service) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await service.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 300}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "301" in caught.value.message
    assert "256" in caught.value.message


async def test_an_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await service.client.chat.completions.create(model="gpt-5", messages=HI)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_shedding_says_when_to_come_back(service: Service) -> None:
    service.says(lambda request: [Shed("the queue is full", 1.2)])
    with pytest.raises(openai.RateLimitError) as caught:
        await service.client.chat.completions.create(model="tiny", messages=HI)
    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.slow
async def test_no_worker_is_503_and_the_client_tries_again(service: Service) -> None:
    told = [Unavailable("no worker")]
    service.says(lambda request: [told.pop()] if told else answering("at last")(request))
    answer = await service.client.with_options(max_retries=1).chat.completions.create(model="tiny", messages=HI)
    assert answer.choices[0].message.content == "at last"


async def test_a_stream_that_breaks_raises_in_the_client(service: Service) -> None:
    begun = answering("once upon", FinishReason.STOP)
    service.says(lambda request: [*begun(request)[:1], Broken("worker w0 died")])
    stream = await service.client.chat.completions.create(model="tiny", messages=HI, stream=True)
    seen = ""
    with pytest.raises(openai.APIError, match="worker w0 died"):
        async for chunk in stream:
            seen += chunk.choices[0].delta.content or ""
    assert seen == "once"


async def test_a_fault_before_the_first_token_of_a_stream_has_its_status(service: Service) -> None:
    service.says(lambda request: [Unavailable("no worker")])
    with pytest.raises(openai.InternalServerError) as caught:
        await service.client.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert caught.value.status_code == 503


async def test_the_request_id_is_the_clients_when_it_names_one(service: Service) -> None:
    raw = await service.client.chat.completions.with_raw_response.create(
        model="tiny", messages=HI, extra_headers={"x-request-id": "mine-1", "x-penstock-service-class": "batch"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().id == "chatcmpl-mine-1"
    assert service.dispatcher.requests[-1].service_class == "batch"


async def test_the_placement_is_explained_when_asked(service: Service) -> None:
    headers = {"x-penstock-explain": "1", "x-penstock-program": "agent-7"}
    answer = await service.client.chat.completions.create(model="tiny", messages=HI, n=2, extra_headers=headers)
    placements = answer.model_dump()["penstock"]["placements"]
    assert [entry["index"] for entry in placements] == [0, 1]
    assert placements[0]["kind"] == "colocated"
    assert placements[0]["legs"][0]["worker"] == "w0"
    program = service.dispatcher.requests[-1].program
    assert program is not None
    assert program.id == "agent-7"
    stream = await service.client.chat.completions.create(model="tiny", messages=HI, stream=True, extra_headers=headers)
    last = [chunk async for chunk in stream][-1]
    assert last.model_dump()["penstock"]["placements"][0]["kind"] == "colocated"


async def test_the_synchronous_client_is_served_alike(service: Service) -> None:
    def ask() -> str:
        http = httpx.Client(trust_env=False, verify=False)
        with OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, http_client=http) as client:
            stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == "once upon a time"
