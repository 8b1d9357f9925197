"""Real vLLM engines keep the engine contract. Three engines, started once."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from engine_contract import Bench, EngineContract

from penstock_workers.engine.vllm_args import VllmSettings
from penstock_workers.engine.vllm_engine import VllmEngine
from penstock_workers.tiny import MODEL_DIR

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.engine,
    pytest.mark.slow,
    # vLLM, torch and their dependencies warn at import.
    pytest.mark.filterwarnings("default"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def engine(**args: Any) -> VllmEngine:
    return VllmEngine(
        VllmSettings(
            model_dir=str(MODEL_DIR),
            model_name="tiny",
            model_digest="d1" * 32,
            engine_args={"dtype": "float32", "max_model_len": 512, "max_num_batched_tokens": 256, **args},
            nixl_port=free_port(),
        )
    )


async def opened(**args: Any) -> Bench:
    made = engine(**args)
    bench = Bench(made, preemptions=lambda: made.preemptions)
    await bench.open()
    return bench


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def first() -> AsyncIterator[Bench]:
    bench = await opened(kv_cache_memory_bytes=16 << 20)
    yield bench
    await bench.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second() -> AsyncIterator[Bench]:
    bench = await opened(kv_cache_memory_bytes=16 << 20)
    yield bench
    await bench.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tight() -> AsyncIterator[Bench]:
    bench = await opened(num_gpu_blocks_override=24, max_num_seqs=4)
    yield bench
    await bench.close()


class TestVllm(EngineContract):
    pass
