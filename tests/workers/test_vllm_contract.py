"""Real vLLM engines keep the engine contract. Three engines, started once: one spawned, two forked."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from engine_contract import Bench, EngineContract, greedy, prompt, salt, seeded

from penstock_policy.cost.model import StepCost
from penstock_workers.engine.protocol import ContextSource
from penstock_workers.engine.vllm_args import VllmSettings
from penstock_workers.engine.vllm_engine import EngineGone, VllmEngine
from penstock_workers.pool.hang import InFlight, Limits, Measured
from penstock_workers.pool.watch import EngineWatch
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


def engine(start_method: str = "spawn", **args: Any) -> VllmEngine:
    return VllmEngine(
        VllmSettings(
            model_dir=str(MODEL_DIR),
            model_name="tiny",
            model_digest="d1" * 32,
            engine_args={"dtype": "float32", "max_model_len": 512, "max_num_batched_tokens": 256, **args},
            nixl_port=free_port(),
            start_method=start_method,
        )
    )


async def opened(start_method: str = "spawn", **args: Any) -> Bench:
    made = engine(start_method, **args)
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
    bench = await opened("fork", kv_cache_memory_bytes=16 << 20)
    yield bench
    await bench.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tight() -> AsyncIterator[Bench]:
    bench = await opened("fork", num_gpu_blocks_override=24, max_num_seqs=4)
    yield bench
    await bench.close()


def core_of(bench: Bench) -> psutil.Process:
    made = bench.engine
    assert isinstance(made, VllmEngine)
    (pid,) = made.core_pids
    return psutil.Process(pid)


class TestVllm(EngineContract):
    pass


async def test_the_first_word_to_a_stranger_frees_its_kv(second: Bench, tight: Bench) -> None:
    """`tight` never spoke with `second` before: its notice waits for their handshake."""
    await second.idle()
    busy = [tight.start(prompt(20, i), greedy(150), cache_salt=salt()) for i in range(tight.info.max_running)]
    p = await second.prefill(prompt(90), greedy(5), cache_salt=salt())
    assert p.kv is not None
    waiting = tight.start(prompt(90) + p.token_ids, greedy(5), emitted=1, kv_params=p.kv.params, cache_salt=salt())
    await asyncio.sleep(0.02)
    tight.engine.abort(waiting)
    for key in busy:
        tight.engine.abort(key)
    at = time.monotonic()
    await second.idle()
    print(f"freed after {time.monotonic() - at:.3f} s")
    assert time.monotonic() - at < 5, "not by the lease's end"


async def test_a_killed_engine_core_is_told_once_and_its_kv_is_computed_elsewhere(first: Bench, second: Bench) -> None:
    """The last use of `second`."""
    ids = prompt(80)
    whole = await first.run(ids, seeded(12), cache_salt=salt())
    p = await second.prefill(ids, seeded(12), cache_salt=salt())
    assert p.kv is not None
    key = second.start(prompt(20), greedy(400), cache_salt=salt())
    await second.tokens(key, 2)
    at = time.monotonic()
    core_of(second).kill()
    await second.sink.until(lambda: second.sink.dead)
    print(f"told after {time.monotonic() - at:.3f} s: {second.sink.dead}")
    late = second.start(prompt(20), greedy(4))
    await second.sink.until(lambda: second.sink.finished(late))
    assert second.sink.outputs[late][-1].fault == "worker"
    with pytest.raises(EngineGone):
        await second.engine.check()

    at = time.monotonic()
    d = await first.run(ids + p.token_ids, seeded(12), emitted=1, kv_params=p.kv.params, cache_salt=salt())
    print(f"computed instead of pulled after {time.monotonic() - at:.3f} s")
    assert p.token_ids + d.token_ids == whole.token_ids
    assert d.context == ContextSource(0, 0, 81)
    assert first.sink.transfers[-1].failed
    await first.idle()


async def test_a_stopped_engine_core_is_held_for_dead_and_leaves_nothing(tight: Bench) -> None:
    """The last use of `tight`, with the worker's own watch."""
    core, told = core_of(tight), asyncio.get_running_loop().create_future()
    known, busy = Measured(StepCost(1e-3, 1e-5, 1e-5, 0.0), 1000), InFlight(20, 1, 30)
    watch = EngineWatch(tight.engine, Limits(5.0, 60.0), work=lambda: busy, known=lambda: known, on_dead=told.set_result)
    watch.stepped(20)
    watch.start()
    await asyncio.sleep(1.5)
    assert not told.done(), "an idle engine answers"
    key = tight.start(prompt(20), greedy(400), cache_salt=salt())
    await tight.tokens(key, 2)
    assert not told.done(), "a busy one makes steps"
    watch.stepped(20)
    core.suspend()
    at = time.monotonic()
    assert "hangs" in await told
    print(f"held for dead after {time.monotonic() - at:.2f} s, limit 5 s")
    tight.engine.kill("it hangs")
    await watch.stop()
    await tight.close()
    assert not core.is_running()


async def test_close_leaves_no_process(first: Bench) -> None:
    """The last use of `first`."""
    core = core_of(first)
    await first.close()
    assert not core.is_running()
    assert first.sink.dead is None, "an engine that is closed has not died"
    await first.close()
