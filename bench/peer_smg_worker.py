"""Mock workers of smg's `vllm.grpc.engine.VllmEngine`: 16 in one process, each with a KV cache that it reports.

Runs in the peers' environment (`peer_smg.py` starts it), with one JSON argument. Promise: a worker stores and evicts blocks as
Penstock's fake worker does (same block size, same capacity), reports them in batches at the same interval, and every answer
carries the token counts it saw; what all of them counted is told to whoever connects to `counters_port`.
"""

import asyncio
import json
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2  # type: ignore[import-not-found]

SERVICE = "vllm.grpc.engine.VllmEngine"
LOAD_TICK_S = 0.1  # as smg's own servicer: a changed load goes out within this time though no block changed
HEARTBEAT_S = 1.0
COUNTERS = {"requests": 0, "prompt_tokens": 0, "cached_tokens": 0, "blocks_stored": 0, "blocks_removed": 0, "batches": 0}


class Cache:
    """Complete blocks, least recently used first; a block's hash is its identity and names its whole prefix."""

    def __init__(self, block_size: int, blocks: int) -> None:
        self.block_size, self.blocks = block_size, blocks
        self._held: OrderedDict[int, None] = OrderedDict()
        self.events: list[Any] = []

    def add(self, ids: list[int]) -> int:
        """Stores a prompt; how many of its tokens were there, at least one is computed anew."""
        size, held = self.block_size, self._held
        data, wide = array("I", ids).tobytes(), 4 * size
        chain, parent = [], 0
        for start in range(0, len(data) - wide + 1, wide):
            parent = hash((parent, data[start : start + wide]))
            chain.append(parent)
        seen = next((i for i, key in enumerate(chain) if key not in held), len(chain))
        if seen < len(chain):
            self._store(chain, seen, ids)
        for key in reversed(chain):  # the end of a prompt is evicted before its start
            held[key] = None
            held.move_to_end(key)
        self._evict()
        return min(seen * size, len(ids) - 1)

    def _store(self, chain: list[int], first: int, ids: list[int]) -> None:
        size = self.block_size
        stored = common_pb2.KvBlocksStored(
            blocks=[
                common_pb2.KvBlock(block_hash=chain[i], token_ids=ids[i * size : (i + 1) * size], block_size=size)
                for i in range(first, len(chain))
            ]
        )
        if first:
            stored.parent_block_hash = chain[first - 1]
        COUNTERS["blocks_stored"] += len(chain) - first
        self.events.append(common_pb2.KvCacheEvent(stored=stored))

    def _evict(self) -> None:
        gone = []
        while len(self._held) > self.blocks:
            gone.append(self._held.popitem(last=False)[0])
        if gone:
            COUNTERS["blocks_removed"] += len(gone)
            self.events.append(common_pb2.KvCacheEvent(removed=common_pb2.KvBlocksRemoved(block_hashes=gone)))


class Tick:
    """The step that all streams of all workers share."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        await self._next

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._every_s, loop.time())
            await asyncio.sleep(due - loop.time())
            current, self._next = self._next, loop.create_future()
            current.set_result(None)


class Worker:
    def __init__(self, config: dict[str, Any], tick: Tick) -> None:
        self._config, self._tick = config, tick
        self._cache = Cache(config["block_size"], config["kv_blocks"])
        self._voice: list[int] = config["token_ids"]
        self._running = 0
        self._event_id = self._sequence = 0

    async def generate(self, request: Any, context: Any) -> None:
        ids = list(request.tokenized.input_ids)
        length = request.sampling_params.max_tokens or 1
        self._running += 1
        try:
            cached = self._cache.add(ids)
            COUNTERS["requests"] += 1
            COUNTERS["prompt_tokens"] += len(ids)
            COUNTERS["cached_tokens"] += cached
            if request.stream:
                await self._stream(context, len(ids), cached, length)
            answer = vllm_engine_pb2.GenerateComplete(
                output_ids=[self._voice[i % len(self._voice)] for i in range(length)],
                finish_reason="length", prompt_tokens=len(ids), completion_tokens=length, cached_tokens=cached,
            )  # fmt: skip
            await context.write(vllm_engine_pb2.GenerateResponse(complete=answer))
        finally:
            self._running -= 1

    async def _stream(self, context: Any, prompt: int, cached: int, length: int) -> None:
        for i in range(length):
            await self._tick.wait()
            chunk = vllm_engine_pb2.GenerateStreamChunk(
                token_ids=[self._voice[i % len(self._voice)]], prompt_tokens=prompt, completion_tokens=i + 1, cached_tokens=cached
            )
            await context.write(vllm_engine_pb2.GenerateResponse(chunk=chunk))

    def _load(self, sample: int, load_only: bool) -> Any:
        return common_pb2.EngineLoad(
            running_requests=self._running, waiting_requests=0, token_usage=0.1, max_running_requests=256,
            sample=sample, load_only=load_only,
        )  # fmt: skip

    async def kv_events(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """One subscriber at a time: the router."""
        del request
        await context.send_initial_metadata(())
        sample, told, told_at = 0, -1, 0.0
        while True:
            await asyncio.sleep(self._config["kv_every_s"])
            now, events = time.monotonic(), self._cache.events
            quiet = HEARTBEAT_S if told == self._running else LOAD_TICK_S
            if not events and now - told_at < quiet:
                continue
            if events:
                self._cache.events = []
                self._sequence += 1
                COUNTERS["batches"] += 1
                for event in events:
                    self._event_id += 1
                    event.event_id = self._event_id
            sample, told, told_at = sample + 1, self._running, now
            yield common_pb2.KvEventBatch(
                sequence_number=self._sequence, timestamp=time.time(), events=events, load=self._load(sample, not events)
            )

    async def health(self, request: Any, context: Any) -> Any:
        return vllm_engine_pb2.HealthCheckResponse(healthy=True, message="ok")

    async def model_info(self, request: Any, context: Any) -> Any:
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=self._config["model_dir"], tokenizer_path=self._config["model_dir"], served_model_name="tiny",
            is_generation=True, max_context_length=131072, max_req_input_len=131072, vocab_size=2048, model_type="llama",
            architectures=["LlamaForCausalLM"], eos_token_ids=[2],
        )  # fmt: skip

    async def server_info(self, request: Any, context: Any) -> Any:
        return vllm_engine_pb2.GetServerInfoResponse(
            server_type="vllm-grpc", data_parallel_size=1, block_size=self._config["block_size"], active_requests=self._running
        )

    async def loads(self, request: Any, context: Any) -> Any:
        one = vllm_engine_pb2.SchedulerLoad(num_running_reqs=self._running, token_usage=0.1, max_running_requests=256)
        return vllm_engine_pb2.GetLoadsResponse(dp_rank_count=1, loads=[one])

    async def abort(self, request: Any, context: Any) -> Any:
        return vllm_engine_pb2.AbortResponse()

    def handlers(self) -> Any:
        pb = vllm_engine_pb2
        unary = {
            "HealthCheck": (self.health, pb.HealthCheckRequest), "GetModelInfo": (self.model_info, pb.GetModelInfoRequest),
            "GetServerInfo": (self.server_info, pb.GetServerInfoRequest), "GetLoads": (self.loads, pb.GetLoadsRequest),
            "Abort": (self.abort, pb.AbortRequest),
        }  # fmt: skip
        streams = {
            "Generate": (self.generate, pb.GenerateRequest),
            "SubscribeKvEvents": (self.kv_events, common_pb2.SubscribeKvEventsRequest),
        }
        out = lambda message: message.SerializeToString()  # noqa: E731
        table = {n: grpc.unary_unary_rpc_method_handler(f, m.FromString, out) for n, (f, m) in unary.items()}
        table |= {n: grpc.unary_stream_rpc_method_handler(f, m.FromString, out) for n, (f, m) in streams.items()}
        return grpc.method_handlers_generic_handler(SERVICE, table)


async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(json.dumps(COUNTERS).encode())
    await writer.drain()
    writer.close()


async def main() -> None:
    config = json.loads(sys.argv[1])
    tick = Tick(config["step_s"])
    servers = []
    for port in config["ports"]:
        server = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)))
        server.add_generic_rpc_handlers((Worker(config, tick).handlers(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        servers.append(server)
    await asyncio.start_server(_tell, "127.0.0.1", config["counters_port"])
    await tick.run()


if __name__ == "__main__":
    asyncio.run(main())
