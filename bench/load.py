"""Closed-loop load over gRPC: raw calls on a few channels, answers checked, nothing else.

Promise: the load generator parses as little as it can, so that it and the fake workers fit on one core.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest, GenerateResponse

GENERATE = "/penstock.v1.Inference/Generate"


@dataclass(frozen=True, slots=True)
class LoadResult:
    requests: int
    tokens: int
    messages: int
    errors: int
    wall_s: float
    ttft_s: tuple[float, ...]


def encode(prompt: str, max_tokens: int) -> bytes:
    return GenerateRequest(
        prompt=prompt, sampling=Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    ).SerializeToString()


async def closed_loop(
    address: str,
    request: Callable[[int], bytes],
    count: int,
    concurrency: int,
    *,
    count_tokens: bool = False,
    channels: int = 8,
) -> LoadResult:
    """Sends `count` requests, `concurrency` at a time."""
    options: Sequence[tuple[str, int]] = (
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", 64 << 20),
    )
    opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(channels)]
    calls = [c.unary_stream(GENERATE, request_serializer=None, response_deserializer=None) for c in opened]
    numbers = iter(range(count))
    tokens = messages = errors = 0
    ttft: list[float] = []

    async def client(call: grpc.aio.UnaryStreamMultiCallable) -> None:
        nonlocal tokens, messages, errors
        for i in numbers:
            began = time.perf_counter()
            stream = call(request(i))
            try:
                first = True
                while (data := await stream.read()) is not grpc.aio.EOF:
                    messages += 1
                    if first:
                        ttft.append(time.perf_counter() - began)
                        first = False
                    if count_tokens:
                        tokens += len(GenerateResponse.FromString(data).token_ids)
                if await stream.code() is not grpc.StatusCode.OK:
                    errors += 1
            except grpc.aio.AioRpcError:
                errors += 1
            finally:
                stream.cancel()

    began = time.perf_counter()
    await asyncio.gather(*(client(calls[i % channels]) for i in range(concurrency)))
    wall = time.perf_counter() - began
    for channel in opened:
        await channel.close()
    return LoadResult(count, tokens, messages, errors, wall, tuple(ttft))
