"""One of two routers is killed: the other serves within a second, no worker restarts, the SDK says what became of a stream."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from chaos.fleet import Fleet

from penstock_client import Aborted, AsyncClient, Broken, Delta, Unavailable

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SERVES_WITHIN_S = 1.0


async def open_streams(client: AsyncClient, count: int) -> list[asyncio.Task[None]]:
    """So many streams of a router, each after its first token, read to their ends."""
    heard: list[list[Delta]] = [[] for _ in range(count)]

    async def follow(own: list[Delta]) -> None:
        async with client.stream("Once upon a time", max_tokens=2000) as stream:
            async for delta in stream:
                own.append(delta)

    tasks = [asyncio.create_task(follow(own)) for own in heard]
    async with asyncio.timeout(30):
        while not all(heard):  # noqa: ASYNC110 - the deltas come by themselves
            await asyncio.sleep(0.01)
    return tasks


async def test_the_other_router_serves_and_the_sdk_says_whether_the_answer_had_begun(tmp_path: Path) -> None:
    fake = {"prefill_s": 0.002, "max_model_len": 8192}
    async with Fleet(tmp_path, ("workers",) * 4, fake=fake, restart=False) as fleet:
        dying, living = fleet.routers
        async with AsyncClient(dying.grpc) as first, AsyncClient(living.grpc) as second:
            incarnations = {w.worker_id: w.incarnation for w in (await second.status()).workers}
            begun = await open_streams(first, 6)
            # Long prompts: 2,000 tokens at 2 ms each are not prefilled when the router dies.
            waiting = [asyncio.create_task(first.generate(token_ids=[7] * 2000, max_tokens=4)) for _ in range(3)]
            await asyncio.sleep(0.3)
            dying.signal(signal.SIGKILL)
            killed = time.monotonic()
            async with second.stream("And then", max_tokens=3) as stream:
                await anext(stream)
                served_s = time.monotonic() - killed
            ends = await asyncio.gather(*begun, return_exceptions=True)
            refused = await asyncio.gather(*waiting, return_exceptions=True)
            told_s = time.monotonic() - killed
            after = {w.worker_id: w.incarnation for w in (await second.status()).workers}
            await asyncio.sleep(1.0)
            running = {w.worker_id: w.running + w.waiting + w.legs for w in (await second.status()).workers}
        print(f"\nrouter killed: the other's first token after {1000 * served_s:.0f} ms, all clients told after {told_s:.2f} s")
        assert served_s <= SERVES_WITHIN_S
        assert [type(e) for e in ends] == [Broken] * 6, ends
        assert {e.code for e in ends if isinstance(e, Aborted)} == {"ABORTED"}
        assert [type(e) for e in refused] == [Unavailable] * 3, refused
        assert after == incarnations and fleet.crashes == []
        assert set(running.values()) == {0}, f"legs of the dead router still run: {running}"
