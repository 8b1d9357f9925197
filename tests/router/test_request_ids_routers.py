"""One id, several routers, real workers with the fake engine between them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from fleet_fake import until

from penstock_client import AlreadyExists, AsyncClient, Broken, Unavailable
from penstock_proto.v1 import inference_pb2_grpc
from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.config import RouterConfig
from penstock_router.main import Router
from penstock_workers.config import FakeSettings, WorkerConfig
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.pool.worker import Worker
from penstock_workers.tiny import MODEL_DIR

ANY = "127.0.0.1:0"
pytestmark = pytest.mark.slow


class Fleet:
    """Two routers and a worker that both know."""

    def __init__(self, routers: list[Router], worker: Worker) -> None:
        self.routers = routers
        self.worker = worker

    def client(self, number: int) -> AsyncClient:
        return AsyncClient(f"127.0.0.1:{self.routers[number].ports['grpc']}")

    def knows(self, number: int) -> int:
        return len(self.routers[number].dispatcher.ids)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    routers = []
    for number in range(2):
        config = RouterConfig(
            router_id=f"r{number}", model="tiny", grpc_listen=ANY, http_listen=ANY, reports_listen=ANY, cache_dir=tmp_path,
            hold_s=0.5,
        )  # fmt: skip
        routers.append(Router(config))
        await routers[-1].start()
    settings = FakeSettings(base_s=0.01, block_size=16, max_model_len=1024)
    reports = tuple(f"127.0.0.1:{router.ports['reports']}" for router in routers)
    mine = WorkerConfig(worker_id="w", pool="workers", engine="fake", fake=settings, routers=reports, metrics_port=None)
    worker = Worker(mine, FakeEngine(settings, str(MODEL_DIR), model="tiny", name="w"))
    await worker.start()
    await until(lambda: all(r.fleet.members and all(m.has_text for m in r.fleet.members.values()) for r in routers), 20)
    try:
        yield Fleet(routers, worker)
    finally:
        await worker.stop()
        for router in routers:
            await router.stop(0.0)


async def test_a_client_that_reconnects_elsewhere_gets_a_clear_answer(fleet: Fleet) -> None:
    async with fleet.client(0) as first, fleet.client(1) as second:
        stream = first.stream("once upon a time", request_id="mine", max_tokens=200, ignore_eos=True)
        await anext(stream)
        began = asyncio.get_running_loop().time()
        await until(lambda: fleet.knows(1) == 1)
        assert asyncio.get_running_loop().time() - began < 1.0
        with pytest.raises(AlreadyExists, match="through another router") as refused:
            await second.generate("once upon a time", request_id="mine", max_tokens=2)
        assert refused.value.reason == "REQUEST_EXISTS"
        with pytest.raises(AlreadyExists, match="is open at this router"):
            await first.generate("once upon a time", request_id="mine", max_tokens=2)
        stream.close()
        assert (
            await second.generate("once upon a time", request_id="other", max_tokens=2, ignore_eos=True)
        ).finish_reason == "length"
        with pytest.raises(AlreadyExists):
            await second.generate("once upon a time", request_id="mine", max_tokens=2)


async def test_a_router_that_comes_later_is_told_of_what_began_before(fleet: Fleet, tmp_path: Path) -> None:
    async with fleet.client(0) as client:
        await client.generate("once upon a time", request_id="early", max_tokens=2, ignore_eos=True)
        await client.generate("no name", max_tokens=2, ignore_eos=True)
    await until(lambda: fleet.knows(1) == 1)
    port = fleet.routers[1].ports["reports"]
    await fleet.routers[1].stop(0.0)
    config = fleet.routers[1].config.model_copy(update={"reports_listen": f"127.0.0.1:{port}"})
    fleet.routers[1] = Router(config)
    await fleet.routers[1].start()
    await until(lambda: fleet.knows(1) == 1, 10)
    async with fleet.client(1) as client:
        with pytest.raises(AlreadyExists):
            await client.generate("once upon a time", request_id="early", max_tokens=2)


async def test_a_request_that_failed_before_any_token_may_be_sent_again_anywhere(fleet: Fleet) -> None:
    fleet.worker.table.refuses = "not now"
    async with fleet.client(0) as first, fleet.client(1) as second:
        with pytest.raises(Unavailable):
            await first.generate("once", request_id="again", max_tokens=2)
        fleet.worker.table.refuses = ""
        assert (await second.generate("once", request_id="again", max_tokens=2, ignore_eos=True)).finish_reason == "length"


async def test_the_sdk_s_own_retry_is_taken_though_its_first_attempt_had_begun(fleet: Fleet) -> None:
    """The token of the first attempt was made and never reached the client: its router went before."""
    async with fleet.client(0) as client:
        await client.generate("once", request_id="lost", max_tokens=2, ignore_eos=True)
    await until(lambda: fleet.knows(1) == 1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{fleet.routers[1].ports['grpc']}") as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        request = GenerateRequest(prompt="once", request_id="lost", sampling=Sampling(max_tokens=2, ignore_eos=True))
        call = stub.Generate(request, metadata=(("x-penstock-previous-attempts", "1"),))
        assert [message async for message in call][-1].finish_reason


async def test_stopping_says_to_every_stream_whether_it_had_begun(fleet: Fleet) -> None:
    router = fleet.routers[0]
    async with fleet.client(0) as client, aiohttp.ClientSession() as session:
        stream = client.stream("once upon a time", max_tokens=900, ignore_eos=True)
        await anext(stream)
        body = {"prompt": "once", "max_tokens": 900, "stream": True, "ignore_eos": True}
        url = f"http://127.0.0.1:{router.ports['http']}/v1/completions"
        async with session.post(url, data=json.dumps(body)) as response:
            await response.content.readuntil(b"\n\n")
            stopping = asyncio.ensure_future(router.stop(0.1))
            rest = await response.content.read()
            with pytest.raises(Broken, match="shutting down"):
                while True:
                    await anext(stream)
            await stopping
    event = rest.rpartition(b"event: error\ndata: ")[2]
    assert json.loads(event)["error"]["code"] == "answer_broken"
    assert "shutting down" in json.loads(event)["error"]["message"]
    assert router.dispatcher.ids.open_names == 0
