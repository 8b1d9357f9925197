"""64 concurrent streams against fake engines: no error, no growth, every cancelled stream seen as cancelled."""

import asyncio
import os
import random
import urllib.request

import grpc
import load
import pytest
import rig

from penstock_proto.v1.inference_pb2 import GenerateResponse

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
FULL = bool(os.environ.get("PENSTOCK_FULL"))
SECONDS = 180 if FULL else 40
STREAMS = 64
PROMPTS = 100  # few, so that the bounded caches (tokenizer, KV index) are full early and only a leak grows


def metric(address: str, name: str, label: str = "") -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith(name) and label in x and not x.startswith("#"))


async def soak(address: str, seconds: float, sample: list[tuple[float, float]], pid: int) -> tuple[int, int, list[str]]:
    """(completed, cancelled, errors); one in four streams is cancelled at a random message."""
    rng = random.Random(5)
    loop = asyncio.get_running_loop()
    began = loop.time()
    completed = cancelled = 0
    errors: list[str] = []
    channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
    calls = [c.unary_stream(load.GENERATE, request_serializer=None, response_deserializer=None) for c in channels]

    async def client(number: int) -> None:
        nonlocal completed, cancelled
        while loop.time() - began < seconds:
            leave_after = rng.randrange(1, 20) if rng.random() < 0.25 else None
            which = rng.randrange(PROMPTS)
            stream = calls[number % 8](load.encode(f"Soak {which}: tell me more. " * (1 + which % 30), 60))
            tokens = messages = 0
            try:
                while (data := await stream.read()) is not grpc.aio.EOF:
                    messages += 1
                    tokens += len(GenerateResponse.FromString(data).token_ids)
                    if leave_after is not None and messages >= leave_after:
                        break
                else:
                    code = await stream.code()
                    if code is not grpc.StatusCode.OK or tokens != 60:
                        errors.append(f"{code} after {tokens} tokens")
                    completed += 1
                    continue
                cancelled += stream.cancel()
            finally:
                stream.cancel()

    async def watch() -> None:
        while loop.time() - began < seconds:
            sample.append((loop.time() - began, rig.rss_mib(pid)))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client(i) for i in range(STREAMS)))
    for channel in channels:
        await channel.close()
    return completed, cancelled, errors


def test_streams_neither_fail_nor_leak() -> None:
    with rig.fake_service(8, fake={"base_s": 0.02}, pin=False) as service:
        assert service.router
        sample: list[tuple[float, float]] = []
        completed, cancelled, errors = asyncio.run(soak(service.grpc, SECONDS, sample, service.router.pid))
        assert errors == []
        settle = next(m for t, m in sample if t > SECONDS / 3)
        print(
            f"\n{SECONDS} s: {completed} complete, {cancelled} cancelled; RSS {settle:.1f} MiB after a third, "
            f"{sample[-1][1]:.1f} at the end; router counts {metric(service.http, 'penstock_router_requests_total'):.0f}"
        )
        assert completed > 0
        assert cancelled > 0
        assert metric(service.http, "penstock_router_requests_total", 'outcome="cancelled"') == cancelled
        if FULL:
            assert sample[-1][1] - settle <= 3
