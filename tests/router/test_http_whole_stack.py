"""The openai client against the real router with fake workers, prefill and decode apart."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from penstock_router.config import RouterConfig
from penstock_router.main import Router
from penstock_workers.config import FakeSettings, WorkerConfig
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.pool.worker import Worker
from penstock_workers.tiny import MODEL_DIR

HI: Any = [{"role": "user", "content": "tell me about the river and the mill, please"}]
ANY = "127.0.0.1:0"


class Stack:
    """A router and its fake workers in this process."""

    def __init__(self, client: AsyncOpenAI, router: Router, workers: list[Worker]) -> None:
        self.client = client
        self.router = router
        self.workers = workers

    @property
    def counters(self) -> list[Any]:
        return [worker.engine.counters for worker in self.workers]  # type: ignore[attr-defined]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    config = RouterConfig(
        model="tiny", grpc_listen=ANY, http_listen=ANY, reports_listen=ANY, cache_dir=tmp_path, topology_mode="disaggregated"
    )
    router = Router(config)
    await router.start()
    reports = (f"127.0.0.1:{router.ports['reports']}",)
    workers = []
    for pool in ("prefill", "decode"):
        settings = FakeSettings(base_s=0.002, block_size=16, max_model_len=1024)
        mine = WorkerConfig(worker_id=pool, pool=pool, engine="fake", fake=settings, routers=reports, metrics_port=None)
        workers.append(Worker(mine, FakeEngine(settings, str(MODEL_DIR), model="tiny", name=pool)))
        await workers[-1].start()
    http = httpx.AsyncClient(trust_env=False, verify=False)
    url = f"http://127.0.0.1:{router.ports['http']}/v1"
    client = AsyncOpenAI(base_url=url, api_key="any", max_retries=0, http_client=http)
    try:
        yield Stack(client, router, workers)
    finally:
        await client.close()
        for worker in workers:
            await worker.stop()
        await router.stop(0.0)


@pytest.mark.slow
async def test_answers_come_through_prefill_and_decode_alike_however_asked(stack: Stack) -> None:
    client = stack.client
    ask: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 12, "temperature": 0}
    whole = await client.chat.completions.create(**ask, extra_headers={"x-penstock-explain": "1"})
    text = whole.choices[0].message.content
    assert text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens_details is not None
    sources = whole.usage.prompt_tokens_details.model_dump(exclude_none=True)
    assert sum(sources.values()) == whole.usage.prompt_tokens
    placed = whole.model_dump()["penstock"]["placements"][0]
    assert placed["kind"] == "disaggregated"
    assert [leg["worker"] for leg in placed["legs"]] == ["prefill", "decode"]

    streamed = ""
    async for chunk in await client.chat.completions.create(**ask, stream=True):
        streamed += chunk.choices[0].delta.content or ""
    assert streamed == text

    two = await client.chat.completions.create(**ask, n=2)
    assert [choice.message.content for choice in two.choices] == [text, text]

    stop = text[3:6]
    stopped = await client.chat.completions.create(**ask, stop=stop)
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"

    told = await client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    assert told.choices[0].logprobs is not None
    content = told.choices[0].logprobs.content
    assert content is not None
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode() == text

    several = await client.completions.create(model="tiny", prompt=["the river", "the mill"], max_tokens=3)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert [model.id async for model in client.models.list()] == ["tiny"]


@pytest.mark.slow
async def test_bad_requests_are_refused_and_leave_nothing_behind(stack: Stack) -> None:
    client = stack.client
    for bad, param in (
        ({"max_tokens": 5_000}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop": [""]}, "stop[0]"),
        ({"messages": [{"role": "user", "content": "river " * 2_000}]}, "messages"),
        ({"extra_body": {"stop_token_ids": [10**6]}}, "stop_token_ids[0]"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{"model": "tiny", "messages": HI, **bad})
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt=[1, 10**6])
    assert caught.value.param == "prompt[1]"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="other", messages=HI)
    assert sum(counters.started for counters in stack.counters) == 0
    assert (await client.completions.create(model="tiny", prompt="the river", max_tokens=1)).choices[0].finish_reason


@pytest.mark.slow
async def test_a_client_that_leaves_aborts_the_engines_leg(stack: Stack) -> None:
    stream = await stack.client.completions.create(model="tiny", prompt="the river", max_tokens=900, stream=True)
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(5):
        while not sum(counters.aborted for counters in stack.counters):  # noqa: ASYNC110 - engines tell nobody
            await asyncio.sleep(0.005)
    assert not stack.router.dispatcher.open_answers
