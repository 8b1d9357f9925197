"""Loading a model's files while links break: whoever waits goes on, whoever is cancelled ends, nobody raises anything else."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fleet_fake import CharText

from penstock_proto.v1.fleet_pb2 import Capacity, HashSettings, Hello
from penstock_router.feed import models as feed_models
from penstock_router.feed.fleet import Fleet, Member
from penstock_router.feed.models import Models


class Files:
    """Gives a digest's files when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.asked = 0

    async def fetch(self, digest: str, connection: Any) -> Mapping[str, bytes]:
        self.asked += 1
        await self.let.wait()
        return {}


def joined(fleet: Fleet, name: str) -> Member:
    capacity = Capacity(block_size=4, max_model_len=100, vocab_size=100)
    hello = Hello(worker_id=name, incarnation=1, address="127.0.0.1:1", model="tiny", model_digest="d", capacity=capacity)
    hello.hash.CopyFrom(HashSettings(algorithm="sha256_cbor", root=b"r" * 32))
    return fleet.hello(hello, 0.0)[0]


def connection() -> Any:
    return cast(Any, SimpleNamespace(dead=False))


async def test_a_link_that_breaks_while_another_loads_ends_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_models, "RETRY_S", 0.01)
    fleet, files = Fleet(), Files()
    models = Models(fleet, cast(Any, files), lambda *_: CharText())
    first, second = joined(fleet, "a"), joined(fleet, "b")
    filler = asyncio.create_task(models.prepare(first, connection()))
    waiter = asyncio.create_task(models.prepare(second, connection()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert files.asked == 1
    files.let.set()
    await filler
    assert first.has_text and not second.has_text


async def test_the_link_that_loads_may_break_and_who_waits_loads_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_models, "RETRY_S", 0.01)
    fleet, files = Fleet(), Files()
    models = Models(fleet, cast(Any, files), lambda *_: CharText())
    first, second = joined(fleet, "a"), joined(fleet, "b")
    filler = asyncio.create_task(models.prepare(first, connection()))
    waiter = asyncio.create_task(models.prepare(second, connection()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    filler.cancel()
    # Its connection lives on: the cancellation alone must end it.
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(filler, 5)
    files.let.set()
    await asyncio.wait_for(waiter, 5)
    assert second.has_text and not first.has_text and files.asked == 2


async def test_a_tokenizer_goes_with_the_last_worker_of_its_model_unless_that_is_what_is_served() -> None:
    fleet, files = Fleet(), Files()
    files.let.set()
    models = Models(fleet, cast(Any, files), lambda *_: CharText(cached_bytes=10))
    old = joined(fleet, "a")
    await models.prepare(old, connection())
    models.refresh()
    fleet.forget(old)
    models.refresh()
    assert models.cached_bytes() == 10, "requests for a model without workers are still tokenized"
    capacity = Capacity(block_size=4, max_model_len=100, vocab_size=100)
    hello = Hello(worker_id="b", incarnation=1, address="127.0.0.1:2", model="tiny", model_digest="e", capacity=capacity)
    new = fleet.hello(hello, 0.0)[0]
    await models.prepare(new, connection())
    assert models.cached_bytes() == 20
    models.refresh()
    assert models.cached_bytes() == 10 and models.served()[0].digest == "e"
