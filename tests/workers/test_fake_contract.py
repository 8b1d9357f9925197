"""The fake engine keeps the contract that vLLM keeps."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from engine_contract import Bench, EngineContract

from penstock_workers.config import FakeSettings
from penstock_workers.engine.fake import FakeEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _bench(model_dir: Path, **settings: object) -> AsyncIterator[Bench]:
    fake = FakeSettings.model_validate(
        {"base_s": 2e-4, "transfer_base_s": 1e-3, "max_model_len": 4096, "max_batched_tokens": 512} | settings
    )
    engine = FakeEngine(fake, str(model_dir))
    bench = Bench(engine, preemptions=lambda: engine.scheduler.preempted)
    await bench.open()
    yield bench
    await bench.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def first(worker_model_dir: Path) -> AsyncIterator[Bench]:
    async for bench in _bench(worker_model_dir):
        yield bench


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(worker_model_dir: Path) -> AsyncIterator[Bench]:
    async for bench in _bench(worker_model_dir):
        yield bench


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tight(worker_model_dir: Path) -> AsyncIterator[Bench]:
    async for bench in _bench(worker_model_dir, kv_blocks=24, max_running=4):
        yield bench


class TestFakeEngine(EngineContract):
    """Every clause of the contract."""
